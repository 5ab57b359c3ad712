"""SiPP and PFP: allocations against loops and a solver, draws against their probabilities."""

import math

import pytest
import torch
from scipy.optimize import minimize
from torch import nn

from criterions._points import points_needed
from criterions._sampling import K, Parts, draw, error_of, inclusion, water_filling
from criterions.FT import FT
from criterions.Magnitude import Magnitude
from criterions.PCA import PCA
from criterions.PFP import PFP, PFPNet
from criterions.PFPRand import PFPRand
from criterions.PFPTop import PFPTop
from criterions.SiPP import SiPP, SiPPNet
from criterions.SiPPHybrid import SiPPHybrid
from criterions.SiPPRand import SiPPRand
from criterions.SoftNet import SoftNet
from criterions.UniformWeights import UniformWeights
from criterions.WT import WT
from models.LeNet300 import LeNet300
from models.ResNet20 import ResNet20
from pruning import PrunableNetwork, UsageError
from pruning.scores.activations import channel_sensitivities, weight_sensitivities
from tests.support.zoo.small import SHAPES, Residual, build, conv_net, data, mlp

DRAWN = [SiPPRand, SiPPHybrid, UniformWeights]


def network_of(maker, batches=None):
    return PrunableNetwork(build(maker), torch.zeros(2, *SHAPES[maker])), data(SHAPES[maker])


# -- draws ----------------------------------------------------------------------------------------------------------


def test_a_draw_takes_each_entry_with_its_probability_and_always_as_many():
    generator = torch.Generator().manual_seed(0)
    chances = torch.tensor([0.05, 0.9, 0.3, 1.0, 0.0, 0.75, 0.5, 0.5], dtype=torch.float64)
    draws = torch.stack([draw(chances, generator) for _ in range(4000)])
    assert set(draws.sum(1).tolist()) == {4}
    # Five standard errors of a share of 4000 draws.
    assert torch.allclose(draws.double().mean(0), chances, atol=5 * math.sqrt(0.25 / 4000))
    assert bool(draws[:, 3].all()) and not draws[:, 4].any()


def parts_of(sizes, scales=(1.0, 1.0)):
    numbers = torch.tensor([part for part, values in enumerate(sizes) for _ in values])
    flat = torch.tensor([value for values in sizes for value in values], dtype=torch.float64)
    return flat, Parts(numbers, torch.tensor(scales, dtype=torch.float64), torch.tensor([1.0, 3.0]))


def test_inclusion_probabilities_are_proportional_and_add_up():
    sizes, parts = parts_of([[0.9, 0.05, 0.05, 0.0], [1e-12, 1e-12, 0.5]])
    chances, samples = inclusion(sizes, parts, torch.tensor([2.0, 1.5], dtype=torch.float64))
    assert torch.allclose(parts.sums(chances), torch.tensor([2.0, 1.5], dtype=torch.float64))
    assert torch.allclose(chances, torch.tensor([1, 0.5, 0.5, 0, 0.25, 0.25, 1], dtype=torch.float64))
    assert float(samples[0]) == pytest.approx(10)


def test_water_filling_is_the_minimum_that_a_solver_finds():
    alpha = torch.tensor([5.0, 40.0, 0.3, 12.0], dtype=torch.float64)
    per, most = torch.tensor([1.0, 4, 2, 1], dtype=torch.float64), torch.tensor([9.0, 50, 3, 30], dtype=torch.float64)
    found = water_filling(alpha, per, most, 30.0)
    assert float(found.sum()) == pytest.approx(30) and bool((found <= most).all())

    def loss(samples):
        return float((error_of(alpha, torch.as_tensor(samples)) / per).sum())

    bounds = [(1e-3, float(top)) for top in most]
    other = minimize(loss, [5.0, 12, 2, 11], bounds=bounds, constraints={"type": "eq", "fun": lambda m: m.sum() - 30})
    assert loss(found) <= other.fun * (1 + 1e-4)
    assert float(error_of(alpha, alpha * (3 + 2 * 0.4) / (2 * K * 0.4**2))[0]) == pytest.approx(0.4)


