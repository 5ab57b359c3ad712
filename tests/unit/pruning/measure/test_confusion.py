"""Confusion and calibration, held to counts sample by sample, and their picture."""

import pytest
import torch
from torch import nn

from pruning.measure import confusion
from pruning.measure.confusion import BINS, Tally, tally_of
from tests.support.zoo.small import SHAPES, build, conv_net, data
from utils.callbacks.pictures import draw_confusion


def slow_calibration_error(scores, targets):
    """Bin by bin and sample by sample, as Guo et al. define it."""
    bins = [[] for _ in range(BINS)]
    for row, target in zip(scores.double(), targets.tolist(), strict=True):
        shares = torch.softmax(row, 0)
        confidence, said = float(shares.max()), int(shares.argmax())
        place = next(m for m in range(BINS) if m / BINS < confidence <= (m + 1) / BINS + 1e-12)
        bins[place].append((confidence, said == target))
    total = sum(len(members) for members in bins)
    error = 0.0
    for members in bins:
        if members:
            confidence = sum(one for one, _ in members) / len(members)
            error += len(members) / total * abs(confidence - sum(right for _, right in members) / len(members))
    return error


def test_tally_is_the_slow_count():
    rng = torch.Generator().manual_seed(0)
    scores, targets = torch.randn(200, 4, generator=rng) * 2, torch.randint(0, 3, (200,), generator=rng)
    targets[::17] = -100  # what a loss leaves out
    tally = Tally()
    for part in zip(scores.split(64), targets.split(64), strict=True):
        tally.add(*part)
    found, kept = tally.report(), targets >= 0
    assert found["expected_calibration_error"] == pytest.approx(slow_calibration_error(scores[kept], targets[kept]))
    said = scores.argmax(1)
    for row in range(4):
        for column in range(4):
            count = sum(t == row and s == column for t, s in zip(targets.tolist(), said.tolist(), strict=True))
            assert found["confusion"][row][column] == count
    for place, share in enumerate(found["class_accuracy"][:3]):
        assert share == pytest.approx(float((said == targets)[targets == place].float().mean()))
    assert found["class_accuracy"][3] is None, "no sample is of this class"
    assert sum(found["calibration"]["samples"]) == int(kept.sum())


def test_tally_of_a_picture_of_classes_and_of_no_classes():
    tally = Tally()
    tally.add(torch.rand(2, 3, 4, 5), torch.randint(0, 3, (2, 4, 5)))
    assert sum(tally.report()["calibration"]["samples"]) == 40
    for outputs, targets in ((torch.rand(5, 1), torch.rand(5, 1)), (torch.rand(5), torch.zeros(5, dtype=torch.long))):
        other = Tally()
        other.add(outputs, targets)
        assert other.report() == {}
    assert Tally().report() == {}
    certain = Tally()
    certain.add(torch.tensor([[1e4, 0.0], [0.0, 0.0]]), torch.tensor([0, 1]))
    assert certain.report()["expected_calibration_error"] == pytest.approx(0.25)


def test_every_sample_of_all_batches_is_counted():
    model, batches = build(conv_net), data(SHAPES[conv_net], sizes=(7, 9))
    model.train()
    found = tally_of(model, batches).report()["confusion"]
    assert model.training
    model.eval()
    counts = [[0] * 4 for _ in range(4)]
    for inputs, targets in batches:
        for picture, target in zip(inputs, targets, strict=True):
            counts[int(target)][int(model(picture[None]).argmax())] += 1
    assert found == counts


@pytest.mark.parametrize("model", [nn.Unflatten(1, (2, 3)), nn.LSTM(6, 4)])
def test_outputs_that_are_no_classes_have_no_picture(model):
    assert draw_confusion(tally_of(model, [(torch.randn(5, 6), torch.arange(5) % 2)]).report()) is None


def test_more_classes_than_a_table_of_pairs_can_hold_are_left_out(monkeypatch):
    monkeypatch.setattr(confusion, "CLASSES", 3)
    batch = (torch.rand(5, 4), torch.arange(5) % 3)
    assert tally_of(nn.Identity(), [batch]).report() == {}
    monkeypatch.setattr(confusion, "CLASSES", 4)
    assert tally_of(nn.Identity(), [batch]).report()["calibration"]["samples"]


def test_the_picture_shows_counts_shares_and_names():
    tally = Tally()
    tally.add(torch.tensor([[2.0, 0]] * 3 + [[0.0, 2]]), torch.zeros(4, dtype=torch.long))
    axes, calibration, _ = draw_confusion(tally.report(), ["cat", "dog"]).axes
    assert axes.images[0].get_array().tolist() == [[0.75, 0.25], [0, 0]]
    assert [text.get_text() for text in axes.texts] == ["3", "1"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["cat", "dog"]
    assert calibration.lines[1].get_ydata() == [0.75]
