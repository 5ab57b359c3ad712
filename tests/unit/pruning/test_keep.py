"""Modules marked `keep` stay whole for criteria of weights, too."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from criterions.LAMP import LAMP
from criterions.Magnitude import Magnitude
from pruning import PrunableNetwork, UsageError, WeightCriterion, keep


def build() -> nn.Sequential:
    block = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), block, nn.ReLU(), nn.Linear(16, 4))


@pytest.mark.parametrize("criterion", [Magnitude, LAMP])
def test_criteria_of_weights_leave_kept_modules_alone(criterion: type) -> None:
    model = build()
    keep(model[2])  # with both layers inside of it
    network = PrunableNetwork(model, torch.randn(1, 8))
    report = network.prune(criterion(), sparsity=0.5)
    assert set(network.masks.keep) == {"0.weight", "4.weight"}
    assert all(bool((model[2][index].weight != 0).all()) for index in (0, 2))
    # Half of 128 + 64 weights; the 512 of the block do not count.
    assert report.reached == 0.5 and report.steps[-1].removed == 96
    assert network.weight_sparsity() == pytest.approx(96 / 704)
    assert "2.0, 2.2 (512 weights)" in str(report) and "2.0, 2.2" in report.steps[-1].describe("weights")


def test_nothing_is_said_where_nothing_is_kept() -> None:
    report = PrunableNetwork(build()).prune(Magnitude(), sparsity=0.5)
    assert report.steps[-1].protected == "" and "keep" not in str(report)


def test_a_network_that_is_kept_whole_says_so() -> None:
    network = PrunableNetwork(keep(build()))
    with pytest.raises(UsageError, match="marked keep left out there is nothing to prune"):
        network.prune(Magnitude(), sparsity=0.5)


def test_infinite_scores_are_told_of_keep() -> None:
    class Protect(WeightCriterion):
        def weight_scores(self, network: PrunableNetwork, batches: object) -> dict[str, torch.Tensor]:
            return {name: torch.full_like(weight, torch.inf) for name, weight in network.weights()}

    with pytest.raises(UsageError, match=r"not finite.*keep\(module\)"):
        PrunableNetwork(build()).prune(Protect(), sparsity=0.5)
