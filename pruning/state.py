"""What is known of a model that is being pruned: its masks, its graph, and what it counted at the start."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pruning.errors import UsageError
from pruning.graph.graph import DependencyGraph
from pruning.graph.history import Survivors, cut_like, kept_indices_of
from pruning.graph.makers import GroupKey, GroupMakers, known_groups, makers_of_groups, may_go, names_that_stay
from pruning.graph.nodes import Unit
from pruning.measure.flops import flops_by_weight, parameter_bytes
from pruning.measure.latency import latency
from pruning.modules.by_name import LayerRules
from pruning.modules.calls import OnScores, batch_size_of, check_network, takes_anything
from pruning.trace.outputs import ChooseOutputs, check_choice
from pruning.weights import PrunableWeights

Ranking = Literal["global", "local"]
Counted = Literal["nodes", "weights", "flops", "latency"]


@dataclass
class NodeRules:
    """What the user wants of the shapes that node criteria leave.

    Args:
        ranking: "global" ranks all nodes together, "local" takes the same share of every layer (default: the
            criterion's own).
        round_to: widths become multiples of this, which suits hardware.
        min_keep: nodes that every layer keeps at least.
        counted: what --pruning_limit counts: nodes, weights, flops or latency (default: the criterion's own).
        unit: what attention loses: "channel" narrows all heads of a layer alike, "head" takes whole heads.
        uniform: layers whose names differ in numbers alone keep as many nodes, so that one number says how many.
    """

    ranking: Ranking | None = None
    round_to: int = 1
    min_keep: int = 1
    counted: Counted | None = None
    unit: Unit = "channel"
    uniform: bool = False

    def __post_init__(self) -> None:
        for name in ("round_to", "min_keep"):
            number = getattr(self, name)
            if number < 1:
                raise UsageError(f"{name} must be at least 1; {number} was given.")
        words = {"ranking": get_args(Ranking), "counted": get_args(Counted), "unit": get_args(Unit)}
        for name, known in words.items():
            word = getattr(self, name)
            if word not in (None, *known):
                raise UsageError(f"{name} must be one of {', '.join(known)}; {word!r} was given.")


class PrunableState(PrunableWeights):
    """A model that can be pruned, together with its masks and its counts at the start.

    Args:
        model: any nn.Module; it is pruned in place.
        example_inputs: what the model is called with: a tensor, a tuple of arguments or a dict of keywords; any batch
            size. Needed for FLOPs, for the order of layers and for the structure.
        loss: loss(outputs, targets) -> scalar that scores are derivatives of; cross-entropy by default.
        outer_layers: whether the first and the last layer are ranked for weights; False leaves them out.
        node_rules: what the shapes should look like that criteria of nodes leave.
        outputs: what of the model's outputs must keep its shape, see `DependencyGraph`; caches need not, all else does.
        layer_rules: which layers are pruned, and how much of each; frozen ones only if asked for.
        adopt_zeros: whether weights of a network that is sparse already count as pruned, see `adopt_zeros`; False
            leaves them as the values that they are.
    """

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Any = None,
        *,
        loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
        outer_layers: bool = True,
        node_rules: NodeRules | None = None,
        outputs: ChooseOutputs | None = None,
        layer_rules: LayerRules | None = None,
        adopt_zeros: bool = True,
    ) -> None:
        check_network(model)
        super().__init__(model, example_inputs, outer_layers, layer_rules or LayerRules())
        self.loss = loss if takes_anything(loss) else OnScores(loss)
        self.node_rules = node_rules or NodeRules()
        check_choice(outputs)
        self.outputs = outputs
        self.learns_nodes = False  # whether gates are or were there: how many nodes go is then not fixed in advance
        self.last_scores: dict[str, Tensor] = {}
        # Between events of a criterion that revives: values of before the first one.
        self.pre_event_values: dict[str, Tensor] = {}
        self._last_criterion: type | None = None
        self.events = 0  # so far; penalties that prepare for pruning end with the first
        # FLOPs, latency and nodes of the start cost time and are counted when first asked for.
        self.start_bytes = parameter_bytes(model)
        self._counted: tuple[int, dict[str, int]] = (0, {})
        self._counted_shapes: tuple[torch.Size, ...] = ()
        self._start_flops: float | None = None
        self._start_latency: float | None = None
        self._start_nodes: int | None = None
        self._start_groups: dict[GroupKey, GroupMakers] | None = None
        if not self.start_sizes and (example_inputs is None or not self.nodes_total(by_rules=False)):
            if isinstance(model, torch.jit.ScriptModule):
                raise UsageError("The model is a scripted or traced module, which hides its layers; give the original.")
            raise UsageError(f"{type(model).__name__} has no weights that multiply; there is nothing to prune.")
        if adopt_zeros:
            self.adopt_zeros()

    # -- structure -------------------------------------------------------------------------------------------------

    @property
    def graph(self) -> DependencyGraph:
        """The dependency graph, built when it is first needed; it follows every cut made through it."""
        if self._graph is None:
            if self.example_inputs is None:
                raise UsageError("The structure needs example inputs: PrunableNetwork(model, example_inputs).")
            unit = self.node_rules.unit
            self._graph = DependencyGraph(self.model, self.example_inputs, outputs=self.outputs, unit=unit)
        return self._graph

    def kept_indices(self) -> dict[str, dict[int, Tensor]]:
        """Returns which indices of each tensor are left of those at the start, see `pruning.graph.history`."""
        if self._graph is None:
            return {}  # nothing was cut
        return kept_indices_of(self._graph)

    def reshaped(self, kept_indices: Survivors | None = None) -> None:
        """Tells the handle that the model's shapes were changed by something else (a loaded checkpoint).

        Args:
            kept_indices: what the network that was saved said of itself; without it the structure is found anew.
        """
        known = self._graph is not None and kept_indices is not None and cut_like(self._graph, kept_indices)
        if not known:
            self._graph = None
        self.masks.refresh()
        self._see(self.prunable())

    def replace_layers(
        self, change: Callable[[], Any], start_sizes: Mapping[str, int], nodes_total: int | None = None
    ) -> None:
        """Lets layers be put in the place of others, whose masks are part of them then.

        Channels between the parts of a decomposed layer are nodes as any; they count as if they had been there before.

        Args:
            change: replaces modules of the model.
            start_sizes: weights at the start, by the names after that.
            nodes_total: nodes that count as those of the start, if that is known.
        """
        nodes_gone = None
        if self._start_nodes is not None:
            nodes_gone = self._start_nodes - len(self.graph.nodes)
        outputs_of = {weight: self.start_outputs[name] for name, weight in self.prunable().items()}
        change()
        self._find_weights()
        if set(start_sizes) != set(self._prunable):
            raise UsageError(f"{type(self.model).__name__} has other layers than it was counted with.")
        self.start_sizes = {name: start_sizes[name] for name in self._prunable}
        masks = self.masks.keep
        self.start_outputs, self.masks.keep = {}, {}
        for name, weight in self.prunable().items():
            # By object, not by name: layers that are decomposed again keep their names and get other weights.
            is_old = weight in outputs_of
            self.start_outputs[name] = outputs_of[weight] if is_old else weight.shape[self.output_dim(name)]
            if is_old and name in masks:
                self.masks.keep[name] = masks[name]
        self.reshaped()
        if nodes_gone is not None:
            # The graph is built here, while the new layers have all their channels: a file may cut them next.
            nodes_now = len(self.graph.nodes)
            if nodes_total is None:
                nodes_total = nodes_gone + nodes_now
        self._start_nodes = nodes_total
        self._start_groups = None

    def nodes_total(self, *, by_rules: bool = True) -> int:
        """Returns how many nodes could be removed at the start.

        Args:
            by_rules: without those that the rules by layer protect, where the criterion at work removes nodes.
        """
        if self._start_nodes is None:
            self._start_nodes = len(self.graph.nodes)
        total = self._start_nodes
        if by_rules and self._closes_groups() and (self.removes_nodes or self.removes_both):
            frozen = self.frozen_names()
            for group in self.start_groups().values():
                if not may_go(group, self.named, frozen):
                    total -= group.nodes
        return total

    def node_sparsity(self) -> float:
        """Returns the fraction of the nodes that is gone; nodes are only what could be removed at all."""
        total = self.nodes_total()
        return 1 - self.nodes_left() / total if total else 0.0

    def nodes_left(self) -> int:
        """Returns how many of these nodes are there, less those that closed gates will remove."""
        counts = np.ones(len(self.graph.nodes), dtype=bool)
        if self.removes_nodes or self.removes_both:
            counts = self.open_nodes()
        if self.gates is not None:
            counts &= ~self.gates.gone.cpu().numpy()
        return int(counts.sum())

    # -- rules by layer --------------------------------------------------------------------------------------------

    def counted_names(self) -> list[str]:
        """Returns the names of the weights that a limit of weights counts: those of layers that can lose some."""
        names = self.ranked_names()
        if not (self.removes_nodes and self._closes_groups()):
            return names
        stay = names_that_stay(self.start_groups().values(), self.named, self.frozen_names())
        return [name for name in names if name not in stay]

    def _closes_groups(self) -> bool:
        """Whether some group may be protected by the rules by layer."""
        return self.named.only is not None or bool(self.named.skip) or bool(self.frozen_names())

    def start_groups(self) -> dict[GroupKey, GroupMakers]:
        """Returns each group of nodes as it was at the start, with the layers that make it."""
        if self._start_groups is None:
            self._start_groups = makers_of_groups(self.graph)
        return self._start_groups

    def groups_now(self) -> list[GroupMakers]:
        """Returns for each of `graph.groups` what it was at the start."""
        return known_groups(self.graph, self.start_groups())

    def open_groups(self) -> np.ndarray:
        """Returns (groups,) whether the rules by layer let nodes of each of `graph.groups` go."""
        if not self._closes_groups():
            return np.ones(self.graph.structure.group_count, dtype=bool)
        frozen = self.frozen_names()
        return np.array([may_go(group, self.named, frozen) for group in self.groups_now()], dtype=bool)

    def open_nodes(self) -> np.ndarray:
        """Returns (nodes,) whether the rules by layer let each node go."""
        return self.open_groups()[self.graph.structure.group_of_node]

    def note_start(self, *, structure: bool = True, latency: bool = False) -> None:
        """Takes down what later counts are compared with, while everything is still there."""
        if self.example_inputs is not None:
            self.start_flops()
        if latency or self.node_rules.counted == "latency":
            self.start_latency()
        if structure:
            self.nodes_total()
            self.start_groups()

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
        return latency(self.model, self.example_inputs)

    def flops(self, *, masked: bool = False) -> float:
        """Returns forward FLOPs per sample, 2 per multiply-add of convolutions and matrix products.

        Args:
            masked: count masked weights as if they were there (what dense kernels compute today).
        """
        total, by_weight = self._count_flops()
        absent = 0.0
        if not masked:
            weights = self.prunable()
            for name in self.masks.keep:
                share = self.masks.removed(name) / weights[name].numel()
                absent += share * by_weight[name]
        return (total - absent) / batch_size_of(self.example_inputs)

    def flops_by_weight(self) -> dict[str, float]:
        """Returns forward FLOPs per sample that multiply by each prunable weight, masked or not."""
        samples = batch_size_of(self.example_inputs)
        return {name: flops / samples for name, flops in self._count_flops()[1].items()}

    def _count_flops(self) -> tuple[int, dict[str, int]]:
        """Counts FLOPs of the whole example: in all, and per prunable weight."""
        if self.example_inputs is None:
            raise UsageError("FLOPs need example inputs: PrunableNetwork(model, example_inputs).")
        shapes = tuple(parameter.shape for parameter in self.model.parameters())
        if shapes != self._counted_shapes:
            # One forward pass under a counter; the numbers hold until a shape changes.
            weights = self.prunable()
            self._counted = flops_by_weight(self.model, self.example_inputs, weights, self.owners())
            self._counted_shapes = shapes
        return self._counted
