"""Which tensors of a run were keys or values of an attention, so that what holds nothing else is known as a cache.

In attention written as products, keys and values stand on the right: queries @ keys.T, weights @ values. A tensor that
was normalised, rotated, repeated, joined or moved on its way there counts too; the layer that made it ends the way.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from pruning.trace.rules.table import Kind, kind_of

_ATTENTION = "attention"
_LAYERS = frozenset(("aten.convolution", "aten.addmm", "aten.addbmm", "aten.embedding"))


class ReadByAttention:
    """Takes notes while a network runs."""

    def __init__(self) -> None:
        self._sources: dict[int, list[int]] = {}  # id of a tensor -> ids of those that it was made from without a layer
        self._ends: list[int] = []  # ids of keys and values as a product takes them
        self._found: set[int] | None = None

    def note(self, name: str, inputs: list[Tensor], outs: list[Tensor], is_weight: Callable[[Tensor], bool]) -> None:
        """Takes note of an operation.

        Args:
            name: "aten.bmm".
            inputs: tensors that go in.
            outs: tensors that come out.
            is_weight: tells whether a tensor stems from parameters alone.
        """
        if _ATTENTION in name:
            self._ends += [id(tensor) for tensor in inputs[1:3]]
            return
        is_product = Kind.MULTIPLIES in kind_of(name) or name in ("aten.baddbmm", *_LAYERS)
        if not is_product:
            ids = [id(tensor) for tensor in inputs]
            for out in outs:
                self._sources[id(out)] = ids
        elif name not in _LAYERS and len(inputs) > 1:
            left, right = inputs[-2:]
            if not is_weight(left) and not is_weight(right):
                self._ends.append(id(right))

    def __contains__(self, tensor: Tensor) -> bool:
        if self._found is None:
            self._found = self._on_the_way()
        return id(tensor) in self._found

    def _on_the_way(self) -> set[int]:
        found: set[int] = set()
        waiting = list(self._ends)
        while waiting:
            tensor = waiting.pop()
            if tensor not in found:
                found.add(tensor)
                waiting += self._sources.get(tensor, [])
        return found
