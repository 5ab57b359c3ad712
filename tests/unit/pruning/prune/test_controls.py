"""Control experiments keep what they say they keep."""

import torch
from torch import nn

from criterions.Magnitude import Magnitude
from pruning import PrunableNetwork
from tests.support.zoo.small import build, conv_net


def pruned():
    network = PrunableNetwork(build(conv_net), torch.zeros(1, 2, 5, 5))
    initial = {name: weight.detach().clone() for name, weight in network.prunable().items()}
    network.prune(Magnitude(), sparsity=0.6)
    return network, initial


def test_shuffle_moves_the_mask_within_each_layer_and_brings_initial_values_back():
    network, initial = pruned()
    before = {name: mask.clone() for name, mask in network.masks.keep.items()}
    with torch.no_grad():
        for weight in network.prunable().values():
            weight.mul_(2)  # as if trained
    network.shuffle_masks(torch.Generator().manual_seed(1), initial)
    moved = 0
    for name, mask in network.masks.keep.items():
        weight = network.model.get_parameter(name)
        assert int(mask.sum()) == int(before[name].sum())
        moved += int((mask != before[name]).sum())
        stayed, back = mask & before[name], mask & ~before[name]
        assert torch.equal(weight[back], initial[name][back])
        assert torch.equal(weight[stayed], 2 * initial[name][stayed])
        assert not weight[~mask].any()
    assert moved > 20


def test_shuffle_depends_on_its_generator_alone():
    masks = []
    for seed in (1, 1, 2):
        network, initial = pruned()
        torch.rand(seed)
        network.shuffle_masks(torch.Generator().manual_seed(seed), initial)
        masks.append(torch.cat([mask.flatten() for mask in network.masks.keep.values()]))
    assert torch.equal(masks[0], masks[1]) and not torch.equal(masks[0], masks[2])


def test_shuffle_reaches_every_place_about_equally_often():
    network = PrunableNetwork(nn.Linear(10, 2, bias=False), torch.zeros(1, 10))
    initial = {"weight": network.model.weight.detach().clone()}
    network.prune(Magnitude(), sparsity=0.5)
    generator, counts = torch.Generator().manual_seed(0), torch.zeros(2, 10)
    for _ in range(400):
        network.shuffle_masks(generator, initial)
        counts += network.masks.keep["weight"]
    # 400 draws of 10 in 20: mean 200, standard deviation 10.
    assert counts.sum() == 400 * 10 and (counts - 200).abs().max() < 50


def test_shuffle_empties_no_slice_under_weight_norm():
    torch.manual_seed(0)
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(6, 12)), nn.Linear(12, 3))
    network = PrunableNetwork(model, torch.zeros(1, 6))
    initial = {name: weight.detach().clone() for name, weight in network.prunable().items()}
    network.prune(Magnitude(), sparsity=0.85)
    left = network.weights_left()
    network.shuffle_masks(torch.Generator().manual_seed(0), initial)
    assert network.weights_left() == left
    assert torch.isfinite(model(torch.ones(1, 6))).all()


def test_reinit_draws_every_value_anew_under_the_same_mask():
    network, _ = pruned()
    before = {name: mask.clone() for name, mask in network.masks.keep.items()}
    fresh = build(conv_net, seed=9)
    network.reinitialise(fresh)
    for name, tensor in network.model.state_dict().items():
        expected = fresh.state_dict()[name]
        assert torch.equal(tensor, expected * before[name] if name in before else expected)
    assert all(torch.equal(mask, before[name]) for name, mask in network.masks.keep.items())
