"""Which parts of what a network returns must keep their shape.

All of it, but for caches: keys and values that are handed back so that the next call may go on from there. A user can
name what counts instead: `outputs=lambda out: out.logits`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from pruning.errors import UsageError
from pruning.modules.calls import RUN_ERRORS, parts_of, tensors_in
from pruning.trace.rules.table import Kind, kind_of

# Takes what the network returned and returns what must stay: a tensor, or several in any container.
ChooseOutputs = Callable[[Any], Any]

# How networks call what they want back at the next call: past_key_values, present, kv_cache, cache_params, mems.
_CACHE_NAME = re.compile(r"(^|_)(caches?|presents?|mems)(_|$)|^past(_|$)|kv_?caches?$")

# What caches of Hugging Face can do, and whatever is written like them.
_CACHE_METHODS = ("update", "get_seq_length")


class OutputsFailed(UsageError):
    """The user's choice of outputs does not fit what the network returns."""


@dataclass
class Returned:
    """What a network returned, in two parts.

    Args:
        protected: tensors that must keep their shape.
        caches: where caches were found: "past_key_values".
    """

    protected: list[Tensor] = field(default_factory=list)
    caches: list[str] = field(default_factory=list)


def sorted_out(
    outputs: Any, choose: ChooseOutputs | None = None, is_read: Callable[[Tensor], bool] | None = None
) -> Returned:
    """Tells what a network returned for others from caches.

    A part is a cache if its class has `update` and `get_seq_length`, or is called a cache; if its name in a dict, a
    data class or a named tuple says so; or if it is a container of nothing but keys and values, as `is_read` tells.

    Args:
        outputs: what the network returned.
        choose: the user's own choice, which replaces all of this.
        is_read: tells whether a tensor was among the keys or values of an attention. Without it no container counts
            as a cache for what is in it.

    Raises:
        OutputsFailed: if the user's choice fails or holds no tensor.
    """
    if choose is not None:
        return Returned(_chosen(outputs, choose))
    found = Returned()
    for name, part in parts_of(outputs):
        _sort(name, part, found, is_read)
    if isinstance(outputs, Tensor) or not found.protected:  # a network that returns nothing else wants it kept
        return Returned(tensors_in(outputs))
    return found


def _sort(name: str, part: Any, found: Returned, is_read: Callable[[Tensor], bool] | None, depth: int = 5) -> None:
    tensors = tensors_in(part, depth)
    if not tensors:
        return
    if _CACHE_NAME.search(name.lower()) or _is_cache(part) or _holds_keys_and_values(part, tensors, is_read):
        found.caches.append(name or type(part).__name__)
    elif isinstance(part, Tensor):
        found.protected.append(part)
    else:
        for inner_name, inner in parts_of(part):
            # Places in a list have no names; they are told by the name of the list.
            _sort(inner_name or name, inner, found, is_read, depth - 1)


def _is_cache(part: Any) -> bool:
    if isinstance(part, Tensor):
        return False
    kind = type(part)
    can_do_it = all(callable(getattr(kind, method, None)) for method in _CACHE_METHODS)
    return can_do_it or any(base.__name__.endswith("Cache") for base in kind.__mro__)


def _holds_keys_and_values(part: Any, tensors: list[Tensor], is_read: Callable[[Tensor], bool] | None) -> bool:
    """Says whether a container holds at least one key and one value (batch, ..., tokens, width), and nothing else."""
    if is_read is None or isinstance(part, Tensor) or len(tensors) < 2:
        return False
    return all(tensor.dim() >= 3 and is_read(tensor) for tensor in tensors)


def _chosen(outputs: Any, choose: ChooseOutputs) -> list[Tensor]:
    what = _description(outputs)
    try:
        chosen = choose(outputs)
    except RUN_ERRORS as error:
        lines = str(error).splitlines() or [""]
        raise OutputsFailed(f"outputs= fails on {what}: {type(error).__name__}: {lines[0]}") from error
    tensors = tensors_in(chosen)
    if not tensors:
        kind = type(chosen).__name__
        raise OutputsFailed(f"outputs= must return what has to stay, tensors; of {what} it returned a {kind}.")
    return tensors


def _description(outputs: Any) -> str:
    """Says what a network returned, with the names of its parts."""
    names = [name for name, _ in parts_of(outputs) if name]
    parts = f" of {', '.join(names)}" if names else ""
    return f"what the network returns, a {type(outputs).__name__}{parts}"


def check_choice(choose: Any) -> None:
    """Raises UsageError for a choice of outputs that is no function."""
    if choose is not None and not callable(choose):
        raise UsageError(
            f"outputs= takes a function of what the network returns, such as lambda out: out.logits, not {choose!r}."
        )


# -- keys and values ---------------------------------------------------------------------------------------------------

_ATTENTION = "attention"
_LAYERS = frozenset(("aten.convolution", "aten.addmm", "aten.addbmm", "aten.embedding"))


class ReadByAttention:
    """Notes which tensors of a run were keys or values of an attention, so that what holds nothing else is a cache.

    In attention written as products, keys and values stand on the right: queries @ keys.T, weights @ values. A tensor
    that was normalised, rotated, repeated, joined or moved on its way there counts too; the layer that made it ends
    the way.
    """

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
