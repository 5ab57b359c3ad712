"""Networks from files: the shapes of what was saved, its values, and what a state dict leaves out."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pruning.cut.doubts import first_doubt
from pruning.cut.factorize import decompose_like, substitute
from pruning.cut.from_shapes import changes_behind
from pruning.cut.tensors import blank_like, replace
from pruning.errors import UsageError
from pruning.modules.attributes import Attribute, Shape, module_integers, pack_recurrent
from pruning.modules.calls import RUN_ERRORS, check_network
from pruning.modules.changed import NOTE, Extras, changes, current_value, merged, plain_copy, set_attributes, was_cut
from pruning.modules.kept import holders
from pruning.modules.weights import named_tensors

Values = dict[tuple[int, str], Attribute]  # (id of the holder, attribute) -> what it must hold


_COMPILED = "_orig_mod."  # what torch.compile puts before the names of what it was given


def extras_of(model: nn.Module) -> Extras:
    """Returns what cuts changed in a network that its state dict leaves out.

    These are integers (and lists, tuples and dicts of them) that modules and configurations keep, buffers that are not
    persistent, and tensors kept as plain attributes. Saved beside a state dict they let `load_pruned` restore a network
    of any code exactly. What a forward pass wrote down is not among them, and of a network that was only masked there
    are none.

    Returns:
        Path of a module, or "path:name" of a plain object that it holds under that name -> {attribute: value}; the
        network itself, "", is always there.
    """
    check_network(model)
    found: Extras = {"": {}}
    for path, holder, name in changes(model):
        value = current_value(holder, name)
        if value is not None:
            found.setdefault(path, {})[name] = plain_copy(value)
    if was_cut(model) and not any(found.values()):
        found[""][NOTE] = True  # so that who loads it knows that there is nothing more to know
    return found


def resize_like(
    model: nn.Module,
    state_dict: Mapping[str, Any],
    extras: Mapping[str, Mapping[str, Any]] | None = None,
    example_inputs: Any = None,
) -> None:
    """Gives a dense network the shapes of a pruned one's state dict; values are left to `load_state_dict`.

    Args:
        model: a freshly built network of the same class.
        state_dict: of the pruned network.
        extras: what `extras_of` said of the pruned network.
        example_inputs: as for `DependencyGraph`; without extras they let integers of the user's own modules follow from
            the shapes, and the result is proven by a dry run.

    Raises:
        UsageError: if names or numbers of dimensions differ, a tensor would have to grow, or what else the cut changed
            does not follow from the shapes; nothing is changed then.
    """
    tensors: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    tensors.update(model.named_buffers(remove_duplicate=False))
    shapes = _changed_shapes(tensors, state_dict)
    attributes = _changes_with(model, shapes, extras, example_inputs)
    with torch.no_grad():
        by_id = {id(tensor): tensor for tensor in tensors.values()}  # tied tensors have several names
        for identity, shape in shapes.items():
            tensor = by_id[identity]
            replace(tensor, blank_like(tensor, shape))
        for holder, name, value in attributes:
            buffer = holder._buffers.get(name) if isinstance(holder, nn.Module) else None
            if buffer is not None:
                replace(buffer, value)
    set_attributes(model, attributes)


def _changed_shapes(tensors: Mapping[str, Tensor], state_dict: Mapping[str, Any]) -> dict[int, Shape]:
    """Returns id of a tensor -> shape in the file, of those that are smaller there."""
    shapes: dict[int, Shape] = {}
    for name, tensor in tensors.items():
        value = state_dict.get(name)
        if not isinstance(value, Tensor) or value.shape == tensor.shape:
            continue
        there, here = tuple(value.shape), tuple(tensor.shape)
        fits = len(there) == len(here) and all(new <= old for new, old in zip(there, here, strict=True))
        if not fits:
            raise UsageError(
                f"{name} is {there} in the file and {here} in the model; it is not a pruned version of this model."
            )
        shapes[id(tensor)] = there
    return shapes


def _changes_with(
    model: nn.Module, shapes: dict[int, Shape], extras: Mapping[str, Mapping[str, Any]] | None, example_inputs: Any
) -> list[Attribute]:
    """Returns what modules must hold beside tensors of these shapes."""
    if extras and any(extras.values()):
        return _from_extras(model, shapes, extras)
    if not shapes:
        return []
    doubt = first_doubt(model, shapes)
    if not doubt:
        return module_integers(model, shapes)
    if example_inputs is not None:
        return changes_behind(model, shapes, example_inputs)
    raise UsageError(
        f"The shapes alone do not say how {type(model).__name__} runs: {doubt}. Save extras_of(model) with the state "
        "dict, or give load_pruned example_inputs."
    )


def _from_extras(
    model: nn.Module, shapes: dict[int, Shape], extras: Mapping[str, Mapping[str, Any]]
) -> list[Attribute]:
    """Returns what was saved, where the dense network holds something of the same kind; shapes say the rest."""
    found: Values = {}
    for attribute in module_integers(model, shapes):
        found[id(attribute[0]), attribute[1]] = attribute
    there = holders(model)
    for path, own in extras.items():
        holder = there.get(_without_wrappers(path, there))
        for name, value in own.items() if holder is not None else ():
            if name == NOTE:
                continue
            here = current_value(holder, name)
            found[id(holder), name] = (holder, name, merged(here, value))
    return [attribute for attribute in found.values() if not _holds_already(*attribute)]


def _without_wrappers(path: str, known: Mapping[str, Any]) -> str:
    """Returns a path without what parallel, compiled and averaged models put before it."""
    stripped = path
    for _ in range(path.count(".") + 1):
        # A compiled part has two paths, with "_orig_mod" that of the part itself.
        same = [other for other in known if _without_compiled(other) == _without_compiled(stripped)]
        if same:
            return max(same, key=len)
        for prefix in ("module", "_orig_mod"):
            if stripped == prefix or stripped.startswith((f"{prefix}.", f"{prefix}:")):
                stripped = stripped.removeprefix(prefix).removeprefix(".")
    return stripped if stripped in known else path


def _without_compiled(path: str) -> str:
    module, colon, name = path.partition(":")
    parts = [part for part in module.split(".") if part != "_orig_mod"]
    return ".".join(parts) + colon + name


def _holds_already(holder: Any, name: str, value: Any) -> bool:
    here = current_value(holder, name)
    if isinstance(value, Tensor):
        return isinstance(here, Tensor) and here.shape == value.shape and torch.equal(here, value)
    return value is here or (not isinstance(here, Tensor) and _same(here, value))


def _same(here: Any, value: Any) -> bool:
    """Says whether two values are equal, tensors in containers compared as a whole."""
    if isinstance(here, Tensor) or isinstance(value, Tensor):
        return here is value
    if isinstance(here, dict) and isinstance(value, dict):
        return all(_same(here[key], value[key]) for key in here)
    if isinstance(here, (list, tuple)) and isinstance(value, (list, tuple)):
        return all(_same(one, other) for one, other in zip(here, value, strict=True))
    return bool(here == value)


def state_dict_in(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the state dict in what a file holds: one of one's own, of timm, of a training script, or it itself."""
    for key in ("state_dict", "model"):
        inner = content.get(key)
        if isinstance(inner, Mapping):
            return inner
    return content


