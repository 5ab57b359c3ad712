"""One handle on a model, its masks, and what it was at the start."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import Parameter

from pruning import controls, count, history, limits
from pruning.criterion import Batches, Criterion, Facts, JointCriterion
from pruning.distributed import take_first
from pruning.errors import UsageError
from pruning.events import Event, carry_out
from pruning.graph import DependencyGraph
from pruning.masks import WeightMasks
from pruning.paths import effective_weights
from pruning.prunable import normalised_dimension, prunable_weights
from pruning.report import PruneReport, Step
from pruning.schedule import check_limit
from pruning.select import NodeRules

if TYPE_CHECKING:
    from pruning.hard_concrete import NodeGates


class PrunableNetwork:
    """A model that can be pruned, together with its masks and its counts at the start.

    Args:
        model: any nn.Module; it is pruned in place.
        example_inputs: what the model is called with: a tensor, a tuple of arguments or a dict of keywords; any batch
            size. Needed for FLOPs, for the order of layers and for the structure.
        loss: loss(outputs, targets) -> scalar that scores are derivatives of; cross-entropy by default.
        outer_layers: whether the first and the last layer are ranked for weights; False leaves them out.
        node_rules: what the shapes should look like that criteria of nodes leave.
    """

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Any = None,
        *,
        loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
        outer_layers: bool = True,
        node_rules: NodeRules | None = None,
    ) -> None:
        self.model = model
        self.example_inputs = example_inputs
        self.loss = loss
        self.outer_layers = outer_layers
        self.node_rules = node_rules or NodeRules()
        self.masks = WeightMasks()
        self.gates: NodeGates | None = None  # closed ones count as removed
        self.learns_nodes = False  # whether gates are or were there: how many nodes go is then an outcome
        self.last_scores: dict[str, Tensor] = {}
        self.dense: dict[str, Tensor] = {}  # between events of a criterion that revives: values of before the first one
        self.events = 0  # so far; penalties that prepare for pruning end with the first
        self._find_weights()
        self.start_sizes = {name: weight.numel() for name, weight in self.prunable().items()}
        self.start_outputs = {name: weight.shape[self.output_dim(name)] for name, weight in self.prunable().items()}
        self.start_bytes = count.parameter_bytes(model)
        self._counted: tuple[int, dict[str, int]] = (0, {})
        self._counted_shapes: tuple[torch.Size, ...] = ()
        self._start_flops: float | None = None
        self._start_latency: float | None = None
        self._start_nodes: int | None = None
        self._graph: DependencyGraph | None = None
        if not self.start_sizes and (example_inputs is None or not self.nodes_total()):
            raise UsageError(f"{type(model).__name__} has no Linear or Conv weights; there is nothing to prune.")

    # -- what there is ---------------------------------------------------------------------------------------------

    def prunable(self) -> dict[str, Parameter]:
        """Returns every prunable weight by name, in the order in which the layers run."""
        return {name: self.model.get_parameter(name) for name in self._prunable}

    def _find_weights(self) -> None:
        self._prunable = prunable_weights(self.model, self.example_inputs)
        dimensions = {name: normalised_dimension(self.model, name, path) for name, path in self._prunable.items()}
        self.slices = {name: dimension for name, dimension in dimensions.items() if dimension is not None}

    def owners(self) -> dict[str, str]:
        """Returns prunable weight -> path of the layer that it belongs to."""
        return dict(self._prunable)

    def output_dim(self, name: str) -> int:
        """Returns the dimension of a prunable weight along which its layer's outputs lie."""
        module = self.model.get_submodule(self._prunable[name])
        return int(isinstance(module, nn.modules.conv._ConvTransposeNd))

    def weights(self) -> Iterator[tuple[str, Parameter]]:
        """Yields (name, weight) of what is ranked: all prunable weights, or those between the outer layers."""
        parameters = self.prunable()
        for name in self.ranked_names():
            yield name, parameters[name]

    def ranked_names(self) -> list[str]:
        """Returns the names of the weights that are ranked; none where only outer layers exist and are left out."""
        names = list(self._prunable)
        return names if self.outer_layers else names[1:-1]

    def alive(self) -> dict[str, Tensor]:
        """Returns the keep-masks of the ranked weights, all True where nothing was removed."""
        return {name: self.masks.of(name, weight) for name, weight in self.weights()}

    def weights_left(self, names: list[str] | None = None) -> int:
        """Returns how many weights are neither masked nor gone, of all prunable ones or of those named."""
        left = self._left_by_weight()
        return sum(left.values()) if names is None else sum(left[name] for name in names)

    def _left_by_weight(self) -> dict[str, int]:
        if self.gates is not None:
            return self.gates.left
        return {name: weight.numel() - self.masks.removed(name) for name, weight in self.prunable().items()}

    def weights_total(self) -> int:
        """Returns how many prunable weights there were at the start."""
        return sum(self.start_sizes.values())

    def weight_sparsity(self) -> float:
        """Returns the fraction of all prunable weights that is masked or gone."""
        total = self.weights_total()
        return 1 - self.weights_left() / total if total else 0.0

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

    def layer_sparsities(self) -> dict[str, float]:
        """Returns the fraction removed per prunable weight."""
        left = self._left_by_weight()
        return {name: 1 - left[name] / total for name, total in self.start_sizes.items()}

    def size(self) -> int:
        """Returns how many parameters are neither masked nor gone, biases and norms included."""
        masked = sum(self.masks.removed(name) for name in self._prunable)
        return sum(parameter.numel() for parameter in self.model.parameters()) - masked

    def reached(self, counted: str = "weights") -> float:
        """Returns the sparsity in what a limit counts; of weights, those that are ranked."""
        return limits.reached(self, counted)

    # -- structure -------------------------------------------------------------------------------------------------

    @property
    def graph(self) -> DependencyGraph:
        """The dependency graph, built when it is first needed; it follows every cut made through it."""
        if self._graph is None:
            if self.example_inputs is None:
                raise UsageError("The structure needs example inputs: PrunableNetwork(model, example_inputs).")
            self._graph = DependencyGraph(self.model, self.example_inputs)
        return self._graph

    def survivors(self) -> dict[str, dict[int, Tensor]]:
        """Returns which indices of each tensor are left of those at the start, see `pruning.history`."""
        return history.survivors_of(self._graph) if self._graph is not None else {}

    def reshaped(self, survivors: history.Survivors | None = None) -> None:
        """Tells the handle that the model's shapes were changed by something else (a loaded checkpoint).

        Args:
            survivors: what the network that was saved said of itself; without it the structure is found anew.
        """
        known = self._graph is not None and survivors is not None and history.cut_like(self._graph, survivors)
        if not known:
            self._graph = None
        self.masks.refresh()

    def relayer(
        self, change: Callable[[], Any], start_sizes: Mapping[str, int], nodes_total: int | None = None
    ) -> None:
        """Lets layers be put in the place of others, whose masks are part of them then.

        Channels between the parts of a decomposed layer are nodes as any; they count as if they had been there before.

        Args:
            change: replaces modules of the model.
            start_sizes: weights at the start, by the names after that.
            nodes_total: nodes that count as those of the start, if that is known.
        """
        gone = None if self._start_nodes is None else self._start_nodes - len(self.graph.nodes)
        outputs = {weight: self.start_outputs[name] for name, weight in self.prunable().items()}
        change()
        self._find_weights()
        if set(start_sizes) != set(self._prunable):
            raise UsageError(f"{type(self.model).__name__} has other layers than it was counted with.")
        self.start_sizes = {name: start_sizes[name] for name in self._prunable}
        weights = self.prunable()
        self.start_outputs = {n: outputs.get(w, w.shape[self.output_dim(n)]) for n, w in weights.items()}
        # By object, not by name: layers that are decomposed again keep their names and get other weights.
        self.masks.keep = {n: mask for n, mask in self.masks.keep.items() if n in weights and weights[n] in outputs}
        self.reshaped()
        counted = None if gone is None else gone + len(self.graph.nodes)
        self._start_nodes = counted if nodes_total is None else nodes_total

    def nodes_total(self) -> int:
        """Returns how many nodes could be removed at the start."""
        if self._start_nodes is None:
            self._start_nodes = len(self.graph.nodes)
        return self._start_nodes

    def node_sparsity(self) -> float:
        """Returns the fraction of the nodes that is gone; nodes are only what could be removed at all."""
        total = self.nodes_total()
        return 1 - self.nodes_left() / total if total else 0.0

    def nodes_left(self) -> int:
        """Returns how many of these nodes are there, less those that closed gates will remove."""
        return len(self.graph.nodes) - (0 if self.gates is None else int(self.gates.gone.sum()))

    def note_start(self, *, structure: bool = True, latency: bool = False) -> None:
        """Takes down what later counts are compared with, while everything is still there."""
        if self.example_inputs is not None:
            self.start_flops()
        if latency or self.node_rules.target == "latency":
            self.start_latency()
        if structure:
            self.nodes_total()

    # -- FLOPs -----------------------------------------------------------------------------------------------------

    def start_flops(self) -> float:
        """Returns the dense forward FLOPs of one sample, measured before anything was removed."""
        if self._start_flops is None:
            self._start_flops = self.flops(masked=True)
        return self._start_flops

    def start_latency(self) -> float:
        """Returns the dense latency of a forward pass in seconds."""
        if self._start_latency is None:
            self._start_latency = self.latency()
        return self._start_latency

    def latency(self) -> float:
        """Returns the median seconds of a forward pass on the example, on the model's device."""
        return count.latency(self.model, self.example_inputs)

    def flops(self, *, masked: bool = False) -> float:
        """Returns forward FLOPs per sample, 2 per multiply-add of convolutions and matrix products.

        Args:
            masked: count masked weights as if they were there (what dense kernels compute today).
        """
        total, by_weight = self._count_flops()
        weights, absent = self.prunable(), 0.0
        if not masked:
            absent = sum(self.masks.removed(n) / weights[n].numel() * by_weight[n] for n in self.masks.keep)
        return (total - absent) / count.batch_size_of(self.example_inputs)

    def flops_by_weight(self) -> dict[str, float]:
        """Returns forward FLOPs per sample that multiply by each prunable weight, masked or not."""
        samples = count.batch_size_of(self.example_inputs)
        return {name: flops / samples for name, flops in self._count_flops()[1].items()}

    def _count_flops(self) -> tuple[int, dict[str, int]]:
        """Counts FLOPs of the whole example: in all, and per prunable weight."""
        if self.example_inputs is None:
            raise UsageError("FLOPs need example inputs: PrunableNetwork(model, example_inputs).")
        shapes = tuple(parameter.shape for parameter in self.model.parameters())
        if shapes != self._counted_shapes:
            # One forward pass under a counter; the numbers hold until a shape changes.
            weights = self.prunable()
            self._counted = count.flops_by_weight(self.model, self.example_inputs, weights, self._prunable)
            self._counted_shapes = shapes
        return self._counted

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
        self.dense = {}
        for target in criterion.targets(limit):
            report.steps.append(self.prune_to(criterion, target, batches))
        self.dense = {}
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
            self.dense = {}
        elif not self.dense:
            self.dense = {name: weight.detach().clone() for name, weight in self.weights()}
        reason = carry_out(criterion, self, Event(target, batches, **how))
        self.events += 1
        values = self.dense | (criterion.new_values(self, batches) or {})
        with torch.no_grad():
            for name, value in values.items():
                self.model.get_parameter(name).copy_(value)
        masks = {f"the mask of {name}": mask for name, mask in self.masks.keep.items()}
        take_first(dict([*self.model.named_parameters(), *self.model.named_buffers(), *masks.items()]))
        self.enforce()
        left = self.weights_left()
        nodes_left = len(self.graph.nodes) if cuts_nodes else None
        asked = target if criterion.threshold is None else None
        reached, (note, facts) = self.reached(counted), criterion.facts()
        return Step(asked, reached, before - left, left, reason, nodes_left, self._rows(facts), note)

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
        """Returns what a criterion's limit counts: what the user wants counted, else what it says itself.

        Raises:
            UsageError: if that is not for such a criterion, or there is nothing that it could remove.
        """
        if not isinstance(criterion, Criterion):
            raise UsageError(f"A criterion object is needed, such as SNIP(), not {criterion!r}.")
        counts = criterion.counts or criterion.unit
        if criterion.unit != "nodes" and self.node_rules.target not in (None, counts):
            name, unit, target = type(criterion).__name__, criterion.unit, self.node_rules.target
            raise UsageError(f"{name} removes {unit}, so its limit counts {counts}; --target {target} is for nodes.")
        if criterion.targets(0.5):
            self._require(criterion.unit)
        return self.node_rules.target or counts

    def _require(self, unit: str) -> None:
        name = type(self.model).__name__
        if unit == "nodes" and not self.nodes_total():
            raise UsageError(f"{name} has no node that could go: inputs and outputs always stay.")
        if unit == "weights" and not self.start_sizes:
            raise UsageError(f"{name} has no Linear or Conv weights; what stands outside of layers can go as nodes.")
        if unit == "weights" and not self.ranked_names():
            raise UsageError(f"{name}: with the outer layers left out there is nothing to prune.")

    def enforce(self) -> None:
        """Sets masked weights to zero."""
        self.masks.apply_to_weights(self.prunable())

    def shuffle_masks(self, generator: torch.Generator, initial: dict[str, Tensor]) -> None:
        """Permutes each layer's mask, see `pruning.controls.shuffle`."""
        controls.shuffle(self, generator, initial)

    def reinitialise(self, fresh: nn.Module) -> None:
        """Takes new initial values under the same masks, see `pruning.controls.reinitialise`."""
        controls.reinitialise(self, fresh)
