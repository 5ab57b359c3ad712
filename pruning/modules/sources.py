"""What a tensor has of a parameter: the view that it began with, and what moved the entries since."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

# How entries lie in memory may differ where they are only moved in thought, so these are done by `reshape`.
_VIEWS = frozenset(("view", "_unsafe_view", "_reshape_alias"))


@functools.cache
def name_of(func: Any) -> str:
    """Returns an operation's name without its library and whether it works in place, "relu"."""
    name = str(func._schema.name).split("::")[1]
    return name.rstrip("_") if not name.startswith("__") else name


class Step(NamedTuple):
    """An operation that only moves entries: what it is called with, and which of its outputs is meant."""

    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: int | None

    def moved(self, entries: Tensor) -> Tensor:
        """Returns other entries, moved as these were."""
        if name_of(self.func) in _VIEWS:
            return entries.reshape(self.args[0])
        found = self.func(entries, *_moved_to(self.args, entries.device), **self.kwargs)
        output: Tensor = found if self.output is None else found[self.output]
        return output


class Source(NamedTuple):
    """What a tensor has of a parameter.

    Args:
        view: (shape, strides, offset) of the view of the parameter's memory that it began with; None where no entry
            of the tensor is one of the parameter's, as in a product of two parameters.
        steps: what moved the entries since.
        zeros_stay: whether a zero of the parameter is a zero of the tensor, or takes its summand away.
    """

    view: tuple[Sequence[int], Sequence[int], int] | None
    steps: tuple[Step, ...] = ()
    zeros_stay: bool = True


def positions_in(source: Source, parameter: Tensor) -> Tensor | None:
    """Returns for each entry of a factor its number in the parameter, None where none is an entry of it."""
    if source.view is None:
        return None
    shape, strides, offset = source.view
    positions = _numbered(parameter).as_strided(shape, strides, offset)
    for step in source.steps:
        positions = step.moved(positions)
    return positions


def _numbered(parameter: Tensor) -> Tensor:
    """Returns what would lie in the parameter's memory if it held the number of each of its entries."""
    numbers = torch.arange(parameter.numel())
    if parameter.is_contiguous():
        return numbers
    memory = torch.zeros(span_of(parameter) + 1, dtype=torch.int64)
    memory.as_strided(parameter.shape, parameter.stride()).copy_(numbers.view(parameter.shape))
    return memory


def dims_along(source: Source, parameter: Tensor, factor: Tensor, dim: int) -> set[int]:
    """Returns the dimensions of a parameter that one walks along with a dimension of a factor."""
    if source.view is None or factor.numel() == 0:
        return set()
    if parameter.is_contiguous() and not source.steps:
        _, strides, offset = source.view
        line = offset + strides[dim] * torch.arange(factor.shape[dim])
    else:
        positions = positions_in(source, parameter)
        assert positions is not None
        corner = [slice(0, 1)] * positions.dim()
        corner[dim] = slice(None)
        line = positions[tuple(corner)].flatten()
    coordinates = torch.unravel_index(line, parameter.shape)
    return {place for place, along in enumerate(coordinates) if bool((along != along[0]).any())}


def span_of(parameter: Tensor) -> int:
    """Returns how far the last entry of a parameter lies behind its first in memory."""
    pairs = zip(parameter.shape, parameter.stride(), strict=True)
    return sum((size - 1) * stride for size, stride in pairs if size)


def _moved_to(args: tuple[Any, ...], device: torch.device) -> tuple[Any, ...]:
    """Returns arguments with their tensors, those in lists too, on a device."""
    moved = []
    for value in args:
        if isinstance(value, Tensor):
            value = _index_on(value, device)
        elif isinstance(value, list):
            value = [_index_on(item, device) if isinstance(item, Tensor) else item for item in value]
        moved.append(value)
    return tuple(moved)


def _index_on(index: Tensor, device: torch.device) -> Tensor:
    """Returns an index on a device; in a network without data, that of the first entries, which are always there."""
    return torch.zeros(index.shape, dtype=index.dtype, device=device) if index.is_meta else index.to(device)
