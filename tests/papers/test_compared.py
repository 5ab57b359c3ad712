"""ThiNet, HRank and Wanda, with which SiPP and PFP are compared, against slow computations of the same."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from criterions.HRank import HRank
from criterions.ThiNet import ThiNet, removal_order
from criterions.Wanda import Wanda
from pruning import PrunableNetwork
from tests.support.zoo.small import SHAPES, Residual, build, conv_net, data, mlp


def network_of(model, shape):
    return PrunableNetwork(model, torch.zeros(1, *shape))


# -- Wanda ----------------------------------------------------------------------------------------------------------

CONVOLUTIONS = {
    "plain": nn.Conv2d(4, 6, (3, 2), stride=2, padding=1, dilation=(1, 2)),
    "grouped": nn.Conv2d(4, 6, 3, padding=1, groups=2),
    "transposed": nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, groups=2),
}


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_wanda_of_a_convolution_counts_all_that_an_entry_meets(kind):
    """The norm is that of the output over all points if the entry's weight alone is one, and all others are zero."""
    torch.manual_seed(0)
    layer = CONVOLUTIONS[kind]
    inputs = torch.randn(3, 4, 5, 6)
    scores = Wanda().weight_scores(network_of(nn.Sequential(layer), (4, 5, 6)), [(inputs, torch.zeros(3))])["0.weight"]
    single = nn.Sequential(type(layer)(4, 6, layer.kernel_size, layer.stride, layer.padding, bias=False,
                                       dilation=layer.dilation, groups=layer.groups))  # fmt: skip
    for index in itertools.product(*map(range, layer.weight.shape)):
        single[0].weight.data.zero_()[index] = 1.0
        norm = single(inputs).detach().norm()
        assert float(scores[index]) == pytest.approx(float(norm * layer.weight.detach()[index].abs()), rel=1e-4), index


def test_wanda_keeps_the_same_share_of_every_output():
    network, batches = network_of(build(mlp), SHAPES[mlp]), data(SHAPES[mlp])
    inputs, weight = torch.cat([batch for batch, _ in batches]), network.model[0].weight.detach()
    expected = weight.abs() * inputs.norm(dim=0)
    assert torch.allclose(Wanda().weight_scores(network, batches)["0.weight"], expected, rtol=1e-5)
    network.prune(Wanda(), batches, keep_ratio=0.5)
    kept = network.masks.keep["0.weight"]
    assert set(kept.sum(1).tolist()) <= {3, 4}  # of six
    for row, scores in zip(kept, expected, strict=True):
        assert scores[row].min() > scores[~row].max()


# -- ThiNet ---------------------------------------------------------------------------------------------------------


def greedy(samples):
    """The paper's loop: what goes next keeps the sum of squares of the removed sum smallest."""
    gone, left = [], list(range(samples.shape[1]))
    while left:
        best = min(left, key=lambda c: float((samples[:, [*gone, c]].sum(1) ** 2).sum()))
        gone.append(best)
        left.remove(best)
    return gone


def test_thinet_removes_what_the_papers_loop_removes_first():
    samples = torch.randn(30, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    samples[:, 4] = -samples[:, 7]  # which leave no trace together
    order = removal_order(samples.t() @ samples).tolist()
    assert order == greedy(samples) and abs(order.index(4) - order.index(7)) == 1


def test_thinet_keeps_what_the_readers_would_miss():
    """Of one linear output every sample is known: the products of weights and activations of a point."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 1))
    inputs = torch.randn(1, 3)
    parts = (model[1](model[0](inputs)) * model[2].weight).detach().double()
    network = network_of(model, (3,))
    scores = ThiNet(points=1, per_point=4).node_scores(network, [(inputs, torch.zeros(1))])
    assert scores.argsort().tolist() == greedy(parts.expand(4, 6))
    network.prune(ThiNet(points=1), [(inputs, torch.zeros(1))], keep_ratio=0.5)
    assert network.kept_indices()["0.weight"][0].nonzero().flatten().tolist() == sorted(greedy(parts)[3:])


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_the_parts_of_thinets_samples_make_output_values(kind):
    torch.manual_seed(0)
    layer, inputs = CONVOLUTIONS[kind], torch.randn(1, 4, 5, 6)
    found = []

    class Watched(ThiNet):
        def _parts(self, layer, entries, generator):
            found.append(super()._parts(layer, entries, generator))
            return found[-1]

    model = nn.Sequential(nn.Conv2d(4, 4, 1), layer, nn.Flatten(), nn.LazyLinear(2))
    model(inputs)
    Watched(points=1, per_point=50).node_scores(network_of(model, (4, 5, 6)), [(inputs, torch.zeros(1))])
    values = (model[1](model[0](inputs)) - layer.bias.view(-1, 1, 1)).detach()
    sums = found[0].sum(1)
    assert len(sums) == 50 and all(float((values - value).abs().min()) < 1e-5 for value in sums)
    assert len({round(float(value), 4) for value in sums}) > 10


# -- HRank ----------------------------------------------------------------------------------------------------------


def test_hrank_is_the_mean_rank_of_the_maps_that_are_read():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 5, 3), nn.ReLU(), nn.Conv2d(5, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36, 2))
    inputs = torch.randn(6, 1, 7, 7)
    first, second = model[:2](inputs).detach(), model[:4](inputs).detach()
    network = network_of(model, (1, 7, 7))
    scores = HRank(points=6).node_scores(network, [(inputs, torch.zeros(6))])
    ranks = [np.linalg.matrix_rank(maps.numpy()).mean(0) for maps in (first, second)]  # (B, C, H, W) -> (C,)
    groups = network.graph.structure.group_of_node
    for group, expected in enumerate(ranks):
        assert scores[torch.from_numpy(groups == group)].tolist() == pytest.approx(expected.tolist())
    assert len(set(scores.tolist())) > 4


@pytest.mark.parametrize("cls", [ThiNet, HRank])
@pytest.mark.parametrize("maker", [mlp, conv_net, Residual])
def test_they_prune_any_network_to_a_share_of_its_weights(cls, maker):
    network = network_of(build(maker), SHAPES[maker])
    report = network.prune(cls(points=4), data(SHAPES[maker]), keep_ratio=0.6)
    assert report.unit == "weights" and report.reached > 0
    assert network.model.eval()(data(SHAPES[maker])[0][0]).isfinite().all()


@pytest.mark.parametrize(
    ("cls", "options"), [(ThiNet, {"points": 0}), (ThiNet, {"per_point": 0}), (HRank, {"points": 0})]
)
def test_wrong_settings_are_refused(cls, options):
    with pytest.raises(ValueError, match="at least 1"):
        cls(**options)
