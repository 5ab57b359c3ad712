"""--track_weights: sign flips, means and variances against plain loops."""

import csv
import statistics
from types import SimpleNamespace

import pytest
import torch

from criterions.SNAPitDuring import SNAPitDuring
from pruning import PrunableNetwork
from tests.support.zoo.small import SHAPES, build, data, mlp
from utils.callbacks.tracking import WeightTracking


@pytest.fixture
def tracked(tmp_path):
    network = PrunableNetwork(build(mlp), torch.zeros(1, *SHAPES[mlp]))
    trainer = SimpleNamespace(epoch=0, memory={}, network=network)
    board = SimpleNamespace(scalars={})
    return trainer, WeightTracking(SimpleNamespace(output=tmp_path), network, board), board


def rows(tracking):
    with open(tracking.path, newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def expected(before, weight, mask):
    pairs = [
        (old, new)
        for old, new, there in zip(
            before.flatten().tolist(), weight.flatten().tolist(), mask.flatten().tolist(), strict=True
        )
        if there
    ]
    values = [new for _, new in pairs]
    return [sum(a * b < 0 for a, b in pairs) / len(pairs), statistics.fmean(values), statistics.pvariance(values)]


def test_every_epoch_is_compared_with_the_one_before(tracked):
    trainer, tracking, board = tracked
    network = trainer.network
    tracking(trainer, "train_start")
    mask = torch.arange(35).view(5, 7) % 3 > 0
    for epoch in (1, 2, 3):
        before = {name: weight.detach().clone() for name, weight in network.prunable().items()}
        with torch.no_grad():
            for weight in network.prunable().values():
                weight.add_(torch.randn_like(weight), alpha=0.2)
        network.masks.set({"4.weight": mask})
        network.enforce()
        trainer.epoch = epoch
        tracking(trainer, "epoch_end")
        row = rows(tracking)[-1]
        assert row.pop("epoch") == epoch and len(rows(tracking)) == epoch
        for name, weight in network.prunable().items():
            there = mask if name == "4.weight" else torch.ones_like(weight)
            found = [row[f"{name} {what}"] for what in ("sign_flips", "mean", "variance")]
            assert found == pytest.approx(expected(before[name], weight.detach(), there), abs=1e-6)
        assert board.scalars == {f"tracked_weights/{name}": pytest.approx(value) for name, value in row.items()}
    assert any(value > 0 for name, value in rows(tracking)[0].items() if "sign_flips" in name)


def test_signs_go_along_with_cuts(tracked):
    trainer, tracking, _ = tracked
    tracking(trainer, "train_start")
    trainer.network.prune_to(SNAPitDuring(), 0.5, data(SHAPES[mlp]), cut_along=[*trainer.memory.values()])
    trainer.epoch = 1
    tracking(trainer, "epoch_end")
    # Nothing moved but what went: no weight that is left has flipped.
    assert all(value == 0 for name, value in rows(tracking)[0].items() if "sign_flips" in name)
    assert trainer.memory["signs"]["4.weight"].shape == trainer.network.model[4].weight.shape != (5, 7)


def test_a_stopped_run_goes_on_from_its_rows_and_signs(tracked):
    trainer, tracking, _ = tracked
    tracking(trainer, "train_start")
    for trainer.epoch in (1, 2):
        tracking(trainer, "epoch_end")
    again = WeightTracking(SimpleNamespace(output=tracking.path.parent), trainer.network, None)
    with torch.no_grad():
        trainer.network.model[4].weight.neg_()  # the part of an epoch before the stop
    trainer.epoch = 1
    again(trainer, "train_start")
    trainer.epoch = 2
    again(trainer, "epoch_end")
    first, second = rows(again)
    assert first["epoch"] == 1 and second["4.weight sign_flips"] == 1.0 and second["0.weight sign_flips"] == 0.0