@pytest.mark.parametrize("cls", DRAWN)
@pytest.mark.parametrize("maker", [mlp, conv_net, Residual])
def test_what_stays_is_divided_by_its_probability(cls, maker):
    network, batches = network_of(maker)
    before = {name: weight.detach().clone() for name, weight in network.weights()}
    seen = []

    class Watched(cls):
        def _chances(self, sizes, parts, places):
            seen.append((sizes, *super()._chances(sizes, parts, places)))
            return seen[-1][1:]

    total = network.weights_total()
    network.prune(Watched(seed=3), batches, sparsity=0.6)
    assert network.weights_left() == total - round(0.6 * total)
    ((sizes, chances, factors),) = seen
    assert float(chances.sum()) == pytest.approx(round(float(chances.sum())), abs=1e-6)
    sampled = factors > 1
    assert torch.allclose((chances * factors)[sampled], torch.ones(1, dtype=torch.float64))
    assert bool(sampled.any()) or cls is SiPPHybrid  # which cuts where that is the better bound
    after = torch.cat([weight.detach().flatten() for _, weight in network.weights()]).double()
    old = torch.cat([weight.flatten() for weight in before.values()]).double()
    kept = after != 0
    assert torch.allclose(after[kept], (old * factors)[kept], rtol=1e-5)


def test_the_hybrid_cuts_where_the_bound_of_a_cut_is_smaller():
    sizes, parts = parts_of([[0.5, 0.3, 0.2, 0.001], [0.3] * 40], scales=(1.0, 1e-3))
    chances, factors = SiPPHybrid()._chances(sizes, parts, 30)
    assert chances[:4].tolist() == [1, 1, 1, pytest.approx(float(chances[3]))] and factors[:4].tolist() == [1] * 4
    assert torch.allclose(chances[4:] * factors[4:], torch.ones(1, dtype=torch.float64)) and float(chances[4]) < 1


def test_another_seed_draws_others():
    masks = []
    for seed in (1, 2):
        network, batches = network_of(mlp)
        network.prune(SiPPRand(seed=seed), batches, sparsity=0.5)
        masks.append(torch.cat([mask.flatten() for mask in network.masks.keep.values()]))
    assert not torch.equal(*masks)


# -- weights --------------------------------------------------------------------------------------------------------


def test_sipp_keeps_the_most_sensitive_weights_of_the_whole_network_and_sets_are_nested():
    kept = []
    for ratio in (0.6, 0.3):
        network, batches = network_of(conv_net)
        scores = weight_sensitivities(network, batches, "mean")
        network.prune(SiPP(), batches, keep_ratio=ratio)
        flat, mask = (torch.cat([p.flatten() for p in parts.values()]) for parts in (scores, network.masks.keep))
        assert flat[mask].min() >= flat[~mask].max()
        kept.append(mask)
    assert bool((kept[0] | ~kept[1]).all())


@pytest.mark.parametrize("cls", [SiPP, SiPPRand, SiPPHybrid, WT, UniformWeights, PFP])
def test_a_keep_ratio_of_one_is_the_network_as_it_was(cls):
    network, batches = network_of(Residual)
    before = {name: value.clone() for name, value in network.model.state_dict().items()}
    network.prune(cls(), batches, keep_ratio=1.0)
    assert all(torch.equal(value, before[name]) for name, value in network.model.state_dict().items())


def test_wt_is_magnitude():
    masks = []
    for cls in (WT, Magnitude):
        network, _ = network_of(mlp)
        network.prune(cls(), sparsity=0.5)
        masks.append(torch.cat([mask.flatten() for mask in network.masks.keep.values()]))
    assert torch.equal(*masks)


def test_s_is_as_large_as_the_theory_asks():
    resnet = PrunableNetwork(ResNet20(num_classes=10, input_shape=(3, 32, 32)), torch.zeros(1, 3, 32, 32))
    lenet = PrunableNetwork(LeNet300(num_classes=10, input_shape=(1, 28, 28)), torch.zeros(1, 1, 28, 28))
    assert abs(points_needed(resnet, 1e-16) - 183) <= 1  # ours pads its shortcuts, the paper's convolves them
    assert points_needed(lenet, 1e-16) == 152
    assert [points_needed(lenet, delta) for delta in (0.1, 0.01, 1e-4)] == [49, 56, 70]


