"""Networks from files: the shapes of what was saved, its values, and what a state dict leaves out."""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pruning.cut.factorize import decompose_like, substitute
from pruning.cut.tensors import blank_like, replace
from pruning.errors import UsageError
from pruning.modules.attributes import BY_TYPE, Attribute, Shape, module_integers, pack_recurrent, set_integers
from pruning.modules.calls import RUN_ERRORS
from pruning.modules.weights import named_tensors

_CHOSEN = frozenset((  # integers that say how, not how wide
    "num_heads", "nhead", "heads", "kernel_size", "stride", "padding", "dilation", "groups", "num_layers", "depth",
    "num_classes", "num_groups", "training", "reduction", "ratio", "scale_factor", "upscale_factor", "downscale_factor",
))  # fmt: skip

_SAYS_WIDTH = re.compile("dim|size|width")


def extras_of(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Returns module path -> {attribute: value} of what a state dict leaves out and a cut may change.

    These are all integers (and tuples or lists of them) that modules keep, and buffers that are not persistent. Saved
    beside a state dict they let `load_pruned` restore a network of any code exactly.
    """
    found = {}
    for path, module in model.named_modules():
        own: dict[str, Any] = {}
        for name, value in vars(module).items():
            if not name.startswith("_") and _is_integers(value):
                own[name] = value
        for name in module._non_persistent_buffers_set:
            if name in module._buffers:
                own[name] = module._buffers[name]
        if own:
            found[path] = own
    return found


def _is_integers(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return bool(value) and all(_is_integers(item) for item in value)
    return isinstance(value, int) and not isinstance(value, bool)


def resize_like(
    model: nn.Module, state_dict: Mapping[str, Any], extras: Mapping[str, Mapping[str, Any]] | None = None
) -> None:
    """Gives a dense network the shapes of a pruned one's state dict; values are left to `load_state_dict`.

    Args:
        model: a freshly built network of the same class.
        state_dict: of the pruned network.
        extras: what `extras_of` said of the pruned network. Without it the integers of torch's modules follow from the
            shapes, and those of other modules are guessed, with a warning, where a width changed in one way only.

    Raises:
        UsageError: if names or numbers of dimensions differ, or a tensor would have to grow; nothing is changed then.
    """
    tensors: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    tensors.update(model.named_buffers(remove_duplicate=False))
    shapes = _changed_shapes(tensors, state_dict)
    if extras is None:
        guessed = _own_integers(model, shapes)
        if guessed:
            told = ", ".join(f"{type(module).__name__}.{name} = {value}" for module, name, value in guessed)
            advice = "save extras_of(model) with the state dict to be certain"
            warnings.warn(f"guessed from shapes: {told}; {advice}", stacklevel=3)
        attributes = module_integers(model, shapes) + guessed
    else:
        attributes = _attributes_of(model, extras)
    integers = [attribute for attribute in attributes if not isinstance(attribute[2], Tensor)]
    with torch.no_grad():
        by_id = {id(tensor): tensor for tensor in tensors.values()}  # tied tensors have several names
        for identity, shape in shapes.items():
            tensor = by_id[identity]
            replace(tensor, blank_like(tensor, shape))
        for module, name, value in attributes:
            buffer = module._buffers.get(name)
            if buffer is not None and isinstance(value, Tensor):
                replace(buffer, value.to(buffer, copy=True))
    set_integers(integers)


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


def _attributes_of(model: nn.Module, extras: Mapping[str, Mapping[str, Any]]) -> list[Attribute]:
    modules = dict(model.named_modules())
    found: list[Attribute] = []
    for path, own in extras.items():
        if path in modules:
            found += [(modules[path], name, value) for name, value in own.items()]
    return found


def _own_integers(model: nn.Module, shapes: dict[int, Shape]) -> list[Attribute]:
    """Widths that a user's module keeps, guessed from its own and its children's tensors."""
    found: list[Attribute] = []
    for module in model.modules():
        if any(isinstance(module, kinds) for kinds, _ in BY_TYPE):
            continue  # what torch's own modules keep is known
        widths = _widths_around(module, shapes)
        kept = {name: value for name, value in vars(module).items() if type(value) is int and not name.startswith("_")}
        heads = {value for name, value in kept.items() if "head" in name and not _SAYS_WIDTH.search(name)}
        for name, value in kept.items():
            options = set() if name in _CHOSEN else widths.get(value, set())
            if not options and _SAYS_WIDTH.search(name):
                options = _widths_of_a_head(value, heads, widths)
            changed = options - {value}
            # Where a width changed in several ways, none is certain enough.
            if len(changed) == 1:
                found.append((module, name, changed.pop()))
    return found


def _widths_around(module: nn.Module, shapes: dict[int, Shape]) -> dict[int, set[int]]:
    """Returns old width -> new widths of a module's own and its children's tensors."""
    widths: dict[int, set[int]] = {}
    for owner in (module, *_children(module)):
        for tensor in (*owner._parameters.values(), *owner._buffers.values()):
            if tensor is None:
                continue
            before = tuple(tensor.shape)
            after = shapes.get(id(tensor), before)
            for old, new in zip(before, after, strict=True):
                widths.setdefault(old, set()).add(new)
    return widths


def _widths_of_a_head(width: int, heads: set[int], widths: dict[int, set[int]]) -> set[int]:
    """Returns what one head's width may have become: no tensor is as wide as a head, but as all of them."""
    options = set()
    for count in heads:
        wholes = widths.get(width * count, set())
        if len(wholes) == 1:
            options.add(next(iter(wholes)) // count)
    return options


def _children(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        yield child
        if isinstance(child, (nn.Sequential, nn.ModuleList, nn.ModuleDict)):
            yield from _children(child)


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
    return state


def load_pruned(model: nn.Module, source: str | Path | Mapping[str, Any]) -> nn.Module:
    """Loads a pruned network into a freshly built dense one of the same class.

    Args:
        model: the dense network; it takes the shapes and values of the file and is returned.
        source: a file, or what it holds: a state dict, or a dict with it under "state_dict" or "model" and, if
            `extras_of` was saved with it, "extras". What parallel, compiled and averaged models put before names
            ("module.", "_orig_mod.") is taken off. Files are read with `weights_only=True`.

    Raises:
        UsageError: if the file is missing or does not fit; the model is as it was then.
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
    state = unwrapped(source, model)
    extras = None if state_dict_in(source) is source else source.get("extras")
    dense = decompose_like(model, state)
    try:
        in_one_only = set(model.state_dict()) ^ set(state)
        if in_one_only:
            name, first = type(model).__name__, sorted(in_one_only)[0]
            raise UsageError(f"The file does not fit {name}: {first} is only in one of the two.")
        named_tensors(model)  # refuses modules that cannot be cut
        resize_like(model, state, extras)
    except UsageError:
        substitute(model, dense)  # the layers that were there before
        raise
    model.load_state_dict(state)
    pack_recurrent(model)
    return model
