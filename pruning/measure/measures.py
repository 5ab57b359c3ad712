"""What is measured of outputs beside their loss: sums that add up over batches and processes, and what they come to."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from pruning.errors import UsageError
from pruning.modules.calls import scores_of

Better = Literal["higher", "lower"]

SCORE_BINS = 4096  # of scores that average precision ranks: sums cannot hold every score

# name -> sums of a batch, which stay on its device.
Sums = dict[str, Tensor]


class Measure(NamedTuple):
    """A number that says how good outputs are.

    Args:
        better: which way is good; None where nobody said, so that nothing is concluded from it.
        value: from (k,) sums over everything, in double precision on the CPU, to the number.
        fraction: whether it lies between 0 and 1.
    """

    better: Better | None
    value: Callable[[Tensor], float]
    fraction: bool = False


def ratio(sums: Tensor) -> float:
    """Returns total / count; NaN where nothing was counted."""
    total, count = sums.tolist()
    return total / count if count else math.nan


def exponential(sums: Tensor) -> float:
    """Returns exp(total / count): perplexity, from a sum of negative log-likelihoods."""
    mean = torch.tensor(ratio(sums), dtype=torch.float64)
    return float(mean.exp())  # infinite where Python's own would raise


def determination(sums: Tensor) -> float:
    """Returns R^2 = 1 - residual / total sum of squares, the mean over the columns of the targets.

    Args:
        sums: (1 + 3 k,): samples; then per column the sum of the targets, of their squares, of squared errors.
    """
    samples = sums[0]
    total, squares, residual = sums[1:].view(3, -1)
    variation = squares - total.square() / samples
    # A column of one value has only rounding to explain: 1 for outputs that hit it, else 0, as in scikit-learn.
    varies = variation > 1e-13 * squares
    explained = torch.where(varies, 1 - residual / variation, (residual == 0).double())
    return float(explained.mean()) if samples else math.nan


def mean_overlap(sums: Tensor) -> float:
    """Returns the mean over classes of intersection / union; classes that are nowhere are left out.

    Args:
        sums: (2 k,): intersection of each class, then the union.
    """
    intersection, union = sums.view(2, -1)
    there = union > 0
    return float((intersection[there] / union[there]).mean())


def mean_precision(sums: Tensor) -> float:
    """Returns the mean over labels of average precision; labels that no sample has are left out.

    Average precision is the sum, from the highest score down, of precision times what recall gains there.

    Args:
        sums: (2 * labels * SCORE_BINS,): samples that have each label by their score, the lowest first, then those
            that have it not.
    """
    has, lacks = sums.view(2, -1, SCORE_BINS).flip(2)
    total = has.sum(1)
    found = has.cumsum(1)
    precision = found / (found + lacks.cumsum(1)).clamp_min(1)
    there = total > 0
    averages = (precision * has).sum(1)[there] / total[there]
    return float(averages.mean())


# What names mean. A loss may add to them, or say otherwise, by an attribute `kinds` of the same form.
KINDS: dict[str, Measure] = {
    "accuracy": Measure("higher", ratio, fraction=True),
    "pixel_accuracy": Measure("higher", ratio, fraction=True),
    "mean_iou": Measure("higher", mean_overlap, fraction=True),
    "mean_average_precision": Measure("higher", mean_precision, fraction=True),
    "exact_match": Measure("higher", ratio, fraction=True),
    "next_token_accuracy": Measure("higher", ratio, fraction=True),
    "perplexity": Measure("lower", exponential),
    "r2": Measure("higher", determination),
    "mse": Measure("lower", ratio),
    "mae": Measure("lower", ratio),
}

LOSS = Measure("lower", ratio)

# As a person writes them, where that is another way.
WORDS = {"r2": "R^2", "mse": "MSE", "mae": "MAE", "mean_iou": "mean IoU"}


def kind_of(name: str, loss: Any = None) -> Measure:
    """Returns what a measure's name means, to a loss that may say so itself."""
    if name == "loss":
        return LOSS
    own: Mapping[str, Measure] = getattr(loss, "kinds", {})
    return own.get(name) or KINDS.get(name) or Measure(None, ratio)


