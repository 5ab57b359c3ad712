"""Factors that follow a width: a weight takes them up, or the plan says that the result changes."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pruning.graph.graph import DependencyGraph
from tests.support.zoo.small import with_zeros


class Attention(nn.Module):
    """Two heads of six; `how` says where the factor stands and who else reads the queries."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.enter, self.qkv, self.out = how, nn.Linear(5, 8), nn.Linear(8, 36), nn.Linear(12, 3)
        self.conv = nn.Conv1d(8, 36, 1)
        self.side = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x, how = self.enter(x), self.how
        batch, length, _ = x.shape
        qkv = self.conv(x.transpose(1, 2)).transpose(1, 2) if how == "convolution" else self.qkv(x)
        query, key, value = qkv.view(batch, length, 3, 2, -1).permute(2, 0, 3, 1, 4).unbind(0)
        width, more = query.shape[-1], torch.zeros((), dtype=x.dtype)
        if how == "read through moves":  # merged, then cut where heads no longer tell rows apart
            more = self.side(query.transpose(1, 2).reshape(batch, length, -1)[..., : query.shape[-1]])
        if how == "before":
            query = -query * width**-0.5
        if how == "both":
            query, key = query * width**-0.25, key * width**-0.25
        if how == "twice":
            query = query * width**-0.25 * width**-0.25
        if how == "given":
            mixed = F.scaled_dot_product_attention(query, key, value, scale=width**-0.5)
            return self.out(mixed.transpose(1, 2).reshape(batch, length, -1))
        product = query @ key.transpose(-2, -1)
        if how in ("after", "convolution", "read through moves"):
            product = product / width**0.5
        if how == "summed":
            product = product + query.sum(-1, keepdim=True) / width**0.5
        mixed = product.softmax(-1) @ value
        return self.out(mixed.transpose(1, 2).reshape(batch, length, -1)) + more


def build(how: str) -> tuple[nn.Module, Tensor, DependencyGraph, np.ndarray]:
    """Returns a network, inputs, its graph, and two nodes of its queries."""
    torch.manual_seed(0)
    model, x = Attention(how).double(), torch.randn(2, 4, 5, dtype=torch.float64)
    graph = DependencyGraph(model, x)
    rows = graph.nodes_along("conv.weight" if how == "convolution" else "qkv.weight", 0)
    return model, x, graph, rows[[0, 3]]


@pytest.mark.parametrize("how", ["before", "after", "both", "twice", "given", "convolution"])
def test_weights_take_up_factors(how: str) -> None:
    model, x, graph, nodes = build(how)
    plan = graph.plan(nodes)
    assert not graph.inexact[nodes].any() and not plan.inexact and plan.scales
    wanted = with_zeros(model, x, plan.keeps)
    torch.testing.assert_close(plan.preview()(x), wanted, rtol=1e-6, atol=1e-9)
    plan.exec()
    torch.testing.assert_close(model(x), wanted, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("how", ["read through moves", "summed"])
def test_rows_that_others_read_are_left_alone(how: str) -> None:
    _, _, graph, nodes = build(how)
    plan = graph.plan(nodes)
    assert not plan.scales and any("a number depends on the width" in reason for reason in plan.inexact)


class ScaledByAnother(nn.Module):
    """What one layer makes is divided by the root of another layer's width."""

    def __init__(self) -> None:
        super().__init__()
        self.scaled, self.other = nn.Linear(4, 6), nn.Linear(4, 8)
        self.read_scaled, self.read_other = nn.Linear(6, 3), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        other = self.other(x)
        return self.read_scaled(self.scaled(x) / other.shape[-1] ** 0.5) + self.read_other(other)


def test_a_layer_that_is_not_cut_takes_up_a_factor() -> None:
    torch.manual_seed(0)
    model, x = ScaledByAnother().double().eval(), torch.randn(2, 4, dtype=torch.float64)
    average = copy.deepcopy(model)
    plan = DependencyGraph(model, x).get_pruning_plan(model.other, idxs=[0, 1, 5])
    wanted = with_zeros(model, x, plan.keeps)
    assert not plan.inexact
    torch.testing.assert_close(plan.preview()(x), wanted)
    plan.exec(cut_along=[average])
    assert model.scaled.out_features == 6
    torch.testing.assert_close(model(x), wanted)
    torch.testing.assert_close(average(x), wanted)
