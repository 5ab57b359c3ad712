"""Whether outputs and targets fit each other, and the losses and measures that several losses share."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pruning import UsageError
from pruning.measure.measures import Sums, are_class_scores, wide
from pruning.modules.calls import scores_of

LEFT_OUT = -100  # a target that counts nowhere: padding, a pixel without a class


def misfit(loss: object, outputs: Any, targets: Any, needed: str) -> UsageError:
    """Returns the error that names what a loss was given, and what it takes."""
    name = type(loss).__name__
    return UsageError(f"{name} takes {needed}; outputs are {_form_of(outputs)} and targets {_form_of(targets)}.")


def _form_of(value: Any) -> str:
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    kind = str(value.dtype).removeprefix("torch.")
    return f"{tuple(value.shape)} in {kind}"


# -- classes -----------------------------------------------------------------------------------------------------------


def class_loss(loss: object, outputs: Any, targets: Any) -> Tensor:
    """Returns the cross-entropy of class scores (B, C, ...) and class numbers (B, ...), or probabilities (B, C, ...).

    Raises:
        UsageError: naming both shapes, if they are anything else.
    """
    scores = scores_of(outputs)
    if not are_class_scores(scores, targets) and not _are_probabilities(scores, targets):
        raise misfit(loss, scores, targets, "scores (B, classes, ...) and whole class numbers (B, ...)")
    are_class_numbers = not targets.is_floating_point()
    is_square = scores.dim() == 3 and scores.shape[1] == scores.shape[2]
    if are_class_numbers and is_square:
        # Windows as long as the vocabulary: torch would take places for classes and go on.
        needed = "scores (B, classes, places), and cannot tell those from (B, places, classes), which NextToken takes"
        raise misfit(loss, scores, targets, needed)
    return F.cross_entropy(scores, targets)


def _are_probabilities(scores: Any, targets: Any) -> bool:
    """Says whether targets may be a probability for every class; of a single class there is nothing to tell."""
    if not isinstance(scores, Tensor) or not isinstance(targets, Tensor):
        return False
    has_classes = scores.dim() > 1 and scores.shape[1] > 1
    return has_classes and targets.is_floating_point() and scores.shape == targets.shape


def check_probabilities(loss: object, outputs: Any, targets: Any) -> None:
    """Raises UsageError for numbers that are no probabilities of classes, which cross-entropy takes all the same."""
    scores = scores_of(outputs)
    if not _are_probabilities(scores, targets):
        return
    sums = targets.sum(1)
    add_up = torch.allclose(sums, torch.ones_like(sums), atol=1e-3)
    are_negative = bool((targets < 0).any())
    if are_negative or not add_up:
        raise misfit(loss, scores, targets, "class numbers, or probabilities that add up to 1 over the classes")


# -- numbers -----------------------------------------------------------------------------------------------------------


def paired(loss: object, outputs: Any, targets: Any) -> tuple[Tensor, Tensor]:
    """Returns outputs and targets of one shape; (N, 1) and (N,) are the same, which torch would spread to (N, N).

    Raises:
        UsageError: naming both shapes, if they are anything else.
    """
    scores = scores_of(outputs)
    if not isinstance(scores, Tensor) or not isinstance(targets, Tensor):
        raise misfit(loss, scores, targets, "a number for each target")
    numbers = targets.to(scores.dtype) if scores.is_floating_point() else targets
    if scores.shape == numbers.shape:
        return scores, numbers
    if scores.dim():
        row = scores.shape[:1]  # (N,)
        column = torch.Size([*row, 1])  # (N, 1)
        if {scores.shape, numbers.shape} == {row, column}:
            return scores.flatten(), numbers.flatten()
    raise misfit(loss, scores, targets, "outputs and targets of one shape")


def number_measures(loss: object, outputs: Any, targets: Any) -> Sums:
    """Returns R^2 (the main one), mean squared and mean absolute error of outputs (N, k) or (N,).

    R^2 is the mean over the k columns; what has more dimensions counts as one column.
    """
    predicted, true = paired(loss, outputs, targets)
    columns = true.shape[1] if true.dim() == 2 else 1
    predicted = predicted.detach().to(wide(predicted)).reshape(-1, columns)
    true = true.to(wide(true)).reshape(-1, columns)

    error = predicted - true
    squared = error.square()
    rows = true.new_full((1,), len(true))
    every = true.new_full((), true.numel())
    return {
        "r2": torch.cat([rows, true.sum(0), true.square().sum(0), squared.sum(0)]),
        "mse": torch.stack([squared.sum(), every]),
        "mae": torch.stack([error.abs().sum(), every]),
    }


# -- how far two networks are apart, for distillation ------------------------------------------------------------------


def divergence(scores: Tensor, told: Tensor, temperature: float) -> Tensor:
    """Returns T^2 KL(told / T || scores / T), the mean over n rows of scores (n, classes)."""
    if not len(scores):
        return scores.sum()  # nothing counts: zero, with a graph
    own = (scores / temperature).log_softmax(1)
    others = (told / temperature).log_softmax(1)
    return temperature**2 * F.kl_div(own, others, reduction="batchmean", log_target=True)
