"""What a graph says: nodes, groups, pins, look-ups, scores, pictures, and what it refuses."""

from __future__ import annotations

import gc
import random
import re
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as functional
import torchvision
from torch import Tensor, nn

from pruning import PrunableNetwork
from pruning.errors import UsageError
from pruning.graph.graph import DependencyGraph
from pruning.graph.marks import keep, tie
from pruning.trace.rules.table import RULES, register_rule
from tests.support.zoo import NETWORKS
from tests.support.zoo.joins import Residual
from tests.support.zoo.plain import plain
from tests.support.zoo.sequences import Attention


def graph_of(name: str) -> DependencyGraph:
    torch.manual_seed(0)
    case = NETWORKS[name]
    return DependencyGraph(case.build().double(), case.inputs())


def test_nodes_of_a_plain_network() -> None:
    graph = graph_of("plain")
    assert len(graph.nodes) == 14
    node = graph.nodes[2]
    assert node.producers == {("0.0.weight", 0): [2], ("0.0.bias", 0): [2]}
    assert node.consumers == {("1.0.weight", 1): [2]}
    assert set(node.norms) == {(f"0.1.{name}", 0) for name in ("weight", "bias", "running_mean", "running_var")}
    assert node.inexact == ""
    assert [len(group.nodes) for group in graph.groups] == [6, 8]
    assert graph.nodes[-1].index == 13 and len(graph.nodes[3:5]) == 2
    with pytest.raises(IndexError):
        graph.nodes[14]


def test_residual_producers_share_nodes() -> None:
    graph = graph_of("Residual")
    node = graph.nodes[graph.node_of("stem.0.weight", 0, 4)]
    assert {name for name, _ in node.producers} >= {"stem.0.weight", "two.0.weight", "last.weight", "last.bias"}
    assert {name for name, _ in node.consumers} == {"one.0.weight", "head.fc.weight"}


def test_pins_name_their_reason() -> None:
    graph = graph_of("RollsChannels")
    reasons = {pin.reason: pin for pin in graph.pinned}
    assert any("roll" in reason for reason in reasons)
    assert any("sort along it" in reason for reason in reasons)
    output = next(pin for pin in graph.pinned if "output" in pin.reason)
    assert output.slices == {("out.weight", 0): 4, ("out.bias", 0): 4}
    assert all(str(pin).endswith(")") for pin in graph.pinned)


def test_pins_name_operation_and_module() -> None:
    class Sorted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sort(1)[0]

    model = nn.Sequential(nn.Linear(4, 6), Sorted(), nn.Linear(6, 2))
    pin = next(pin for pin in DependencyGraph(model, torch.randn(2, 4)).pinned if "sort" in pin.reason)
    assert (pin.operation, pin.module) == ("aten.sort", "1")


def test_look_ups() -> None:
    graph = graph_of("plain")
    assert graph.node_of("0.0.weight", 0, 5) == 5
    assert graph.node_of("1.0.weight", 1, 5) == 5
    assert graph.node_of("0.0.weight", 1, 0) is None
    assert graph.nodes_along("2.fc.weight", 0).tolist() == [-1] * 4
    with pytest.raises(UsageError, match="no parameter"):
        graph.node_of("nothing.weight", 0, 0)
    with pytest.raises(UsageError, match="6 indices"):
        graph.node_of("0.0.weight", 0, 6)


def test_reduce_to_nodes_equals_a_loop() -> None:
    graph = graph_of("Residual")
    values = {name: torch.randn_like(parameter) for name, parameter in graph.model.named_parameters()}
    for role, pick in (("producer", "producers"), ("consumer", "consumers"), ("norm", "norms"), ("all", "slices")):
        for reduce in ("sum", "mean", "max"):
            got = graph.reduce_to_nodes(values, role=role, reduce=reduce)
            for node in graph.nodes:
                parts = [values[name].select(dim, index).flatten() for (name, dim), found in getattr(node, pick).items()
                         if name in values for index in found]  # fmt: skip
                flat = torch.cat(parts) if parts else torch.zeros(1, dtype=torch.float64)
                wanted = {"sum": flat.sum(), "mean": flat.mean(), "max": flat.max()}[reduce]
                torch.testing.assert_close(got[node.index], wanted)


