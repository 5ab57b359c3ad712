"""Cuts a network in place: tensors, gradients, optimizer state, companions, and the integers that modules keep."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, MutableMapping
from typing import Any

import torch
from torch import Tensor, nn

from pruning.errors import UsageError
from pruning.sandbox import Attribute

Keep = dict[int, Tensor]  # dimension -> indices that stay
Shape = tuple[int, ...]


# -- integers that modules of torch keep -------------------------------------------------------------------------------


class _Shapes:
    """Shapes that tensors are about to have, asked for by module and name; parametrised weights by their original."""

    def __init__(self, shapes: dict[int, Shape], grouped: Collection[nn.Module] = ()) -> None:
        self.by_id, self.grouped = shapes, grouped

    def of(self, module: nn.Module, *names: str) -> Shape | None:
        for name in names:
            tensor = module._parameters.get(name, module._buffers.get(name))
            for other in (f"{name}_v", f"{name}_orig"):  # weight_norm and spectral_norm of old
                tensor = module._parameters.get(other) if tensor is None else tensor
            if tensor is None and name in getattr(module, "parametrizations", {}):
                originals: Any = module.get_submodule(f"parametrizations.{name}")
                tensor = getattr(originals, "original", getattr(originals, "original1", None))
            if tensor is not None:
                return self.by_id.get(id(tensor), tuple(tensor.shape))
        return None


def _conv(module: Any, shapes: _Shapes) -> dict[str, Any]:
    shape = shapes.of(module, "weight")
    if shape is None:
        return {}
    groups = module.groups
    if module.transposed:
        if module.in_channels == groups and module not in shapes.grouped:
            groups = shape[0]
        return {"groups": groups, "in_channels": shape[0], "out_channels": shape[1] * groups}
    if module.in_channels == groups > 1 and module not in shapes.grouped:  # depthwise: a channel gone is a group gone
        groups = shape[0] * groups // module.out_channels
    if shape[0] % groups:
        raise UsageError(f"{shape[0]} output channels cannot belong to {groups} groups: whole groups of a convolution "
                         "went, and shapes do not tell which; save extras_of(model) with the state dict.")  # fmt: skip
    return {"groups": groups, "in_channels": shape[1] * groups, "out_channels": shape[0]}


def _widths(**dims: int) -> Any:
    """Returns what reads attributes off the shape of a module's weight, or of its statistics if it has none."""

    def describe(module: Any, shapes: _Shapes) -> dict[str, Any]:
        shape = shapes.of(module, "weight", "running_mean")
        return {name: shape[dim] for name, dim in dims.items()} if shape else {}

    return describe


def _group_norm(module: Any, shapes: _Shapes) -> dict[str, Any]:
    shape = shapes.of(module, "weight")
    single = module.num_groups == module.num_channels
    return {"num_channels": shape[0], **({"num_groups": shape[0]} if single else {})} if shape else {}


def _layer_norm(module: Any, shapes: _Shapes) -> dict[str, Any]:
    shape = shapes.of(module, "weight")
    kind = type(module.normalized_shape)
    return {"normalized_shape": shape if kind is tuple else kind(shape)} if shape else {}