def test_only_so_many_points_are_looked_at():
    network, batches = network_of(mlp)
    cut = [(batches[0][0], batches[0][1]), (batches[1][0][:1], batches[1][1][:1])]
    few = SiPP(points=4).weight_scores(network, batches)
    assert all(torch.equal(few[n], s) for n, s in SiPP(points=99).weight_scores(network, cut).items())


@pytest.mark.parametrize("cls", [SiPP, PFP, PCA])
def test_batches_are_pairs_and_empty_ones_are_passed_over(cls):
    network, ((inputs, targets), *_) = network_of(mlp)
    with pytest.raises(UsageError, match="a dict of x, y, without 'labels'.* pairs"):
        network.prune(cls(), [{"x": inputs, "y": targets}], keep_ratio=0.5)
    with pytest.raises(UsageError, match="no batches"):
        network.prune(cls(), [(inputs[:0], targets[:0])], keep_ratio=0.5)
    network.prune(cls(), [(inputs[:0], targets[:0]), (inputs, torch.tensor(0))], keep_ratio=0.5)
    assert network.weight_sparsity() > 0.4


# -- filters --------------------------------------------------------------------------------------------------------


def two_layers():
    return nn.Sequential(nn.Conv2d(2, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 2), nn.ReLU(), nn.Flatten(), nn.Linear(54, 3))


def allocation(sensitivities, scales, t):
    """How many channels of each layer t beta draws hit on average, rounded up, by the papers' formula."""
    counts = []
    for sizes, scale in zip(sensitivities, scales, strict=True):
        draws = t * sum(sizes) * scale
        counts.append(math.ceil(sum(1 - (1 - s / sum(sizes)) ** draws for s in sizes) - 1e-9))
    return counts


def test_pfp_is_the_papers_allocation_for_one_error_level():
    torch.manual_seed(0)
    model = two_layers()
    inputs = torch.randn(5, 2, 6, 6)
    network = PrunableNetwork(model, inputs[:1])
    batches = [(inputs, torch.zeros(5))]
    shares = channel_sensitivities(network, batches)
    layers = [shares["2.weight"][0].tolist(), shares["5.weight"][0].view(6, 9).amax(1).tolist()]
    scales = [6 * math.log(8 * 10 * 4 / 1e-16), 6 * math.log(8 * 2 / 1e-16)]
    scores = PFP().node_scores(network, batches)
    groups = network.graph.structure.group_of_node
    for t in (1e-4, 1e-3, 3e-3, 1e-2, 0.1):
        kept = scores >= -math.log(t)
        found = [int(kept[torch.from_numpy(groups == group)].sum()) for group in (0, 1)]
        assert found == allocation(layers, scales, t)
    order = scores[torch.from_numpy(groups == 0)].argsort(descending=True)
    assert order.tolist() == sorted(range(8), key=lambda c: -layers[0][c])


@pytest.mark.parametrize("ratio", [0.9, 0.8, 0.7, 0.5, 0.3, 0.2])
def test_pfp_reaches_the_asked_ratio_of_weights_that_are_really_gone(ratio):
    torch.manual_seed(0)
    network = PrunableNetwork(ResNet20(num_classes=10, input_shape=(3, 8, 8)), torch.zeros(1, 3, 8, 8))
    report = network.prune(PFP(points=1), [(torch.randn(1, 3, 8, 8), torch.zeros(1))], keep_ratio=ratio)
    left = sum(weight.numel() for weight in network.prunable().values())
    assert left / network.weights_total() == pytest.approx(ratio, abs=0.005)
    assert report.unit == "weights" and report.reached == pytest.approx(1 - left / network.weights_total())


def test_depthwise_layers_have_no_say():
    network, batches = network_of(Residual)
    shares = channel_sensitivities(network, batches)
    sensitivities, _ = PFP().sensitivities(network, batches)
    # The depthwise branch passes each channel to itself; the head alone weighs them against one another.
    assert torch.allclose(sensitivities, shares["head.weight"][0].double())


class TwoReaders(nn.Module):
    """A layer that two others read."""

    def __init__(self):
        super().__init__()
        self.stem, self.one, self.other = nn.Linear(4, 6), nn.Linear(6, 3), nn.Linear(6, 3)

    def forward(self, x):
        hidden = self.stem(x).relu()
        return self.one(hidden) + self.other(hidden)