def test_gate_gradients_equal_summed_products() -> None:
    """SNAP: a gate's gradient on a channel is the sum of weight times gradient over the slices that make it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Conv2d(5, 4, 3), nn.Flatten(), nn.Linear(64, 3)).double()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    gate = torch.ones(1, 5, 1, 1, dtype=torch.float64, requires_grad=True)
    model[1:](model[0](x) * gate).square().sum().backward()
    graph = DependencyGraph(model, x)
    products = {name: parameter.detach() * parameter.grad for name, parameter in model.named_parameters()
                if not name.startswith("0")}  # fmt: skip
    model.zero_grad()
    model(x).square().sum().backward()
    products |= {name: parameter.detach() * parameter.grad for name, parameter in model[0].named_parameters(prefix="0")}
    torch.testing.assert_close(graph.reduce_to_nodes(products)[:5], gate.grad.flatten())


@pytest.mark.parametrize("arguments", [{"role": "maker"}, {"reduce": "median"}])
def test_reduce_refuses(arguments: dict[str, str]) -> None:
    graph = graph_of("plain")
    with pytest.raises(UsageError):
        graph.reduce_to_nodes({}, **arguments)
    with pytest.raises(UsageError, match="no parameter"):
        graph.reduce_to_nodes({"0.0.weight": torch.zeros(3)})


@pytest.mark.parametrize(
    "name", ["plain", "KeepsFeatures", "Recurrent", "DependsOnData", "spectral_norm", "AuxiliaryHead"]
)
def test_the_network_is_left_alone(name: str) -> None:
    case = NETWORKS[name]
    model, inputs = case.build().double(), case.inputs()
    model.eval()
    next(iter(model.modules())).train()  # a mixture of modes
    modes = [module.training for module in model.modules()]
    attributes = {path: set(vars(module)) for path, module in model.named_modules()}
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    identities = [id(parameter) for parameter in model.parameters()]
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    DependencyGraph(model, inputs)
    assert modes == [module.training for module in model.modules()]
    assert attributes == {path: set(vars(module)) for path, module in model.named_modules()}
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert identities == [id(parameter) for parameter in model.parameters()]
    assert torch.equal(states[0], torch.get_rng_state()) and states[1] == random.getstate()
    assert states[2] == np.random.get_state()[1].tolist()
    assert getattr(model, "features", None) is None


def test_keep_and_tie() -> None:
    model = plain()
    keep(model[0][0])
    graph = DependencyGraph(model, torch.randn(1, 3, 8, 8))
    assert len(graph.nodes) == 8 and any(pin.operation == "keep" for pin in graph.pinned)
    graph.keep(model[1])
    assert len(graph.nodes) == 0

    class TwoTowers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.ends = (
                nn.Linear(3, 6),
                nn.Linear(3, 6),
                nn.ModuleList([nn.Linear(6, 2), nn.Linear(6, 2)]),
            )

        def forward(self, x: Tensor) -> Tensor:
            return self.ends[0](self.one(x).relu()) + self.ends[1](self.two(x).relu())

    towers = TwoTowers()
    graph = DependencyGraph(towers, torch.randn(1, 3))
    assert len(graph.nodes) == 12
    graph.tie(towers.one, towers.two)
    assert len(graph.nodes) == 6
    tie(towers.one, towers.two)
    assert len(DependencyGraph(towers, torch.randn(1, 3)).nodes) == 6
    with pytest.raises(UsageError, match="as many channels"):
        graph.tie(towers.one, towers.ends[0])
    with pytest.raises(UsageError, match="not a module"):
        graph.keep(nn.Linear(2, 2))


def test_own_operation_and_its_rule() -> None:
    library = torch.library.Library("espalier_test", "DEF")
    library.define("scale_rows(Tensor x, Tensor weight) -> Tensor")
    library.impl("scale_rows", lambda x, weight: x * weight, "CompositeExplicitAutograd")

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.weight, self.two = nn.Linear(3, 6), nn.Parameter(torch.randn(6)), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.two(torch.ops.espalier_test.scale_rows(self.one(x), self.weight))

    graph = DependencyGraph(Scaled(), torch.randn(2, 3))
    assert len(graph.nodes) == 0
    assert any("no rule for espalier_test.scale_rows" in pin.reason for pin in graph.pinned)

    def rule(call):
        x, weight = call.axes("x"), call.axes("weight")
        call.trace.tie(x[-1], weight[0])
        return x

    register_rule(torch.ops.espalier_test.scale_rows, rule)
    try:
        assert len(DependencyGraph(Scaled(), torch.randn(2, 3)).nodes) == 6
    finally:
        del RULES["espalier_test.scale_rows"]
    with pytest.raises(UsageError):
        register_rule("no operation", rule)


@pytest.mark.parametrize(
    ("model", "inputs"),
    [
        (nn.Linear(3, 2), None),
        (nn.Linear(3, 2), torch.randn(2, 5)),
        (nn.ReLU(), torch.randn(2, 5)),
        (nn.LazyLinear(3), torch.randn(2, 5)),
        (torch.jit.script(nn.Linear(3, 2)), torch.randn(2, 3)),
    ],
)
def test_refuses_what_it_cannot_run(model: nn.Module, inputs: Tensor | None) -> None:
    with pytest.raises(UsageError) as told:
        DependencyGraph(model, inputs)
    assert "\n" not in str(told.value)


def test_inputs_by_other_names() -> None:
    model = nn.Sequential(nn.Linear(3, 6), nn.Linear(6, 2))
    x = torch.randn(2, 3)
    counts = [len(DependencyGraph(model, given).nodes) for given in (x, (x,), [x], {"input": x})]
    assert counts == [6, 6, 6, 6] == [len(DependencyGraph(model, fake_input=x).nodes)] * 4


def test_heads_stay_and_their_width_shrinks() -> None:
    graph = DependencyGraph(Attention(8, 2, 6).double(), torch.randn(2, 5, 8, dtype=torch.float64))
    assert len(graph.nodes) == 6
    assert len(graph.nodes[0].slices["qkv.weight", 0]) == 6  # two heads, three parts


def test_inexact_is_flagged_with_its_reason() -> None:
    graph = graph_of("LinearAttention")
    assert "sum of products" in graph.nodes[graph.node_of("query.weight", 0, 0)].inexact
    graph = graph_of("RmsNorm")
    assert graph.nodes[graph.node_of("one.weight", 0, 0)].inexact
    assert not graph.nodes[graph.node_of("up.weight", 0, 0)].inexact


def test_pictures(tmp_path: Path) -> None:
    graph = graph_of("Residual")
    network = graph.to_networkx()
    assert network.has_edge("stem.0", "one.0") and network.has_edge("last", "head.fc")
    assert network.nodes["one.0"]["kind"] == "Conv2d" and network.nodes["one.0"]["produces"]
    graph.draw(tmp_path / "graph.svg")
    root = ElementTree.parse(tmp_path / "graph.svg").getroot()
    texts = [element.text for element in root.iter() if element.tag.endswith("text")]
    assert "stem.0" in texts and "stem.1" not in texts, "letters can be searched; norms follow their layer"
    graph.draw(tmp_path / "graph.png")
    assert (tmp_path / "graph.png").read_bytes().startswith(b"\x89PNG")
    graph.draw(tmp_path / "graph.txt")
    assert "made by stem.0.weight[0]" in (tmp_path / "graph.txt").read_text()
    with pytest.raises(UsageError, match="svg"):
        graph.draw(tmp_path / "graph.jpg")
    assert not (tmp_path / "graph.jpg").exists()


def test_mermaid_has_a_box_per_layer_and_an_arrow_per_edge(tmp_path: Path) -> None:
    graph = graph_of("Residual")
    edges = graph.to_networkx().edges
    graph.draw(tmp_path / "graph.mmd")
    lines = (tmp_path / "graph.mmd").read_text().splitlines()
    assert lines[0] == "flowchart TD"
    boxes = dict(re.findall(r'^ +(layer\d+)\["(.+?)<br>', "\n".join(lines), re.MULTILINE))
    arrows = re.findall(r"^ +(layer\d+) -->\|(\d+)\| (layer\d+)$", "\n".join(lines), re.MULTILINE)
    drawn = {(boxes[start], boxes[end]): int(channels) for start, channels, end in arrows}
    assert drawn == {(start, end): data["channels"] for start, end, data in edges(data=True)}
    graph.draw(tmp_path / "graph.md")
    assert (tmp_path / "graph.md").read_text().splitlines() == ["```mermaid", *lines, "```"]


def test_without_matplotlib_a_picture_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = graph_of("plain")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UsageError, match="pip install matplotlib"):
        graph.draw(tmp_path / "graph.svg")
    graph.draw(tmp_path / "graph.md")


def test_two_graphs_share_nothing() -> None:
    model = Residual().double()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    one, other = DependencyGraph(model, x), DependencyGraph(model, x)
    one.plan([0]).exec()
    with pytest.raises(UsageError, match="changed"):
        other.plan([0])


def test_resnet18_has_its_nodes() -> None:
    graph = DependencyGraph(torchvision.models.resnet18(), torch.randn(1, 3, 64, 64))
    assert len(graph.nodes) == 64 * 3 + 128 * 3 + 256 * 3 + 512 * 3 == 2880
    assert not graph.inexact.any()


def test_a_batch_of_one_is_doubled_for_training() -> None:
    model = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Linear(6, 2))
    graph = DependencyGraph(model, torch.randn(1, 3))
    assert len(graph.nodes) == 6 and not graph.traced.notes


class Noisy(nn.Module):
    """Differs between its modes: by dropped channels and paths alone, or by an auxiliary head as well."""

    def __init__(self, auxiliary: bool) -> None:
        super().__init__()
        self.body, self.drop, self.head = nn.Linear(4, 6), nn.Dropout(0.2), nn.Linear(6, 3)
        self.extra = nn.Linear(6, 3) if auxiliary else None

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.drop(self.body(x))
        if self.training:
            hidden = hidden * torch.empty(len(x), 1, device=x.device).bernoulli_(0.5).div_(0.5)
        hidden = functional.dropout1d(hidden, 0.3, self.training)
        aside = self.extra(hidden) if self.training and self.extra is not None else 0
        return self.head(hidden) + aside


def test_training_is_rehearsed_only_where_it_does_something_else() -> None:
    alike, different = (DependencyGraph(Noisy(auxiliary), torch.randn(1, 4)) for auxiliary in (False, True))
    assert set(alike.traced.runs) == {False} and set(different.traced.runs) == {False, True}
    assert [len(graph.nodes) for graph in (alike, different)] == [6, 6]
    assert ("extra.weight", 1) in different.nodes[0].consumers


@pytest.mark.parametrize("enabled", [True, False])
def test_garbage_is_collected_as_before(enabled: bool) -> None:
    before = gc.isenabled()
    try:
        gc.enable() if enabled else gc.disable()
        graph_of("plain").plan([0])
        assert gc.isenabled() == enabled
        with pytest.raises(UsageError):
            DependencyGraph(nn.Linear(3, 2), torch.randn(1, 7))
        assert gc.isenabled() == enabled
    finally:
        gc.enable() if before else gc.disable()


def test_wrappers_for_several_processes_are_refused(tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        with pytest.raises(UsageError, match=r"give its \.module"):
            DependencyGraph(nn.parallel.DistributedDataParallel(nn.Linear(3, 2)), torch.randn(2, 3))
    finally:
        torch.distributed.destroy_process_group()


def test_a_rule_that_fails_costs_coverage_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RULES, "aten.tanh", lambda call: call["nothing"])
    graph = DependencyGraph(nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)), torch.randn(2, 3))
    assert not len(graph.nodes)
    assert any("the rule for aten.tanh does not take this call (KeyError: 'nothing')" in str(p) for p in graph.pinned)


class HooksAtTheFirstCall(nn.Module):
    """Puts a hook on a layer when it is first called, as transformers does to capture outputs."""

    recorded: ClassVar[list[torch.Tensor]] = []  # in no module: what a module keeps would have to stay

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.out, self.is_ready = nn.Linear(4, 8), nn.Linear(16, 2), False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.is_ready:
            self.inner.register_forward_hook(lambda module, inputs, output: self.recorded.append(output))
            self.is_ready = True
        self.recorded.clear()
        hidden = self.inner(x)
        return self.out(torch.cat([hidden, *self.recorded], -1))


@pytest.mark.parametrize("look_at", [DependencyGraph, PrunableNetwork])
def test_hooks_that_code_installs_at_its_first_call_go_with_the_flag_that_says_so(look_at) -> None:
    model, called_before, x = HooksAtTheFirstCall(), HooksAtTheFirstCall(), torch.randn(1, 4)
    called_before(x)
    look_at(model, x)
    assert not model.inner._forward_hooks and not model.is_ready
    assert model(x).shape == (1, 2) and len(model.recorded) == 1
    graphs = [DependencyGraph(network, x) for network in (HooksAtTheFirstCall(), called_before)]
    assert len(graphs[0].nodes) == len(graphs[1].nodes) == 8
