"""What of a network's outputs must keep its shape: what the user names; by default all but caches."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from criterions.SNAP import SNAP
from pruning import DependencyGraph, PrunableNetwork, UsageError
from pruning.dead.shrink import shrink_dead
from tests.support.tiers import few, thorough


class Told(nn.Module):
    """Returns what it wants and what it had on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, 12), nn.Linear(12, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> dict[str, Any]:
        first = self.first(x).relu()
        second = self.second(first).relu()
        return {"logits": self.head(second), "hidden": (first, second)}


ROWS = torch.randn(5, 4, dtype=torch.float64)


def told() -> nn.Module:
    torch.manual_seed(0)
    return Told().double()


def logits(out: dict[str, Any]) -> Tensor:
    return out["logits"]


def test_only_what_is_named_keeps_its_shape() -> None:
    model = told()
    assert len(DependencyGraph(model, ROWS).nodes) == 0
    assert len(DependencyGraph(model, ROWS, outputs=lambda out: (out["logits"], out["hidden"][0])).nodes) == 8
    graph = DependencyGraph(model, ROWS, outputs=logits)
    assert [len(group.nodes) for group in graph.groups] == [12, 8]
    masked = copy.deepcopy(model)
    plan = graph.plan(np.r_[0:5, 12:15])
    with torch.no_grad():
        for name, keep in plan.keeps.items():
            for dim, kept in keep.items():
                parameter = masked.get_parameter(name)
                gone = np.setdiff1d(np.arange(parameter.shape[dim]), kept.numpy())
                parameter.index_fill_(dim, torch.from_numpy(gone), 0)
    plan.exec()
    out = model(ROWS)
    torch.testing.assert_close(out["logits"], masked(ROWS)["logits"], rtol=0, atol=1e-12)
    assert [part.shape[1] for part in out["hidden"]] == [7, 5]


def test_what_the_choice_computes_is_followed() -> None:
    """A part of the logits, joined with a hidden layer's mean: both stay."""
    graph = DependencyGraph(told(), ROWS, outputs=lambda out: torch.cat([out["logits"][:, 1:], out["hidden"][1]], 1))
    assert [len(group.nodes) for group in graph.groups] == [12]


def test_a_handle_passes_it_on() -> None:
    model = told()
    network = PrunableNetwork(model, ROWS, outputs=logits, loss=lambda out, y: F.cross_entropy(out["logits"], y))
    dense = network.flops()
    report = network.prune(SNAP(), [(ROWS, torch.arange(5) % 3)], sparsity=0.5)
    assert report.steps[-1].reached == pytest.approx(0.5)
    assert network.nodes_left() == 10 and network.flops() < dense
    assert model(ROWS)["logits"].shape == (5, 3)


def test_dead_nodes_are_judged_by_what_is_named() -> None:
    """A unit that only a hidden state shows goes."""
    model = told()
    with torch.no_grad():
        model.second.weight[:, 3] = 0
        model.second.weight[2] = 0
        model.head.weight[:, 2] = 0
    before = model(ROWS)["logits"]
    network = PrunableNetwork(model, ROWS, outputs=logits)
    assert shrink_dead(network).nodes == 2
    torch.testing.assert_close(model(ROWS)["logits"], before, rtol=0, atol=1e-12)


def test_paths_lead_to_what_is_named() -> None:
    """Without a head nothing reaches the logits, whatever the hidden states get."""
    model = told()
    one, other = PrunableNetwork(model, ROWS, outputs=logits), PrunableNetwork(model, ROWS)
    for network in (one, other):
        network.masks.set({"head.weight": torch.zeros(3, 8, dtype=torch.bool)})
    assert one.effective_sparsity() == 1
    assert other.effective_sparsity() == pytest.approx(24 / (48 + 96 + 24))


@pytest.mark.parametrize(
    ("choose", "message"),
    [
        (lambda out: out.logits, "outputs= fails on what the network returns, a dict of logits, hidden: Attribute"),
        (lambda out: out["logit"], "outputs= fails on .* KeyError: 'logit'"),
        (lambda out: None, "outputs= must return .* tensors; .* it returned a NoneType"),
        (lambda out: [], "outputs= must return .* returned a list"),
        ("logits", r"outputs= takes a function .* not 'logits'"),
    ],
)
def test_a_choice_that_does_not_fit_is_told_in_one_line(choose: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message) as raised:
        DependencyGraph(told(), ROWS, outputs=choose)
    assert "\n" not in str(raised.value)
    with pytest.raises(UsageError, match=message):
        PrunableNetwork(told(), ROWS, outputs=choose).prune(SNAP(), sparsity=0.5)


def test_a_choice_that_fits_one_mode_is_noted() -> None:
    class LossInTraining(Told):
        def forward(self, x: Tensor) -> Any:
            out = super().forward(x)
            return {"loss": out["logits"].sum()} if self.training else out

    graph = DependencyGraph(LossInTraining(), ROWS.float(), outputs=logits)
    assert len(graph.nodes) == 20
    assert "training mode" in graph.traced.notes[0] and "outputs= fails" in graph.traced.notes[0]


# -- caches ------------------------------------------------------------------------------------------------------------


class Layer(nn.Module):
    """Attention over what came before, with shared key-value heads, and a network of two layers."""

    def __init__(self, width: int = 12, heads: int = 2, head_width: int = 6) -> None:
        super().__init__()
        self.heads, self.head_width = heads, head_width
        self.q, self.k = nn.Linear(width, heads * head_width), nn.Linear(width, head_width)
        self.v, self.o = nn.Linear(width, head_width), nn.Linear(heads * head_width, width)
        self.up, self.down = nn.Linear(width, 20), nn.Linear(20, width)

    def forward(self, x: Tensor, past: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        batch, tokens, _ = x.shape
        q = self.q(x).view(batch, tokens, self.heads, self.head_width).transpose(1, 2)
        k = self.k(x).view(batch, tokens, 1, self.head_width).transpose(1, 2)
        v = self.v(x).view(batch, tokens, 1, self.head_width).transpose(1, 2)
        if past is not None:
            k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
        every_k, every_v = k.expand(-1, self.heads, -1, -1), v.expand(-1, self.heads, -1, -1)
        scores = q @ every_k.transpose(2, 3) * self.head_width**-0.5
        later = torch.ones(tokens, k.shape[2], dtype=torch.bool).triu(k.shape[2] - tokens + 1)
        read = scores.masked_fill(later, -torch.inf).softmax(-1) @ every_v
        x = x + self.o(read.transpose(1, 2).reshape(batch, tokens, -1))
        return x + self.down(self.up(x).relu()), (k, v)


class Memory:
    """Keeps keys and values; nothing in its name says so."""

    def __init__(self) -> None:
        self.kept: list[tuple[Tensor, Tensor]] = []


class Decoded(NamedTuple):
    logits: Tensor
    past_key_values: list[tuple[Tensor, Tensor]]


def in_memory(out: Tensor, past: list[tuple[Tensor, Tensor]]) -> Any:
    memory = Memory()
    memory.kept = past
    return out, memory


# How a decoder may hand back what it wants to be given again, and how that is read.
WAYS: dict[str, tuple[Callable[..., Any], Callable[[Any], Any]]] = {
    "pairs": (lambda out, past: (out, past), lambda returned: returned[1]),
    "dict": (lambda out, past: {"logits": out, "cache": past}, lambda returned: returned["cache"]),
    "named": (Decoded, lambda returned: returned.past_key_values),
    "object": (in_memory, lambda returned: returned[1].kept),
    "stacked": (
        lambda out, past: {"logits": out, "kv_cache": torch.stack([torch.stack(pair) for pair in past])},
        lambda returned: returned["kv_cache"],
    ),
}


class Decoder(nn.Module):
    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.words, self.head = nn.Embedding(11, 12), nn.Linear(12, 11)
        self.layers = nn.ModuleList(Layer() for _ in range(2))

    def forward(self, tokens: Tensor, past: Any = None) -> Any:
        x, now = self.words(tokens), []
        for number, layer in enumerate(self.layers):
            x, pair = layer(x, None if past is None else past[number])
            now.append(pair)
        return WAYS[self.way][0](self.head(x), now)

    def generate(self, tokens: Tensor, use_cache: bool, count: int = 10) -> Tensor:
        past = None
        for _ in range(count):
            returned = self(tokens[:, -1:] if past is not None else tokens, past)
            out = returned["logits"] if isinstance(returned, dict) else returned[0]
            tokens = torch.cat([tokens, out[:, -1:].argmax(-1)], 1)
            past = WAYS[self.way][1](returned) if use_cache else None
        return tokens


TOKENS = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])


