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
from pruning.modules.by_name import at_most
from pruning.modules.calls import Batches
from pruning.prune.criterion import Criterion, WeightCriterion
from pruning.prune.rank import Budget, check_scores, count, detached, guarded, select_by_layer
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
        limit: the sparsity that this and later events lead to; this one's if not given. Layers with a share of their
            own lose it in proportion.
    """

    sparsity: float
    batches: Batches = ()
    invert: bool = False
    shuffle: torch.Generator | None = None
    optimizers: Iterable[torch.optim.Optimizer] = ()
    cut_along: Iterable[Any] = ()
    before_cut: Callable[[Tensor], None] = lambda keep: None
    limit: float | None = None

    @property
    def progress(self) -> float:
        """How much of the way to the limit is done after this event, 0 to 1."""
        return min(1.0, self.sparsity / self.limit) if self.limit else 1.0


@singledispatch
def carry_out(criterion: Criterion, network: PrunableState, event: Event) -> str:
    """Prunes to the event's sparsity and returns why it was not reached exactly, "" if it was."""
    raise UsageError(f"{type(criterion).__name__} scores neither weights nor nodes.")


@carry_out.register(WeightCriterion)
def _prune_weights(criterion: WeightCriterion, network: PrunableState, event: Event) -> str:
    alive = network.alive()
    budget = weight_budget(network, alive, event.sparsity, event.progress)
    n_alive = count(alive)
    above_share = any(count({name: alive[name]}) > number for name, number in budget.fixed.items())
    if criterion.threshold is None and not above_share:
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
    if network.unscored.keys() & alive.keys():
        # The fraction is one of what could be scored; the others stay, and the report names them.
        alive = {name: mask for name, mask in alive.items() if name not in network.unscored}
        scores = {name: score for name, score in scores.items() if name in alive}
        budget = weight_budget(network, alive, event.sparsity, event.progress)
        n_alive = count(alive)
        if not alive:
            reasons = ", ".join(f"{name} ({why})" for name, why in network.unscored.items())
            raise UsageError(f"{type(criterion).__name__} can score no matrix of this network: {reasons}.")
    check_scores(scores, alive)
    network.last_scores = scores
    if criterion.threshold is not None:
        above = {name: score >= criterion.threshold for name, score in scores.items()}
        # How many stay is known now; which ones is a ranking as for any limit, guards and controls included.
        budget.keep = _number_above(guarded(above, scores, budget), budget)
        if budget.keep == n_alive:
            return f"no score lies under the threshold of {criterion.threshold}"
    ranking = scores
    if event.invert:
        ranking = {name: -score.double() for name, score in scores.items()}
    return mask_weights(network, select_by_layer(criterion.select, ranking, budget), budget)


def _number_above(above: Mapping[str, Tensor], budget: Budget) -> int:
    """Returns how many weights lie above a threshold, with those that the rules by layer keep or let go instead."""
    total = 0
    for name, mask in above.items():
        alive = count({name: budget.alive[name]})
        stays = max(count({name: mask}), budget.least.get(name, 0))
        total += min(alive, budget.fixed.get(name, stays))
    return total


def weight_budget(network: PrunableState, alive: dict[str, Tensor], sparsity: float, progress: float = 1.0) -> Budget:
    """Returns how many of the ranked weights may stay, and what the rules by layer say of each layer.

    Args:
        network: what is pruned.
        alive: keep-masks of the ranked weights.
        sparsity: fraction removed of them since the start.
        progress: how much of the layers' own shares goes by now, 0 to 1.
    """
    total = sum(network.start_sizes[name] for name in alive)
    fixed: dict[str, int] = {}
    least: dict[str, int] = {}
    max_share = network.layer_rules.max_share
    for name in alive:
        size = network.start_sizes[name]
        if max_share is not None:
            least[name] = size - at_most(max_share, size)
        if name in network.named.shares:
            share = network.named.shares[name] * progress
            fixed[name] = max(size - round(share * size), least.get(name, 0))
    return Budget(total - round(sparsity * total), alive, network.slices, fixed, least)


def mask_weights(network: PrunableState, keep: dict[str, Tensor], budget: Budget) -> str:
    """Takes over keep-masks and returns why their number differs from the budget, "" if it does not."""
    network.masks.set(keep)
    reasons = []
    kept = count(keep)
    if kept != budget.keep:
        if kept < budget.keep:
            why = "layers with a share lose it" if budget.fixed else "the criterion's own selection"
        elif budget.fixed.keys() >= budget.alive.keys():
            why = "each layer's share is a whole number of weights"
        else:
            why = network.layer_rules.why_more()
        reasons.append(f"{kept:,} weights stay instead of {budget.keep:,}: {why}")
    for name, number in budget.fixed.items():
        of_layer = count({name: keep[name]})
        if of_layer != min(number, count({name: budget.alive[name]})):
            reasons.append(f"{name} keeps {of_layer:,} weights instead of {number:,}")
    return "; ".join(reasons)
