"""Cuts by hand: shapes, values, integers, gradients, and everything that must be refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pruning.cut import by_hand
from pruning.cut.plan import cut_function
from pruning.errors import UsageError
from pruning.graph.graph import DependencyGraph
from pruning.modules.weights import channel_dims


@pytest.mark.parametrize(
    ("module", "gone_in", "gone_out", "shape"),
    [
        (nn.Conv2d(6, 8, 3, padding=1), [1, 4], [0, 7], (2, 6, 5, 5)),
        (nn.Conv2d(6, 8, 3, padding=1, groups=2), [1, 3], [0, 7], (2, 6, 5, 5)),
        (nn.ConvTranspose2d(6, 8, 3, padding=1), [1, 4], [0, 7], (2, 6, 5, 5)),
        (nn.ConvTranspose2d(6, 8, 3, padding=1, groups=2), [1, 3], [2, 6], (2, 6, 5, 5)),
        (nn.Conv1d(6, 4, 3, padding=1), [5], [1], (2, 6, 5)),
        (nn.Linear(6, 8), [1, 4], [0, 7], (2, 6)),
    ],
)
def test_in_and_out_channels(
    module: nn.Module, gone_in: list[int], gone_out: list[int], shape: tuple[int, ...]
) -> None:
    x = torch.randn(shape)
    left_in = [i for i in range(shape[1]) if i not in gone_in]
    masked = x.clone()
    masked[:, gone_in] = 0
    wanted = module(masked)
    left_out = [i for i in range(wanted.shape[1]) if i not in gone_out]
    parameters = [id(parameter) for parameter in module.parameters()]
    module(x).sum().backward()
    by_hand.prune_in_channels(module, gone_in)
    by_hand.prune_out_channels(module, gone_out)
    torch.testing.assert_close(module(x[:, left_in]), wanted[:, left_out])
    assert parameters == [id(parameter) for parameter in module.parameters()]
    assert all(parameter.grad.shape == parameter.shape for parameter in module.parameters())
    names = ("in_features", "out_features") if isinstance(module, nn.Linear) else ("in_channels", "out_channels")
    assert [getattr(module, name) for name in names] == [len(left_in), len(left_out)]


def test_depthwise_loses_inputs_and_outputs() -> None:
    module, x = nn.Conv2d(4, 8, 3, groups=4), torch.randn(1, 4, 5, 5)
    wanted = module(x)[:, [0, 1, 6, 7]]
    by_hand.prune_out_channels(module, [2, 3, 4, 5])
    torch.testing.assert_close(module(x[:, [0, 3]]), wanted)
    with pytest.raises(UsageError, match="all 2 outputs"):
        by_hand.prune_conv(module, [0])
    by_hand.prune_related_conv(module, [1])
    assert (module.groups, module.in_channels, module.out_channels) == (1, 1, 2)


@pytest.mark.parametrize(
    "norm", [nn.BatchNorm2d(6), nn.GroupNorm(6, 6), nn.InstanceNorm2d(6, affine=True), nn.PReLU(6)]
)
def test_channelwise_modules(norm: nn.Module) -> None:
    x = torch.randn(3, 6, 4, 4)
    norm.eval()
    wanted = norm(x)[:, [0, 2, 5]]
    by_hand.prune_out_channels(norm, [1, 3, 4])
    torch.testing.assert_close(norm(x[:, [0, 2, 5]]), wanted)


@pytest.mark.parametrize(
    ("module", "dims"),
    [
        (nn.Linear(2, 3), (0, 1)),
        (nn.Conv2d(2, 3, 1), (0, 1)),
        (nn.ConvTranspose1d(2, 3, 1), (1, 0)),
        (nn.Embedding(5, 3), (1, 0)),
        (nn.EmbeddingBag(5, 3), (1, 0)),
        (nn.BatchNorm1d(3), (0, 1)),
    ],
)
def test_every_room_asks_the_same_table_for_the_side_of_a_dimension(module: nn.Module, dims: tuple[int, int]) -> None:
    assert channel_dims(module) == dims
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        assert cut_function(module, 1) == "prune_out_channels" and cut_function(module, 0) == "prune_in_channels"
    if isinstance(module, nn.modules.conv._ConvNd):
        assert [cut_function(module, dim) for dim in dims] == ["prune_conv", "prune_related_conv"]


def test_embedding_and_attention() -> None:
    table, ids = nn.Embedding(9, 6), torch.arange(4)
    wanted = table(ids)[:, [1, 2]]
    torch.testing.assert_close(by_hand.prune_out_channels(table, [0, 3, 4, 5])(ids), wanted)
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    by_hand.prune_in_channels(attention, [1, 6])
    out, _ = attention(*[torch.randn(2, 3, 6)] * 3)
    assert out.shape == (2, 3, 6)
    assert (attention.embed_dim, attention.head_dim, attention.in_proj_weight.shape) == (6, 3, (18, 6))


@pytest.mark.parametrize(
    ("function", "module", "idxs"),
    [
        (by_hand.prune_conv, nn.Linear(2, 3), [0]),
        (by_hand.prune_linear, nn.Conv2d(2, 3, 1), [0]),
        (by_hand.prune_batchnorm, nn.LayerNorm(3), [0]),
        (by_hand.prune_conv, nn.Conv2d(2, 3, 1), [3]),
        (by_hand.prune_conv, nn.Conv2d(2, 3, 1), [-1]),
        (by_hand.prune_conv, nn.Conv2d(2, 3, 1), []),
        (by_hand.prune_conv, nn.Conv2d(2, 3, 1), [0, 1, 2]),
        (by_hand.prune_related_conv, nn.Conv2d(4, 4, 1, groups=2), [0]),
        (by_hand.prune_out_channels, nn.ReLU(), [0]),
        (by_hand.prune_in_channels, nn.Embedding(3, 3), [0]),
        (by_hand.prune_batchnorm, nn.BatchNorm1d(3, affine=False, track_running_stats=False), [0]),
        (by_hand.prune_in_channels, nn.MultiheadAttention(8, 2), [0]),
        (by_hand.prune_linear, nn.utils.parametrizations.weight_norm(nn.Linear(4, 6)), [0]),
        (by_hand.prune_related_conv, nn.utils.parametrizations.spectral_norm(nn.Conv2d(4, 6, 1)), [0]),
        (by_hand.prune_in_channels, nn.Bilinear(3, 3, 4), [0]),
        (by_hand.prune_out_channels, nn.LayerNorm((3, 3)), [0]),
    ],
)
def test_refusals_change_nothing(function, module: nn.Module, idxs: list[int]) -> None:
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with pytest.raises(UsageError):
        function(module, idxs)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_by_hand_equals_the_graph() -> None:
    def build() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3)).eval()

    cut_by_hand, by_graph, x = build(), build(), torch.randn(1, 3, 8, 8)
    by_hand.prune_conv(cut_by_hand[0], [1, 4])
    by_hand.prune_batchnorm(cut_by_hand[1], idxs=[1, 4])
    by_hand.prune_related_conv(cut_by_hand[3], [1, 4])
    DependencyGraph(by_graph, x).get_pruning_plan(by_graph[0], by_hand.prune_conv, idxs=[1, 4]).exec()
    assert torch.equal(cut_by_hand(x), by_graph(x))
    again = DependencyGraph(by_graph, x).get_pruning_plan(by_graph[3], by_hand.prune_related_conv, [0])
    assert again.shapes["0.weight"] == (3, 3, 3, 3)
