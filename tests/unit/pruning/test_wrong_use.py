"""Mistakes in the use of the library: one line each, which says what was given and what fits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from criterions.Magnitude import Magnitude
from criterions.SNAP import SNAP
from pruning import (
    DependencyGraph,
    NodeCriterion,
    NodeRules,
    PrunableNetwork,
    UsageError,
    WeightCriterion,
    extras_of,
    load_pruned,
    prune_linear,
)
from pruning.export import export
from pruning.measure.flops import flops_by_module

EXAMPLE = torch.randn(2, 4)


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


def network() -> PrunableNetwork:
    return PrunableNetwork(model(), EXAMPLE)


def plan(**asked: object) -> object:
    one = model()
    return DependencyGraph(one, EXAMPLE).get_pruning_plan(one[0], **asked)


class ListOfNodes(NodeCriterion):
    needs_data = False

    def node_scores(self, network: PrunableNetwork, batches: object) -> Tensor:
        return [1.0] * len(network.graph.nodes)


class OneTensor(WeightCriterion):
    needs_data = False

    def weight_scores(self, network: PrunableNetwork, batches: object) -> dict[str, Tensor]:
        return torch.ones(3)


MISTAKES: list[tuple[Callable[[], object], str]] = [
    (lambda: network().prune(Magnitude(), sparsity="0.5"), r"must lie in \[0, 1\).*'0.5'"),
    (lambda: network().prune(SNAP, sparsity=0.5), "criterion object is needed, such as SNIP"),
    (lambda: network().prune("SNAP", sparsity=0.5), "criterion object is needed.*'SNAP'"),
    (lambda: network().prune(ListOfNodes(), sparsity=0.5), "node scores as a list"),
    (lambda: network().prune(OneTensor(), sparsity=0.5), "dict of tensors by parameter name, not a Tensor"),
    (lambda: PrunableNetwork(model(), EXAMPLE.double()), "does not run on its example inputs"),
    (lambda: PrunableNetwork(model(), EXAMPLE.numpy()), "does not run on its example inputs"),
    (lambda: NodeRules(ranking="best"), "ranking must be one of global, local; 'best'"),
    (lambda: NodeRules(counted="bytes"), "counted must be one of nodes, weights, flops, latency; 'bytes'"),
    (lambda: DependencyGraph(model(), EXAMPLE).plan([0.5]), "whole numbers or by a mask"),
    (lambda: DependencyGraph(model(), EXAMPLE).plan("all"), "whole numbers or by a mask"),
    (lambda: plan(idxs=[1.5]), r"whole numbers is needed, not \[1.5\]"),
    (lambda: plan(idxs=3), "whole numbers is needed, not 3"),
    (lambda: plan(idxs=[1], side="left"), "'out' or 'in'.*'left'"),
    (lambda: plan(idxs=[1], function="prune_related_linear"), "function that cuts it, not 'prune_related_linear'"),
    (lambda: prune_linear(nn.Linear(3, 3), [0.5]), "whole numbers"),
]


@pytest.mark.parametrize(("use", "expected"), MISTAKES)
def test_a_mistake_is_said_in_one_line(use: Callable[[], object], expected: str) -> None:
    with pytest.raises(UsageError, match=expected) as told:
        use()
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("content", [b"hello", b"", model()])
def test_what_is_no_state_dict_is_refused(content: object, tmp_path: Path) -> None:
    file = tmp_path / "file.pth"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save(content, file)
    with pytest.raises(UsageError, match="is damaged, or holds more than tensors"):
        load_pruned(model(), file)


def sparse(layout: torch.layout) -> nn.Sequential:
    one = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    one[0].weight = nn.Parameter(one[0].weight.detach().to_sparse(layout=layout))
    return one


class Quantised(nn.Linear):
    def __init__(self) -> None:
        super().__init__(4, 4, bias=False)
        # -128 has no magnitude in eight bits.
        self.weight = nn.Parameter(torch.full((4, 4), -128, dtype=torch.int8), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.weight.float() / 128).T


def quantised() -> nn.Sequential:
    return nn.Sequential(Quantised(), nn.ReLU(), nn.Linear(4, 3))


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:Sparse CSR")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: torch.jit.script(model()), "scripted"),
        (lambda: torch.jit.trace(model(), EXAMPLE), "scripted"),
        (lambda: sparse(torch.sparse_csr), "0.weight is stored as sparse_csr"),
        (lambda: sparse(torch.sparse_coo), "0.weight is stored as sparse_coo"),
        (quantised, r"0.weight holds whole numbers \(int8\)"),
    ],
    ids=["scripted", "traced", "csr", "coo", "int8"],
)
@pytest.mark.parametrize("inputs", [EXAMPLE, None], ids=["inputs", "none"])
def test_what_holds_no_plain_weights_is_said_in_one_line(
    make: Callable[[], nn.Module], message: str, inputs: Tensor | None
) -> None:
    with pytest.raises(UsageError, match=message) as told:
        PrunableNetwork(make(), inputs).prune(Magnitude(), sparsity=0.5)
    assert "\n" not in str(told.value)


@pytest.mark.filterwarnings("ignore:Sparse CSR")
def test_a_graph_of_sparse_weights_is_refused() -> None:
    with pytest.raises(UsageError, match="sparse_csr"):
        DependencyGraph(sparse(torch.sparse_csr), EXAMPLE)


def test_nodes_of_whole_numbers_are_added_up_without_overflow() -> None:
    one = quantised()
    graph = DependencyGraph(one, EXAMPLE)
    sums = graph.reduce_to_nodes({"0.weight": one[0].weight})
    assert sums.tolist() == [-512.0] * 4


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_a_scripted_part_is_left_alone_by_criteria_of_weights() -> None:
    one = model()
    one[1] = torch.jit.script(one[1])
    assert PrunableNetwork(one, EXAMPLE).prune(Magnitude(), sparsity=0.5).reached == 0.5


def test_batches_may_be_none() -> None:
    assert network().prune(Magnitude(), None, sparsity=0.5).reached == 0.5
    with pytest.raises(UsageError, match="no batches"):
        network().prune(SNAP(), None, sparsity=0.5)


# -- what is no plain network ------------------------------------------------------------------------------------------


def quantised_after_training() -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(model(), {nn.Linear}, dtype=torch.qint8)


def prepared(*, training: bool) -> nn.Module:
    one = nn.Sequential(torch.ao.quantization.QuantStub(), model()).train(training)
    kind = "qat_qconfig" if training else "qconfig"
    one.qconfig = getattr(torch.ao.quantization, f"get_default_{kind}")("fbgemm")
    return torch.ao.quantization.prepare_qat(one) if training else torch.ao.quantization.prepare(one.eval())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (quantised_after_training, r"0 \(Linear\) is quantised.*prune first"),
        (lambda: prepared(training=True), "is prepared for quantisation.*prune first"),
        (lambda: prepared(training=False), "is prepared for quantisation.*prune first"),
    ],
    ids=["dynamic", "in training", "after training"],
)
def test_quantised_networks_are_refused_for_what_they_are(make: Callable[[], nn.Module], message: str) -> None:
    for use in (DependencyGraph, lambda *given: PrunableNetwork(*given).prune(SNAP(), [], sparsity=0.5)):
        with pytest.raises(UsageError, match=message) as told:
            use(make(), EXAMPLE)
        assert "\n" not in str(told.value)


@pytest.mark.filterwarnings("ignore")
def test_a_look_at_empty_tensors_that_a_first_call_fills_leaves_them_empty() -> None:
    """Ranges of layers that are prepared for quantisation get their size at the first call."""
    one = prepared(training=True)
    before = {name: tensor.shape for name, tensor in one.named_buffers()}
    assert PrunableNetwork(one, EXAMPLE).prune(Magnitude(), sparsity=0.5).reached == 0.5
    assert {name: tensor.shape for name, tensor in one.named_buffers()} == before


class NoNode(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.fake_quantize_per_tensor_affine(self.first(x), 0.1, 0, 0, 255).sort(1).values)


def test_where_no_node_can_go_the_reason_is_said() -> None:
    with pytest.raises(UsageError, match="no node that could go: .*fake_quant|no node that could go: .*sort"):
        PrunableNetwork(NoNode(), EXAMPLE).prune(SNAP(), [(EXAMPLE, torch.tensor([0, 1]))], sparsity=0.5)


USES: list[Callable[[object], object]] = [
    lambda given: DependencyGraph(given, EXAMPLE),
    lambda given: PrunableNetwork(given, EXAMPLE),
    lambda given: flops_by_module(given, EXAMPLE),
    lambda given: load_pruned(given, {}),
    extras_of,
    lambda given: export(given, EXAMPLE, "nowhere.pt2", "torch_export"),
]


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize(
    ("given", "message"),
    [
        (nn.Linear, r"the class Linear; .* Linear\(...\)"),
        (model().state_dict(), r"OrderedDict; a state dict is loaded .* load_pruned"),
        ("model.pth", "something of type str"),
        (None, "NoneType"),
        (F.relu, "something of type function"),
    ],
)
def test_what_is_no_network_is_told(use: Callable[[object], object], given: object, message: str) -> None:
    with pytest.raises(UsageError, match=f"A network is an nn.Module, not {message}|not .*{message}"):
        use(given)


@pytest.mark.filterwarnings("ignore:Sparse CSR")
def test_sparse_weights_are_not_exported() -> None:
    with pytest.raises(UsageError, match="sparse_csr"):
        export(sparse(torch.sparse_csr), EXAMPLE, "nowhere.pt2", "torch_export")
