"""Losses that prepare a network for pruning: their penalties and slopes against loops and closed forms."""

import math

import pytest
import torch
from torch import nn

from losses.GroupHoyerSquare import GroupHoyerSquare
from losses.GroupSparsity import GroupSparsity
from losses.HoyerSquare import HoyerSquare
from losses.SlimmingL1 import SlimmingL1
from pruning import PrunableNetwork, UsageError
from tests.support import slow_reference_nodes as slow
from tests.support.zoo.by_hand import BY_HAND
from tests.support.zoo.small import build, mlp
from utils.settings import registry

PENALTIES = {
    "HoyerSquare": HoyerSquare(hoyer_reg=0.5),
    "GroupHoyerSquare": GroupHoyerSquare(hoyer_reg=0.5),
    "SlimmingL1": SlimmingL1(slimming_reg=0.5),
    "GroupSparsity": GroupSparsity(group_reg=0.5),
}
DOUBLE = {"dtype": torch.float64}


def network_of(kind):
    return BY_HAND[kind].network(torch.float64)


def slopes_of(loss, network):
    """The penalty and its derivative by every parameter, zeros where there is none."""
    parameters = dict(network.model.named_parameters())
    value = loss.penalty(network)
    found = torch.autograd.grad(value, list(parameters.values()), allow_unused=True, materialize_grads=True)
    return float(value.detach()), dict(zip(parameters, found, strict=True))


def differences(value_of, weight, step=1e-6):
    """The slope of a function of the network by each entry of one of its weights, without any derivative."""
    found = torch.zeros_like(weight)
    flat, slopes = weight.detach().view(-1), found.view(-1)
    for place in range(len(flat)):
        before = float(flat[place])
        values = []
        for side in (step, -step):
            flat[place] = before + side
            values.append(value_of())
        flat[place] = before
        slopes[place] = (values[0] - values[1]) / (2 * step)
    return found


def single(values):
    network = PrunableNetwork(nn.Linear(len(values), 1, bias=False), torch.zeros(1, len(values)))
    network.model.double().weight.data.copy_(torch.tensor([values], **DOUBLE))
    return network


# -- Hoyer-Square of weights ----------------------------------------------------------------------------------------


def test_one_weight_counts_one_and_n_equal_ones_count_n():
    """Acceptance test 9."""
    loss = HoyerSquare(hoyer_reg=1.0)
    assert float(loss.penalty(single([0.0, 0.0, -3.0, 0.0])).detach()) == pytest.approx(1)
    assert float(loss.penalty(single([0.2, -0.2, 0.2, -0.2, 0.2])).detach()) == pytest.approx(5)
    weights = [0.3, -1.5, 0.01, 2.0]
    for factor in (-7.0, 1e-6, 1e6):
        scaled = float(loss.penalty(single([factor * w for w in weights])).detach())
        assert scaled == pytest.approx(float(loss.penalty(single(weights)).detach()), rel=1e-12)


@pytest.mark.parametrize("kind", BY_HAND)
def test_hoyer_square_and_its_slope_are_the_papers(kind):
    network = network_of(kind)
    value, slopes = slopes_of(HoyerSquare(hoyer_reg=0.5), network)
    expected = 0.0
    for name, parameter in network.model.named_parameters():
        weights = [float(w) for w in parameter.detach().flatten()]
        if name in network.prunable():
            first, second = math.fsum(map(abs, weights)), math.fsum(w * w for w in weights)
            expected += 0.5 * first**2 / second
            closed = [math.copysign(first / second**2, w) * (second - abs(w) * first) for w in weights]  # half of 2 ...
        else:
            closed = [0.0] * len(weights)
        assert torch.allclose(slopes[name].flatten(), torch.tensor(closed, **DOUBLE), rtol=1e-9, atol=1e-12)
    assert value == pytest.approx(expected, rel=1e-12)


def test_what_is_not_ranked_is_not_penalised():
    network = PrunableNetwork(build(mlp, **DOUBLE), torch.zeros(2, 6, **DOUBLE), outer_layers=False)
    _, slopes = slopes_of(HoyerSquare(), network)
    assert [name for name, slope in slopes.items() if slope.any()] == ["4.weight"]


# -- penalties of nodes ---------------------------------------------------------------------------------------------


def slow_group_hoyer(model, groups):
    total = 0.0
    for squares in slow.group_squares(model, groups):
        norms = [math.sqrt(float(value)) for value in squares]
        total += 0.5 * math.fsum(norms) ** 2 / math.fsum(n * n for n in norms)
    return total


