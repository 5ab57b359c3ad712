"""Cuts a network in place: tensors, gradients, optimizer state, companions, and the integers that modules keep."""

from __future__ import annotations

import dataclasses
from collections.abc import MutableMapping
from typing import Any

import torch
from torch import Tensor, nn

from pruning.errors import UsageError
from pruning.modules.calls import mapped, tensors_in
from pruning.modules.kept import REGISTRIES

Keep = dict[int, Tensor]  # dimension -> indices that stay

_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def cut(tensor: Tensor, keep: Keep) -> Tensor:
    """Returns a copy of what stays, in the same memory format; dimensions of size 1 that only broadcast stay whole."""
    layout = _memory_format(tensor)
    for dim, indices in keep.items():
        if tensor.shape[dim] > 1 or len(indices) == 0:
            tensor = tensor.index_select(dim, indices.to(tensor.device))
    if _memory_format(tensor) != layout:
        # `.contiguous(memory_format=)` would leave 1x1 kernels alone, whose strides decide as well.
        tensor = torch.empty_like(tensor, memory_format=layout).copy_(tensor)
    return tensor


def blank_like(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Returns a tensor of another shape without values, of the same type, device and memory format."""
    return torch.empty(shape, dtype=tensor.dtype, device=tensor.device, memory_format=_memory_format(tensor))


def _memory_format(tensor: Tensor) -> torch.memory_format:
    """Returns channels_last (of 4 or 5 dimensions) where the strides say so, else the usual format."""
    layout = _CHANNELS_LAST.get(tensor.dim())
    if layout is None or tensor.layout != torch.strided:
        return torch.contiguous_format
    # Strides are compared, not `is_contiguous` asked: 1x1 kernels and single channels would be both.
    batch, channels, *sides = tensor.shape
    of_batch, *of_sides, of_channels = _strides_of((batch, *sides, channels))
    is_last = list(tensor.stride()) == [of_batch, of_channels, *of_sides]
    is_usual = list(tensor.stride()) == _strides_of(tuple(tensor.shape))
    return layout if is_last and not is_usual else torch.contiguous_format


def _strides_of(shape: tuple[int, ...]) -> list[int]:
    """Returns the strides of a tensor without gaps whose last dimension lies closest together."""
    strides = [1]
    for size in reversed(shape[1:]):
        strides.append(strides[-1] * max(size, 1))
    return strides[::-1]


def _fits(state: Tensor, parameter: Tensor) -> bool:
    """Says whether a state tensor runs along with a parameter, whole or reduced along some dimensions (Adafactor)."""
    if state.dim() != parameter.dim():
        return False
    sizes = zip(state.shape, parameter.shape, strict=True)
    return all(own == size or own == 1 for own, size in sizes)


@dataclasses.dataclass
class Cuts:
    """All new tensors of one event, made before anything is put in place, so that a failure changes nothing.

    Args:
        tensors: (parameter or buffer, its new contents, its new gradient).
        places: (dict, key, new value) of states of optimizers and of companions.
        tables: (network, table that its modules keep as a plain attribute, its new contents).
    """

    tensors: list[tuple[Tensor, Tensor, Tensor | None]] = dataclasses.field(default_factory=list)
    places: list[tuple[MutableMapping[Any, Any], Any, Tensor]] = dataclasses.field(default_factory=list)
    tables: list[tuple[nn.Module, Tensor, Tensor]] = dataclasses.field(default_factory=list)

    def add_tensor(self, tensor: Tensor, keep: Keep, factors: Tensor | None = None) -> None:
        """Cuts a parameter or buffer and its gradient; `factors` multiply what is left of its values."""
        smaller = cut(tensor.detach(), keep)
        if factors is not None:
            smaller = smaller * factors.to(smaller.device, smaller.dtype)
        gradient = _gradient_of(tensor)
        if gradient is not None:
            gradient = cut(gradient, keep)
        self.tensors.append((tensor, smaller, gradient))

    def add_table(self, model: nn.Module, table: Tensor, keep: Keep, factors: Tensor | None = None) -> None:
        """Cuts a tensor that modules keep as a plain attribute, in all of them; other networks may hold it whole."""
        smaller = cut(table.detach(), keep)
        if factors is not None:
            smaller = smaller * factors.to(smaller.device, smaller.dtype)
        self.tables.append((model, table, smaller))

    def add_optimizer(self, optimizer: torch.optim.Optimizer, keeps: dict[int, Keep]) -> None:
        """Cuts the state that an optimizer holds for its parameters.

        Raises:
            UsageError: for a state whose values cannot be told apart by weight (L-BFGS).
        """
        for parameter, state in optimizer.state.items():
            keep = keeps.get(id(parameter))
            if keep is None or not isinstance(state, dict):
                continue
            for key, value in state.items():
                if isinstance(value, Tensor) and value.dim() and _fits(value, parameter):
                    self.places.append((state, key, cut(value, keep)))
                elif _follows(value):
                    name, shape = type(optimizer).__name__, tuple(parameter.shape)
                    raise UsageError(
                        f"{name} keeps {key!r} in a form that cannot be cut with its parameter of shape {shape}; "
                        "make a new optimizer after pruning."
                    )

    def add_companion(
        self, companion: MutableMapping[str, Tensor], tensors: dict[str, Tensor], keeps: dict[int, Keep]
    ) -> None:
        """Cuts tensors that somebody keeps by parameter name.

        Args:
            companion: the tensors; names that the network does not have are left alone.
            tensors: the network's, by all their names.
            keeps: id of a tensor -> what stays of it.
        """
        for name, value in companion.items():
            tensor = tensors.get(name)
            if tensor is None or id(tensor) not in keeps or not isinstance(value, Tensor):
                continue
            if not _fits(value, tensor):
                shapes = f"{tuple(value.shape)}, the network's {tuple(tensor.shape)}"
                raise UsageError(f"The companion {name} has shape {shapes}.")
            self.places.append((companion, name, cut(value, keeps[id(tensor)])))

    def apply(self) -> None:
        """Puts everything in place; parameters stay the same objects.

        Raises:
            UsageError: if a tensor cannot take its new contents; all that were put in place are taken back then.
        """
        done: list[tuple[Tensor, Tensor, Tensor | None]] = []
        with torch.no_grad():
            try:
                for tensor, smaller, gradient in self.tensors:
                    # Noted first: the one that fails may be half done.
                    done.append((tensor, tensor.detach(), _gradient_of(tensor)))
                    _put(tensor, smaller, gradient)
            except RuntimeError as error:
                for tensor, whole, gradient in done:
                    tensor.set_(whole)  # type: ignore[call-overload]
                    tensor.grad = gradient
                message = (str(error).splitlines() or [""])[0]
                raise UsageError(f"A tensor could not be replaced ({message}); nothing was changed.") from error
        for holder, key, value in self.places:
            holder[key] = value
        for model in {id(model): model for model, _, _ in self.tables}.values():
            _swap_tables(model, {id(table): smaller for _, table, smaller in self.tables})


def _swap_tables(model: nn.Module, smaller: dict[int, Tensor]) -> None:
    """Puts smaller tables (id of the old one -> new one) into whatever attributes hold them, lists and dicts too."""

    def swapped(tensor: Tensor) -> Tensor:
        return smaller.get(id(tensor), tensor)

    for module in model.modules():
        held = vars(module)
        for name in set(held) - REGISTRIES:
            if any(id(tensor) in smaller for tensor in tensors_in(held[name], depth=2)):
                held[name] = mapped(held[name], swapped)


def _gradient_of(tensor: Tensor) -> Tensor | None:
    return tensor.grad if tensor.is_leaf else None  # torch warns of those of other tensors


def _put(tensor: Tensor, smaller: Tensor, gradient: Tensor | None) -> None:
    replace(tensor, smaller)
    if tensor.is_leaf:
        tensor.grad = gradient


def _follows(value: Any) -> bool:
    """Says whether a state value holds something per weight: a tensor of several values, or a list of such."""
    if isinstance(value, Tensor):
        return value.numel() > 1
    if isinstance(value, (list, tuple)):
        return any(_follows(item) for item in value)
    return False


def replace(tensor: Tensor, smaller: Tensor) -> None:
    """Gives a tensor other contents of another shape; references, hooks and `requires_grad` stay as they are."""
    # `.data =` would leave a stale shape behind in gradient accumulators that are alive, and break the next backward.
    tensor.grad = None if tensor.is_leaf else tensor.grad
    tensor.set_(smaller)  # type: ignore[call-overload]
