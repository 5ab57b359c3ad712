"""Mistakes in the use of the library: one line each, which says what was given and what fits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
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
    load_pruned,
    prune_linear,
)

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
