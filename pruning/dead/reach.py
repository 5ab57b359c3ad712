"""Which weights lie on a path from the network's input to its output: connections alone, whatever the values.

The network is written out once as a list of ATen operations. Run on flags instead of numbers, every operation says
where something of the input arrives; its gradient says what reaches the output. A flag is 0 or 1 after every
operation, so no depth makes it overflow or vanish. An operation that the tables below do not know gives no answer,
never a wrong one.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functionalize
from torch.fx import GraphModule, Interpreter, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_leaves, tree_map

from pruning.modules.calls import RUN_ERRORS, call_with, device_of, mapped, split_inputs
from pruning.modules.modes import plain_attention, same_random_state, undisturbed
from pruning.modules.snapshot import values_kept
from pruning.trace.outputs import ChooseOutputs, sorted_out
from pruning.trace.rules.pointwise import pointwise
from pruning.trace.rules.table import RULES


class Reach(NamedTuple):
    """Flags of one tensor: above zero where something arrives.

    Args:
        value: of the tensor's shape.
        weight: made of parameters alone, so that nothing of the input is in it.
    """

    value: Tensor
    weight: bool = False


class UnknownOperation(Exception):
    """No table says how paths lead through an operation."""


State = dict[str, Tensor]


class Paths:
    """The connections of a network in eval mode.

    Args:
        model: it is run once, on a state of its own, and stays as it is.
        example_inputs: what it is called with.
        alive: parameter name -> bool tensor, True where a weight is a connection; matrices not named are whole.
        outputs: what of its outputs counts, see `DependencyGraph`.

    Raises:
        UnknownOperation: if the network cannot be written out, or holds operations that no table knows.
    """

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Any,
        alive: Mapping[str, Tensor],
        outputs: ChooseOutputs | None = None,
    ) -> None:
        device = device_of(model)
        parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
        self.flags = {name: _connections(tensor, alive.get(name)) for name, tensor in parameters.items()}
        self._names = list(alive)
        arguments, keywords = split_inputs(mapped(example_inputs, lambda tensor: tensor.to(device)))
        self._given = (dict(model.named_buffers()), list(arguments), keywords)

        def run(parameters: State, buffers: State, args: list[Any], kwargs: dict[str, Any]) -> list[Tensor]:
            returned = call_with(model, {**parameters, **buffers}, kwargs or args)
            return sorted_out(returned, outputs).protected

        try:
            with undisturbed(model, example_inputs) as snapshot, values_kept(snapshot.tensors):
                self.graph: GraphModule = make_fx(functionalize(run))(parameters, *self._given)
                if any(_writes(node) for node in self.graph.graph.nodes):
                    # What operations made of others (circular padding) write to shows once they are taken apart.
                    self.graph = make_fx(functionalize(self.graph))(parameters, *self._given)
        except RUN_ERRORS as error:
            raise UnknownOperation(str(error)) from error
        # The graph's first nodes are its inputs, the parameters before all others.
        inputs = zip(parameters, self.graph.graph.nodes, strict=False)
        self.used = {name for name, node in inputs if node.users}

    def effective(self) -> dict[str, Tensor]:
        """Returns per weight named: on a path from input to output; what never runs in eval mode stays as it is."""
        flags = {name: value.detach().requires_grad_(name in self._names) for name, value in self.flags.items()}
        wanted = [flags[name] for name in self._names]
        arriving = self._arriving(flags)
        # The derivative of what arrives at the output is above zero for what has a way there.
        gradients: Sequence[Tensor | None] = [None] * len(wanted)
        if arriving.requires_grad:
            gradients = torch.autograd.grad(arriving, wanted, allow_unused=True)
        found = {}
        for name, own, gradient in zip(self._names, wanted, gradients, strict=True):
            if gradient is None:
                gradient = torch.full_like(own, name not in self.used)
            found[name] = (own.detach() > 0) & (gradient > 0)
        return found

    def _arriving(self, flags: State) -> Tensor:
        """Runs the network on flags; returns the sum of what arrives at its outputs."""
        buffers, args, kwargs = self._given
        state = {name: Reach(value, weight=True) for name, value in flags.items()}
        inputs = tree_map(_arrival, (args, kwargs))
        total = next(iter(flags.values())).new_zeros(())
        try:
            # Operations that draw numbers run too.
            with torch.enable_grad(), plain_attention(), same_random_state(total.device):
                flat = tree_leaves((state, buffers, inputs), is_leaf=_is_reach)
                outputs = _Flow(self.graph).run(*flat, enable_io_processing=False)
                for reach in _reaches(outputs):
                    if not reach.weight:
                        total = total + reach.value.sum()
        except RUN_ERRORS as error:
            raise UnknownOperation(str(error)) from error
        return total


def effective_weights(
    model: nn.Module, example_inputs: Any, alive: Mapping[str, Tensor], outputs: ChooseOutputs | None = None
) -> dict[str, Tensor] | None:
    """Returns which of the weights that are alive lie on a path from input to output; None where no table can tell."""
    try:
        return Paths(model, example_inputs, alive, outputs).effective()
    except UnknownOperation:
        return None


def _writes(node: Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    # Pooling to a single cell says anew how its result lies in memory, which writes nothing.
    return schema is not None and schema.is_mutable and "as_strided" not in schema.name


def _connections(tensor: Tensor, alive: Tensor | None) -> Tensor:
    """A matrix connects, wherever it is alive; biases, norms and scales neither connect nor cut."""
    if alive is not None:
        return alive.to(tensor.device, torch.float32)
    return torch.full(tensor.shape, float(tensor.dim() > 1), device=tensor.device)


def _arrival(value: Any) -> Any:
    return Reach(torch.ones(value.shape, device=value.device)) if isinstance(value, Tensor) else value


def _is_reach(value: Any) -> bool:
    return isinstance(value, Reach)


def _reaches(values: Any) -> list[Reach]:
    return [leaf for leaf in tree_leaves(values, is_leaf=_is_reach) if isinstance(leaf, Reach)]


class _Flag(torch.autograd.Function):
    """Brings sums of flags back to 0 and 1, on the way forth and on the way back."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return (value > 0).to(value.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return (gradient > 0).to(gradient.dtype)