@torch.no_grad()
@pytest.mark.parametrize("way", few(WAYS, ["pairs", "object", "named"]))
def test_a_cache_that_is_handed_back_pins_nothing(way: str) -> None:
    torch.manual_seed(0)
    model = Decoder(way).double().eval()
    for parameter in model.parameters():
        parameter.normal_()
    graph = DependencyGraph(model, TOKENS)
    # Hidden channels; units, and widths of heads, of each layer (one tensor for both makes their heads alike).
    sizes = sorted(len(group.nodes) for group in graph.groups)
    assert sizes == ([6, 12, 20, 20] if way == "stacked" else [6, 6, 12, 20, 20]), graph.tree()
    assert "cache" in graph.traced.notes[0] and graph.traced.notes[0] in graph.tree()
    graph.plan(np.concatenate([group.nodes[::2] for group in graph.groups])).exec()
    once, again = model.generate(TOKENS, use_cache=True), model.generate(TOKENS, use_cache=False)
    assert torch.equal(once, again) and len(set(once.flatten().tolist())) > 4


def test_pairs_that_no_attention_read_are_outputs() -> None:
    """Means and variances in pairs, of the shape of keys and values."""

    class Ladder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mean, self.variance = nn.Conv2d(3, 6, 1), nn.Conv2d(3, 6, 1)
            self.head = nn.Conv2d(6, 2, 1)

        def forward(self, x: Tensor) -> Any:
            mean, variance = self.mean(x), self.variance(x)
            return self.head(mean + variance.exp()), [(mean, variance)]

    assert len(DependencyGraph(Ladder(), torch.randn(1, 3, 4, 4)).nodes) == 0


