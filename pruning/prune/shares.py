"""Which limits are within reach of shares by layer, and which limit they amount to where they name every layer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from pruning.errors import UsageError
from pruning.prune.criterion import Criterion, JointCriterion
from pruning.prune.limit import counted_by, reached, sparsity_after
from pruning.prune.nodes import NEAR, node_selection_of, nodes_by_group
from pruning.prune.step import weight_budget
from pruning.state import PrunableState


@dataclass(frozen=True)
class Reach:
    """The sparsities that can be reached.

    Args:
        counted: what they are sparsities of.
        lowest: what the layers with a share lose.
        highest: what goes if the others lose all that they may.
        slack: how far a limit may lie outside, since shares are whole numbers of units.
        every: whether every layer has a share.
    """

    counted: str
    lowest: float
    highest: float
    slack: float
    every: bool


def limit_by_shares(network: PrunableState, criterion: Criterion, limit: float | None) -> float:
    """Returns the limit that was asked for, or what the shares amount to where none was and every layer has one.

    Raises:
        UsageError: if that is out of reach, if there is no limit and not every layer has a share, if a pattern of the
            shares names no layer that may be pruned, or for a criterion that knows no shares.
    """
    within = _reach(network, criterion)
    if limit is None:
        if within is not None and within.every:
            return within.lowest
        if network.layer_rules.shares:
            raise UsageError("shares leave out some layers, so prune() takes sparsity= too, the fraction of all.")
        raise UsageError("prune() takes either sparsity= or keep_ratio=.")
    if within is None:
        return limit
    too_low = limit < within.lowest - within.slack and limit > reached(network, within.counted)
    too_high = limit > within.highest + within.slack
    if (too_low or too_high) and within.every:
        raise UsageError(
            f"The shares name every layer and take {within.lowest:.4f} of the {within.counted}; {limit:g} was asked "
            "for. Leave it away, or give fewer layers a share."
        )
    if too_low or too_high:
        raise UsageError(
            f"With these shares a sparsity of {within.lowest:.4f} to {within.highest:.4f} of the {within.counted} can "
            f"be reached; {limit:g} was asked for."
        )
    return limit


def implied_limit(network: PrunableState, criterion: Criterion) -> float | None:
    """Returns the sparsity that the shares amount to, None where they leave out some layers."""
    within = _reach(network, criterion)
    return within.lowest if within is not None and within.every else None


def _reach(network: PrunableState, criterion: Criterion) -> Reach | None:
    """Returns what can be reached, None where shares do not say."""
    name, rules = type(criterion).__name__, network.layer_rules
    if not (rules.shares or rules.max_share is not None) or not criterion.sparsities(0.5):
        return None
    asked = "shares" if rules.shares else "max_share"
    if isinstance(criterion, JointCriterion):
        raise UsageError(f"{name} ranks weights and nodes on one scale; {asked} is for criteria of one of them.")
    if criterion.unit not in ("weights", "nodes"):
        raise UsageError(f"{name} removes {criterion.unit}; {asked} is for criteria of weights or nodes.")
    if not rules.shares:
        return None
    counted = counted_by(criterion, network)
    _check_patterns(network, criterion)
    if criterion.threshold is not None:
        return None
    return _reach_of_nodes(network, counted) if criterion.unit == "nodes" else _reach_of_weights(network)


def _check_patterns(network: PrunableState, criterion: Criterion) -> None:
    """Raises UsageError if a pattern of the shares names only what is not pruned."""
    if criterion.unit == "nodes":
        able: set[str] = set()
        for group, is_open in zip(network.groups_now(), network.open_groups(), strict=True):
            if is_open:
                able |= group.makers
    else:
        able = set(network.ranked_names())
    for pattern, meant in network.named.by_share.items():
        if not meant & able:
            raise UsageError(
                f"shares: {pattern!r} names no layer whose {criterion.unit} may go: other rules leave them out, or "
                "they have to stay."
            )


def _reach_of_weights(network: PrunableState) -> Reach:
    alive = network.alive()
    budget = weight_budget(network, alive, sparsity=0.0)
    total = sum(network.start_sizes[name] for name in alive)
    most = least = 0  # weights that stay
    for name, mask in alive.items():
        left = int(mask.count_nonzero())
        fewest = min(left, max(1, budget.fixed.get(name, budget.least.get(name, 1))))
        least += fewest
        most += fewest if name in budget.fixed else network.start_sizes[name]
    every = budget.fixed.keys() >= alive.keys()
    return Reach("weights", 1 - most / total, 1 - least / total, (len(budget.fixed) + 1) / total, every)


def _reach_of_nodes(network: PrunableState, counted: str) -> Reach:
    selection, bounds = node_selection_of(network), nodes_by_group(network)
    is_open = network.open_groups()
    every = bool(bounds.has_share[is_open].all())
    if counted == "nodes":
        total = network.nodes_total()
        # Layers without a share may have lost nodes before; what they lose is counted from the start.
        at_start = np.array([group.nodes for group in network.groups_now()], dtype=np.int64)
        most = np.where(bounds.has_share, selection.highest, at_start)
        lowest = 1 - int(most[is_open].sum()) / total
        highest = 1 - int(selection.lowest[is_open].sum()) / total
        return Reach(counted, lowest, highest, (len(at_start) + 1) / total, every)
    # Which nodes of a group go makes no difference to speak of.
    any_order = torch.arange(len(network.graph.nodes), 0, -1, dtype=torch.float64)
    lowest = sparsity_after(network, ~selection.best(any_order, selection.highest), counted)
    highest = sparsity_after(network, ~selection.best(any_order, selection.lowest), counted)
    # No two measurements of time are alike.
    return Reach(counted, lowest, highest, 1.0 if counted == "latency" else NEAR, every)
