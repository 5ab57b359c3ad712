"""Runs somebody's network on stand-ins and leaves it, its modules and all random states as they were."""

from __future__ import annotations

import functools
import random
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from types import FunctionType, ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as module_hooks
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes

from pruning.modules.attributes import Attribute, Missing, widths_of
from pruning.modules.calls import mapped, tensors_in
from pruning.modules.einsum import einsum
from pruning.modules.kept import holders, parts_of, replaced_integers
from pruning.modules.modes import all_kept, readers_of_mode
from pruning.modules.snapshot import Snapshot, values_kept
from pruning.trace.origins import Origin
from pruning.trace.sizes import Sizes
from pruning.trace.trace import Trace

# nn.Module's own registries: replaced or left alone as a whole, never searched for a user's values.
_REGISTRIES = frozenset(vars(nn.Module()))


class Outcome(NamedTuple):
    """What a run left.

    Args:
        outputs: the protected tensors of what the network returned.
        left_behind: those that it left in its modules' attributes.
        made_anew: (before, after) of buffers in whose place it put others of the same shape.
        mode_readers: modules that asked for their mode.
        made_first: names of modules and parameters that were not there before.
    """

    outputs: list[Tensor]
    left_behind: list[Tensor]
    made_anew: list[tuple[Tensor, Tensor]]
    mode_readers: set[nn.Module]
    made_first: list[str]