class _Flow(Interpreter):
    """Runs the operations on flags. What stems neither from the input nor from parameters keeps its values."""

    def run_node(self, node: Node) -> Any:
        if _writes(node):
            # What else reads that tensor, or a view of it, cannot be followed.
            raise UnknownOperation(f"{node.target} writes to its operand")
        return super().run_node(node)

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        reaches = _reaches((args, kwargs))
        if not reaches or target is operator.getitem:
            return super().call_function(target, args, kwargs)
        name = str(target.overloadpacket).removeprefix("aten.")
        # What the dependency graph takes element by element is so here too.
        by_element = RULES.get(f"aten.{name}") is pointwise or torch.Tag.pointwise in target.tags
        rule = _RULES.get(name) or (_pointwise if by_element else None)
        if rule is None:
            raise UnknownOperation(f"no table knows {name}")
        found = rule(_Operation(target, name, args, kwargs))
        return tree_map(_flagged, found, is_leaf=_is_reach)


def _flagged(found: Any) -> Any:
    # Sums of weights keep their gradient as it is: they meet flags in the next product.
    return Reach(_Flag.apply(found.value)) if isinstance(found, Reach) and not found.weight else found


class _Operation(NamedTuple):
    target: Any
    name: str
    args: Any
    kwargs: Any

    def arguments(self) -> dict[str, Any]:
        """Returns what is given, by the names of the operation's schema."""
        names = [argument.name for argument in self.target._schema.arguments]
        return dict(zip(names, self.args, strict=False)) | dict(self.kwargs)

    @property
    def outputs(self) -> int:
        """How many results the operation has."""
        return len(self.target._schema.returns)


# -- tables ------------------------------------------------------------------------------------------------------------

_RULES: dict[str, Callable[[_Operation], Any]] = {}


def _enter(names: str) -> Callable[[Callable[[_Operation], Any]], Callable[[_Operation], Any]]:
    def enter(rule: Callable[[_Operation], Any]) -> Callable[[_Operation], Any]:
        _RULES.update(dict.fromkeys(names.split(), rule))
        return rule

    return enter


def _pointwise(op: _Operation) -> Any:
    """Something arrives where it arrives in any operand: a gate and what it gates both matter."""
    leaves = tree_leaves((op.args, op.kwargs), is_leaf=_is_reach)
    reaches = [value for value in leaves if isinstance(value, Reach)]
    tensors = [value for value in leaves if isinstance(value, Tensor)] + [reach.value for reach in reaches]
    shape = torch.broadcast_shapes(*(tensor.shape for tensor in tensors))
    active = [reach.value for reach in reaches if not reach.weight]
    if active:
        # Learned constants that are added or multiplied carry nothing of the input.
        found = Reach(torch.stack([value.expand(shape) for value in active]).sum(0))
        return found if op.outputs == 1 else (found, None)
    whole = [reach.value for reach in reaches if reach.value.shape == shape]
    if not whole:
        return Reach(torch.zeros(shape, device=reaches[0].value.device), weight=True)
    value = whole[0]
    for other in whole[1:]:
        # A product of weights is a connection where both are, a sum where either is.
        value = value * other if op.name in ("mul", "div") else value + other
    return Reach(value, weight=True)


