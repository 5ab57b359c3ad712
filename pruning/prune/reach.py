"""Which limits are within reach: what there is to prune at all, and what shares by layer leave."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from pruning.errors import UsageError
from pruning.modules.by_name import layer_of, names_table
from pruning.modules.weights import TABLE
from pruning.prune.bounds import node_selection_of, nodes_by_group
from pruning.prune.criterion import Criterion, JointCriterion
from pruning.prune.limit import NEAR, reached, sparsity_after
from pruning.prune.step import weight_budget
from pruning.state import PrunableState


def counted_by(criterion: Criterion, network: PrunableState) -> str:
    """Returns what a criterion's limit counts: what the user wants counted, else what it says itself.

    Raises:
        UsageError: if that is not for such a criterion, or there is nothing that it could remove.
    """
    if not isinstance(criterion, Criterion):
        raise UsageError(f"A criterion object is needed, such as SNIP(), not {criterion!r}.")
    counts = criterion.counts or criterion.unit
    wanted = network.node_rules.counted
    if criterion.unit != "nodes" and wanted not in (None, counts):
        name, unit = type(criterion).__name__, criterion.unit
        raise UsageError(f"{name} removes {unit}, so its limit counts {counts}; --target {wanted} is for nodes.")
    # A criterion that has no events asks nothing of the network.
    if criterion.sparsities(0.5):
        _require_something_to_prune(network, criterion.unit)
    return wanted or counts


def _what_pins(network: PrunableState) -> str:
    """Says what keeps most slices of a network, inputs and outputs left out, which always stay."""
    inner = []
    for pin in network.graph.pinned:
        at_an_end = "output" in pin.reason or "fixed size" in pin.reason
        if not at_an_end:
            inner.append((sum(pin.slices.values()), pin))
    if not inner:
        return "inputs and outputs always stay"
    _, largest = max(inner, key=lambda counted: counted[0])
    return str(largest).partition(": ")[2]


def _require_something_to_prune(network: PrunableState, unit: str) -> None:
    name = type(network.model).__name__
    if unit == "nodes" and not network.nodes_total():
        if network.nodes_total(by_rules=False):
            raise UsageError(f"{name} has no node that may go: {_why_no_node(network)}.")
        raise UsageError(f"{name} has no node that could go: {_what_pins(network)}.")
    if unit == "nodes" and network.node_rules.unit == "head" and not len(network.graph.heads):
        raise UsageError(f"{name} has no attention head that could go{_why_no_head(network)}; leave out unit (--unit).")
    if unit == "weights" and not network.start_sizes:
        raise UsageError(f"{name} has no weights that multiply; what does not can go as nodes.")
    if unit == "weights":
        _refuse_tables(network)
    if unit != "nodes" and not network.ranked_names():
        raise UsageError(f"{name}: with {_left_out(network)} left out there is nothing to prune.")
    if unit == "weights":
        _refuse_whole_numbers(network)


def _why_no_head(network: PrunableState) -> str:
    """Returns what keeps the heads of a network, "" where it has none."""
    heads = network.graph.traced.head_labels
    return f": {network.graph.pin_reason(heads)}" if len(heads) else ""


def _left_out(network: PrunableState) -> str:
    """Says which weights are left out of the ranking, if all are."""
    rules, reasons = network.layer_rules, []
    if network.kept_names():
        reasons.append("the layers marked keep")
    if not network.outer_layers:
        reasons.append("the outer layers")
    if rules.only:
        reasons.append(f"all but {', '.join(rules.only)} (only)")
    if rules.skip:
        reasons.append(f"{', '.join(rules.skip)} (skip)")
    if network.frozen_names():
        reasons.append("frozen layers, which are pruned if only or shares name them,")
    return " and ".join(reasons)


def _why_no_node(network: PrunableState) -> str:
    """Says of a group that somebody may have meant why it stays, if all groups do."""
    named, frozen = network.named, network.frozen_names()
    for group in network.start_groups().values():
        is_meant = named.only is not None and group.makers & named.only
        if is_meant and not group.makers & (named.skip | frozen):
            inside = sorted({layer_of(name) for name in group.makers if layer_of(name) in named.only_layers})
            outside = sorted({layer_of(name) for name in group.makers} - set(inside))
            return f"{inside[0]} makes the same channels as {outside[0]}, which only does not name"
    return f"{_left_out(network)} stay"


def _refuse_tables(network: PrunableState) -> None:
    """Raises UsageError for an embedding that is asked for too late: what there is to rank is found at the start."""
    for name, why in network.left_out().items():
        if why == TABLE and names_table(network.layer_rules, name):
            raise UsageError(
                f"{name} is looked up, not multiplied; it is ranked if it is named when PrunableNetwork is made, by "
                f"layer_rules=LayerRules(only=...)."
            )


def _refuse_whole_numbers(network: PrunableState) -> None:
    for name, weight in network.weights():
        if not (weight.is_floating_point() or weight.is_complex()):
            kind = str(weight.dtype).removeprefix("torch.")
            raise UsageError(
                f"{name} holds whole numbers ({kind}), which have no gradient and overflow in scores; prune before "
                "quantising, or mark its layer by keep(module)."
            )


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
