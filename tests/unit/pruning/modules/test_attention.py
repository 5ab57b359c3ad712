"""Attention that can lose heads computes what torch's own does, and what torch's own does with heads zeroed."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pruning import DependencyGraph
from pruning.cut.load import extras_of, load_pruned
from pruning.modules.attention import ByHeads, by_heads

DIM, HEADS, WIDTH = 12, 4, 3
QUERIES, KEYS, BATCH = 4, 5, 2

LAYERS: dict[str, dict[str, Any]] = {
    "plain": {},
    "batch_first": {"batch_first": True},
    "no_bias": {"bias": False},
    "other_keys": {"kdim": 6, "vdim": 7},
    "own_tokens": {"add_bias_kv": True, "add_zero_attn": True},
}


def masks(kind: str) -> dict[str, Tensor]:
    """Masks of a call, hidden places True."""
    torch.manual_seed(1)
    of_pairs = torch.rand(QUERIES, KEYS) > 0.7
    of_pairs[:, 0] = False
    of_keys = torch.zeros(BATCH, KEYS, dtype=torch.bool)
    of_keys[1, -2:] = True
    by_head = of_pairs.repeat(BATCH * HEADS, 1, 1)
    by_head[0, 0, 0] = True
    numbers = torch.randn(QUERIES, KEYS, dtype=torch.float64)
    found = {
        "none": {},
        "pairs": {"attn_mask": of_pairs},
        "numbers": {"attn_mask": numbers},
        "keys": {"key_padding_mask": of_keys},
        "both": {"attn_mask": by_head, "key_padding_mask": of_keys},
    }
    return found[kind]


def tokens(count: int, width: int, *, batch_first: bool) -> Tensor:
    shape = (BATCH, count, width) if batch_first else (count, BATCH, width)
    return torch.randn(shape, dtype=torch.float64)


def inputs_of(layer: nn.MultiheadAttention) -> tuple[Tensor, Tensor, Tensor]:
    first = bool(layer.batch_first)
    sizes = ((QUERIES, DIM), (KEYS, layer.kdim), (KEYS, layer.vdim))
    query, key, value = (tokens(count, width, batch_first=first) for count, width in sizes)
    return query, key, value


@pytest.mark.parametrize("kind", ["none", "pairs", "numbers", "keys", "both"])
@pytest.mark.parametrize("name", LAYERS)
def test_computes_what_torch_does(name: str, kind: str) -> None:
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(DIM, HEADS, **LAYERS[name]).double()
    inputs = inputs_of(layer)
    for how in ({"need_weights": False}, {}, {"average_attn_weights": False}):
        expected = layer(*inputs, **masks(kind), **how)
        with by_heads(layer):
            assert type(layer) is ByHeads
            found = layer(*inputs, **masks(kind), **how)
        assert type(layer) is nn.MultiheadAttention
        torch.testing.assert_close(found[0], expected[0])
        assert (found[1] is None) == (expected[1] is None)
        if expected[1] is not None:
            torch.testing.assert_close(found[1], expected[1])


def test_one_sample_without_a_batch() -> None:
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(DIM, HEADS).double()
    query, key = torch.randn(QUERIES, DIM, dtype=torch.float64), torch.randn(KEYS, DIM, dtype=torch.float64)
    hidden = torch.tensor([False, False, False, True, True])
    expected = layer(query, key, key, key_padding_mask=hidden)
    with by_heads(layer):
        found = layer(query, key, key, key_padding_mask=hidden)
        with pytest.raises(RuntimeError, match="is_causal"):
            layer(query, key, key, is_causal=True)
    torch.testing.assert_close(found, expected)


def without_head(layer: nn.MultiheadAttention, head: int) -> nn.MultiheadAttention:
    """Returns a copy whose head has all rows and columns zero."""
    other = copy.deepcopy(layer)
    places = torch.arange(head * WIDTH, (head + 1) * WIDTH)
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            if name in ("in_proj_weight", "in_proj_bias"):
                for part in range(3):
                    parameter[places + part * DIM] = 0
            elif name.endswith("_proj_weight"):
                parameter[places] = 0
            elif name == "out_proj.weight":
                parameter[:, places] = 0
            elif name in ("bias_k", "bias_v"):
                parameter[..., places] = 0
    return other


class Cross(nn.Module):
    """Fixes how the layer is called."""

    def __init__(self, layer: nn.MultiheadAttention) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return self.layer(query, key, value)[0]


@pytest.mark.parametrize("name", LAYERS)
def test_a_head_goes(name: str) -> None:
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(DIM, HEADS, **LAYERS[name]).double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.3)
    model, inputs = Cross(layer), inputs_of(layer)
    dense = copy.deepcopy(model)
    expected = without_head(layer, 1)(*inputs)[0]
    graph = DependencyGraph(model, inputs, unit="head")
    assert len(graph.heads) == HEADS
    graph.plan([int(graph.heads[1])]).exec()
    assert (layer.num_heads, layer.head_dim, layer.embed_dim) == (HEADS - 1, WIDTH, DIM)
    torch.testing.assert_close(model(*inputs), expected)
    # What a copy, a pickle or a file brings back computes the same.
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    loaded = load_pruned(dense, {"state_dict": model.state_dict(), "extras": extras_of(model)})
    for other in (copy.deepcopy(model), torch.load(buffer, weights_only=False), loaded):
        torch.testing.assert_close(other(*inputs), expected)
    # Later it may get narrower, as any attention of one's own code.
    narrower = DependencyGraph(model, inputs)
    rows = [node.index for node in narrower.nodes if ("layer.out_proj.weight", 1) in node.slices]
    assert len(rows) >= WIDTH
    narrower.plan(rows[:1]).exec()
    assert (layer.num_heads, layer.head_dim) == (HEADS - 1, WIDTH - 1)
    model(*inputs)


def test_encoders_leave_their_fused_path() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(DIM, HEADS, 8, dropout=0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, 2).double().eval()
    inputs = torch.randn(BATCH, KEYS, DIM, dtype=torch.float64)
    hidden = torch.zeros(BATCH, KEYS, dtype=torch.bool)
    hidden[1, -2:] = True
    graph = DependencyGraph(model, {"src": inputs, "src_key_padding_mask": hidden}, unit="head")
    in_second = [
        int(node) for node in graph.heads if ("layers.1.self_attn.out_proj.weight", 1) in graph.nodes[node].slices
    ]
    zeroed = copy.deepcopy(model)
    zeroed.layers[1].self_attn = without_head(zeroed.layers[1].self_attn, 2)
    graph.plan(in_second[2:3]).exec()
    assert [type(layer.self_attn) for layer in model.layers] == [nn.MultiheadAttention, ByHeads]
    with torch.no_grad():  # where torch would take the fused path
        found = model(inputs, src_key_padding_mask=hidden)
        expected = zeroed(inputs, src_key_padding_mask=hidden)
    torch.testing.assert_close(found[~hidden], expected[~hidden])


def test_decoders_lose_heads_of_both_attentions() -> None:
    torch.manual_seed(0)
    model = nn.Transformer(DIM, HEADS, 1, 1, 8, dropout=0.0, batch_first=True).double().eval()
    source, target = (torch.randn(BATCH, count, DIM, dtype=torch.float64) for count in (KEYS, QUERIES))
    causal = nn.Transformer.generate_square_subsequent_mask(QUERIES, dtype=torch.float64)
    inputs = {"src": source, "tgt": target, "tgt_mask": causal}
    graph = DependencyGraph(model, inputs, unit="head")
    assert len(graph.heads) == 3 * HEADS
    chosen = []
    zeroed = copy.deepcopy(model)
    for path in ("encoder.layers.0.self_attn", "decoder.layers.0.self_attn", "decoder.layers.0.multihead_attn"):
        layer = without_head(zeroed.get_submodule(path), 0)
        parent, _, name = path.rpartition(".")
        setattr(zeroed.get_submodule(parent), name, layer)
        own = [int(node) for node in graph.heads if (f"{path}.out_proj.weight", 1) in graph.nodes[node].slices]
        chosen.append(own[0])
    graph.plan(chosen).exec()
    torch.testing.assert_close(model(**inputs), zeroed(**inputs))
