"""Whole heads: which nodes there are, and that a network without some of them computes what it did with them zeroed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from criterions.GroupMagnitude import GroupMagnitude
from criterions.SNAP import SNAP
from pruning import NodeRules, PrunableNetwork
from pruning.errors import UsageError
from pruning.graph.graph import DependencyGraph
from tests.support.attention import ATTENTIONS, DIM, HEADS, TOKENS, WIDTH, Fused, Layers, Separate, head_groups, zeroed
from tests.support.zoo.registry import randomise

SHARE_KEYS = ("repeated", "interleaved", "grouped_in_one", "grouped_by_einsum")
IN_STREAM = "fused_of_stream"  # takes the width of its heads from the stream, so with a head go channels of it


def build(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = randomise(Layers(ATTENTIONS[name]).double()).eval()
    return model, torch.randn(2, TOKENS, 3, dtype=torch.float64)


@pytest.mark.parametrize("name", [name for name in ATTENTIONS if name != IN_STREAM])
def test_without_heads_as_with_zeroed_ones(name: str) -> None:
    model, inputs = build(name)
    graph = DependencyGraph(model, inputs, unit="head")
    layers = head_groups(graph)
    heads = 2 if name in SHARE_KEYS else HEADS
    assert [len(nodes) for nodes in layers] == [heads, heads]
    # Of the second layer only the first stays; where heads are inputs of a Linear, torch takes a single one for none.
    fewest = 2 if name == "talking_heads" else 1
    gone = [int(layers[0][0]), *layers[1][fewest:].tolist()]
    before = model(inputs)
    expected = zeroed(model, graph, gone)(inputs)
    plan = graph.plan(gone)
    assert plan.inexact == []
    plan.exec()
    torch.testing.assert_close(model(inputs), expected, rtol=1e-10, atol=1e-12)
    assert not torch.allclose(before, expected, atol=1e-3)
    model(inputs).sum().backward()


def test_a_head_is_all_its_rows_and_columns() -> None:
    model, inputs = build("fused")
    graph = DependencyGraph(model, inputs, unit="head")
    node = graph.nodes[int(head_groups(graph)[0][1])]
    rows = [part * HEADS * WIDTH + WIDTH + index for part in range(3) for index in range(WIDTH)]
    assert node.slices == {
        ("attentions.0.qkv.weight", 0): rows,
        ("attentions.0.qkv.bias", 0): rows,
        ("attentions.0.proj.weight", 1): list(range(WIDTH, 2 * WIDTH)),
    }


@pytest.mark.parametrize("name", SHARE_KEYS)
def test_queries_go_with_their_key(name: str) -> None:
    model, inputs = build(name)
    graph = DependencyGraph(model, inputs, unit="head")
    slices = graph.nodes[int(head_groups(graph)[0][1])].slices
    assert slices["attentions.0.key.weight", 0] == list(range(WIDTH, 2 * WIDTH))
    assert slices["attentions.0.query.weight", 0] == list(range(2 * WIDTH, 4 * WIDTH))


def test_a_bias_by_head_goes_along() -> None:
    model, inputs = build("biased")
    graph = DependencyGraph(model, inputs, unit="head")
    slices = graph.nodes[int(head_groups(graph)[1][2])].slices
    assert slices["attentions.1.table", 1] == [2]


def test_where_the_width_is_taken_from_the_stream_channels_go_along() -> None:
    model, inputs = build(IN_STREAM)
    graph = DependencyGraph(model, inputs, unit="head")
    (heads,) = head_groups(graph)
    assert len(heads) == HEADS
    assert graph.nodes[int(heads[1])].slices["stem.weight", 0] == list(range(WIDTH, 2 * WIDTH))
    graph.plan([int(heads[1])]).exec()
    assert model.stem.out_features == DIM - WIDTH
    assert [attention.num_heads for attention in model.attentions] == [HEADS - 1, HEADS - 1]
    model(inputs)


def test_integers_that_count_heads_follow() -> None:
    model, inputs = build("separate")
    graph = DependencyGraph(model, inputs, unit="head")
    graph.plan([int(head_groups(graph)[0][3])]).exec()
    first, second = model.attentions
    assert (first.num_heads, first.num_key_value_heads, first.all_head_size) == (3, 3, 3 * WIDTH)
    assert first.head_dim == WIDTH
    assert (second.num_heads, second.all_head_size) == (HEADS, HEADS * WIDTH)


def test_integers_that_the_code_does_not_read_follow_too() -> None:
    model, inputs = build("by_einsum")  # says nothing of key-value heads, nor how wide all heads are
    graph = DependencyGraph(model, inputs, unit="head")
    graph.plan([int(head_groups(graph)[1][0])]).exec()
    first, second = model.attentions
    assert (second.num_heads, second.num_key_value_heads, second.all_head_size) == (3, 3, 3 * WIDTH)
    assert (first.num_heads, first.num_key_value_heads, first.all_head_size) == (4, 4, HEADS * WIDTH)


def test_other_nodes_are_what_they_are() -> None:
    model, inputs = build("separate")
    by_head, by_channel = DependencyGraph(model, inputs, unit="head"), DependencyGraph(model, inputs)
    others = np.setdiff1d(np.arange(len(by_head.nodes)), by_head.heads)
    shared = [by_head.nodes[int(node)].slices for node in others]
    assert len(shared) == DIM + 2 * 6
    channels = [node.slices for node in by_channel.nodes]
    assert all(slices in channels for slices in shared)
    assert len(by_channel.heads) == 0
    assert len(channels) == len(shared) + 2 * WIDTH  # where heads get narrower


@pytest.mark.parametrize("counted", [None, "weights", "flops"])
def test_limits_are_reached(counted: Any) -> None:
    model, inputs = build("repeated")
    network = PrunableNetwork(model, inputs, node_rules=NodeRules(unit="head", counted=counted))
    report = network.prune(SNAP(), [(inputs, torch.tensor([0, 1]))], sparsity=0.3)
    assert 0.3 <= report.steps[-1].reached < 0.36
    model(inputs)


def test_the_score_of_a_head_is_the_sum_over_its_slices() -> None:
    model, inputs = build("fused")
    targets = torch.tensor([0, 1])
    network = PrunableNetwork(model, inputs, node_rules=NodeRules(unit="head"))
    scores = SNAP().node_scores(network, [(inputs, targets)])
    assert len(scores) == DIM + 2 * 6 + 2 * HEADS
    node = head_groups(network.graph)[0][1]
    # Slowly: the derivative of the loss to a factor on all rows of the head.
    factor = torch.ones((), dtype=torch.float64, requires_grad=True)
    others = torch.ones(3, HEADS, WIDTH, dtype=torch.float64)
    others[:, 1] = 0
    gate = (others + factor * (1 - others)).flatten()
    model.attentions[0].qkv.register_forward_hook(lambda module, args, out: out * gate)
    loss = nn.functional.cross_entropy(model(inputs), targets)
    (slope,) = torch.autograd.grad(loss, factor)
    assert scores[node].item() == pytest.approx(slope.abs().item(), rel=1e-6)


def test_one_head_of_each_layer_stays() -> None:
    model, inputs = build("fused")
    network = PrunableNetwork(model, inputs, node_rules=NodeRules(unit="head"))
    network.prune(GroupMagnitude(), (), sparsity=0.95)
    assert [attention.num_heads for attention in model.attentions] == [1, 1]
    assert [attention.head_dim for attention in model.attentions] == [WIDTH, WIDTH]
    model(inputs)


def test_without_heads_there_is_one_line() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    network = PrunableNetwork(model, torch.randn(2, 3), node_rules=NodeRules(unit="head"))
    with pytest.raises(UsageError, match="no attention head"):
        network.prune(GroupMagnitude(), (), sparsity=0.5)
    with pytest.raises(UsageError, match="unit"):
        NodeRules(unit="heads")  # type: ignore[arg-type]


def test_heads_that_the_code_fixes_are_named() -> None:
    class FixedNumber(Fused):
        def forward(self, x: Tensor) -> Tensor:
            query, key, value = self.qkv(x).view(2, TOKENS, 3, 4, WIDTH).permute(2, 0, 3, 1, 4)
            heads = nn.functional.scaled_dot_product_attention(query, key, value)
            return self.proj(heads.transpose(1, 2).reshape(2, TOKENS, 16))

    torch.manual_seed(0)
    network = PrunableNetwork(Layers(FixedNumber), torch.randn(2, TOKENS, 3), node_rules=NodeRules(unit="head"))
    with pytest.raises(UsageError, match="no attention head.*hard-coded width in module attentions.0"):
        network.prune(GroupMagnitude(), (), sparsity=0.3)


@pytest.mark.parametrize(("name", "heads"), [("separate", HEADS), ("grouped_in_one", 2), ("one_key", HEADS)])
def test_networks_that_need_data(name: str, heads: int) -> None:
    class LooksAtValues(Layers):
        def forward(self, tokens: Tensor) -> Tensor:
            self.stem(tokens).sum().item()  # no stand-in has that
            return super().forward(tokens)

    torch.manual_seed(0)
    model = randomise(LooksAtValues(ATTENTIONS[name]).double()).eval()
    inputs = torch.randn(2, TOKENS, 3, dtype=torch.float64)
    graph = DependencyGraph(model, inputs, unit="head")
    layers = head_groups(graph)
    assert [len(nodes) for nodes in layers] == [heads, heads]
    gone = [int(layers[0][0]), int(layers[1][-1])]
    expected = zeroed(model, graph, gone)(inputs)
    graph.plan(gone).exec()
    torch.testing.assert_close(model(inputs), expected)


def test_groups_of_a_convolution_are_no_heads() -> None:
    class Shuffled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Conv2d(3, 8, 1)
            self.two = nn.Conv2d(8, 8, 3, groups=2)
            self.norm = nn.GroupNorm(2, 8)
            self.attention = Separate()
            self.into = nn.Linear(8, DIM)

        def forward(self, x: Tensor) -> Tensor:
            x = self.norm(self.two(self.one(x)))
            batch, _, high, wide = x.shape
            x = x.view(batch, 2, 4, high, wide).transpose(1, 2).reshape(batch, 8, high, wide)
            return self.attention(self.into(x.flatten(2).transpose(1, 2)))

    graph = DependencyGraph(Shuffled(), torch.randn(1, 3, 5, 5), unit="head")
    assert len(graph.heads) == HEADS
    plain = DependencyGraph(Shuffled(), torch.randn(1, 3, 5, 5))
    assert len(graph.nodes) - HEADS == len(plain.nodes) - WIDTH
