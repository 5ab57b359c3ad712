"""What cuts changed in a network beside what a state dict holds: kept with the network, read for `extras_of`.

Every cut notes the names of attributes (integers, lists of them) and of tensors outside the state dict that it gave
another value. The note is a plain dict of lists of strings on the module that holds them, so copies and pickles carry
it, and several cuts add up. What a forward pass writes down is never in it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from torch import Tensor, nn

from pruning.modules.attributes import Attribute, Missing
from pruning.modules.kept import holders, parts_of, value_of, with_parts

NOTE = "_changed_by_cuts"  # on a module: "" or the name of a plain object that it holds -> names of attributes

Extras = dict[str, dict[str, Any]]  # path of a module, or "path:name" of a plain object it holds -> {attribute: value}

_PLAIN = (bool, int, float, complex, str, bytes, type(None))


def set_attributes(model: nn.Module, attributes: Iterable[Attribute]) -> None:
    """Writes what a cut changes into a network's modules and the plain objects that they hold, and notes it there.

    Buffers are only noted: their contents are replaced with those of all other tensors.
    """
    attributes = list(attributes)
    if not attributes:
        return
    paths = {id(holder): path for path, holder in holders(model).items()}
    for holder, name, value in attributes:
        is_buffer = isinstance(holder, nn.Module) and name in holder._buffers
        if value is Missing.MISSING:
            holder.__dict__.pop(name, None)
        elif not is_buffer:
            # Past the module's own __setattr__, which some networks use to check or to compute.
            object.__setattr__(holder, name, value)
        works_itself_out = value is None or value is Missing.MISSING  # at the next call
        if id(holder) in paths and not works_itself_out:
            note_change(model, paths[id(holder)], name)


def note_change(model: nn.Module, path: str, name: str) -> None:
    """Notes that a cut changed an attribute or a tensor.

    Args:
        model: the network.
        path: of a module, or "path:name" of a plain object that it holds, as in `holders`.
        name: of the attribute.
    """
    owner_path, _, held_as = path.partition(":")
    notes = vars(model.get_submodule(owner_path)).setdefault(NOTE, {})
    names = notes.setdefault(held_as, [])
    if name not in names:
        names.append(name)


def note_cut(model: nn.Module) -> None:
    """Notes that a network was cut, also where that changed nothing beside what a state dict holds."""
    vars(model).setdefault(NOTE, {})


def was_cut(model: nn.Module) -> bool:
    """Says whether a cut took notes in a network, or in what it wraps."""
    return any(NOTE in vars(module) for module in model.modules())


def changes(model: nn.Module) -> Iterator[tuple[str, Any, str]]:
    """Yields (path, holder, attribute) of what cuts changed; see `note_change` for paths."""
    there = holders(model)
    for path, module in model.named_modules():
        for held_as, names in vars(module).get(NOTE, {}).items():
            holder_path = f"{path}:{held_as}" if held_as else path
            holder = there.get(holder_path) if held_as else module
            for name in names:
                yield holder_path, holder, name


def current_value(holder: Any, name: str) -> Any:
    """Returns what a module or plain object holds under a name, None where it holds nothing (any more)."""
    if isinstance(holder, nn.Module) and holder._buffers.get(name) is not None:
        return holder._buffers[name]
    return value_of(holder, name)


def plain_copy(value: Any) -> Any:
    """Returns what of a value can be written to a file that executes nothing: tensors, numbers, strings, containers."""
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, np.integer):
        return int(value)
    if type(value) is functools.partial:
        return {place: plain_copy(item) for place, item in parts_of(value)}
    if isinstance(value, dict):
        return {key: plain_copy(item) for key, item in value.items() if type(key) in _PLAIN}
    if isinstance(value, tuple):
        return tuple(plain_copy(item) for item in value)
    if isinstance(value, list):
        return [plain_copy(item) for item in value]
    return value if type(value) in _PLAIN else None


def merged(here: Any, saved: Any) -> Any:
    """Returns a value with the integers and tensors of a saved one; what is of another kind stays as it is here.

    A network that was never called may hold nothing where a forward pass of the saved one wrote something down.
    """
    if isinstance(here, Tensor) and isinstance(saved, Tensor):
        return saved.to(here, copy=True) if saved.dim() == here.dim() else here
    if type(here) in (int, bool) and type(saved) is type(here):
        return saved
    if isinstance(here, np.integer) and type(saved) is int:
        return type(here)(saved)
    is_row = isinstance(here, (list, tuple)) and isinstance(saved, (list, tuple))
    if is_row and len(here) == len(saved):
        saved = dict(enumerate(saved))
    if isinstance(saved, Mapping) and not isinstance(here, Tensor):
        there = parts_of(here)
        return with_parts(here, {place: merged(item, saved.get(place)) for place, item in there}) if there else here
    return here
