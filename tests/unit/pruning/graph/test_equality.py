"""The shrunken network computes what the original does with the removed slices set to zero, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pruning.cut.plan import PruningPlan
from pruning.graph.graph import DependencyGraph
from pruning.modules.calls import tensors_in
from tests.support.tiers import few
from tests.support.zeroed import zero_what_goes
from tests.support.zoo import NETWORKS
from tests.support.zoo.registry import arguments, call, randomise


def masked(name: str, model: nn.Module, plan: PruningPlan) -> nn.Module:
    """Returns a copy with everything that the plan removes set to zero."""
    other = NETWORKS[name].build().double().train(model.training)
    other.load_state_dict(model.state_dict())
    zero_what_goes(other, plan)
    return other


def choose(graph: DependencyGraph, seed: int) -> np.ndarray:
    """Returns a random choice among the nodes that can go without changing a statistic; two of each group stay.

    With one channel left einsum takes another way through torch, which a dry run refuses.
    """
    random = np.random.default_rng(seed)
    chosen = []
    for group in graph.groups:
        nodes = random.permutation(group.nodes)[: random.integers(1, max(len(group.nodes) - 1, 2))]
        chosen += [node for node in nodes if not graph.inexact[node]]
    return np.array(chosen, dtype=np.int64)


def build(name: str) -> tuple[nn.Module, Any, DependencyGraph]:
    torch.manual_seed(0)
    case = NETWORKS[name]
    model, inputs = randomise(case.build().double()).eval(), case.inputs()
    return model, inputs, DependencyGraph(model, inputs)


@pytest.mark.parametrize("seed", few(range(3), [0]))
@pytest.mark.parametrize("name", NETWORKS)
def test_shrunken_equals_masked(name: str, seed: int) -> None:
    model, inputs, graph = build(name)
    nodes = choose(graph, seed)
    if not len(nodes):
        assert graph.inexact.all(), f"{name}: nothing to remove"
        return
    plan = graph.plan(nodes)
    expected = call(masked(name, model, plan), inputs)
    before = sum(parameter.numel() for parameter in model.parameters())
    plan.exec()
    assert before - sum(parameter.numel() for parameter in model.parameters()) == plan.parameters_removed > 0
    for got, wanted in zip(call(model, inputs), expected, strict=True):
        assert wanted.isfinite().all()
        torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", NETWORKS)
def test_enough_is_prunable(name: str) -> None:
    _, _, graph = build(name)
    assert len(graph.nodes) >= NETWORKS[name].least, "\n".join(map(str, graph.pinned))


@pytest.mark.parametrize("name", NETWORKS)
def test_training_goes_on(name: str) -> None:
    """Inexact nodes too: everything that may go goes down to a few, twice, then a step in training mode."""
    model, inputs, graph = build(name)
    least = 2 if name == "attention_by_hand" else 1  # with one value channel torch takes another way through a product
    for _ in range(2):
        halves = (group.nodes[: min(len(group.nodes) // 2, len(group.nodes) - least)] for group in graph.groups)
        nodes = np.concatenate([[], *halves])
        if len(nodes):
            plan = graph.plan(nodes)
            plan.exec()
    model.train()
    positional, named = arguments(inputs)
    outputs = tensors_in(model(*positional, **named))
    sum(output.sum() for output in outputs if output.requires_grad).backward()
    for name_, parameter in model.named_parameters():
        assert parameter.grad is None or parameter.grad.shape == parameter.shape, name_
