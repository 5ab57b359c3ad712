"""Networks that are sparse already: their zeros become masks, and what only starts at zero does not."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from criterions.Magnitude import Magnitude
from pruning import PrunableNetwork


def sparse_network(share: float = 0.8) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 4))
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight *= torch.rand_like(layer.weight) >= share
    return model


def test_zeros_become_masks_and_are_told() -> None:
    model = sparse_network()
    zeros = {name: weight == 0 for name, weight in model.named_parameters() if "weight" in name}
    count = sum(int(flags.sum()) for flags in zeros.values())
    with pytest.warns(UserWarning, match=f"{count:,} weights .* in 2 layers are exactly zero.*adopt_zeros=False"):
        network = PrunableNetwork(model)
    assert all(torch.equal(~network.masks.keep[name], flags) for name, flags in zeros.items())
    assert network.weight_sparsity() == pytest.approx(count / network.weights_total())
    step = network.prune(Magnitude(), sparsity=0.5).steps[0]
    assert step.removed == 0 and "already sparser" in step.reason
    assert network.prune(Magnitude(), sparsity=0.9).reached == pytest.approx(0.9, abs=1e-4)


def test_zeros_may_stay_values() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        network = PrunableNetwork(sparse_network(), adopt_zeros=False)
    assert not network.masks.keep and network.weight_sparsity() == 0


@pytest.mark.parametrize(
    "change",
    [
        lambda weight: weight,
        nn.init.zeros_,  # branches that start as nothing
        nn.init.eye_,  # layers that start as the identity
        lambda weight: weight.mul_(torch.rand_like(weight) > 0.05),  # half precision has some by chance
    ],
    ids=["dense", "zeros", "identity", "few"],
)
def test_fresh_networks_stay_dense(change) -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))
    with torch.no_grad():
        change(model[0].weight)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        network = PrunableNetwork(model)
    assert not network.masks.keep and network.weight_sparsity() == 0