def _attention(module: Any, shapes: _Shapes) -> dict[str, Any]:
    packed, query, key, value, output = (
        shapes.of(module, f"{name}_weight") for name in ("in_proj", "q_proj", "k_proj", "v_proj", "out_proj")
    )
    output = shapes.of(module.out_proj, "weight")
    width = packed[1] if packed else query[1] if query else output[1] if output else module.embed_dim
    found = {"embed_dim": width, "kdim": key[1] if key else width, "vdim": value[1] if value else width}
    return {**found, "head_dim": width // module.num_heads}


def _recurrent(module: Any, shapes: _Shapes) -> dict[str, Any]:
    first, hidden = shapes.of(module, "weight_ih_l0"), shapes.of(module, "weight_hh_l0")
    if not first or not hidden:
        return {}
    gates = {"LSTM": 4, "GRU": 3}.get(module.mode, 1)
    found = {"input_size": first[1], "hidden_size": first[0] // gates}
    return {**found, "proj_size": hidden[1]} if module.proj_size else found


def _recurrent_cell(module: Any, shapes: _Shapes) -> dict[str, Any]:
    first, hidden = shapes.of(module, "weight_ih"), shapes.of(module, "weight_hh")
    return {"input_size": first[1], "hidden_size": hidden[1]} if first and hidden else {}


BY_TYPE: tuple[tuple[type | tuple[type, ...], Any], ...] = (
    (nn.modules.conv._ConvNd, _conv),
    (nn.Linear, _widths(in_features=1, out_features=0)),
    (nn.Bilinear, _widths(out_features=0, in1_features=1, in2_features=2)),
    (nn.modules.batchnorm._NormBase, _widths(num_features=0)),
    (nn.GroupNorm, _group_norm),
    ((nn.LayerNorm, nn.RMSNorm), _layer_norm),
    ((nn.Embedding, nn.EmbeddingBag), _widths(num_embeddings=0, embedding_dim=1)),
    (nn.PReLU, _widths(num_parameters=0)),
    (nn.MultiheadAttention, _attention),
    (nn.RNNBase, _recurrent),
    (nn.modules.rnn.RNNCellBase, _recurrent_cell),
)


def module_integers(model: nn.Module, shapes: dict[int, Shape], grouped: Collection[nn.Module] = ()) -> list[Attribute]:
    """Returns (module, attribute, value) of what torch's own modules must say once tensors have new shapes.

    Args:
        model: the network as it is.
        shapes: id of a parameter or buffer -> the shape it will have; those missing keep theirs.
        grouped: convolutions that keep their number of groups even where each has a single input channel left.
    """
    table, found = _Shapes(shapes, grouped), []
    for module in model.modules():
        for kind, describe in BY_TYPE:
            if isinstance(module, kind):
                wanted = describe(module, table)
                found += [(module, key, value) for key, value in wanted.items() if getattr(module, key, None) != value]
                break
    return found


# -- tensors -----------------------------------------------------------------------------------------------------------


def cut(tensor: Tensor, keep: Keep) -> Tensor:
    """Returns a copy of what stays; dimensions of size 1 that only broadcast are left alone."""
    for dim, indices in keep.items():
        if tensor.shape[dim] > 1 or len(indices) == 0:
            tensor = tensor.index_select(dim, indices.to(tensor.device))
    return tensor


def _fits(state: Tensor, parameter: Tensor) -> bool:
    """Says whether a state tensor runs along with a parameter, whole or reduced along some dimensions (Adafactor)."""
    return state.dim() == parameter.dim() and all(
        own in (size, 1) for own, size in zip(state.shape, parameter.shape, strict=True)
    )


@dataclasses.dataclass
class Cuts:
    """All new tensors of one event, made before anything is put in place, so that a failure changes nothing."""

    tensors: list[tuple[Tensor, Tensor, Tensor | None]] = dataclasses.field(default_factory=list)
    places: list[tuple[MutableMapping[Any, Any], Any, Tensor]] = dataclasses.field(default_factory=list)

    def add_tensor(self, tensor: Tensor, keep: Keep, factors: Tensor | None = None) -> None:
        """Cuts a parameter or buffer and its gradient; `factors` multiply what is left of its values."""
        gradient = tensor.grad if tensor.is_leaf else None
        smaller = cut(tensor.detach(), keep)
        if factors is not None:
            smaller = smaller * factors.to(smaller.device, smaller.dtype)
        self.tensors.append((tensor, smaller, None if gradient is None else cut(gradient, keep)))

    def add_optimizer(self, optimizer: torch.optim.Optimizer, keeps: dict[int, Keep]) -> None:
        """Cuts the state that an optimizer holds for its parameters."""
        for parameter, state in optimizer.state.items():
            keep = keeps.get(id(parameter))
            if keep is None or not isinstance(state, dict):
                continue
            for key, value in state.items():
                if isinstance(value, Tensor) and value.dim() and _fits(value, parameter):
                    self.places.append((state, key, cut(value, keep)))
                elif _follows(value):
                    raise UsageError(
                        f"{type(optimizer).__name__} keeps {key!r} in a form that cannot be cut with its parameter of "
                        f"shape {tuple(parameter.shape)}; make a new optimizer after pruning."
                    )

    def add_companion(
        self, companion: MutableMapping[str, Tensor], tensors: dict[str, Tensor], keeps: dict[int, Keep]
    ) -> None:
        """Cuts tensors that somebody keeps by parameter name."""
        for name, value in companion.items():
            tensor = tensors.get(name)
            keep = None if tensor is None else keeps.get(id(tensor))
            if keep is None or tensor is None or not isinstance(value, Tensor):
                continue
            if not _fits(value, tensor):
                raise UsageError(
                    f"The companion {name} has shape {tuple(value.shape)}, the network's {tuple(tensor.shape)}."
                )
            self.places.append((companion, name, cut(value, keep)))

    def apply(self) -> None:
        """Puts everything in place; parameters stay the same objects.

        Raises:
            UsageError: if a tensor cannot take its new contents; all that were put in place are taken back then.
        """
        done: list[tuple[Tensor, Tensor, Tensor | None]] = []
        with torch.no_grad():
            try:
                for tensor, smaller, gradient in self.tensors:
                    done.append((tensor, tensor.detach(), tensor.grad if tensor.is_leaf else None))
                    _put(tensor, smaller, gradient)
            except RuntimeError as error:
                for tensor, whole, gradient in done:
                    tensor.set_(whole)  # type: ignore[call-overload]
                    tensor.grad = gradient if tensor.is_leaf else None
                message = (str(error).splitlines() or [""])[0]
                raise UsageError(f"A tensor could not be replaced ({message}); nothing was changed.") from error
        for holder, key, value in self.places:
            holder[key] = value


def _put(tensor: Tensor, smaller: Tensor, gradient: Tensor | None) -> None:
    replace(tensor, smaller)
    if tensor.is_leaf:
        tensor.grad = gradient


def _follows(value: Any) -> bool:
    """Says whether a state value holds something per weight: a tensor of several values, or a list of such."""
    if isinstance(value, Tensor):
        return value.numel() > 1
    return isinstance(value, (list, tuple)) and any(_follows(item) for item in value)


def replace(tensor: Tensor, smaller: Tensor) -> None:
    """Gives a tensor other contents of another shape; references, hooks and `requires_grad` stay as they are."""
    # `.data =` would leave a stale shape behind in gradient accumulators that are alive, and break the next backward.
    tensor.grad = None if tensor.is_leaf else tensor.grad
    tensor.set_(smaller)  # type: ignore[call-overload]


def set_integers(attributes: Iterable[Attribute]) -> None:
    """Writes integers into modules; recurrent layers are told to pack their weights anew."""
    for module, name, value in attributes:
        object.__setattr__(module, name, value)


def pack_recurrent(model: nn.Module) -> None:
    """Lets recurrent layers lay out their weights in one block again (they keep references to them)."""
    for module in model.modules():
        if isinstance(module, nn.RNNBase):
            module.flatten_parameters()
