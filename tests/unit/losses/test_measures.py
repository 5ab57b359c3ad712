"""What losses measure, against loops over single samples and libraries that measure the same."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, jaccard_score, mean_absolute_error, mean_squared_error, r2_score
from torch import nn
from torch.nn import functional as F

from losses.BinaryCrossEntropy import BinaryCrossEntropy
from losses.CrossEntropy import CrossEntropy
from losses.L1 import L1
from losses.MSE import MSE
from losses.NextToken import NextToken
from pruning import PrunableNetwork, UsageError
from pruning.measure.evaluate import measure
from pruning.measure.measures import KINDS, Measure, kind_of, measured, number, words_of


class Given(nn.Module):
    """Returns its input as outputs."""

    def forward(self, x):
        return x


def over_batches(loss, outputs, targets, sizes):
    """What a loss measures where the samples come in batches of these sizes."""
    batches = zip(outputs.split(sizes), targets.split(sizes), strict=True)
    return measure(Given(), list(batches), loss)


# -- numbers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [1, 3])
@pytest.mark.parametrize("loss", [MSE(), L1()])
def test_numbers_are_measured_as_scikit_learn_does_whatever_the_batches(loss, columns):
    true = 50 + 3 * torch.randn(60, columns, dtype=torch.float64)
    predicted = true + torch.randn(60, columns, dtype=torch.float64)
    found = over_batches(loss, predicted, true, [7, 1, 52])
    assert list(found) == ["loss", "r2", "mse", "mae"]
    assert found["r2"] == pytest.approx(r2_score(true, predicted))
    assert found["mse"] == pytest.approx(mean_squared_error(true, predicted))
    assert found["mae"] == pytest.approx(mean_absolute_error(true, predicted))
    assert found["loss"] == pytest.approx(found["mse" if isinstance(loss, MSE) else "mae"])


def test_numbers_of_one_value_have_nothing_to_explain():
    same = torch.full((8, 1), 0.1, dtype=torch.float64)
    assert over_batches(MSE(), same, same, [3, 5])["r2"] == r2_score(same, same) == 1
    assert over_batches(MSE(), same + 1, same, [3, 5])["r2"] == r2_score(same, same + 1) == 0


def test_a_column_is_not_spread_over_a_row():
    """torch would make (8, 8) of (8, 1) and (8,), and find any network far off."""
    column, row = torch.randn(8, 1), torch.randn(8)
    expected = sum((column[place, 0] - row[place]) ** 2 for place in range(8)) / 8
    for outputs, targets in ((column, row), (row, column)):
        assert float(MSE()(outputs, targets)) == pytest.approx(float(expected))
    with pytest.raises(UsageError, match=r"MSE.*\(8, 2\).*\(8,\)"):
        MSE()(torch.randn(8, 2), row)


# -- several labels ----------------------------------------------------------------------------------------------------


def test_several_labels_are_measured_label_by_label():
    labels = (torch.rand(50, 4) > 0.6).double()
    scores = labels - 0.5 + torch.randn(50, 4)
    found = over_batches(BinaryCrossEntropy(), scores, labels, [20, 30])
    said = (scores > 0).double()
    assert list(found) == ["loss", "mean_average_precision", "exact_match"]
    assert found["exact_match"] == pytest.approx(float((said == labels).all(1).double().mean()))
    in_bins = (scores * 128).floor()
    assert found["mean_average_precision"] == pytest.approx(average_precision_score(labels, in_bins, average="macro"))
    assert found["mean_average_precision"] == pytest.approx(average_precision_score(labels, scores), abs=0.02)
    nobody_has_it = labels.clone()
    nobody_has_it[:, 2] = 0
    rest = [0, 1, 3]
    expected = average_precision_score(labels[:, rest], in_bins[:, rest], average="macro")
    found = over_batches(BinaryCrossEntropy(), scores, nobody_has_it, [50])
    assert found["mean_average_precision"] == pytest.approx(expected)
    one = float(BinaryCrossEntropy()(scores[:1], labels[:1]))
    by_hand = [
        math.log1p(math.exp(-s if y else s)) for s, y in zip(scores[0].tolist(), labels[0].tolist(), strict=True)
    ]
    assert one == pytest.approx(sum(by_hand) / 4)
    with pytest.raises(UsageError, match="0 to 1"):
        BinaryCrossEntropy().check(scores, labels + 1)


# -- classes -----------------------------------------------------------------------------------------------------------


def test_pixels_are_measured_one_by_one_and_those_left_out_count_nowhere():
    classes = torch.randint(0, 3, (6, 5, 4))
    scores = torch.randn(6, 4, 5, 4)  # nobody has the fourth class, but it may be said
    scores[:, 3] -= 9
    left_out = torch.rand(6, 5, 4) < 0.2
    found = over_batches(CrossEntropy(), scores, classes.masked_fill(left_out, -100), [1, 5])
    true, said = classes[~left_out].numpy(), scores.argmax(1)[~left_out].numpy()
    assert list(found) == ["loss", "pixel_accuracy", "mean_iou"]
    assert found["pixel_accuracy"] == pytest.approx(np.mean(true == said))
    assert found["mean_iou"] == pytest.approx(jaccard_score(true, said, average="macro"))


def test_windows_as_long_as_the_vocabulary_are_not_taken_for_classes():
    with pytest.raises(UsageError, match="NextToken.*\\(2, 5, 5\\)"):
        CrossEntropy()(torch.randn(2, 5, 5), torch.zeros(2, 5).long())
    assert torch.isfinite(CrossEntropy()(torch.randn(2, 4, 5), torch.zeros(2, 5).long()))


def test_numbers_for_classes_are_refused_and_probabilities_are_not():
    scores = torch.randn(4, 3)
    assert float(CrossEntropy()(scores, torch.eye(3)[[0, 1, 2, 0]])) == pytest.approx(
        float(CrossEntropy()(scores, torch.tensor([0, 1, 2, 0])))
    )
    CrossEntropy().check(scores, torch.full((4, 3), 1 / 3))
    with pytest.raises(UsageError, match="add up to 1"):
        CrossEntropy().check(scores, torch.ones(4, 3))
    for outputs, targets in (
        (scores[:, :1], torch.ones(4, 1)),
        (scores, torch.ones(4)),
        (scores, torch.zeros(3).long()),
    ):
        with pytest.raises(UsageError) as refused:
            CrossEntropy()(outputs, targets)
        assert str(tuple(outputs.shape)) in str(refused.value) and str(tuple(targets.shape)) in str(refused.value)


# -- tokens ------------------------------------------------------------------------------------------------------------


def test_every_token_but_the_first_is_measured_against_the_scores_before_it(monkeypatch):
    monkeypatch.setattr("losses.NextToken.BLOCK", 30)  # a few rows at a time
    tokens = torch.randint(0, 11, (5, 7))
    tokens[2, 4:] = -100
    scores = torch.randn(5, 7, 11, dtype=torch.float64)
    losses, right = [], []
    for window in range(5):
        for place in range(6):
            following = int(tokens[window, place + 1])
            if following == -100:
                continue
            probabilities = scores[window, place].softmax(0)
            losses.append(-math.log(float(probabilities[following])))
            right.append(int(probabilities.argmax()) == following)
    found = over_batches(NextToken(), scores, tokens, [2, 3])
    assert list(found) == ["loss", "perplexity", "next_token_accuracy"]
    assert found["perplexity"] == pytest.approx(math.exp(sum(losses) / len(losses)))
    assert found["next_token_accuracy"] == pytest.approx(sum(right) / len(right))
    assert float(NextToken()(scores, tokens)) == pytest.approx(sum(losses) / len(losses))


def test_scores_that_are_no_number_of_words_are_refused():
    tokens = torch.zeros(2, 5).long()
    for scores, targets in (
        (torch.randn(2, 11), tokens),
        (torch.randn(2, 4, 11), tokens),
        (torch.randn(2, 1, 11), tokens[:, :1]),
    ):
        with pytest.raises(UsageError, match=r"NextToken takes .*\(2, "):
            NextToken()(scores, targets)


# -- the contract ------------------------------------------------------------------------------------------------------


class Own:
    """A loss of the user's own."""

    kinds = {"worst": Measure("lower", lambda sums: float(sums[0]))}

    def __call__(self, outputs, targets):
        return (outputs - targets).abs().mean()

    def measures(self, outputs, targets):
        error = (outputs - targets).abs()
        return {
            "near": (error < 1).sum().reshape(1).expand(2),
            "worst": torch.tensor([3.0]),
            "mae": (error.sum(), len(error)),
        }


