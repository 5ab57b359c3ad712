"""The random baseline: exact counts, three distributions, and the quotas of another method."""

import pytest
import torch
from torch import nn

from criterions.GMP import GMP
from criterions.IMP import IMP
from criterions.Magnitude import Magnitude
from criterions.SNIP import SNIP
from criterions.SNIPit import SNIPit
from criterions.UnstructuredRandom import UnstructuredRandom
from pruning import Criterion, PrunableNetwork
from tests.support import slow_reference as slow
from tests.support.zoo.small import SHAPES, Residual, bias_free, build, data


def network_of(*widths):
    torch.manual_seed(0)
    return PrunableNetwork(bias_free(*widths), torch.zeros(1, widths[0]))


def removed_by(criterion, network, sparsity, batches=()):
    network.prune(criterion, batches, sparsity=sparsity)
    return {name: network.masks.removed(name) for name in network.prunable()}


@pytest.mark.parametrize("distribution", ["global", "uniform", "erk"])
@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.98])
def test_the_count_is_exact(distribution, sparsity):
    network = network_of(50, 40, 30, 10)
    removed_by(UnstructuredRandom(distribution=distribution), network, sparsity)
    total = 2000 + 1200 + 300
    assert network.weights_left() == total - round(sparsity * total)


def test_uniform_removes_the_same_share_of_each_layer():
    removed = removed_by(UnstructuredRandom(distribution="uniform"), network_of(50, 40, 30, 10), 0.9)
    assert list(removed.values()) == [1800, 1080, 270]


def test_erk_densities_are_those_of_the_reference():
    network = network_of(50, 40, 30, 10)
    removed = removed_by(UnstructuredRandom(distribution="erk"), network, 0.8)
    shapes = {name: weight.shape for name, weight in network.prunable().items()}
    for name, density in slow.erk_densities(shapes, 0.8).items():
        assert removed[name] == pytest.approx(shapes[name].numel() * (1 - density), abs=1)


def test_global_draws_over_all_weights_alike():
    removed = removed_by(UnstructuredRandom(), network_of(100, 100, 100), 0.5)
    # Hypergeometric: mean 5000 of each layer's 10000, standard deviation 35.
    assert sum(removed.values()) == 10_000 and abs(removed["0.weight"] - 5000) < 180


def test_values_play_no_part_and_the_seed_does():
    masks = []
    for seed, scale in ((1, 1.0), (1, 100.0), (2, 1.0)):
        network = network_of(20, 20, 5)
        with torch.no_grad():
            network.model[0].weight.mul_(scale)
        torch.rand(seed)
        network.prune(UnstructuredRandom(seed=seed), sparsity=0.5)
        masks.append(network.masks.keep["0.weight"])
    assert torch.equal(masks[0], masks[1]) and not torch.equal(masks[0], masks[2])


@pytest.mark.parametrize("model", [SNIP(), SNIPit(snip_steps=2), Magnitude()], ids=lambda c: type(c).__name__)
def test_quotas_are_those_of_the_other_method_and_the_weights_are_not(model):
    batches = data(SHAPES[Residual])
    theirs, ours = (PrunableNetwork(build(Residual), torch.zeros(1, 2, 5, 5)) for _ in range(2))
    random = UnstructuredRandom(quotas_of=model)
    assert random.sparsities(0.6) == model.sparsities(0.6) and random.needs_data == model.needs_data
    first = model.sparsities(0.6)[0]
    theirs.prune_to(model, first, batches)
    ours.prune_to(random, first, batches)
    assert [int(m.sum()) for m in ours.masks.keep.values()] == [int(m.sum()) for m in theirs.masks.keep.values()]
    assert any(not torch.equal(mask, theirs.masks.keep[name]) for name, mask in ours.masks.keep.items())
    ours.prune(random, batches, sparsity=0.6)
    assert ours.weights_left() == ours.weights_total() - round(0.6 * ours.weights_total())


def test_quotas_of_a_method_that_prunes_during_training_are_drawn_during_training():
    random = UnstructuredRandom(quotas_of=IMP(enable_rewinding=True, rewind_to=2))
    assert (random.moment, random.rewind_epoch) == ("during", 2)
    assert UnstructuredRandom(quotas_of=GMP()).moment == "during"
    assert (UnstructuredRandom().moment, UnstructuredRandom().rewind_epoch) == ("before", None)


def test_events_of_a_stopped_run_draw_as_if_it_had_gone_on():
    whole, stopped = network_of(20, 20, 5), network_of(20, 20, 5)
    one = UnstructuredRandom(distribution="erk", seed=4)
    for target in (0.3, 0.6):
        whole.prune_to(one, target, ())
        stopped.prune_to(UnstructuredRandom(distribution="erk", seed=4), target, ())
    assert all(torch.equal(mask, stopped.masks.keep[name]) for name, mask in whole.masks.keep.items())


@pytest.mark.parametrize("distribution", ["uniform", "erk"])
def test_layers_that_lost_more_than_their_share_are_made_up_for_by_others(distribution):
    network = network_of(20, 20, 20)
    mask = torch.zeros(20, 20, dtype=torch.bool)
    mask[0, :5] = True
    network.masks.set({"0.weight": mask})
    network.prune_to(UnstructuredRandom(distribution=distribution), 0.6, ())
    assert network.weights_left() == 800 - 480
    assert int(network.masks.keep["0.weight"].sum()) == 5


def test_quotas_of_nodes_are_refused():
    class Nodes(Criterion):
        unit = "nodes"

    with pytest.raises(ValueError, match="Nodes removes nodes"):
        UnstructuredRandom(quotas_of=Nodes())


def test_every_weight_is_equally_likely():
    counts = torch.zeros(1, 12)
    for seed in range(300):
        network = PrunableNetwork(nn.Linear(12, 1))
        network.prune(UnstructuredRandom(seed=seed), sparsity=0.5)
        counts += network.masks.keep["weight"]
    # 300 draws of 6 in 12: mean 150, standard deviation 8.7.
    assert counts.sum() == 300 * 6 and (counts - 150).abs().max() < 45
