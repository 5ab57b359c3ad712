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
from pruning.cut.tensors import replace
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
        own = {name: value for name, value in vars(module).items() if not name.startswith("_") and _is_integers(value)}
        own |= {name: module._buffers[name] for name in module._non_persistent_buffers_set if name in module._buffers}
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
    tensors = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    shapes: dict[int, Shape] = {}
    for name, tensor in tensors.items():
        value = state_dict.get(name)
        if not isinstance(value, Tensor):
            continue
        if value.dim() != tensor.dim() or any(new > old for new, old in zip(value.shape, tensor.shape, strict=True)):
            raise UsageError(f"{name} is {tuple(value.shape)} in the file and {tuple(tensor.shape)} in the model; "
                             "it is not a pruned version of this model.")  # fmt: skip
        if value.shape != tensor.shape:
            shapes[id(tensor)] = tuple(value.shape)
    if extras is None:
        guessed = _own_integers(model, shapes)
        if guessed:
            told = ", ".join(f"{type(module).__name__}.{name} = {value}" for module, name, value in guessed)
            warnings.warn(f"guessed from shapes: {told}; save extras_of(model) with the state dict to be certain",
                          stacklevel=3)  # fmt: skip
        attributes = module_integers(model, shapes) + guessed
    else:
        modules = dict(model.named_modules())
        attributes = [(modules[path], name, value) for path, own in extras.items() if path in modules
                      for name, value in own.items()]  # fmt: skip
    with torch.no_grad():
        for tensor in {id(tensor): tensor for tensor in tensors.values()}.values():
            if id(tensor) in shapes:
                replace(tensor, tensor.new_empty(shapes[id(tensor)]))
        for module, name, value in attributes:
            buffer = module._buffers.get(name)
            if buffer is not None and isinstance(value, Tensor):
                replace(buffer, value.to(buffer, copy=True))
    set_integers(attribute for attribute in attributes if not isinstance(attribute[2], Tensor))


def _own_integers(model: nn.Module, shapes: dict[int, Shape]) -> list[Attribute]:
    """Widths that a user's module keeps, guessed from its own and its children's tensors."""
    found: list[Attribute] = []
    for module in model.modules():
        if any(isinstance(module, kinds) for kinds, _ in BY_TYPE):
            continue
        widths: dict[int, set[int]] = {}
        for owner in (module, *_children(module)):
            for tensor in (*owner._parameters.values(), *owner._buffers.values()):
                if tensor is not None:
                    for old, new in zip(tensor.shape, shapes.get(id(tensor), tuple(tensor.shape)), strict=True):
                        widths.setdefault(old, set()).add(new)
        kept = {name: value for name, value in vars(module).items() if type(value) is int and not name.startswith("_")}
        heads = {value for name, value in kept.items() if "head" in name and not _SAYS_WIDTH.search(name)}
        for name, value in kept.items():
            options = set() if name in _CHOSEN else widths.get(value, set())
            if not options and _SAYS_WIDTH.search(name):  # no tensor is as wide as a head, but as all of them
                wholes = [(widths.get(value * count, set()), count) for count in heads]
                options = {new // count for news, count in wholes if len(news) == 1 for new in news}
            changed = options - {value}
            if len(changed) == 1:
                found.append((module, name, changed.pop()))
    return found


def _children(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        yield child
        if isinstance(child, (nn.Sequential, nn.ModuleList, nn.ModuleDict)):
            yield from _children(child)


def load_pruned(model: nn.Module, source: str | Path | Mapping[str, Any]) -> nn.Module:
    """Loads a pruned network into a freshly built dense one of the same class.

    Args:
        model: the dense network; it takes the shapes and values of the file and is returned.
        source: a file, or what it holds: a state dict, or a dict with "state_dict" and, if `extras_of` was saved with
            it, "extras". Files are read with `weights_only=True`.

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
    state = source.get("state_dict", source)
    dense = decompose_like(model, state)
    try:
        missing = set(model.state_dict()) ^ set(state)
        if missing:
            name = type(model).__name__
            raise UsageError(f"The file does not fit {name}: {sorted(missing)[0]} is only in one of the two.")
        named_tensors(model)
        resize_like(model, state, source.get("extras") if state is not source else None)
    except UsageError:
        substitute(model, dense)
        raise
    model.load_state_dict(state)
    pack_recurrent(model)
    return model