def unwrapped(content: Mapping[str, Any], model: nn.Module) -> Mapping[str, Any]:
    """Returns the state dict in what a file holds, without what wrappers put before every name.

    These are DataParallel, DDP, `torch.compile` and AveragedModel (whose own counter goes), in any order.

    Args:
        content: what a file holds.
        model: what it is meant for; a prefix that its own names have stays.
    """
    state = state_dict_in(content)
    own = model.state_dict()
    stripped = True
    while stripped:
        stripped = False
        for prefix in ("module.", "_orig_mod."):
            names = [str(name) for name in state if name != "n_averaged" or name in own]
            theirs = all(name.startswith(prefix) for name in names)
            ours = all(name.startswith(prefix) or name == "n_averaged" for name in own)
            if names and theirs and not ours:
                state = {name.removeprefix(prefix): state[name] for name in names}
                stripped = True
    return _named_as_here(state, own)


def _named_as_here(state: Mapping[str, Any], own: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns a state dict under the network's own names where only compiled parts make a difference.

    A part that was given to `torch.compile` has "_orig_mod." within its names, here or there.
    """
    plain_names = {name.replace(_COMPILED, ""): name for name in own}
    found = {}
    for name, value in state.items():
        here = name if name in own else plain_names.get(str(name).replace(_COMPILED, ""), name)
        found[here] = value
    return state if list(found) == list(state) else found


def load_pruned(model: nn.Module, source: str | Path | Mapping[str, Any], example_inputs: Any = None) -> nn.Module:
    """Loads a pruned network into a freshly built dense one of the same class.

    Args:
        model: the dense network; it takes the shapes and values of the file and is returned.
        source: a file, or what it holds: a state dict, or a dict with it under "state_dict" or "model" and, if
            `extras_of` was saved with it, "extras". What parallel, compiled and averaged models put before names
            ("module.", "_orig_mod.") is taken off. Files are read with `weights_only=True`.
        example_inputs: what the network was pruned with, as for `DependencyGraph`. Needed where the file has no extras
            and the network's own code keeps integers; what shapes leave open is refused.

    Raises:
        UsageError: if the file is missing, does not fit, or does not say all that it takes to compute what the pruned
            network did; the model is as it was then.
    """
    if isinstance(source, (str, Path)):
        if not Path(source).is_file():
            raise UsageError(f"There is no file {source}.")
        try:
            source = torch.load(source, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, EOFError, OSError, *RUN_ERRORS) as error:
            raise UsageError(f"{source} is damaged, or holds more than tensors and plain values.") from error
    if not isinstance(source, Mapping):
        raise UsageError(f"A state dict was expected, not a {type(source).__name__}.")
    check_network(model)
    named_tensors(model)  # refuses modules that cannot be cut
    state = unwrapped(source, model)
    extras = None if state_dict_in(source) is source else source.get("extras")
    dense = decompose_like(model, state)
    try:
        in_one_only = set(model.state_dict()) ^ set(state)
        if in_one_only:
            name, first = type(model).__name__, sorted(in_one_only)[0]
            raise UsageError(f"The file does not fit {name}: {first} is only in one of the two.")
        resize_like(model, state, extras, example_inputs)
    except UsageError:
        substitute(model, dense)  # the layers that were there before
        raise
    model.load_state_dict(state)
    pack_recurrent(model)
    return model