@_enter("detach alias _to_copy lift_fresh lift_fresh_copy")
def _same(op: _Operation) -> Any:
    return op.args[0]


@_enter("copy")
def _copy(op: _Operation) -> Any:
    """What was there before is gone."""
    before, after = op.args[:2]
    there = before.value if isinstance(before, Reach) else before
    shape = there.shape
    if isinstance(after, Reach):
        return Reach(after.value.expand(shape), after.weight)
    return Reach(torch.zeros(shape, device=before.value.device))


@_enter("as_strided as_strided_")
def _as_strided(op: _Operation) -> Any:
    size = list(op.args[1])
    # Only what pooling to a single cell says: the same shape, with sides of 1.
    if list(op.args[0].value.shape) != size or set(size[2:]) - {1}:
        raise UnknownOperation("as_strided")
    return op.args[0]


@_enter("glu")
def _glu(op: _Operation) -> Reach:
    dim = op.args[1] if len(op.args) > 1 else -1
    values, gates = op.args[0].value.chunk(2, dim=dim)
    return Reach(values + gates, op.args[0].weight)


@_enter(
    "native_batch_norm _native_batch_norm_legit_no_training cudnn_batch_norm miopen_batch_norm native_layer_norm "
    "_native_batch_norm_legit _batch_norm_no_update _batch_norm_with_update native_group_norm _fused_rms_norm"
)
def _norm(op: _Operation) -> tuple[Any, ...]:
    """A statistic over channels is no connection of theirs."""
    return (op.args[0], None, None, None, None)


@_enter("_weight_norm_interface")
def _weight_norm(op: _Operation) -> tuple[Any, ...]:
    return (op.args[0], None)


@_enter("_softmax _log_softmax _safe_softmax softmax log_softmax")
def _softmax(op: _Operation) -> Reach:
    value = op.args[0].value
    return Reach(value.amax(op.args[1], keepdim=True).expand_as(value), op.args[0].weight)


@_enter(
    "zeros_like ones_like full_like empty_like rand_like randn_like new_zeros new_ones new_full new_empty "
    "new_empty_strided zero fill bernoulli uniform normal_functional"
)
def _shape_only(op: _Operation) -> Any:
    return op.target(op.args[0].value.detach(), *op.args[1:], **op.kwargs)


@_enter(
    "view _unsafe_view reshape permute transpose t expand squeeze unsqueeze slice select split split_with_sizes "
    "chunk cat stack clone flip roll repeat unbind constant_pad_nd reflection_pad1d reflection_pad2d "
    "reflection_pad3d replication_pad1d replication_pad2d replication_pad3d pixel_shuffle pixel_unshuffle "
    "channel_shuffle diagonal unsafe_split unsafe_split_with_sizes unsafe_chunk "
    "native_channel_shuffle upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_linear1d "
    "upsample_bilinear2d upsample_trilinear3d avg_pool1d avg_pool2d avg_pool3d _adaptive_avg_pool2d cumsum "
    "adaptive_avg_pool1d _adaptive_avg_pool3d mean sum unfold im2col col2im index index_select gather "
    "slice_scatter select_scatter index_put scatter scatter_add index_add tril triu movedim narrow"
)
def _linear_map(op: _Operation) -> Any:
    """Moves, repeats or sums entries with factors that are positive: flags go the same way."""
    active = [reach for reach in _reaches((op.args, op.kwargs)) if not reach.weight]

    def plain(value: Any) -> Any:
        if isinstance(value, Reach):
            is_constant = value.weight and bool(active)
            return torch.zeros_like(value.value) if is_constant else value.value
        # Constants carry nothing; whole numbers are positions.
        if isinstance(value, Tensor) and value.is_floating_point():
            return torch.zeros_like(value, dtype=torch.float32)
        return value

    args, kwargs = tree_map(plain, (list(op.args), dict(op.kwargs)), is_leaf=_is_reach)
    kwargs.pop("dtype", None)
    if op.name in ("view", "_unsafe_view"):
        # Flags may lie otherwise in memory than the values did.
        found = args[0].reshape(args[1])
    elif op.name == "constant_pad_nd":
        # Without the value that is padded with, which is zero then.
        found = op.target(*args[:2], **kwargs)
    else:
        found = op.target(*args, **kwargs)
    if isinstance(found, (tuple, list)):
        return tuple(Reach(part, not active) for part in found)
    return Reach(found, not active)