@pytest.mark.parametrize("kind", BY_HAND)
def test_group_hoyer_square_and_its_slope_are_the_papers(kind):
    case, network = BY_HAND[kind], network_of(kind)
    value, slopes = slopes_of(GroupHoyerSquare(hoyer_reg=0.5), network)
    assert value == pytest.approx(slow_group_hoyer(network.model, case.groups), rel=1e-10)
    name, weight = list(network.prunable().items())[1]
    expected = differences(lambda: slow_group_hoyer(network.model, case.groups), weight)
    assert torch.allclose(slopes[name], expected, rtol=1e-5, atol=1e-7)
    with torch.no_grad():
        for parameter in network.model.parameters():
            parameter.mul_(-17.0)
    assert slopes_of(GroupHoyerSquare(hoyer_reg=0.5), network)[0] == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("kind", BY_HAND)
def test_depgraphs_regulariser_is_the_papers(kind):
    case, network = BY_HAND[kind], network_of(kind)
    factors, expected = [], 0.0
    for squares in slow.group_squares(network.model, case.groups):
        top, low = float(squares.max()), float(squares.min())
        factors.append([2 ** (4 * (top - float(value)) / (top - low)) for value in squares])
        expected += math.fsum(0.5 * f * float(value) for f, value in zip(factors[-1], squares, strict=True))
        assert max(factors[-1]) == pytest.approx(16) and min(factors[-1]) == 1

    def with_fixed_factors():
        sums = slow.group_squares(network.model, case.groups)
        return sum(float((0.5 * torch.tensor(row) * v).sum()) for row, v in zip(factors, sums, strict=True))

    value, slopes = slopes_of(GroupSparsity(group_reg=0.5), network)
    assert value == pytest.approx(expected, rel=1e-10)
    name, weight = list(network.prunable().items())[1]
    assert torch.allclose(slopes[name], differences(with_fixed_factors, weight), rtol=1e-4, atol=1e-6)


def test_nodes_of_equal_size_all_count_once():
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.ReLU(), nn.Linear(4, 2, bias=False))
    for weight in model.parameters():
        nn.init.ones_(weight)
    network = PrunableNetwork(model, torch.zeros(1, 3))
    assert float(GroupSparsity(group_reg=1.0).penalty(network).detach()) == pytest.approx(4 * (3 + 2))
    assert float(GroupHoyerSquare(hoyer_reg=1.0).penalty(network).detach()) == pytest.approx(4)


def test_slimming_counts_every_norm_scale_once():
    network = network_of("residual")
    value, slopes = slopes_of(SlimmingL1(slimming_reg=0.5), network)
    scales = {n: p for n, p in network.model.named_parameters() if n in ("norm.weight", "last.weight")}
    assert value == pytest.approx(sum(0.5 * abs(v) for p in scales.values() for v in p.tolist()))
    for name, slope in slopes.items():
        expected = 0.5 * scales[name].sign() if name in scales else torch.zeros_like(slope)
        assert torch.equal(slope, expected.detach())
    with pytest.raises(UsageError, match="SlimmingL1 shrinks norm scales, and Attention has none"):
        SlimmingL1().penalty(network_of("attention"))


# -- what holds for all of them -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PENALTIES)
def test_zeros_give_zero_and_no_nan(name):
    network = network_of("plain")
    with torch.no_grad():
        network.model[0].weight[2] = 0
        network.model[1].weight[2] = 0
        network.model[5].weight[:, 8:12] = 0  # a whole node
    _, slopes = slopes_of(PENALTIES[name], network)
    assert all(torch.isfinite(slope).all() for slope in slopes.values())
    with torch.no_grad():
        for parameter in network.model.parameters():
            parameter.zero_()
    value, slopes = slopes_of(PENALTIES[name], network)
    assert value == 0 and not any(slope.any() for slope in slopes.values())


@pytest.mark.parametrize("name", PENALTIES)
def test_a_penalty_ends_with_the_first_event_even_if_nothing_went(name):
    network, loss = network_of("plain"), PENALTIES[name]
    assert float(loss.penalty(network).detach()) > 0
    outputs, targets = torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])
    assert torch.equal(loss(outputs, targets), nn.functional.cross_entropy(outputs, targets))
    network.prune_to(registry.find("criterions", "GroupHoyerSquare")(hoyer_threshold=0.0), 0.9)
    assert loss.penalty(network) == 0.0 and len(network.graph.nodes) == network.nodes_total()


@pytest.mark.parametrize("name", [*PENALTIES, "CrossEntropy"])
def test_strengths_that_make_no_sense_are_refused(name):
    flags = [flag for flag in registry.flags("losses", name) if flag.name.endswith("_reg")]
    assert flags
    for flag in flags:
        for value in (-1.0, math.inf, math.nan):
            with pytest.raises(UsageError, match=f"{flag.name} must be at least 0"):
                registry.build("losses", name, {flag.name: value})
        assert flag.kind is float and flag.help
