"""Sensitivities and input norms of matrices of every kind, against the same network written with Linear and Conv."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from criterions.Magnitude import Magnitude
from criterions.SiPP import SiPP
from criterions.Wanda import Wanda
from pruning import PrunableNetwork
from pruning.scores import weight_sensitivities
from pruning.scores.activations import channel_sensitivities
from tests.support.zoo.matrices import MATRICES, Conv1D, Einsums, Factors, Gathered, Loops, Pairs, sequence

Scores = Mapping[str, Tensor]


def linear(weight: Tensor) -> nn.Linear:
    """A Linear without a bias that multiplies by a matrix (outputs, inputs)."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    with torch.no_grad():
        layer.weight.copy_(weight)
    return layer


class Transposed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = Conv1D(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class Heads(nn.Module):
    """Attention from one sequence to another: queries, keys and values are rows of one matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x[:, :2].relu(), x, x)[0]


class PlainHeads(nn.Module):
    def __init__(self, twin: Heads) -> None:
        super().__init__()
        rows = twin.attention.in_proj_weight.detach().chunk(3)
        self.q, self.k, self.v = (linear(part) for part in rows)
        self.o = linear(twin.attention.out_proj.weight.detach())

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.q(x[:, :2].relu()), self.k(x), self.v(x)
        q, k, v = (part.unflatten(-1, (2, 2)).transpose(1, 2) for part in (q, k, v))
        shares = (q @ k.transpose(-1, -2) / 2**0.5).softmax(-1)
        return self.o((shares @ v).transpose(1, 2).flatten(2))


class Cells(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.LSTM(4, 5, batch_first=True, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.cells(x)[0]


class PlainCells(nn.Module):
    def __init__(self, twin: Cells) -> None:
        super().__init__()
        self.ih, self.hh = linear(twin.cells.weight_ih_l0.detach()), linear(twin.cells.weight_hh_l0.detach())

    def forward(self, x: Tensor) -> Tensor:
        h = c = x.new_zeros(len(x), 5)
        outs = []
        for step in x.unbind(1):
            i, f, g, o = (self.ih(step) + self.hh(h)).chunk(4, -1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            outs.append(h)
        return torch.stack(outs, 1)


class PlainExperts(nn.Module):
    def __init__(self, twin: Loops) -> None:
        super().__init__()
        self.ups = nn.ModuleList([linear(part.detach()) for part in twin.up])
        self.downs = nn.ModuleList([linear(part.detach()) for part in twin.down])
        self.router, self.head = linear(twin.router.detach()), twin.head

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(0, 1)
        shares = self.router(x).softmax(-1)
        parts = [down(up(x).relu()) for up, down in zip(self.ups, self.downs, strict=True)]
        return self.head(sum(shares[:, place, None] * part for place, part in enumerate(parts)))


class PlainGathered(nn.Module):
    def __init__(self, twin: Gathered) -> None:
        super().__init__()
        self.experts, self.head = nn.ModuleList([linear(part.detach().t()) for part in twin.experts]), twin.head

    def forward(self, x: Tensor) -> Tensor:
        rows = [self.experts[place % 3](row) for place, row in enumerate(x.mean(1))]
        return self.head(torch.stack(rows))


class GroupedProducts(nn.Module):
    """Rows by group and the group's matrix, in one product; the last group gets none."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.Parameter(torch.randn(3, 8, 16))

    def forward(self, x: Tensor) -> Tensor:
        rows = F.pad(x.flatten(0, 1), (0, 4))
        offsets = torch.tensor([5, 12, 12], dtype=torch.int32)
        return F.grouped_mm(rows, self.experts, offs=offsets)


class PlainGroups(nn.Module):
    def __init__(self, twin: GroupedProducts) -> None:
        super().__init__()
        self.experts = nn.ModuleList([linear(part.detach().t()) for part in twin.experts])

    def forward(self, x: Tensor) -> Tensor:
        rows = F.pad(x.flatten(0, 1), (0, 4))
        return torch.cat([self.experts[0](rows[:5]), self.experts[1](rows[5:])])


class PlainEinsums(nn.Module):
    def __init__(self, twin: Einsums) -> None:
        super().__init__()
        self.inwards = linear(twin.inwards.detach().transpose(1, 2).flatten(0, 1))
        self.outwards = linear(twin.outwards.detach().flatten(0, 1).t())

    def forward(self, x: Tensor) -> Tensor:
        heads = self.inwards(x).tanh()
        return self.outwards(heads.sum(1))


class PlainPairs(nn.Module):
    def __init__(self, twin: Pairs) -> None:
        super().__init__()
        self.pairs, self.head = linear(twin.pairs.weight.detach().flatten(1)), twin.head
        self.bias = twin.pairs.bias

    def forward(self, x: Tensor) -> Tensor:
        products = torch.einsum("bi,bj->bij", x[:, 0], x[:, 1])
        return self.head(self.pairs(products.flatten(1)) + self.bias)


class Vectors(nn.Module):
    """Matrices on the left, a column, a slice in another order."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.column = nn.Parameter(torch.randn(3, 6)), nn.Parameter(torch.randn(4, 1))
        self.mixed = nn.Parameter(torch.randn(6, 4))

    def forward(self, x: Tensor) -> Tensor:
        gate = x @ self.column
        mixed = x @ self.mixed[:, [2, 0, 3, 1]].t().contiguous()
        return self.left @ (torch.cat([gate, mixed], 2))


class PlainVectors(nn.Module):
    def __init__(self, twin: Vectors) -> None:
        super().__init__()
        self.left, self.column = linear(twin.left.detach()), linear(twin.column.detach().t())
        self.mixed = linear(twin.mixed.detach())

    def forward(self, x: Tensor) -> Tensor:
        gate, mixed = self.column(x), self.mixed(x[..., [1, 3, 0, 2]])
        return self.left(torch.cat([gate, mixed], 2).transpose(1, 2)).transpose(1, 2)


@dataclass
class Twins:
    """Two ways to write a network.

    Args:
        make: builds the one that is tested.
        plain: writes the same with layers.
        same: parameter of the first -> its values, from those of the second.
    """

    make: Callable[[], nn.Module]
    plain: Callable[[nn.Module], nn.Module]
    same: Mapping[str, Callable[[Scores], Tensor]]


def stacked(*names: str) -> Callable[[Scores], Tensor]:
    return lambda scores: torch.stack([scores[name] for name in names])


TWINS: dict[str, Twins] = {
    "transposed linear": Twins(
        Transposed,
        lambda twin: nn.Sequential(linear(twin.layer.weight.detach().t())),
        {"layer.weight": lambda scores: scores["0.weight"].t()},
    ),
    "attention": Twins(
        Heads,
        PlainHeads,
        {
            "attention.in_proj_weight": lambda scores: torch.cat([scores[f"{part}.weight"] for part in "qkv"]),
            "attention.out_proj.weight": lambda scores: scores["o.weight"],
        },
    ),
    "lstm": Twins(
        Cells,
        PlainCells,
        {
            "cells.weight_ih_l0": lambda scores: scores["ih.weight"],
            "cells.weight_hh_l0": lambda scores: scores["hh.weight"],
        },
    ),
    "experts": Twins(
        Loops,
        PlainExperts,
        {
            "up": stacked(*[f"ups.{place}.weight" for place in range(3)]),
            "down": stacked(*[f"downs.{place}.weight" for place in range(3)]),
            "router": lambda scores: scores["router.weight"],
        },
    ),
    "gathered experts": Twins(
        Gathered,
        PlainGathered,
        {"experts": lambda scores: stacked(*[f"experts.{place}.weight" for place in range(3)])(scores).mT},
    ),
    "groups": Twins(
        GroupedProducts,
        PlainGroups,
        {"experts": lambda scores: stacked(*[f"experts.{place}.weight" for place in range(3)])(scores).mT},
    ),
    "einsum": Twins(
        Einsums,
        PlainEinsums,
        {"inwards": lambda scores: scores["inwards.weight"].unflatten(0, (2, 3)).mT},
    ),
    "bilinear": Twins(
        Pairs,
        PlainPairs,
        {"pairs.weight": lambda scores: scores["pairs.weight"].unflatten(1, (4, 4))},
    ),
    "left and column": Twins(
        Vectors,
        PlainVectors,
        {
            "left": lambda scores: scores["left.weight"],
            "column": lambda scores: scores["column.weight"].t(),
        },
    ),
}


@pytest.mark.parametrize("name", TWINS)
def test_scores_are_those_of_the_same_network_of_layers(name: str) -> None:
    twins = TWINS[name]
    model = twins.make()
    plain = twins.plain(model)
    inputs = sequence()
    assert torch.allclose(model(inputs), plain(inputs), atol=1e-5)
    batches = [(inputs, torch.zeros(1)), (inputs.relu(), torch.zeros(1))]
    networks = [PrunableNetwork(model, inputs), PrunableNetwork(plain, inputs)]
    for scores_of in (lambda network: Wanda().weight_scores(network, batches), partial_sensitivities(batches)):
        found, expected = (scores_of(network) for network in networks)
        for matrix, same in twins.same.items():
            assert torch.allclose(found[matrix], same(expected), atol=1e-5), matrix
    assert not networks[0].unscored


def test_a_deformable_convolution_is_scored_by_what_its_taps_meet() -> None:
    ops = pytest.importorskip("torchvision.ops")

    class Deformed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = ops.DeformConv2d(4, 6, 3, stride=2, padding=1, groups=2)

        def forward(self, x: Tensor) -> Tensor:
            # By one place to the right, all of them: as a convolution of the shifted picture.
            places = x.new_zeros(len(x), 2 * 9, 3, 3)
            places[:, 1::2] = 1.0
            return self.layer(x, places)

    model, x = Deformed(), torch.randn(2, 4, 5, 5)
    plain = nn.Conv2d(4, 6, 3, stride=2, groups=2)
    plain.load_state_dict(model.layer.state_dict())
    shifted = F.pad(x, (0, 2, 1, 1))
    assert torch.allclose(model(x), plain(shifted), atol=1e-5)
    found = [PrunableNetwork(model, x), PrunableNetwork(nn.Sequential(plain), shifted)]
    for scores_of in (weight_sensitivities, Wanda().weight_scores):
        (one,), (other,) = (
            scores_of(network, [(inputs, torch.zeros(1))]).values()
            for network, inputs in zip(found, (x, shifted), strict=True)
        )
        assert torch.allclose(one, other, atol=1e-5)
    assert found[0].flops() == found[1].flops()


class StandardisedConv(nn.Conv2d):
    """Its kernels have mean 0 and variance 1 when they multiply."""

    def forward(self, x: Tensor) -> Tensor:
        kernels = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        kernels = kernels / kernels.std((1, 2, 3), keepdim=True)
        return F.conv2d(x, kernels, self.bias)


class NormedConv(nn.Conv2d):
    """The same by a norm of the network's library, as timm does it."""

    def forward(self, x: Tensor) -> Tensor:
        flat = self.weight.reshape(1, self.out_channels, -1)
        return F.conv2d(x, F.batch_norm(flat, None, None, training=True).reshape_as(self.weight), self.bias)


@pytest.mark.parametrize("kind", [StandardisedConv, NormedConv])
def test_layers_that_standardise_their_weights_are_scored_by_what_they_are_given(kind: type) -> None:
    layer, x = kind(3, 4, 2), torch.randn(2, 3, 5, 5)
    plain = nn.Conv2d(3, 4, 2)
    plain.load_state_dict(layer.state_dict())
    networks = [PrunableNetwork(nn.Sequential(layer), x), PrunableNetwork(nn.Sequential(plain), x)]
    found, expected = (Wanda().weight_scores(network, [(x, torch.zeros(1))]) for network in networks)
    assert torch.allclose(found["0.weight"], expected["0.weight"], atol=1e-5) and not networks[0].unscored
    assert networks[0].flops_by_weight() == networks[1].flops_by_weight()
    assert bool(weight_sensitivities(networks[0], [(x, None)])["0.weight"].any())


def partial_sensitivities(batches: list[tuple[Tensor, Tensor]]) -> Callable[[PrunableNetwork], Scores]:
    return lambda network: weight_sensitivities(network, batches)


def test_wanda_takes_the_same_share_of_every_output_wherever_outputs_lie() -> None:
    for name in ("transposed linear", "experts", "gathered experts", "einsum"):
        model = TWINS[name].make()
        network = PrunableNetwork(model, sequence())
        network.prune(Wanda(), [(sequence(), torch.zeros(1))], sparsity=0.5)
        for matrix in TWINS[name].same:
            outputs = network.output_dims(matrix)
            mask = network.masks.keep[matrix]
            entries = [dim for dim in range(mask.dim()) if dim not in outputs]
            kept, width = mask.sum(entries), mask.sum(entries).new_tensor([mask.shape[dim] for dim in entries]).prod()
            assert bool(((kept >= width // 2) & (kept <= (width + 1) // 2)).all()), matrix


@pytest.mark.parametrize("criterion", [Wanda, SiPP])
def test_what_cannot_be_scored_is_left_out_by_name(criterion: type) -> None:
    model = Factors()
    network = PrunableNetwork(model, sequence())
    batches = [(sequence(), torch.zeros(2, dtype=torch.long))]
    report = network.prune(criterion(), batches, sparsity=0.5)
    # `whole` is a matrix to which something is added; of the others only products multiply.
    assert set(network.unscored) == {"up", "down", "out", "back"}
    assert "not scored" in str(report) and "up, down" in str(report)
    assert set(network.masks.keep) == {"whole"} and network.masks.removed("whole") == 8
    assert report.reached == pytest.approx(8 / 15)
    # Another criterion scores them all.
    assert network.prune(Magnitude(), sparsity=0.75).reached == pytest.approx(0.75, abs=0.01)
    assert set(network.masks.keep) == {"up", "down", "whole", "out", "back"}


@pytest.mark.parametrize("name", MATRICES)
def test_every_kind_of_matrix_is_scored_or_named(name: str) -> None:
    case = MATRICES[name]
    network = PrunableNetwork(case.make(), case.inputs())
    report = network.prune(Wanda(), [(case.inputs(), torch.zeros(2, dtype=torch.long))], sparsity=0.5)
    assert set(network.masks.keep) | set(network.unscored) == set(case.outputs)
    assert report.reached == pytest.approx(0.5, abs=0.04)
    # Of these no entry is one of what multiplies.
    hidden = {"factors": {"up", "down", "out", "back"}, "modulated": {"kernel"}}
    assert set(network.unscored) == hidden.get(name, set())
    for left in network.unscored:
        assert left in str(report)


def test_channels_are_of_what_reads_along_the_inputs_alone() -> None:
    network = PrunableNetwork(Pairs(), sequence())
    assert set(channel_sensitivities(network, [(sequence(), torch.zeros(1))])) == {"head.weight"}
