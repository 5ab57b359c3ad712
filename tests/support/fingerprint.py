"""What a look at a network must leave as it was: everything that can be reached from it, and torch's global state."""

from __future__ import annotations

import gc
import hashlib
import random
import types
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules import module as module_hooks
from torch.nn.parameter import is_lazy
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

Facts = dict[str, Any]

_DEEPEST = 12

# What a class keeps by itself: caches of imports and of annotations, which no user would call a change.
_OF_CLASSES = ("__annotations__", "__annotate__", "__abstractmethods__", "_abc_impl", "__static_attributes__")


def fingerprint(*roots: Any) -> Facts:
    """Returns everything that can be reached from some objects, by place, and the state of torch, Python and NumPy.

    Objects are told by identity and exact type, tensors by memory, version and values too; so a list that was replaced
    by an equal one, or an integer by one of a subclass of int, is a difference.
    """
    facts: Facts = {}
    seen: dict[int, str] = {}
    for number, root in enumerate(roots):
        _describe(root, f"<{number}>", facts, seen, 0)
    for name, value in _surroundings():
        facts[f"(global) {name}"] = value
    return facts


def differences(before: Facts, after: Facts) -> list[str]:
    """Returns the places where two fingerprints differ, with what was there and what is."""
    nothing = "(nothing)"
    places = [*before, *(place for place in after if place not in before)]
    found = []
    for place in places:
        was, now = before.get(place, nothing), after.get(place, nothing)
        if was != now:
            found.append(f"{place}: {was} -> {now}")
    return found


def _describe(value: Any, place: str, facts: Facts, seen: dict[int, str], depth: int) -> None:
    kind = type(value)
    if value is None or kind in (bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size):
        facts[place] = (kind.__name__, repr(value))
        return
    if id(value) in seen:
        facts[place] = (kind.__name__, "as", seen[id(value)])
        return
    seen[id(value)] = place
    facts[place] = (kind.__qualname__, id(value))
    if depth > _DEEPEST or isinstance(value, (type, types.ModuleType, types.BuiltinFunctionType)):
        return
    if isinstance(value, Tensor):
        facts[place] += _of_tensor(value)
        if not is_lazy(value) and value.is_leaf and value.grad is not None:
            _describe(value.grad, f"{place}.grad", facts, seen, depth + 1)
    for name, part in _parts(value):
        _describe(part, f"{place}{name}", facts, seen, depth + 1)


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """Yields what an object holds, in its order."""
    if isinstance(value, Mapping):
        for number, (key, part) in enumerate(value.items()):
            yield f"[{number}: {key if isinstance(key, (str, int)) else type(key).__name__}]", part
    elif isinstance(value, (list, tuple)) or type(value).__name__ == "deque":
        for number, part in enumerate(value):
            yield f"[{number}]", part
    elif isinstance(value, (set, frozenset)):
        yield "{}", str(sorted(map(repr, value)))
    elif isinstance(value, (np.ndarray, np.generic)):
        yield " values", f"{value.dtype} {value.shape} {hashlib.sha256(value.tobytes()).hexdigest()}"
    elif isinstance(value, types.FunctionType):
        for cell in value.__closure__ or ():
            if _is_filled(cell):
                yield "'s closure", cell.cell_contents
    elif isinstance(value, types.MethodType):
        yield ".__func__", value.__func__
    for name, part in list(getattr(value, "__dict__", {}).items()):
        if not name.startswith("__"):
            yield f".{name}", part
    if isinstance(value, nn.Module):
        for name, part in vars(type(value)).items():
            if name not in _OF_CLASSES:
                yield f"'s class.{name}", id(part)


def _is_filled(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False


def _of_tensor(tensor: Tensor) -> tuple[Any, ...]:
    if is_lazy(tensor):
        return ("no shape yet",)
    facts: tuple[Any, ...] = (tuple(tensor.shape), tensor.dtype, tensor.device, tensor.layout)
    facts += (tensor.requires_grad, tensor.is_leaf, tensor._version, bool(tensor._backward_hooks))
    if tensor.layout == torch.strided:
        facts += (tensor.stride(), tensor.storage_offset(), tensor.data_ptr())
        if not tensor.is_meta:
            values = tensor.detach().cpu().contiguous().view(-1)
            facts += (hashlib.sha256(values.view(torch.uint8).numpy().tobytes()).hexdigest(),)
    return facts


def _surroundings() -> Iterator[tuple[str, Any]]:
    """Yields what a program shares with a network."""
    yield "random numbers of torch", hashlib.sha256(torch.get_rng_state().numpy().tobytes()).hexdigest()
    yield "random numbers of Python", hash(random.getstate())
    state = np.random.get_state()  # noqa: NPY002 - the legacy generator is what users call
    yield "random numbers of NumPy", (state[0], state[1].tobytes(), *state[2:])
    yield "gradients", (torch.is_grad_enabled(), torch.is_inference_mode_enabled())
    yield "autocast", (torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda"))
    yield "default type and device", (torch.get_default_dtype(), torch.get_default_device())
    yield "modes", ([*_get_current_function_mode_stack()], [*_get_current_dispatch_mode_stack()])
    yield "deterministic", (torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision())
    backends = torch.backends
    yield "cuDNN", (backends.cudnn.enabled, backends.cudnn.benchmark, backends.cudnn.deterministic)
    yield "oneDNN and attention", (backends.mkldnn.enabled, backends.mha.get_fastpath_enabled())
    cuda = backends.cuda
    yield "kernels of attention", (cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(), cuda.math_sdp_enabled())
    for name in ("forward", "forward_pre", "backward", "backward_pre"):
        yield f"hooks of all modules, {name}", list(getattr(module_hooks, f"_global_{name}_hooks"))
    yield "threads", torch.get_num_threads()
    yield "garbage collection", gc.isenabled()
