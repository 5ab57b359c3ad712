"""One handle on a model: prune it with any criterion, to any sparsity."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from pruning.cut.plan import RENAMED
from pruning.dead.reach import effective_weights
from pruning.distributed import broadcast_tensors
from pruning.errors import UsageError
from pruning.graph.makers import may_go
from pruning.low_rank import ranks  # noqa: F401
from pruning.modules.by_name import LayerRules
from pruning.modules.calls import Batches
from pruning.prune import joint, nodes  # noqa: F401 - they enter their kinds of criteria into carry_out
from pruning.prune.controls import reinitialise, shuffle
from pruning.prune.criterion import Criterion, Facts, JointCriterion
from pruning.prune.limit import reached
from pruning.prune.reach import counted_by, limit_by_shares
from pruning.prune.report import PruneReport, Row, Step, left_out_line
from pruning.prune.schedule import check_limit
from pruning.prune.step import Event, carry_out
from pruning.state import PrunableState
from pruning.weights import MAKE_A_NEW_ONE

MOST_NAMED = 8  # layers that a line names before the others are only counted


class PrunableNetwork(PrunableState):
    """A model that can be pruned: one handle on it, its masks, and what it was at the start.

        network = PrunableNetwork(model, example_inputs)
        report = network.prune(SNAPit(), batches, sparsity=0.5)

    It takes what `PrunableState` takes.
    """

    def effective_sparsity(self) -> float | None:
        """Returns the fraction of all prunable weights that is masked, gone, or on no path from input to output.

        Connections alone count, not values, in eval mode and for pictures of the example's size (a tap that only ever
        meets padding is on no path). None where an operation of the network leaves no clear path (see
        `pruning.dead.reach`).
        """
        if self.example_inputs is None or not self.start_sizes:
            return None
        alive = {name: self.masks.of(name, weight) for name, weight in self.prunable().items()}
        effective = effective_weights(self.model, self.example_inputs, alive, self.outputs)
        if effective is None:
            return None
        n_effective = sum(int(flags.sum()) for flags in effective.values())
        return 1 - n_effective / self.weights_total()

    def reached(self, counted: str = "weights") -> float:
        """Returns the sparsity in what a limit counts; of weights, those that are ranked."""
        return reached(self, counted)

    # -- pruning ---------------------------------------------------------------------------------------------------

    def prune(
        self,
        criterion: Criterion,
        batches: Batches | None = (),
        *,
        sparsity: float | None = None,
        keep_ratio: float | None = None,
        only: str | Sequence[str] | None = None,
        skip: str | Sequence[str] | None = None,
        shares: Mapping[str, float] | None = None,
        max_share: float | None = None,
    ) -> PruneReport:
        """Runs the criterion's own steps up to a sparsity, in place.

        Args:
            criterion: any criterion object.
            batches: (inputs, targets) pairs to score on; each step goes through them once. None says there are none.
            sparsity: fraction to remove, of what the criterion's limit counts, since the start.
            keep_ratio: says the same as 1 - sparsity.
            only: patterns of the layers that are pruned, as in `LayerRules`; these four hold for this call.
            skip: patterns of the layers that are not.
            shares: pattern -> fraction removed of each layer that it names. Where every layer has a share, sparsity
                is not needed; else it stays the fraction of all.
            max_share: no layer loses more than this fraction.

        Returns:
            A report with asked and reached sparsity per step. Fractions are of what the rules leave prunable.
        """
        before = self.layer_rules
        self.layer_rules = _with_rules(before, only, skip, shares, max_share)
        try:
            return self._prune(criterion, batches, _limit_of(sparsity, keep_ratio))
        finally:
            self.layer_rules = before

    def _prune(self, criterion: Criterion, batches: Batches | None, asked: float | None) -> PruneReport:
        batches = () if batches is None else batches
        batches = batches if hasattr(batches, "__len__") else list(batches)
        self.check_unchanged()
        report = PruneReport(type(criterion).__name__, self.counted(criterion))
        sparsities = criterion.sparsities(limit_by_shares(self, criterion, asked))
        # What a criterion may bring back is of this call alone.
        self.pre_event_values = {}
        for step_sparsity in sparsities:
            step = self.prune_to(criterion, step_sparsity, batches, limit=sparsities[-1])
            report.steps.append(step)
        self.pre_event_values = {}
        return report

    def prune_to(self, criterion: Criterion, sparsity: float, batches: Batches | None = (), **how: Any) -> Step:
        """One pruning event: removes units until a sparsity is reached, and says what came of it.

        Args:
            criterion: scores the units.
            sparsity: fraction removed of what was there at the start.
            batches: (inputs, targets) pairs to score on.
            how: the other fields of `pruning.prune.step.Event`: invert, shuffle, optimizers, cut_along, limit.
        """
        if "companions" in how:
            raise UsageError(RENAMED)
        self.check_unchanged()
        batches = () if batches is None else batches
        if type(criterion) is not self._last_criterion:
            self._last_criterion, self.unscored = type(criterion), {}
        counted = self.counted(criterion)
        cuts_nodes = criterion.unit == "nodes" or isinstance(criterion, JointCriterion)
        if cuts_nodes and self._graph is not None and not self._graph.fits():
            raise UsageError(f"Layers were replaced or resized by something else; {MAKE_A_NEW_ONE}.")
        self.note_start(structure=cuts_nodes)
        limit_by_shares(self, criterion, how.get("limit") or sparsity)
        weights_before = self.weights_left()
        if not criterion.revives:
            self.pre_event_values = {}
        elif not self.pre_event_values:
            self.pre_event_values = {name: weight.detach().clone() for name, weight in self.weights()}
        reason = carry_out(criterion, self, Event(sparsity, batches, **how))
        self.events += 1
        self._take_values(criterion.new_values(self, batches) or {})
        self._broadcast_everything()
        # Values that came back, and those of the first process, fill masked places too.
        self.enforce()
        self.check_unchanged()
        left = self.weights_left()
        note, facts = criterion.facts()
        return Step(
            asked=sparsity if criterion.threshold is None else None,
            reached=self.reached(counted),
            removed=weights_before - left,
            left=left,
            reason=reason,
            nodes_left=int(self.open_nodes().sum()) if cuts_nodes else None,
            layers=self._rows(facts),
            note=note,
            protected=self._protected(),
            left_out=self._told_left_out() if criterion.unit == "weights" else "",
        )

    def _protected(self) -> str:
        """Says which layers stay that nobody skipped by name, and which frozen ones do not; "" if there are none."""
        said = []
        if self.removes_nodes:
            said.append(self._held_by_others())
        else:
            said.append(self._told("marked keep, and not counted", self.kept_names()))
        said.append(self._told("frozen, so neither pruned nor counted unless named", self.frozen_names()))
        asked_for = self._frozen - self.frozen_names() - self.kept_names()
        pruned = {name for name in asked_for if self.named.may(name)}
        if len(self._frozen) == len(self._prunable):
            said.append("every layer is frozen (requires_grad=False), and pruned all the same")
        else:
            said.append(self._told("pruned although frozen", pruned))
        return "; ".join(line for line in said if line)

    def _told_left_out(self) -> str:
        sizes = {name: parameter.numel() for name, parameter in self.model.named_parameters()}
        reasons = self.left_out()
        others = sum(size for name, size in sizes.items() if name not in self._prunable and name not in reasons)
        return left_out_line(reasons, sizes, others)

    def _held_by_others(self) -> str:
        """Says which layers are named as those that are to be pruned, but make channels with others that stay."""
        held: set[str] = set()
        for group in self.start_groups().values():
            if not may_go(group, self.named, self.frozen_names()):
                held |= {name for name in group.makers if self.named.asks_for(name) and self.named.may(name)}
        return self._told("named, but stay with others that make the same channels", held & self._prunable.keys())

    def _told(self, why: str, names: Collection[str]) -> str:
        if not names:
            return ""
        weights = self.prunable()
        total = sum(weights[name].numel() for name in names)
        layers = list(dict.fromkeys(path for name, path in self.owners().items() if name in names))
        more = f" and {len(layers) - MOST_NAMED} more" if len(layers) > MOST_NAMED else ""
        return f"{why}: {', '.join(layers[:MOST_NAMED])}{more} ({total:,} weights)"

    @torch.no_grad()
    def _take_values(self, new_values: dict[str, Tensor]) -> None:
        for name, value in (self.pre_event_values | new_values).items():
            self.model.get_parameter(name).copy_(value)

    def _broadcast_everything(self) -> None:
        """Gives all processes the first one's parameters, buffers and masks."""
        tensors: dict[str, Tensor] = {}
        tensors.update(self.model.named_parameters())
        tensors.update(self.model.named_buffers())
        for name, mask in self.masks.keep.items():
            tensors[f"the mask of {name}"] = mask
        broadcast_tensors(tensors)

    def _rows(self, facts: Facts) -> list[Row]:
        """Returns what is kept of each ranked layer, with a criterion's facts beside it; nothing without facts."""
        if not facts:
            return []
        unknown = dict.fromkeys(next(iter(facts.values())))
        left = self._left_by_weight()
        total = max(1, self.weights_left())
        rows = []
        for name in self.ranked_names():
            row: Row = {"layer": self.layer_name(name), "kept": left[name], "of": self.start_sizes[name]}
            row["budget_share"] = left[name] / total
            row.update(facts.get(name, unknown))
            rows.append(row)
        return rows

    def counted(self, criterion: Criterion) -> str:
        """Returns what a criterion's limit counts, see `pruning.prune.limit.counted_by`.

        From here on the rules by layer hold for the units of this criterion.
        """
        self.removes_nodes = isinstance(criterion, Criterion) and criterion.unit == "nodes"
        self.removes_both = isinstance(criterion, JointCriterion)
        return counted_by(criterion, self)

    def shuffle_masks(self, generator: torch.Generator, initial: dict[str, Tensor]) -> None:
        """Permutes each layer's mask, see `pruning.prune.controls.shuffle`."""
        shuffle(self, generator, initial)

    def reinitialise(self, fresh: nn.Module) -> None:
        """Takes new initial values under the same masks, see `pruning.prune.controls.reinitialise`."""
        reinitialise(self, fresh)


def _with_rules(
    rules: LayerRules,
    only: str | Sequence[str] | None,
    skip: str | Sequence[str] | None,
    shares: Mapping[str, float] | None,
    max_share: float | None,
) -> LayerRules:
    """Returns rules with those in their place that are given."""
    given: dict[str, Any] = {"only": only, "skip": skip, "shares": shares, "max_share": max_share}
    return replace(rules, **{name: value for name, value in given.items() if value is not None})


def _limit_of(sparsity: float | None, keep_ratio: float | None) -> float | None:
    """Returns the sparsity that is asked for in one of two ways, None for neither."""
    if keep_ratio is None:
        return None if sparsity is None else check_limit(sparsity)
    if sparsity is not None:
        raise UsageError("prune() takes either sparsity= or keep_ratio=.")
    if not 0 < keep_ratio <= 1:
        raise UsageError(f"A keep_ratio must lie in (0, 1], the fraction that stays; {keep_ratio} was given.")
    # 1 - 0.9 is a little less than 0.1, and one weight may hang on it.
    return check_limit(round(1 - float(keep_ratio), 12))