def words_of(name: str) -> str:
    """Returns a measure, or a field of a result such as "test_mean_iou", as a person writes it."""
    for part in ("test_", "train_"):
        if name.startswith(part):
            return f"{part[:-1]} {words_of(name.removeprefix(part))}"
    return WORDS.get(name, name.replace("_", " "))


def number(value: float) -> str:
    """Returns a value with four decimals, or four digits where those would show nothing, or too much."""
    is_plain = value == 0 or 1e-3 <= abs(value) < 1e5 or not math.isfinite(value)
    return f"{value:.4f}" if is_plain else f"{value:.4g}"


def measured(loss: Any, outputs: Any, targets: Any) -> Sums:
    """Returns what a loss measures of a batch, the main measure first; of a loss that says nothing, that of classes.

    Raises:
        UsageError: if what it returns is no {name: sums}.
    """
    measures = getattr(loss, "measures", class_measures)
    with torch.no_grad():
        found = measures(outputs, targets)
    name = type(loss).__name__
    if not isinstance(found, Mapping):
        raise UsageError(f"{name}.measures() must return {{name: sums}}; it returned a {type(found).__name__}.")
    sums: Sums = {}
    for what, value in found.items():
        if isinstance(value, (tuple, list)):
            value = torch.stack([torch.as_tensor(part) for part in value])
        if not isinstance(value, Tensor) or value.dim() != 1:
            raise UsageError(f"{name}.measures() gives {what!r} no sums: a tensor (k,), or total and count, is needed.")
        sums[str(what)] = value.detach().to(wide(value))
    return sums


def wide(like: Tensor) -> torch.dtype:
    """Returns double precision, which keeps sums over large data exact enough; mps has none."""
    return torch.float32 if like.device.type == "mps" else torch.float64


def added_up(one: Sums | None, other: Sums) -> Sums:
    """Returns the sums of two parts together; of no part, the other's."""
    if one is None:
        return other
    together = dict(one)
    for name, sums in other.items():
        together[name] = one[name] + sums if name in one else sums
    return together


def values_of(sums: Sums | None, loss: Any = None) -> dict[str, float]:
    """Returns name -> value, "loss" among them; NaN for the loss where there was no sample."""
    if not sums:
        return {"loss": math.nan}
    return {name: kind_of(name, loss).value(total.detach().cpu().double()) for name, total in sums.items()}


# -- classes -----------------------------------------------------------------------------------------------------------


def class_measures(outputs: Any, targets: Any) -> Sums:
    """Returns the accuracy of class scores (B, C, ...) for class numbers (B, ...); of pictures, pixel by pixel.

    Pictures (B, C, H, W) have pixel accuracy and the mean over classes of intersection over union. Numbers that are no
    class (-100, which losses leave out) count nowhere. Nothing where outputs and targets are no such pair.
    """
    outputs = scores_of(outputs)
    if not are_class_scores(outputs, targets):
        return {}
    classes = outputs.shape[1]
    predicted = outputs.argmax(1)
    right = predicted == targets
    known = (targets >= 0) & (targets < classes)
    accuracy = torch.stack([right.sum(), known.sum()])
    if targets.dim() < 3:
        return {"accuracy": accuracy}
    of_right = _counts(targets, right, classes)
    of_either = _counts(targets, known, classes) + _counts(predicted, known, classes) - of_right
    return {"pixel_accuracy": accuracy, "mean_iou": torch.cat([of_right, of_either])}


def are_class_scores(outputs: Any, targets: Any) -> bool:
    """Says whether outputs are scores of classes for these targets."""
    if not isinstance(outputs, Tensor) or not isinstance(targets, Tensor):
        return False
    if targets.is_floating_point() or outputs.dim() < 2 or not outputs.shape[1]:
        return False
    shape_without_classes = outputs.shape[:1] + outputs.shape[2:]
    return shape_without_classes == targets.shape


def _counts(classes_of: Tensor, counted: Tensor, classes: int) -> Tensor:
    """Returns (classes,) how often each class is there, among what is counted; no device is waited for."""
    places = classes_of.where(counted, classes).flatten()
    counts = torch.zeros(classes + 1, dtype=torch.long, device=places.device)
    return counts.index_add_(0, places, torch.ones_like(places))[:-1]