def test_of_two_readers_the_larger_share_counts():
    torch.manual_seed(0)
    network, batches = PrunableNetwork(TwoReaders(), torch.zeros(1, 4)), [(torch.randn(3, 4), torch.zeros(3))]
    shares = channel_sensitivities(network, batches)
    expected = torch.maximum(shares["one.weight"][0], shares["other.weight"][0])
    assert torch.allclose(PFP().sensitivities(network, batches)[0], expected.double())


@pytest.mark.parametrize("options", [{"points": 0}, {"delta": 0.0}, {"delta": 1.0}])
@pytest.mark.parametrize("cls", [SiPP, PFP])
def test_wrong_settings_are_refused(cls, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        cls(**options)


@pytest.mark.parametrize("cls", [PFPRand, PFPTop])
def test_filters_that_stay_are_re_weighted_where_they_are_read(cls):
    torch.manual_seed(0)
    model, inputs = two_layers(), torch.randn(5, 2, 6, 6)
    network = PrunableNetwork(model, inputs[:1])
    dense = {name: value.clone() for name, value in model.state_dict().items()}
    chances = []

    class Watched(cls):
        def _chances(self, sizes, count):
            chances.append(super()._chances(sizes, count))
            return chances[-1]

    report = network.prune(Watched(seed=5), [(inputs, torch.zeros(5))], keep_ratio=0.5)
    assert report.reached >= 0.5
    kept = network.kept_indices()["0.weight"][0]
    # PFPTop asks PFPRand for its own: the first answer of the outermost call is the group's.
    group = next(c for c in chances if len(c) == 8)
    assert float(group.sum()) == pytest.approx(int(kept.sum()), abs=1e-6)
    rows = network.kept_indices()["2.weight"][0]
    expected = dense["2.weight"][rows][:, kept] / group[kept].float().view(1, -1, 1, 1)
    assert torch.allclose(model[2].weight, expected, rtol=1e-5)
    assert torch.equal(model[0].weight, dense["0.weight"][kept])


def test_pfptop_keeps_for_certain_what_draws_would_hit_anyway():
    sizes = torch.tensor([0.5, 0.3, 0.02, 0.02, 0.02], dtype=torch.float64)
    assert PFPTop()._chances(sizes, 3).tolist() == pytest.approx([1, 1, 1 / 3, 1 / 3, 1 / 3])
    assert float(PFPRand()._chances(sizes, 4).sum()) == pytest.approx(4)


@pytest.mark.parametrize(("cls", "power"), [(FT, 1), (SoftNet, 2)])
def test_filter_norms_keep_the_same_share_of_every_layer(cls, power):
    torch.manual_seed(0)
    model = two_layers()
    norms = [model[at].weight.detach().flatten(1).norm(p=power, dim=1) for at in (0, 2)]
    network = PrunableNetwork(model, torch.zeros(1, 2, 6, 6))
    network.prune(cls(), keep_ratio=0.5)
    for name, norm in zip(("0.weight", "2.weight"), norms, strict=True):
        kept = network.kept_indices()[name][0]
        assert norm[kept].min() > norm[~kept].max()
    left = sum(weight.numel() for weight in network.prunable().values())
    assert left <= 0.5 * network.weights_total()


# -- a copy beside the original --------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [SiPPNet, PFPNet])
def test_a_compressed_copy_leaves_the_original_alone(make):
    model, batches = build(conv_net), data(SHAPES[conv_net])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    net = make(model, batches, points=3)
    dense = net.size(), net.flops()
    net.compress(keep_ratio=0.5)
    assert net.size() < dense[0] and net.flops() < dense[1]
    first = net.size()
    net.compress(keep_ratio=0.3, from_original=False)
    assert net.size() < first
    net.compress(keep_ratio=0.5)
    assert net.size() == first and net.cpu() is net
    assert net(batches[0][0]).shape == (3, 4)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    net.compress(keep_ratio=1.0)
    assert (net.size(), net.flops()) == dense
    assert torch.equal(net.eval()(batches[0][0]), build(conv_net).eval()(batches[0][0]))


def test_a_compressed_copy_needs_batches():
    with pytest.raises(UsageError, match="loader must give pairs"):
        SiPPNet(build(mlp), [])
