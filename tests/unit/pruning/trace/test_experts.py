"""Mixtures of experts: units within experts and the residual stream can go, in every way of running experts."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from criterions.GroupMagnitude import GroupMagnitude
from criterions.SNAP import SNAP
from pruning import DependencyGraph, PrunableNetwork
from pruning.errors import UsageError
from tests.support.tiers import few
from tests.support.zoo.small import with_zeros

WAYS = ("grouped", "batched", "loop")

pytestmark = pytest.mark.skipif(not hasattr(F, "grouped_mm"), reason="this torch has no product by group")


class Experts(nn.Module):
    """Gated experts in two tensors, run in one of three ways that compute the same.

    Args:
        way: one product by group over tokens sorted by expert, a matrix looked up for every token, or a loop.
        width: of the residual stream.
        hidden: units of each expert.
        interleaved: gate and up take turns in the joint projection (gpt-oss), instead of standing one after the other.
    """

    def __init__(self, way: str, width: int, hidden: int, interleaved: bool) -> None:
        super().__init__()
        self.way, self.interleaved, self.count = way, interleaved, 3
        self.up = nn.Parameter(torch.randn(3, width, 2 * hidden) / 3)
        self.up_bias = nn.Parameter(torch.randn(3, 2 * hidden))
        self.down = nn.Parameter(torch.randn(3, hidden, width) / 3)

    def gated(self, x: Tensor) -> Tensor:
        if self.interleaved:
            return x[..., ::2].sigmoid() * x[..., 1::2]
        gate, up = x.chunk(2, -1)
        return F.silu(gate) * up

    def forward(self, x: Tensor, expert: Tensor) -> Tensor:
        if self.way == "loop":
            result = torch.zeros_like(x)
            for number in expert.unique():
                (rows,) = torch.where(expert == number)
                hidden = self.gated(x[rows] @ self.up[number] + self.up_bias[number])
                result.index_add_(0, rows, hidden @ self.down[number])
            return result
        order = expert.argsort(stable=True)
        x, expert = x[order], expert[order]
        if self.way == "batched":
            hidden = self.gated(torch.bmm(x[:, None], self.up[expert])[:, 0] + self.up_bias[expert])
            result = torch.bmm(hidden[:, None], self.down[expert])[:, 0]
        else:
            ends = torch.histc(expert.float(), bins=self.count, min=0, max=self.count - 1).cumsum(0).int()
            hidden = self.gated(F.grouped_mm(x, self.up, offs=ends) + self.up_bias[expert])
            result = F.grouped_mm(hidden, self.down, offs=ends)
        return result[order.argsort()]


class MixtureOfExperts(nn.Module):
    """Words, two tokens' worth of experts for each, and a classifier."""

    def __init__(self, way: str, *, width: int = 16, hidden: int = 24, interleaved: bool = False) -> None:
        super().__init__()
        self.words, self.router = nn.Embedding(11, width), nn.Linear(width, 3)
        self.experts = Experts(way, width, hidden, interleaved)
        self.last = nn.Linear(width, 4)

    def forward(self, words: Tensor) -> Tensor:
        x = self.words(words).flatten(0, 1)
        shares, chosen = self.router(x).softmax(-1).topk(2, -1)
        y = self.experts(x.repeat_interleave(2, 0), chosen.flatten()) * shares.flatten()[:, None]
        return self.last(x + y.view(len(x), 2, -1).sum(1))


def mixture(way: str, *, interleaved: bool = False) -> tuple[MixtureOfExperts, Tensor]:
    torch.manual_seed(0)
    return MixtureOfExperts(way, interleaved=interleaved).eval(), torch.randint(0, 11, (2, 9))


