"""What is known of a model that is being pruned: its masks, its graph, and what it counted at the start."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import Parameter

from pruning.cut.factorize import LowRank
from pruning.errors import UsageError
from pruning.graph.graph import DependencyGraph
from pruning.graph.history import Survivors, cut_like, kept_indices_of
from pruning.graph.makers import GroupKey, GroupMakers, known_groups, makers_of_groups, may_go, names_that_stay
from pruning.graph.marks import kept_parameters
from pruning.graph.nodes import Unit
from pruning.masks import WeightMasks
from pruning.measure.flops import flops_by_weight, parameter_bytes
from pruning.measure.latency import latency
from pruning.modules.by_name import LayerRules, named_by, names_table
from pruning.modules.calls import batch_size_of, check_network, device_of, mapped, scores_of
from pruning.modules.weights import Weight, find_weights, normalised_dimension
from pruning.trace.outputs import ChooseOutputs, check_choice

Ranking = Literal["global", "local"]
Counted = Literal["nodes", "weights", "flops", "latency"]


MAKE_A_NEW_ONE = "make a new PrunableNetwork(model, example_inputs)"

Kind = tuple[torch.dtype | None, torch.device]  # what floating-point numbers a model computes with, and where


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


class Gates(Protocol):
    """Gates on nodes that training may close (`pruning.l0`); what closed gates will remove counts as removed."""

    @property
    def left(self) -> dict[str, int]:
        """Weights that open gates leave, by name."""

    @property
    def gone(self) -> Tensor:
        """(nodes,) bool, nodes whose gates are closed."""

    def penalty(self, l0_reg: float | None, l2_reg: float) -> Tensor:
        """Returns the expected number of weights, at a price each, and their decay; see the loss L0CrossEntropy."""


class PrunableState:
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
        self.model = model
        self._example_inputs = example_inputs
        self._example_fits = _kind_of(model)
        self.loss = loss if _takes_anything(loss) else OnScores(loss)
        self.outer_layers = outer_layers
        self.node_rules = node_rules or NodeRules()
        check_choice(outputs)
        self.outputs = outputs
        self.masks = WeightMasks()
        self.gates: Gates | None = None  # closed ones count as removed
        self.learns_nodes = False  # whether gates are or were there: how many nodes go is then not fixed in advance
        self.last_scores: dict[str, Tensor] = {}
        # Between events of a criterion that revives: values of before the first one.
        self.pre_event_values: dict[str, Tensor] = {}
        # Ranked weights that the criterion of the last event could not score, and why; they are no part of its count.
        self.unscored: dict[str, str] = {}
        self._last_criterion: type | None = None
        self.events = 0  # so far; penalties that prepare for pruning end with the first
        # What the criterion at work removes: of weights, nodes and both the rules by layer hold for those.
        self.removes_nodes = self.removes_both = False
        self._layer_rules = layer_rules or LayerRules()
        self._seen: dict[str, tuple[int, torch.Size]] = {}
        self._find_weights()
        # What later counts are compared with. FLOPs, latency and nodes cost time and are counted when first asked for.
        weights = self.prunable()
        self.start_sizes = {name: weight.numel() for name, weight in weights.items()}
        self.start_outputs = {name: weight.shape[self.output_dim(name)] for name, weight in weights.items()}
        self.start_bytes = parameter_bytes(model)
        self._counted: tuple[int, dict[str, int]] = (0, {})
        self._counted_shapes: tuple[torch.Size, ...] = ()
        self._start_flops: float | None = None
        self._start_latency: float | None = None
        self._start_nodes: int | None = None
        self._start_groups: dict[GroupKey, GroupMakers] | None = None
        self._graph: DependencyGraph | None = None
        if not self.start_sizes and (example_inputs is None or not self.nodes_total(by_rules=False)):
            if isinstance(model, torch.jit.ScriptModule):
                raise UsageError("The model is a scripted or traced module, which hides its layers; give the original.")
            raise UsageError(f"{type(model).__name__} has no weights that multiply; there is nothing to prune.")
        if adopt_zeros:
            self.adopt_zeros()

    # -- what there is ---------------------------------------------------------------------------------------------

    def prunable(self) -> dict[str, Parameter]:
        """Returns every prunable weight by name, in the order in which the layers run."""
        try:
            return {name: self.model.get_parameter(name) for name in self._prunable}
        except AttributeError as error:
            raise UsageError(f"A layer of the network is gone or was replaced ({error}); {MAKE_A_NEW_ONE}.") from error

    @property
    def example_inputs(self) -> Any:
        """What the model is called with; it follows the model to another device or floating-point type."""
        kind = _kind_of(self.model)
        if kind != self._example_fits:
            before, self._example_fits = self._example_fits, kind
            self._example_inputs = mapped(self._example_inputs, lambda tensor: _moved(tensor, before, kind))
        return self._example_inputs

    def adopt_zeros(self) -> None:
        """Masks the zeros of layers that are sparse already, and says so in a warning.

        A layer is sparse if at least a fifth of its weights are exactly zero, and the others are not all one value. So
        a fresh network stays as it is: layers that start at zero, or as the identity, are to be trained whole.
        """
        adopted = {}
        for name, weight in self.prunable().items():
            if name not in self.masks.keep and _is_sparse(weight.detach()):
                adopted[name] = weight.detach() != 0
        if not adopted:
            return
        self.masks.set(adopted)
        zeros = sum(self.masks.removed(name) for name in adopted)
        share = zeros / self.weights_total()
        warnings.warn(
            f"{zeros:,} weights ({share:.1%}) in {len(adopted)} layers are exactly zero and count as pruned; "
            "adopt_zeros=False leaves them as values.",
            stacklevel=3,
        )

    def check_unchanged(self) -> None:
        """Takes note of weights that are other objects now: of a copy, or put in place by `assign=True`.

        Raises:
            UsageError: if a layer was replaced by one of another shape, which no count of the start fits.
        """
        weights = self.prunable()
        for name, weight in weights.items():
            identity, shape = self._seen[name]
            if identity == id(weight) or shape == weight.shape:
                continue
            # What the graph cut before the weight was replaced, it knows.
            if self._graph is None or not self._graph.fits():
                was, now = tuple(shape), tuple(weight.shape)
                raise UsageError(f"{name} was replaced: it has shape {now}, and had {was}; {MAKE_A_NEW_ONE}.")
        self._see(weights)

    def _see(self, weights: Mapping[str, Parameter]) -> None:
        self._seen = {name: (id(weight), weight.shape) for name, weight in weights.items()}
        # Noted here and not when it is asked for: scores are computed with gradients on for everything.
        self._frozen = {name for name, weight in weights.items() if _is_frozen(weight)}

    def __getstate__(self) -> dict[str, Any]:
        # Parameters of a copy are other objects; it compares them by shape, which must be those of now.
        weights = dict(self.model.named_parameters())
        for name, (identity, _) in self._seen.items():
            weight = weights.get(name)
            if weight is not None and id(weight) == identity:
                self._seen[name] = (identity, weight.shape)
        return dict(vars(self))

    def _find_weights(self) -> None:
        weights = find_weights(self.model, self.example_inputs, partial(names_table, self._layer_rules))
        self._prunable: dict[str, Weight] = weights.found
        self._left_out = weights.left_out
        # Under weight_norm a slice that loses all its weights would be 0 / 0.
        self.slices: dict[str, int] = {}
        for name, found in self._prunable.items():
            dimension = normalised_dimension(self.model, name, found.path)
            if dimension is not None:
                self.slices[name] = dimension
        self._see(self.prunable())
        self.layer_rules = self._layer_rules

    @property
    def layer_rules(self) -> LayerRules:
        """Which layers are pruned, and how much of each."""
        return self._layer_rules

    @layer_rules.setter
    def layer_rules(self, rules: LayerRules) -> None:
        # The two parts of a decomposed layer go by the name of the weight that it had.
        former = {}
        for name, path in self.owners().items():
            parent = path.rpartition(".")[0]
            if isinstance(self.model.get_submodule(parent), LowRank):
                former[name] = f"{parent}.weight"
        self.named = named_by(rules, self.model, former)
        self._layer_rules = rules

    def owners(self) -> dict[str, str]:
        """Returns prunable weight -> path of the module that it belongs to."""
        return {name: weight.path for name, weight in self._prunable.items()}

    def names_of_layers(self) -> set[str]:
        """Returns the names of the prunable weights that layers of a known type keep."""
        return {name for name, weight in self._prunable.items() if weight.of_layer}

    def layer_name(self, name: str) -> str:
        """Returns what a person calls a prunable weight: its layer, or its own name where the layer has several."""
        path = self._prunable[name].path
        n_of_layer = sum(other.path == path for other in self._prunable.values())
        return path if path and n_of_layer == 1 else name

    def output_dims(self, name: str) -> tuple[int, ...]:
        """Returns the dimensions of a prunable weight along which outputs lie: of experts in one tensor several."""
        return self._prunable[name].sides.outputs

    def output_dim(self, name: str) -> int:
        """Returns the dimension of a prunable weight along which the outputs of one matrix lie."""
        outputs = self.output_dims(name)
        return outputs[-1] if outputs else 0

    def input_dim(self, name: str) -> int | None:
        """Returns the dimension of a prunable weight along which input channels lie, None where they are several."""
        return self._prunable[name].sides.inputs

    def left_out(self) -> dict[str, str]:
        """Returns the parameters of more than one dimension that the last criterion of weights left out, and why."""
        unscored = {name: f"not scored: {why}" for name, why in self.unscored.items()}
        return self._left_out | unscored

    def weights(self) -> Iterator[tuple[str, Parameter]]:
        """Yields (name, weight) of what is ranked: all prunable weights, or those that `ranked_names` leaves."""
        parameters = self.prunable()
        for name in self.ranked_names():
            yield name, parameters[name]

    def ranked_names(self) -> list[str]:
        """Returns the names of the weights that are ranked: without layers marked `keep`, or outer ones if so asked.

        A criterion of weights ranks what the rules by layer leave. One of nodes looks at all weights, since a node that
        may go is read by layers that are to stay; the rules hold for its nodes, see `open_groups`. What the
        last criterion could not score is not there either.
        """
        names = list(self._prunable)
        if not self.outer_layers:
            names = names[1:-1]
        left_out = self.kept_names()
        if not self.removes_nodes:
            left_out |= self.frozen_names()
            left_out |= {name for name in names if not self.named.may(name)}
            left_out |= self.unscored.keys()
        return [name for name in names if name not in left_out]

    def counted_names(self) -> list[str]:
        """Returns the names of the weights that a limit of weights counts: those of layers that can lose some."""
        names = self.ranked_names()
        if not (self.removes_nodes and self._closes_groups()):
            return names
        stay = names_that_stay(self.start_groups().values(), self.named, self.frozen_names())
        return [name for name in names if name not in stay]

    def frozen_names(self) -> set[str]:
        """Returns the names of the frozen weights that are left out: where not all are frozen, those not asked for."""
        if len(self._frozen) == len(self._prunable):
            return set()
        return {name for name in self._frozen if not self.named.asks_for(name)}

    def kept_names(self) -> set[str]:
        """Returns the names of the prunable weights of modules marked `keep`."""
        kept = kept_parameters(self.model)
        if not kept:  # as nearly always, and this is asked for often
            return set()
        return {name for name, weight in self.prunable().items() if id(weight) in kept}

    def alive(self) -> dict[str, Tensor]:
        """Returns the keep-masks of the ranked weights, all True where nothing was removed."""
        return {name: self.masks.of(name, weight) for name, weight in self.weights()}

    def weights_left(self, names: list[str] | None = None) -> int:
        """Returns how many weights are neither masked nor gone, of all prunable ones or of those named."""
        left = self._left_by_weight()
        if names is None:
            return sum(left.values())
        return sum(left[name] for name in names)

    def _left_by_weight(self) -> dict[str, int]:
        if self.gates is not None:
            return self.gates.left
        left = {}
        for name, weight in self.prunable().items():
            left[name] = weight.numel() - self.masks.removed(name)
        return left

    def weights_total(self) -> int:
        """Returns how many prunable weights there were at the start."""
        return sum(self.start_sizes.values())

    def weight_sparsity(self) -> float:
        """Returns the fraction of all prunable weights that is masked or gone."""
        total = self.weights_total()
        return 1 - self.weights_left() / total if total else 0.0

    def layer_sparsities(self) -> dict[str, float]:
        """Returns the fraction removed per prunable weight."""
        left = self._left_by_weight()
        return {name: 1 - left[name] / total for name, total in self.start_sizes.items()}

    def size(self) -> int:
        """Returns how many parameters are neither masked nor gone, biases and norms included."""
        masked = sum(self.masks.removed(name) for name in self._prunable)
        return sum(parameter.numel() for parameter in self.model.parameters()) - masked

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

    def enforce(self) -> None:
        """Sets masked weights to zero."""
        self.masks.apply_to_weights(self.prunable())


def _is_sparse(weight: Tensor) -> bool:
    if weight.is_meta or not weight.is_floating_point():
        return False
    others = weight.count_nonzero()
    if not 0 < int(others) <= 0.8 * weight.numel():
        return False
    values = weight[weight != 0]
    return bool((values != values[0]).any())


def _is_frozen(weight: Parameter) -> bool:
    """Whether somebody turned a weight's gradient off; one of whole numbers can have none."""
    could_learn = weight.is_floating_point() or weight.is_complex()
    return could_learn and not weight.requires_grad


def _kind_of(model: nn.Module) -> Kind:
    for parameter in model.parameters():
        if parameter.is_floating_point():
            return parameter.dtype, parameter.device
    return None, device_of(model)


def _moved(tensor: Tensor, before: Kind, now: Kind) -> Tensor:
    """Returns an example tensor as a model takes it that has moved; what did not fit it before stays as it was."""
    if now[0] is not None and tensor.dtype == before[0]:
        tensor = tensor.to(now[0])
    return tensor.to(now[1]) if tensor.device == before[1] and not tensor.is_meta else tensor


class OnScores:
    """One of torch's own losses, which take tensors, for networks that return theirs in a data class or a dict."""

    def __init__(self, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.loss = loss
        self.__name__ = getattr(loss, "__name__", type(loss).__name__)

    def __call__(self, outputs: Any, targets: Any) -> Tensor:
        return self.loss(scores_of(outputs), targets)


def _takes_anything(loss: Any) -> bool:
    """Says whether a loss may know what to do with outputs that are no tensor: any but torch's own."""
    owner = loss if hasattr(loss, "__name__") else type(loss)
    return not str(getattr(owner, "__module__", "")).startswith("torch.")