def test_a_loss_of_ones_own_says_what_it_measures_and_which_way_is_good():
    outputs, targets = torch.zeros(4), torch.tensor([0.5, 2, 0, 1])
    found = measure(Given(), [(outputs, targets), (outputs, targets)], Own())
    assert found == {"loss": 0.875, "near": 1.0, "worst": 6.0, "mae": 0.875}
    assert [kind_of(name, Own()).better for name in ("worst", "mae", "near", "loss")] == [
        "lower",
        "lower",
        None,
        "lower",
    ]
    with pytest.raises(UsageError, match="measures"):
        measured(type("Bad", (Own,), {"measures": lambda *_: {"a": 3}})(), outputs, targets)
    with pytest.raises(UsageError, match="measures"):
        measured(type("Bad", (Own,), {"measures": lambda *_: 3})(), outputs, targets)


def test_a_loss_that_says_nothing_measures_classes_and_nothing_of_numbers():
    scores = torch.tensor([[2.0, 1.0], [0.0, 1.0]])
    assert measure(Given(), [(scores, torch.tensor([0, 0]))], F.cross_entropy)["accuracy"] == 0.5
    assert list(measure(Given(), [(scores, scores)], F.mse_loss)) == ["loss"]


def test_every_measure_has_a_direction_and_words():
    assert all(kind.better in ("higher", "lower") for kind in KINDS.values())
    assert words_of("test_r2") == "test R^2" and words_of("train_next_token_accuracy") == "train next token accuracy"
    assert [number(value) for value in (0.0, 0.25, 1e-6, 1234567.0, math.inf)] == [
        "0.0000",
        "0.2500",
        "1e-06",
        "1.235e+06",
        "inf",
    ]


