"""What a graph is made of, as its user sees it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, overload

import numpy as np

Slices = dict[tuple[str, int], list[int]]

Unit = Literal["channel", "head"]  # what attention loses: the width of all heads alike, or whole heads


@dataclass(frozen=True)
class Node:
    """A set of slices that can only live or die together.

    Args:
        index: its number in `graph.nodes`.
        slices: (parameter or buffer name, dimension) -> indices along it.
        producers: those slices that make its values: rows of weights, entries of biases.
        consumers: those that read them: columns of weights.
        norms: affine values and statistics of normalisations.
        inexact: why removing it changes the other values a little (a mean over channels), "" if it does not.
    """

    index: int
    slices: Slices
    producers: Slices
    consumers: Slices
    norms: Slices
    inexact: str


@dataclass(frozen=True, eq=False)
class Group:
    """Nodes made of slices of the same dimensions, such as the channels of one layer and all that is coupled to it."""

    index: int
    nodes: np.ndarray
    layers: tuple[tuple[str, int], ...]


class Pin(NamedTuple):
    """Slices that must stay, and the operation and module that say so."""

    slices: dict[tuple[str, int], int]
    operation: str
    module: str
    reason: str

    def __str__(self) -> str:
        layers = ", ".join(f"{name}[{dim}] ({count})" for (name, dim), count in self.slices.items())
        return f"{layers}: {self.reason} ({self.operation or 'the graph'} in {self.module or 'the network'})"


class NodeList(Sequence[Node]):
    """All nodes; each is made when it is asked for, so that a network of a million channels costs nothing."""

    def __init__(self, count: int, node: Callable[[int], Node]) -> None:
        self._count, self._node = count, node

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Node: ...
    @overload
    def __getitem__(self, index: slice) -> list[Node]: ...
    def __getitem__(self, index: int | slice) -> Node | list[Node]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"node {index} of {len(self)}")
        return self._node(index % len(self))