def half_of_each(graph: DependencyGraph) -> np.ndarray:
    draw = np.random.default_rng(0)
    return np.concatenate([draw.permutation(group.nodes)[: len(group.nodes) // 2] for group in graph.groups])


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_half_of_everything_goes_exactly(way: str, interleaved: bool) -> None:
    model, words = mixture(way, interleaved=interleaved)
    graph = DependencyGraph(model, words)
    assert sorted(len(group.nodes) for group in graph.groups) == [16, 24], "\n".join(map(str, graph.pinned))
    plan = graph.plan(half_of_each(graph))
    assert not plan.inexact
    assert {plan.shapes[f"experts.{name}"] for name in ("up", "down")} == {(3, 8, 24), (3, 12, 8)}
    before = copy.deepcopy(model)
    smaller = plan.preview()
    if way != "grouped":  # torch multiplies by group in single precision at most
        before, smaller = before.double(), smaller.double()
    wanted = with_zeros(before, words, plan.keeps)
    tolerance = 1e-5 if way == "grouped" else 1e-12
    torch.testing.assert_close(smaller(words), wanted, rtol=tolerance, atol=tolerance)
    plan.exec()
    model.train()(words).square().sum().backward()
    assert model.experts.up.grad is not None and model.experts.up.grad.shape == (3, 8, 24)


def test_all_ways_find_the_same_nodes_and_scores() -> None:
    found = {}
    for way in WAYS:
        model, words = mixture(way)
        network = PrunableNetwork(model, words)
        targets = torch.arange(18) % 4
        found[way] = [GroupMagnitude().node_scores(network, []), SNAP().node_scores(network, [(words, targets)])]
        assert all(node.producers and node.consumers for node in network.graph.nodes)
    for way in WAYS[1:]:
        for one, other in zip(found["grouped"], found[way], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_an_experts_score_is_that_of_a_gate_on_its_units() -> None:
    model, words = mixture("batched")
    model.double()
    network = PrunableNetwork(model, words)
    targets = torch.arange(18) % 4
    scores = SNAP().node_scores(network, [(words, targets)]).double()
    gates = torch.ones(24, dtype=torch.float64, requires_grad=True)
    plain = model.experts.gated

    def gated(x: Tensor) -> Tensor:
        return plain(x * gates.repeat(2))

    model.experts.gated = gated  # type: ignore[method-assign]
    loss = network.loss(model(words), targets)
    (slopes,) = torch.autograd.grad(loss, gates)
    nodes = network.graph.nodes_along("experts.down", 1)
    mine, wanted = scores[nodes], slopes.abs()
    torch.testing.assert_close(mine / mine.sum(), wanted / wanted.sum(), rtol=1e-5, atol=1e-8)


def test_experts_and_rows_stay() -> None:
    model, words = mixture("grouped")
    graph = DependencyGraph(model, words)
    assert not graph.traced.real
    for name in ("experts.up", "experts.down", "router.weight"):
        assert (graph.nodes_along(name, 0) == -1).all()


def test_widths_suit_the_kernel() -> None:
    model, words = mixture("grouped")
    network = PrunableNetwork(model, words)
    with pytest.raises(UsageError, match="_grouped_mm in experts takes widths that are multiples of 4, and 15 would"):
        network.graph.plan([0])
    report = network.prune(GroupMagnitude(), sparsity=0.45)
    assert all(size % 4 == 0 for size in (*model.experts.up.shape[1:], *model.experts.down.shape[1:]))
    assert "widths are multiples of 4" in str(report)
    assert model(words).isfinite().all()
    halves = PrunableNetwork(mixture("grouped")[0].bfloat16(), words)
    halves.prune(GroupMagnitude(), sparsity=0.45)
    assert halves.model.experts.up.shape[1] % 8 == halves.model.experts.down.shape[1] % 8 == 0
    assert halves.model(words).isfinite().all()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_flops_by_hand(way: str, device: str) -> None:
    if device == "meta" and way == "loop":
        pytest.skip("a loop over the experts that were chosen needs data")
    model, words = mixture(way)
    network = PrunableNetwork(model.to(device), words.to(device))
    tokens, routed = 18, 2 * 18
    wanted = 2 * (tokens * 16 * 3 + routed * 16 * 48 + routed * 24 * 16 + tokens * 16 * 4)
    assert network.flops() * 2 == wanted  # of two samples


# -- transformers' own -------------------------------------------------------------------------------------------------

SIZES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 24, "moe_intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "num_experts_per_tok": 2,
}  # fmt: skip
LATENT = {
    "num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
    "v_head_dim": 8, "n_routed_experts": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1,
}  # fmt: skip
MAMBA = {"num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2,
         "expert_layer_offset": 1, "mamba_d_state": 4, "mamba_dt_rank": 4, "use_mamba_kernels": False,
         "num_experts": 4}  # fmt: skip
FAMILIES = {
    "mixtral": {"num_local_experts": 4}, "gpt_oss": {"num_local_experts": 4}, "phimoe": {"num_local_experts": 4},
    "granitemoe": {"num_local_experts": 4}, "qwen2_moe": {"num_experts": 4}, "qwen3_moe": {"num_experts": 4},
    "olmoe": {"num_experts": 4}, "deepseek_v2": LATENT, "deepseek_v3": LATENT, "jamba": MAMBA,
}  # fmt: skip


@pytest.mark.parametrize("way", few(["grouped_mm", "batched_mm", "eager"], ["grouped_mm"]))
@pytest.mark.parametrize("family", few(FAMILIES, ["mixtral", "gpt_oss"]))
def test_families_of_transformers(family: str, way: str) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.AutoConfig.for_model(family, **{**SIZES, **FAMILIES[family]})
    config._experts_implementation = way
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    words = torch.arange(16).view(2, 8)
    network = PrunableNetwork(model, {"input_ids": words})
    graph = network.graph
    down = next(name for name in graph.tensors if name.endswith("experts.down_proj"))
    for dim in (1, 2):
        assert (graph.nodes_along(down, dim) >= 0).all(), "\n".join(map(str, graph.pinned))
    assert (graph.nodes_along("model.embed_tokens.weight", 1) >= 0).all()
    network.prune(GroupMagnitude(), sparsity=0.5)
    loss = model.train()(input_ids=words, labels=words).loss
    loss.backward()
    torch.optim.SGD(model.parameters(), 0.1).step()
    assert model.eval()(words).logits.isfinite().all()