def test_what_a_library_wraps_its_scores_in_is_taken_apart():
    from types import SimpleNamespace

    scores, classes = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    expected = F.cross_entropy(scores, classes)
    for outputs in (
        SimpleNamespace(logits=scores, hidden=scores),
        {"logits": scores, "x": classes},
        {"y": scores},
        (scores,),
    ):
        assert torch.equal(CrossEntropy()(outputs, classes), expected)
        assert "accuracy" in measured(CrossEntropy(), outputs, classes)
    network = PrunableNetwork(nn.Linear(3, 3), torch.zeros(1, 3))
    assert network.loss(scores, classes) == expected


# -- a library that measures the same ----------------------------------------------------------------------------------


def test_torchmetrics_finds_the_same():
    """It takes seconds to import, so the measures are summed up here; where it is installed it is asked."""
    metrics = pytest.importorskip("torchmetrics")
    true = torch.randn(30, 2)
    predicted = true + torch.randn(30, 2)
    found = over_batches(MSE(), predicted, true, [11, 19])
    assert found["r2"] == pytest.approx(float(metrics.R2Score()(predicted, true)), rel=1e-5)
    tokens, scores = torch.randint(0, 9, (6, 5)), torch.randn(6, 5, 9)
    tokens[3, 2:] = -100
    found = over_batches(NextToken(), scores, tokens, [2, 4])
    perplexity = metrics.text.Perplexity(ignore_index=-100)(scores[:, :-1], tokens[:, 1:])
    assert found["perplexity"] == pytest.approx(float(perplexity), rel=1e-5)
    classes, pixels = torch.randint(0, 3, (4, 5, 6)), torch.randn(4, 3, 5, 6)
    found = over_batches(CrossEntropy(), pixels, classes, [1, 3])
    overlap = metrics.JaccardIndex("multiclass", num_classes=3, average="macro")(pixels, classes)
    assert found["mean_iou"] == pytest.approx(float(overlap), rel=1e-5)
    labels, said = torch.randint(0, 2, (40, 3)), torch.randn(40, 3)
    found = over_batches(BinaryCrossEntropy(), said, labels.float(), [15, 25])
    exact = metrics.classification.MultilabelExactMatch(num_labels=3)(said.sigmoid(), labels)
    assert found["exact_match"] == pytest.approx(float(exact), rel=1e-5)
    precision = metrics.classification.MultilabelAveragePrecision(num_labels=3)(said, labels)
    assert found["mean_average_precision"] == pytest.approx(float(precision), abs=0.02)