@_enter("amax amin max min median var std var_mean std_mean logsumexp norm prod linalg_vector_norm any all")
def _statistic(op: _Operation) -> Any:
    """Every entry along the dimensions counts."""
    if len(op.args) > 1 and isinstance(op.args[1], Reach):
        return _pointwise(op)
    given = op.arguments()
    value, dims = op.args[0].value, given.get("dim")
    if dims is None or dims == []:
        dims = list(range(value.dim()))
    value = value.amax(dims, keepdim=bool(given.get("keepdim", False)))
    found = Reach(value, op.args[0].weight)
    return found if op.outputs == 1 else (found, found)


@_enter("max_pool1d max_pool2d max_pool2d_with_indices max_pool3d_with_indices")
def _max_pool(op: _Operation) -> Any:
    """Any entry of a window may be the largest, so the window's mean carries the flags."""
    given = op.arguments()
    if set(tree_leaves(given.get("dilation", 1))) != {1}:
        raise UnknownOperation(f"{op.name} with dilation")
    dimensions = op.name.partition("pool")[2][0]
    pool: Callable[..., Tensor] = {"1": F.avg_pool1d, "2": F.avg_pool2d, "3": F.avg_pool3d}[dimensions]
    window = {key: given[key] for key in ("kernel_size", "stride", "padding", "ceil_mode") if given.get(key)}
    found = Reach(pool(op.args[0].value, **window), op.args[0].weight)
    return (found, None) if "indices" in op.name else found


@_enter("adaptive_max_pool2d adaptive_max_pool3d")
def _adaptive_max_pool(op: _Operation) -> tuple[Any, ...]:
    pool = F.adaptive_avg_pool2d if "2d" in op.name else F.adaptive_avg_pool3d
    return (Reach(pool(op.args[0].value, op.args[1]), op.args[0].weight), None)


@_enter("embedding")
def _embedding(op: _Operation) -> Reach:
    """Tokens are the input, so all that is looked up by them arrives; positions are constants."""
    table, indices = op.args[0].value, op.args[1]
    arrives = isinstance(indices, Reach)
    positions = indices.value if arrives else indices
    flags = table.new_full((*positions.shape, table.shape[1]), float(arrives))
    return Reach(flags, weight=not arrives)


# -- products ----------------------------------------------------------------------------------------------------------


@_enter("convolution _convolution")
def _convolution(op: _Operation) -> Reach:
    x, weight = op.args[:2]
    if isinstance(weight, Reach) and not weight.weight:
        raise UnknownOperation("a convolution with weights that depend on the input")
    found = torch.convolution(_factor(x), _factor(weight), None, *op.args[3:9])
    return Reach(found, isinstance(x, Reach) and x.weight)


def _factor(operand: Any) -> Tensor:
    """Returns a factor's flags; constants connect where they are not zero."""
    return operand.value if isinstance(operand, Reach) else (operand != 0).float()


@_enter("mm bmm addmm baddbmm mv dot vdot linear addmv")
def _product(op: _Operation) -> Reach:
    adds_a_bias = op.name in ("addmm", "baddbmm", "addmv")
    left, right = op.args[1:3] if adds_a_bias else op.args[:2]
    reaches = [isinstance(operand, Reach) for operand in (left, right)]
    weights = [isinstance(operand, Reach) and operand.weight for operand in (left, right)]
    one, other = _factor(left), _factor(right)
    if op.name in ("mv", "dot", "vdot", "addmv"):
        if reaches != weights:
            raise UnknownOperation(op.name)
        # The largest singular value that spectral norm divides by: a number, no connection.
        return Reach(torch.zeros(one.shape[:1] if op.name.endswith("mv") else ()), weight=True)
    if op.name == "linear":
        other = other.mT
    if all(reaches) and not any(weights):
        # Queries and keys: a product of two things that depend on the input needs either of them.
        return Reach(one.amax(-1, keepdim=True) + other.amax(-2, keepdim=True))
    return Reach(one @ other, all(weights))
