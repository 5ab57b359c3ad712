"""One handle on a model: prune it with any criterion, to any sparsity."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pruning.dead.reach import effective_weights
from pruning.distributed import broadcast_tensors
from pruning.errors import UsageError
from pruning.low_rank import ranks  # noqa: F401
from pruning.modules.calls import Batches
from pruning.prune import joint, nodes  # noqa: F401 - they enter their kinds of criteria into carry_out
from pruning.prune.controls import reinitialise, shuffle
from pruning.prune.criterion import Criterion, Facts, JointCriterion
from pruning.prune.report import PruneReport, Step
from pruning.prune.schedule import check_limit
from pruning.prune.step import Event, carry_out
from pruning.prune.target import counted_by, reached
from pruning.state import PrunableState


class PrunableNetwork(PrunableState):
    """A model that can be pruned: one handle on it, its masks, and what it was at the start.

        network = PrunableNetwork(model, example_inputs)
        report = network.prune(SNAPit(), batches, sparsity=0.5)

    It takes what `PrunableState` takes.
    """

    def effective_sparsity(self) -> float | None:
        """Returns the fraction of all prunable weights that is masked, gone, or on no path from input to output.

        Connections alone count, not values, in eval mode and for pictures of the example's size (a tap that only ever
        meets padding is on no path). None where an operation of the network leaves no clear path (`pruning.paths`).
        """
        if self.example_inputs is None or not self.start_sizes:
            return None
        alive = {name: self.masks.of(name, weight) for name, weight in self.prunable().items()}
        effective = effective_weights(self.model, self.example_inputs, alive)
        if effective is None:
            return None
        return 1 - sum(int(flags.sum()) for flags in effective.values()) / self.weights_total()

    def reached(self, counted: str = "weights") -> float:
        """Returns the sparsity in what a limit counts; of weights, those that are ranked."""
        return reached(self, counted)

    # -- pruning ---------------------------------------------------------------------------------------------------

    def prune(
        self,
        criterion: Criterion,
        batches: Batches = (),
        *,
        sparsity: float | None = None,
        keep_ratio: float | None = None,
    ) -> PruneReport:
        """Runs the criterion's own steps up to a sparsity, in place.

        Args:
            criterion: any criterion object.
            batches: (inputs, targets) pairs to score on; each step goes through them once.
            sparsity: fraction to remove, of what the criterion's limit counts, since the start.
            keep_ratio: says the same as 1 - sparsity.

        Returns:
            A report with asked and reached sparsity per step.
        """
        if (sparsity is None) == (keep_ratio is None):
            raise UsageError("prune() takes either sparsity= or keep_ratio=.")
        if keep_ratio is not None and not 0 < keep_ratio <= 1:
            raise UsageError(f"A keep_ratio must lie in (0, 1], the fraction that stays; {keep_ratio} was given.")
        limit = check_limit(sparsity if sparsity is not None else round(1 - float(keep_ratio or 0.0), 12))
        batches = batches if hasattr(batches, "__len__") else list(batches)
        report = PruneReport(type(criterion).__name__, self.counted(criterion))
        self.pre_event_values = {}
        for target in criterion.sparsities(limit):
            report.steps.append(self.prune_to(criterion, target, batches))
        self.pre_event_values = {}
        return report

    def prune_to(self, criterion: Criterion, target: float, batches: Batches = (), **how: Any) -> Step:
        """One pruning event: removes units until `target` is reached, and says what came of it.

        Args:
            criterion: scores the units.
            target: fraction removed of what was there at the start.
            batches: (inputs, targets) pairs to score on.
            how: the other fields of `pruning.events.Event`: invert, optimizers, companions.
        """
        counted = self.counted(criterion)
        cuts_nodes = criterion.unit == "nodes" or isinstance(criterion, JointCriterion)
        self.note_start(structure=cuts_nodes)
        before = self.weights_left()
        if not criterion.revives:
            self.pre_event_values = {}
        elif not self.pre_event_values:
            self.pre_event_values = {name: weight.detach().clone() for name, weight in self.weights()}
        reason = carry_out(criterion, self, Event(target, batches, **how))
        self.events += 1
        values = self.pre_event_values | (criterion.new_values(self, batches) or {})
        with torch.no_grad():
            for name, value in values.items():
                self.model.get_parameter(name).copy_(value)
        masks = {f"the mask of {name}": mask for name, mask in self.masks.keep.items()}
        broadcast_tensors(dict([*self.model.named_parameters(), *self.model.named_buffers(), *masks.items()]))
        self.enforce()
        left = self.weights_left()
        nodes_left = len(self.graph.nodes) if cuts_nodes else None
        asked = target if criterion.threshold is None else None
        note, facts = criterion.facts()
        return Step(asked, self.reached(counted), before - left, left, reason, nodes_left, self._rows(facts), note)

    def _rows(self, facts: Facts) -> list[dict[str, Any]]:
        """Returns what is kept of each ranked layer, with a criterion's facts beside it; nothing without facts."""
        unknown, left = dict.fromkeys(next(iter(facts.values()), ())), self._left_by_weight()
        rows = [
            {"layer": self._prunable[name], "kept": left[name], "of": self.start_sizes[name]}
            | {"budget_share": left[name] / max(1, self.weights_left())}
            | (dict(facts[name]) if name in facts else unknown)
            for name in self.ranked_names()
        ]
        return rows if facts else []

    def counted(self, criterion: Criterion) -> str:
        """Returns what a criterion's limit counts, see `pruning.prune.target.counted_by`."""
        return counted_by(criterion, self)

    def shuffle_masks(self, generator: torch.Generator, initial: dict[str, Tensor]) -> None:
        """Permutes each layer's mask, see `pruning.controls.shuffle`."""
        shuffle(self, generator, initial)

    def reinitialise(self, fresh: nn.Module) -> None:
        """Takes new initial values under the same masks, see `pruning.controls.reinitialise`."""
        reinitialise(self, fresh)