def blank(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Returns a tensor without data."""
    return torch.empty(shape, dtype=dtype, device="meta")


def run(
    model: nn.Module,
    inputs: tuple[tuple[Any, ...], dict[str, Any]],
    trace: Trace,
    *,
    snapshot: Snapshot | None,
    stand_ins: dict[int, Tensor],
    training: bool,
    attributes: list[Attribute],
    protected: Callable[[Any], list[Tensor]],
    sizes: Sizes | None = None,
) -> Outcome:
    """Runs the model under a trace.

    Args:
        model: the network; its modules hold the stand-ins during the run and nothing of it afterwards.
        inputs: positional and keyword arguments of the call.
        trace: what watches; it knows the stand-ins' labels already.
        snapshot: what the network and its inputs were, if that is known; they are like that again afterwards.
        stand_ins: id of a parameter or buffer -> what stands for it.
        training: the mode to run in.
        attributes: (holder, name, value) to hold during the run.
        protected: takes what the network returned, gives the tensors of it that must keep their shape.
        sizes: if given, reads what every size in the code depends on.
    """
    # Inputs keep their values until they meet a parameter, so code that looks at masks and positions needs no data of
    # parameters; they are copied since forward may write to them.
    args, kwargs = mapped(inputs, lambda tensor: tensor.detach().clone())
    holding = holders(model)
    paths = {holder: path for path, holder in holding.items() if isinstance(holder, nn.Module)}
    with ExitStack() as stack:
        if snapshot is None:
            snapshot = stack.enter_context(all_kept(model, inputs))
        else:
            stack.callback(snapshot.restore)
        stack.enter_context(_quiet(model))
        _put_stand_ins(snapshot, stand_ins)
        for module in paths:
            vars(module)["training"] = training
        _set_attributes(list(holding.values()), attributes, sizes)
        given = [(holder, dict(vars(holder))) for holder in holding.values()]
        others = [tensor for tensor in snapshot.tensors if id(tensor) not in stand_ins]
        trace.writes = stack.enter_context(values_kept(others, watched=False))
        stack.enter_context(_watched(paths, trace))
        stack.enter_context(_nothing_remembered(paths))
        before = {id(tensor) for tensor in _held(paths)}
        names = _names(model)
        buffers = [(module, name, tensor) for module in paths for name, tensor in module._buffers.items()]
        with readers_of_mode() as readers, trace, _PlainCalls(), sizes or nullcontext():
            # What a user's choice of outputs computes belongs to the run.
            outputs = protected(model(*args, **kwargs))
            if sizes is not None:
                sizes.derived = _derived(given)
        left_behind = [tensor for tensor in _held(paths) if id(tensor) not in before]
        return Outcome(outputs, left_behind, _made_anew(buffers), readers, _made_first(model, names))


def _derived(given: list[tuple[Any, dict[str, Any]]]) -> list[Attribute]:
    """Returns (holder, name, value before) of integers that forward works out from sizes once, and then keeps.

    Such are cached properties, and attributes that are None until they are needed.
    """
    found: list[Attribute] = []
    for holder, before in given:
        for name, value in vars(holder).items():
            known = before.get(name, Missing.MISSING)
            if (known is None or known is Missing.MISSING) and _has_origins(value):
                found.append((holder, name, known))
    return found


def _has_origins(value: Any) -> bool:
    return isinstance(value, Origin) or any(isinstance(item, Origin) for _, item in parts_of(value))


def _made_anew(buffers: list[tuple[nn.Module, str, Tensor | None]]) -> list[tuple[Tensor, Tensor]]:
    """Returns (before, after) of buffers that forward replaced, such as a mask for batches of another size."""
    found = []
    for module, name, before in buffers:
        after = module._buffers.get(name)
        if before is not None and after is not None and after is not before and after.shape == before.shape:
            found.append((before, after))
    return found


def _names(model: nn.Module) -> set[str]:
    modules = {path for path, _ in model.named_modules()}
    return modules | {name for name, _ in model.named_parameters(remove_duplicate=False)}


def _made_first(model: nn.Module, before: set[str]) -> list[str]:
    """Returns modules and parameters that a first call made; of a module its own name will do."""
    made = _names(model) - before
    return sorted(name for name in made if name.rpartition(".")[0] not in made)


def _held(modules: Iterable[nn.Module]) -> Iterator[Tensor]:
    """Yields the tensors that modules keep in attributes of their own, parameters and buffers not counted."""
    for module in modules:
        for name, value in vars(module).items():
            if name not in _REGISTRIES and not isinstance(value, (int, float, str)):
                yield from tensors_in(value, depth=3)


# -- what modules hold meanwhile ---------------------------------------------------------------------------------------


def _put_stand_ins(snapshot: Snapshot, stand_ins: dict[int, Tensor]) -> None:
    """Puts stand-ins for parameters and buffers wherever they are held, in lists and closures too."""

    def stand_in(tensor: Tensor) -> Tensor:
        return stand_ins.get(id(tensor), tensor)

    snapshot.exchange(stand_in)


def _set_attributes(held: list[Any], attributes: list[Attribute], sizes: Sizes | None) -> None:
    """Lets modules and plain objects hold other values, and integers with origins if sizes are to be read."""
    if sizes is not None:
        for holder in held:
            _give_origins(holder, sizes)
    for holder, name, value in attributes:
        vars(holder)[name] = value  # nn.Module's own way would look at what it is
        if value is Missing.MISSING:
            del vars(holder)[name]


def _give_origins(holder: Any, sizes: Sizes) -> None:
    """Swaps the integers that a module or plain object keeps for ones that know where they come from."""

    def origin(name: str, path: tuple[Any, ...], value: int) -> int:
        return sizes.kept(holder, name, path, value)

    for name, value in list(replaced_integers(holder, origin)):
        vars(holder)[name] = value
    weight = holder._parameters.get("weight") if isinstance(holder, nn.Module) else None
    if weight is None:
        return
    for name, dims in widths_of(holder).items():
        widths = sizes.widths(weight, dims)
        value = vars(holder)[name]
        vars(holder)[name] = widths[0] if isinstance(value, int) else type(value)(widths)


# -- who is running ----------------------------------------------------------------------------------------------------


@contextmanager
def _watched(paths: dict[nn.Module, str], trace: Trace) -> Iterator[None]:
    """Tells the trace whose forward is running."""

    def enter(module: nn.Module, _: Any) -> None:
        if module in paths:
            trace.stack.append((paths[module], module))

    def leave(module: nn.Module, *_: Any) -> None:
        if module in paths and trace.stack:
            trace.stack.pop()

    before = module_hooks.register_module_forward_pre_hook(enter)
    after = module_hooks.register_module_forward_hook(leave, always_call=True)
    try:
        yield
    finally:
        before.remove()
        after.remove()


# -- functions that remember what they returned ------------------------------------------------------------------------

# The same sizes may mean other things the next time, in one run and the next: what a function remembers of a call
# before the run knows nothing of origins, and what it would remember of the run (integers with origins, tensors without
# data) is no business of the user's later calls. einops keeps the recipes of its patterns so.

_LIBRARIES = frozenset((*sys.stdlib_module_names, "torch", "torchvision", "numpy", "scipy"))


@contextmanager
def _nothing_remembered(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Lets functions around the code of some modules remember nothing, in their packages and in those they import.

    Functions without arguments go on remembering; no size can matter to them.
    """
    classes = {kind for module in modules for kind in type(module).__mro__ if not _is_of_library(kind.__module__)}
    namespaces: list[tuple[Any, str]] = [(kind, name) for kind in classes for name in _remembering(kind)]
    around = frozenset(kind.__module__ for kind in classes)
    namespaces += [(sys.modules[where], name) for where, name in _remembering_around(around, len(sys.modules))]
    swapped: list[tuple[Any, str, Any]] = []
    try:
        for space, name in namespaces:
            value = vars(space).get(name)
            if isinstance(value, functools._lru_cache_wrapper):
                swapped.append((space, name, value))
                setattr(space, name, functools.lru_cache(maxsize=0)(value.__wrapped__))
        yield
    finally:
        for space, name, value in swapped:
            setattr(space, name, value)


def _remembering(space: Any) -> list[str]:
    """Returns names of functions with arguments that remember, in a class or a Python module."""
    found = []
    for name, value in list(vars(space).items()):
        if isinstance(value, functools._lru_cache_wrapper) and _takes_arguments(value.__wrapped__):
            found.append(name)
    return found


def _takes_arguments(function: Any) -> bool:
    code = getattr(function, "__code__", None)
    return code is None or bool(code.co_argcount or code.co_kwonlyargcount or code.co_flags & 0x0C)  # *args, **kwargs


@functools.lru_cache(maxsize=64)
def _remembering_around(modules: frozenset[str], count: int) -> list[tuple[str, str]]:
    """Returns (Python module, name) of functions that remember, in the packages of some modules and of their imports.

    Args:
        modules: names of Python modules.
        count: how many are loaded; with more, it is looked again.
    """
    packages = {_package(name) for name in modules}
    for name in modules:
        for value in list(vars(sys.modules[name]).values()) if name in sys.modules else ():
            if isinstance(value, ModuleType):
                packages.add(_package(value.__name__))
            elif isinstance(value, (FunctionType, type)):
                packages.add(_package(value.__module__ or ""))
    packages.add("einops")  # often imported where it is used
    found = []
    for name, module in list(sys.modules.items()):
        package = _package(name)
        if isinstance(module, ModuleType) and package in packages and package not in _LIBRARIES:
            found += [(name, own) for own in _remembering(module)]
    return found


def _package(name: str) -> str:
    return name.partition(".")[0]


def _is_of_library(name: str) -> bool:
    return _package(name) in _LIBRARIES


# -- how torch behaves meanwhile ---------------------------------------------------------------------------------------

_DROPOUTS = frozenset(
    (
        F.dropout,
        F.dropout1d,
        F.dropout2d,
        F.dropout3d,
        F.alpha_dropout,
        F.feature_alpha_dropout,
        torch.dropout,
        torch.feature_dropout,
        torch.alpha_dropout,
        torch.feature_alpha_dropout,
    )
)


class _PlainCalls(TorchFunctionMode):
    """Spares the run what is nothing to labels.

    Dropout hands its input on, in training as in evaluation. `reshape` arrives as operations, so that a size that does
    not fit fails there and not on the way to them, and einsum as operations that are the same for all sizes.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _DROPOUTS:
            return args[0] if args else kwargs["input"]
        if func is torch.einsum and not kwargs:
            return einsum(*args)
        if func is F.linear and args and not args[0].is_contiguous():
            # What is in order takes the same way through torch, however many channels are left.
            args = (args[0].contiguous(), *args[1:])
        if func in (Tensor.reshape, torch.reshape) and len(args) > 1 and not kwargs:
            tensor, shape = args[0], args[1:]
            if isinstance(shape[0], (list, tuple)):  # x.reshape((2, 3)) as well as x.reshape(2, 3)
                shape = shape[0]
            # A copy first, so that a view always fits the memory. Pairs may become complex numbers, which depend on
            # where in memory they lie, so they lie where they would without the copy.
            makes_pairs = len(shape) == tensor.dim() + 1 and shape[-1] == 2
            if not (makes_pairs and _is_a_view(tensor, shape)):
                tensor = tensor.clone(memory_format=torch.contiguous_format)
            return tensor.view(shape)
        return func(*args, **kwargs)


def _is_a_view(tensor: Tensor, shape: Any) -> bool:
    """Says whether a tensor's memory can be read in another shape; where the shape does not fit at all, no."""
    if tensor.is_contiguous():
        return True
    with _disable_current_modes():
        twin = torch.empty_strided(tensor.shape, tensor.stride(), device="meta")
        try:
            twin.view([int(size) for size in shape])
        except RuntimeError:
            return False
    return True


@contextmanager
def _quiet(model: nn.Module) -> Iterator[None]:
    """The same random choices in every run, none of them left behind; fused paths that hide operations are off."""
    indices = []
    if torch.cuda.is_initialized():
        devices = {tensor.device for tensor in (*model.parameters(), *model.buffers()) if tensor.is_cuda}
        indices = [device.index or 0 for device in devices]
    mkldnn = torch._C._get_mkldnn_enabled()
    fast_path = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(indices))
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        torch.backends.mha.set_fastpath_enabled(False)
        torch._C._set_mkldnn_enabled(False)
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002 - the legacy generator is what users call
        try:
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast_path)
            torch._C._set_mkldnn_enabled(mkldnn)
