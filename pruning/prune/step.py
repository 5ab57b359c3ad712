"""One pruning event, for each kind of criterion: from a sparsity to what goes, and making it go.

A sparsity is the fraction removed of what was there at the start. Counting what must go now, ranking and the guards
happen here and in `pruning.prune.rank`; criteria only score.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import singledispatch
from typing import Any

import torch
from torch import Tensor

from pruning.distributed import broadcast_by_name
from pruning.errors import UsageError
from pruning.modules.calls import Batches
from pruning.prune.criterion import Criterion, WeightCriterion
from pruning.prune.rank import Budget, check_scores, detached, guarded
from pruning.state import PrunableState

SPARSER_ALREADY = "the network is already sparser than that"


@dataclass
class Event:
    """What an event is told.

    Args:
        sparsity: fraction removed of what was there at the start.
        batches: (inputs, targets) pairs to score on.
        invert: keep the worst instead of the best (a control experiment).
        shuffle: keep as many nodes of each layer, but which ones is drawn from this generator (another control).
        optimizers: whose state is cut along with the parameters.
        cut_along: dicts of tensors by parameter name that are cut along.
        before_cut: told which nodes stay, just before the others go.
    """

    sparsity: float
    batches: Batches = ()
    invert: bool = False
    shuffle: torch.Generator | None = None
    optimizers: Iterable[torch.optim.Optimizer] = ()
    cut_along: Iterable[Any] = ()
    before_cut: Callable[[Tensor], None] = lambda keep: None


@singledispatch
def carry_out(criterion: Criterion, network: PrunableState, event: Event) -> str:
    """Prunes to the event's sparsity and returns why it was not reached exactly, "" if it was."""
    raise UsageError(f"{type(criterion).__name__} scores neither weights nor nodes.")


@carry_out.register(WeightCriterion)
def _prune_weights(criterion: WeightCriterion, network: PrunableState, event: Event) -> str:
    alive = network.alive()
    budget = weight_budget(network, alive, event.sparsity)
    n_alive = count(alive)
    if criterion.threshold is None:
        if budget.keep > n_alive:
            return SPARSER_ALREADY
        # One that revives may choose others, even if as many stay.
        if budget.keep == n_alive and not criterion.revives:
            return ""
    if criterion.revives:
        # A zero has nothing to come back with, so what was gone before the first event stays gone.
        alive = {name: mask | (network.pre_event_values[name] != 0) for name, mask in alive.items()}
        budget = dataclasses.replace(budget, alive=alive)
    scores = broadcast_by_name(detached(criterion.weight_scores(network, event.batches)))
    check_scores(scores, alive)
    network.last_scores = scores
    if criterion.threshold is not None:
        above = {name: score >= criterion.threshold for name, score in scores.items()}
        # How many stay is known now; which ones is a ranking as for any limit, guards and controls included.
        budget.keep = count(guarded(above, scores, budget))
        if budget.keep == n_alive:
            return f"no score lies under the threshold of {criterion.threshold}"
    ranking = scores
    if event.invert:
        ranking = {name: -score.double() for name, score in scores.items()}
    keep = criterion.select(ranking, budget)
    # What is gone stays gone and no layer is emptied, whatever a selection of the criterion's own may say.
    return mask_weights(network, guarded(keep, ranking, budget), budget)


def weight_budget(network: PrunableState, alive: dict[str, Tensor], sparsity: float) -> Budget:
    """Returns how many of the ranked weights may stay."""
    total = sum(network.start_sizes[name] for name in alive)
    return Budget(keep=total - round(sparsity * total), alive=alive, slices=network.slices)


def mask_weights(network: PrunableState, keep: dict[str, Tensor], budget: Budget) -> str:
    """Takes over keep-masks and returns why their number differs from the budget, "" if it does not."""
    network.masks.set(keep)
    kept = count(keep)
    if kept == budget.keep:
        return ""
    why = "no layer is emptied" if kept > budget.keep else "the criterion's own selection"
    return f"{kept:,} weights stay instead of {budget.keep:,}: {why}"


def count(masks: Mapping[str, Tensor]) -> int:
    """Returns how many entries of keep-masks are True."""
    return sum(int(mask.count_nonzero()) for mask in masks.values())
