"""What is known of the weights of a model that is being pruned: which may go, which are masked, how many are left."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from pruning.cut.factorize import LowRank
from pruning.errors import UsageError
from pruning.graph.graph import DependencyGraph
from pruning.graph.marks import kept_parameters
from pruning.masks import WeightMasks
from pruning.modules.by_name import LayerRules, named_by, names_table
from pruning.modules.calls import device_of, mapped
from pruning.modules.weights import Weight, find_weights, normalised_dimension

MAKE_A_NEW_ONE = "make a new PrunableNetwork(model, example_inputs)"

Kind = tuple[torch.dtype | None, torch.device]  # what floating-point numbers a model computes with, and where


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


class PrunableWeights:
    """The weights of a model that criteria of weights rank.

    Args:
        model: what is pruned.
        example_inputs: what the model is called with, or None.
        outer_layers: whether the first and the last layer are ranked.
        layer_rules: which layers are pruned, and how much of each.
    """

    def __init__(self, model: nn.Module, example_inputs: Any, outer_layers: bool, layer_rules: LayerRules) -> None:
        self.model = model
        self._example_inputs = example_inputs
        self._example_fits = _kind_of(model)
        self.outer_layers = outer_layers
        self.masks = WeightMasks()
        self.gates: Gates | None = None  # closed ones count as removed
        # Ranked weights that the criterion of the last event could not score, and why; they are no part of its count.
        self.unscored: dict[str, str] = {}
        # What the criterion at work removes: of weights, nodes and both the rules by layer hold for those.
        self.removes_nodes = self.removes_both = False
        self._graph: DependencyGraph | None = None
        self._layer_rules = layer_rules
        self._seen: dict[str, tuple[int, torch.Size]] = {}
        self._find_weights()
        # What later counts are compared with.
        weights = self.prunable()
        self.start_sizes = {name: weight.numel() for name, weight in weights.items()}
        self.start_outputs = {name: weight.shape[self.output_dim(name)] for name, weight in weights.items()}

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
