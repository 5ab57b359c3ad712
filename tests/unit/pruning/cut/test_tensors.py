"""Loading what was shrunk: shapes from a state dict, integers that modules keep, and files that do not fit."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pruning.cut.load import extras_of, load_pruned, resize_like
from pruning.errors import UsageError
from pruning.graph.graph import DependencyGraph
from tests.support.zoo import NETWORKS
from tests.support.zoo.plain import plain
from tests.support.zoo.registry import call

# `weight_norm_of_old` keeps its product as an attribute that deepcopy refuses.
LOADABLE = [name for name in NETWORKS if name != "weight_norm_of_old"]


def shrunken(name: str) -> tuple[nn.Module, object]:
    torch.manual_seed(0)
    case = NETWORKS[name]
    model, inputs = case.build().double().eval(), case.inputs()
    graph = DependencyGraph(model, inputs)
    nodes = np.concatenate([[], *(group.nodes[1::2] for group in graph.groups)])
    if len(nodes):
        graph.plan(nodes).exec()
    return model, inputs


@pytest.mark.parametrize("name", LOADABLE)
def test_saved_and_loaded_computes_the_same(name: str, tmp_path: Path) -> None:
    model, inputs = shrunken(name)
    torch.save({"state_dict": model.state_dict(), "extras": extras_of(model)}, tmp_path / "small.pt")
    fresh = NETWORKS[name].build().double().eval()
    loaded = load_pruned(fresh, tmp_path / "small.pt")
    assert loaded is fresh
    assert [parameter.shape for parameter in fresh.parameters()] == [
        parameter.shape for parameter in model.parameters()
    ]
    for got, wanted in zip(call(fresh, inputs), call(model, inputs), strict=True):
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("name", ["plain", "Dense", "depthwise", "grouped", "instance_norm", "Recurrent"])
def test_a_bare_state_dict_is_enough(name: str) -> None:
    model, inputs = shrunken(name)
    fresh = load_pruned(NETWORKS[name].build().double().eval(), model.state_dict())
    for got, wanted in zip(call(fresh, inputs), call(model, inputs), strict=True):
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("name", ["CellByHand", "Res2", "WaveNet", "GroupedQuery", "square_splines"])
def test_integers_of_the_code_follow_from_shapes_where_the_code_can_be_run(name: str) -> None:
    model, inputs = shrunken(name)
    with pytest.raises(UsageError, match="give load_pruned example_inputs"):
        load_pruned(NETWORKS[name].build().double().eval(), model.state_dict())
    fresh = load_pruned(NETWORKS[name].build().double().eval(), model.state_dict(), inputs)
    for got, wanted in zip(call(fresh, inputs), call(model, inputs), strict=True):
        assert torch.equal(got, wanted)


@pytest.mark.parametrize(
    ("name", "why"),
    [("encoder", "heads of 4 or 6"), ("SeveralHeads", "heads of"), ("Gated", "lost along"), ("Rotary", "cos was cut")],
)
def test_what_shapes_leave_open_is_refused(name: str, why: str) -> None:
    model, inputs = shrunken(name)
    fresh = NETWORKS[name].build().double().eval()
    before = copy.deepcopy(fresh.state_dict())
    with pytest.raises(UsageError, match=f"{why}.*save extras_of"):
        load_pruned(fresh, model.state_dict(), inputs)
    assert all(torch.equal(before[key], tensor) for key, tensor in fresh.state_dict().items())


def test_resize_keeps_parameters_and_can_be_trained() -> None:
    model, _ = shrunken("plain")
    fresh = plain().double()
    identities = [id(parameter) for parameter in fresh.parameters()]
    resize_like(fresh, model.state_dict())
    assert identities == [id(parameter) for parameter in fresh.parameters()]
    assert fresh[0][0].out_channels == fresh[1][0].in_channels == 3
    assert extras_of(fresh)["0.0"]["out_channels"] == 3


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"0.0.weight": torch.zeros(2)},
        {**plain().state_dict(), "more": torch.zeros(1)},
        {**plain().state_dict(), "0.0.weight": torch.zeros(9, 3, 3, 3)},
        {**plain().state_dict(), "0.0.weight": torch.zeros(6, 3)},
    ],
)
def test_what_does_not_fit_changes_nothing(state: dict[str, torch.Tensor]) -> None:
    model = plain()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(UsageError):
        load_pruned(model, state)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_missing_file() -> None:
    with pytest.raises(UsageError, match="no file"):
        load_pruned(plain(), "nowhere.pt")


def test_lost_groups_of_a_convolution_need_more_than_shapes() -> None:
    def dense() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=4), nn.Conv2d(8, 2, 1)).double().eval()

    model, x = dense(), torch.randn(2, 3, 5, 5, dtype=torch.float64)
    for _ in range(2):  # the first cut leaves one channel in each group, so that the second takes whole groups
        graph = DependencyGraph(model, x)
        graph.plan([node for group in graph.groups for node in group.nodes[: len(group.nodes) // 2]]).exec()
    assert model[1].groups == 2
    with pytest.raises(UsageError, match="whole groups of a convolution went"):
        load_pruned(dense(), model.state_dict())
    loaded = load_pruned(dense(), {"state_dict": model.state_dict(), "extras": extras_of(model)})
    assert torch.equal(loaded(x), model(x))


def test_the_width_of_a_head_is_left_where_the_heads_kept_theirs() -> None:
    class Heads(nn.Module):
        """As wide in all its heads as in its stream, which alone shrinks."""

        def __init__(self) -> None:
            super().__init__()
            self.stem, self.q, self.head_dim, self.n_heads = nn.Linear(3, 8), nn.Linear(8, 8), 2, 4
            self.last = nn.Linear(8, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last((self.q(self.stem(x)).view(len(x), 4, self.head_dim) * torch.ones(4, 2)).flatten(1))

    model, x = Heads(), torch.randn(2, 3)
    graph = DependencyGraph(model, x)
    graph.plan(graph.nodes_along("q.weight", 1)[:4]).exec()
    loaded = load_pruned(Heads(), model.state_dict(), x)
    assert loaded.head_dim == 2 and torch.equal(loaded(x), model(x))


@pytest.mark.parametrize(
    ("dims", "layout"), [(2, torch.channels_last), (3, torch.channels_last_3d)], ids=["pictures", "volumes"]
)
def test_a_cut_keeps_the_memory_format(dims: int, layout: torch.memory_format) -> None:
    conv = nn.Conv2d if dims == 2 else nn.Conv3d
    model = nn.Sequential(conv(3, 6, 3), nn.ReLU(), conv(6, 6, 1), nn.ReLU(), conv(6, 4, 3)).to(memory_format=layout)
    inputs = torch.randn(2, 3, *[8] * dims).to(memory_format=layout)
    optimizer = torch.optim.Adam(model.parameters())
    model(inputs).sum().backward()
    optimizer.step()
    dense = copy.deepcopy(model)
    graph = DependencyGraph(model, inputs)
    graph.get_pruning_plan(model[0], idxs=[1, 2]).exec(optimizer)
    graph.get_pruning_plan(model[2], idxs=[0]).exec(optimizer)
    loaded = load_pruned(dense, model.state_dict())
    for layer in (model[0], model[2], model[4], loaded[0], loaded[2], loaded[4]):
        # Strides, because `is_contiguous` says yes to every format for 1x1 kernels.
        wanted = torch.empty(layer.weight.shape, memory_format=layout).stride()
        held = [layer.weight]
        if layer is model[0] or layer is model[4]:
            held += [layer.weight.grad, *(optimizer.state[layer.weight][key] for key in ("exp_avg", "exp_avg_sq"))]
        assert [tensor.stride() for tensor in held] == [wanted] * len(held)


def test_a_cut_leaves_the_usual_memory_format() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 1))
    DependencyGraph(model, torch.randn(1, 3, 8, 8)).get_pruning_plan(model[0], idxs=[1]).exec()
    assert [layer.weight.stride() for layer in model] == [(27, 9, 3, 1), (5, 1, 1, 1)]


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
@pytest.mark.parametrize("around", ["", "model", "state_dict"])
def test_what_wrappers_put_before_names_is_taken_off(prefix: str, around: str, tmp_path: Path) -> None:
    model, inputs = shrunken("plain")
    state = {prefix + name: value for name, value in model.state_dict().items()}
    if prefix == "module.":
        state["n_averaged"] = torch.tensor(3)  # of an AveragedModel
    torch.save({around: state, "epoch": 3} if around else state, tmp_path / "small.pt")
    fresh = load_pruned(NETWORKS["plain"].build().double().eval(), tmp_path / "small.pt")
    for got, wanted in zip(call(fresh, inputs), call(model, inputs), strict=True):
        assert torch.equal(got, wanted)


def test_a_prefix_of_the_network_itself_stays() -> None:
    model = nn.DataParallel(nn.Linear(3, 2))
    wanted = {name: torch.randn_like(value) for name, value in model.state_dict().items()}
    load_pruned(model, wanted)
    assert torch.equal(model.module.weight, wanted["module.weight"])