def test_a_network_that_returns_nothing_but_a_cache_keeps_it() -> None:
    class Keys(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.k = nn.Linear(4, 6), nn.Linear(6, 8)

        def forward(self, x: Tensor) -> Any:
            return {"past_key_values": (self.k(self.inner(x)),)}

    assert len(DependencyGraph(Keys(), ROWS.float()).nodes) == 6


# -- networks of transformers ------------------------------------------------------------------------------------------

SMALL = {"vocab_size": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
PLAIN = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
TWO_SIDED = {f"{side}_{what}": 2 for side in ("encoder", "decoder") for what in ("layers", "attention_heads")}
TRANSFORMERS: dict[str, dict[str, Any]] = {
    "llama": {**PLAIN, "num_key_value_heads": 2, "head_dim": 16},
    "mistral": {**PLAIN, "num_key_value_heads": 2, "sliding_window": 4},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4},
    "t5": {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4},
    "whisper": {**TWO_SIDED, "d_model": 32, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "num_mel_bins": 8},
}


@thorough
@torch.no_grad()
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_generation_with_the_cache_equals_the_one_without(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.AutoConfig.for_model(name, **SMALL, **TRANSFORMERS[name])
    example: dict[str, Any] = {"input_ids": torch.randint(3, 60, (2, 6))}
    if name == "whisper":
        config.max_source_positions = 20
        model = transformers.WhisperForConditionalGeneration(config)
        example = {"input_features": torch.randn(1, 8, 40)}
    elif name == "t5":
        model = transformers.AutoModelForSeq2SeqLM.from_config(config)
    else:
        model = transformers.AutoModelForCausalLM.from_config(config)
    for parameter in model.eval().parameters():
        if parameter.dim() > 1:
            parameter.normal_(std=0.3)
    called_with = dict(example)
    if name in ("t5", "whisper"):
        rows = len(next(iter(example.values())))
        called_with["decoder_input_ids"] = torch.randint(3, 60, (rows, 4))
    graph = DependencyGraph(model, called_with)
    without = DependencyGraph(model, {**called_with, "use_cache": False})
    assert len(graph.nodes) == len(without.nodes) and "cache" in str(graph.traced.notes)
    graph.plan(np.concatenate([group.nodes[::2] for group in graph.groups])).exec()
    how = {"max_new_tokens": 10, "min_new_tokens": 10, "do_sample": False, "num_beams": 1}
    assert torch.equal(model.generate(**example, **how), model.generate(**example, **how, use_cache=False))
