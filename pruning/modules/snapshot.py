"""What a network, and all that can be reached from it, was: taken down before a run and put back after it.

Networks keep a tensor of the last run, count their calls in a list of a configuration, hang hooks on their layers at
the first call and set a flag that says so. One without the other would break them, so everything is put back: modules,
containers, plain objects, variables of closures, the users' own classes, arrays, generators of random numbers, and what
tensors carry besides their values. A run may also write to tensors; see `values_kept`.
"""

from __future__ import annotations

import functools
import sys
import types
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from enum import Enum
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import TorchDispatchMode

_MOST_OBJECTS = 200_000  # a module may hold a trainer, and that the whole program

_MOST_BYTES = 1 << 24  # of an array; a module may hold its data

_NOTHING = object()

# Nothing in these can change.
_CONSTANTS = frozenset((bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size))

# By type, not isinstance: those of a user's own class may be more than containers.
_CONTAINERS = frozenset((list, dict, set, deque, OrderedDict, defaultdict, Counter))

# Of the standard library, only what programs keep settings in is looked into.
_SETTINGS = {"types", "collections", "argparse", "__main__"}

# The engine's own hooks take notes that must not be undone.
_ENGINE = __name__.partition(".")[0]

_LIBRARY = (sys.stdlib_module_names | {"torch", "numpy", _ENGINE}) - _SETTINGS

PutBack = Callable[[], Any]


class Snapshot:
    """Everything that can be reached from some objects.

    Args:
        roots: modules, or containers and plain objects. What lazy modules are is left out: the shapes that a first
            call gives them, they keep.
    """

    def __init__(self, roots: Iterable[Any]) -> None:
        self.tensors: list[Tensor] = []
        self._put_back: list[PutBack] = []
        self._containers: list[tuple[Any, Any]] = []  # those that hold values by key or place, and what they held
        self._empty: list[Any] = []
        self._seen: dict[int, Any] = {}  # kept alive, so that no other object gets the same id
        self._waiting: list[Any] = list(roots)
        while self._waiting and len(self._seen) < _MOST_OBJECTS:
            value = self._waiting.pop()
            if id(value) not in self._seen:
                self._seen[id(value)] = value
                kind: Any = type(value)
                _way_of(kind)(self, value)

    def restore(self) -> None:
        """Puts everything back. What did not change is not touched."""
        for container in self._empty:
            if container:
                container.clear()
        for holder, content in self._containers:
            _fill(holder, content)
        for put_back in self._put_back:
            put_back()

    def exchange(self, change: Callable[[Tensor], Tensor]) -> None:
        """Puts other tensors in the place of all that were found, until `restore`."""
        for holder, content in self._containers:
            for key, value in _exchangeable(content):
                now = _exchanged(value, change)
                if now is not value:
                    _put(holder, key, now)

    # -- by kind ---------------------------------------------------------------------------------------------------

    def take_nothing(self, value: Any) -> None:
        """Of what cannot change, or is not a network's to change."""

    def take_tensor(self, tensor: Tensor) -> None:
        """What a tensor carries besides its values."""
        if is_lazy(tensor):
            return
        self.tensors.append(tensor)
        if tensor.is_leaf:
            grad, hooks = tensor.grad, tensor._backward_hooks
            self._put_back.append(functools.partial(_fill_leaf, tensor, tensor.requires_grad, grad, hooks))
            self._waiting.append(hooks)
        attributes = tensor.__dict__
        if attributes:
            self.take_container(attributes)
        else:
            self._put_back.append(attributes.clear)

    def take_array(self, array: np.ndarray) -> None:
        """The values of an array."""
        if array.dtype != object and array.nbytes <= _MOST_BYTES:
            self._put_back.append(functools.partial(_fill_array, array, array.copy()))

    def take_generator(self, generator: torch.Generator) -> None:
        """The state of a generator of random numbers."""
        self._put_back.append(functools.partial(generator.set_state, generator.get_state()))

    def take_function(self, function: types.FunctionType) -> None:
        """The variables that a function took along."""
        if _is_library(function):
            return
        for cell in function.__closure__ or ():
            if id(cell) not in self._seen:
                self._seen[id(cell)] = cell
                self.take_container(cell)
        self.take_container(function.__dict__)
        self._waiting += (function.__defaults__, function.__kwdefaults__)

    def take_method(self, method: types.MethodType) -> None:
        """The object that a method belongs to."""
        self._waiting += (method.__self__, method.__func__)

    def take_partial(self, value: functools.partial[Any]) -> None:
        """What a function was given in advance."""
        if not _is_library(value.func):
            self._waiting += (value.func, value.args, value.keywords)

    def take_container(self, holder: Any) -> None:
        """What a container holds by key or place."""
        content = _content(holder)
        self._containers.append((holder, content))
        for value in content.values() if type(content) is dict else content:
            kind = type(value)
            if kind in _CONTAINERS and not value:  # as most of a module's registries of hooks
                self._empty.append(value)
            elif kind not in _CONSTANTS:
                self._waiting.append(value)

    def take_tuple(self, value: Any) -> None:
        """What a tuple holds, which cannot hold anything else."""
        self._waiting += value

    def take_object(self, value: Any) -> None:
        """A module or a plain object; a container of the user's own class is also one."""
        kind: Any = type(value)
        base = _kind_of_container(kind)
        if base is tuple:
            self.take_tuple(value)
        elif base is not None:
            self.take_container(value)
        attributes = getattr(value, "__dict__", None)
        if type(attributes) is dict:
            self.take_container(attributes)
        for parent in _users_bases(kind):
            if id(parent) not in self._seen:
                self._seen[id(parent)] = parent
                self.take_class(parent)
            slots = vars(parent).get("__slots__", ())
            for name in (slots,) if isinstance(slots, str) else slots:
                if name not in ("__dict__", "__weakref__"):
                    before = getattr(value, name, _NOTHING)
                    self._waiting.append(before)
                    self._put_back.append(functools.partial(_fill_slot, value, name, before))

    def take_class(self, kind: type) -> None:
        """The attributes of a user's own class."""
        before = {}
        for name, value in vars(kind).items():
            if not name.startswith("__") and name != "_abc_impl":
                before[name] = value
                if isinstance(value, (list, dict, set, deque, Tensor)):
                    self._waiting.append(value)
        self._put_back.append(functools.partial(_fill_class, kind, before))


@functools.cache
def _way_of(kind: Any) -> Callable[[Snapshot, Any], None]:
    """Returns how values of a class are taken down."""
    if issubclass(kind, (type, types.ModuleType, Enum)):
        return Snapshot.take_nothing
    for kinds, way in _WAYS:
        if issubclass(kind, kinds):
            return way
    if kind in _CONTAINERS:
        return Snapshot.take_container
    if kind in (tuple, frozenset):
        return Snapshot.take_tuple
    if issubclass(kind, LazyModuleMixin):
        return Snapshot.take_nothing
    if issubclass(kind, nn.Module) or _is_a_users(kind) or _kind_of_container(kind) is not None:
        return Snapshot.take_object
    return Snapshot.take_nothing


_WAYS: tuple[tuple[Any, Callable[[Snapshot, Any], None]], ...] = (
    (Tensor, Snapshot.take_tensor),
    (np.ndarray, Snapshot.take_array),
    (torch.Generator, Snapshot.take_generator),
    (types.FunctionType, Snapshot.take_function),
    (types.MethodType, Snapshot.take_method),
    (functools.partial, Snapshot.take_partial),
)


@functools.cache
def _kind_of_container(kind: Any) -> Any:
    """Returns the class of Python's own that a container inherits from, None for all else."""
    for base in (OrderedDict, dict, list, tuple, set, frozenset, deque):
        if issubclass(kind, base):
            return tuple if base is frozenset else base
    return None


@functools.cache
def _users_bases(kind: Any) -> tuple[type, ...]:
    return tuple(base for base in kind.__mro__ if _is_a_users(base))


@functools.cache
def _is_a_users(kind: Any) -> bool:
    return not _is_library(kind)


def _is_library(defined: Any) -> bool:
    """Says whether a class or function is none of the user's code."""
    module = getattr(defined, "__module__", None) or ""
    return module.partition(".")[0] in _LIBRARY


def _exchanged(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Returns a tensor's exchange; a tuple that holds some is made anew, all else can be changed where it is."""
    if isinstance(value, Tensor):
        return value if is_lazy(value) else change(value)
    if not isinstance(value, tuple) or not value or isinstance(value, torch.Size):
        return value
    items = [_exchanged(item, change) for item in value]
    if all(item is before for item, before in zip(items, value, strict=True)):
        return value
    return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)


# -- containers, by the methods of their base class: those of a user's own may do anything -----------------------------


def _content(holder: Any) -> Any:
    """Returns a copy of what a container holds: a dict, a list, or a set."""
    if isinstance(holder, dict):
        return dict(_base_of(holder).items(holder)) if holder else ()
    if isinstance(holder, types.CellType):
        try:
            return [holder.cell_contents]
        except ValueError:  # a variable that has no value yet
            return []
    return _base_of(holder).copy(holder)


def _base_of(holder: Any) -> Any:
    kind: Any = type(holder)
    return _kind_of_container(kind)


def _exchangeable(content: Any) -> Iterator[tuple[Any, Any]]:
    """Yields (key or place, value) of what may be or hold a tensor."""
    if not content or isinstance(content, set):
        return
    for key, value in content.items() if isinstance(content, dict) else enumerate(content):
        if isinstance(value, (Tensor, tuple)):
            yield key, value


def _put(holder: Any, key: Any, value: Any) -> None:
    if isinstance(holder, types.CellType):
        holder.cell_contents = value
    else:
        _base_of(holder).__setitem__(holder, key, value)


def _fill(holder: Any, content: Any) -> None:
    """Lets a container hold what it held, in its order; nothing is done where it does."""
    if not content and not holder and not isinstance(holder, types.CellType):
        return
    if isinstance(holder, types.CellType):
        if content:
            holder.cell_contents = content[0]
    elif isinstance(holder, dict):
        base = _base_of(holder)
        content = content or {}
        if not _are_the_same(list(base.items(holder)), list(content.items())):
            base.clear(holder)
            for key, value in content.items():
                base.__setitem__(holder, key, value)
    elif isinstance(holder, set):
        if not (len(holder) == len(content) and set.issuperset(holder, content)):
            set.clear(holder)
            set.update(holder, content)
    else:
        base = _base_of(holder)
        if not _are_the_same([(None, value) for value in base.__iter__(holder)], [(None, value) for value in content]):
            base.clear(holder)
            base.extend(holder, content)


def _are_the_same(one: list[tuple[Any, Any]], other: list[tuple[Any, Any]]) -> bool:
    if len(one) != len(other):
        return False
    for (key, value), (other_key, other_value) in zip(one, other, strict=True):
        if value is not other_value or (key is not other_key and key != other_key):
            return False
    return True


def _fill_slot(value: Any, name: str, before: Any) -> None:
    if getattr(value, name, _NOTHING) is before:
        return
    if before is _NOTHING:
        object.__delattr__(value, name)
    else:
        object.__setattr__(value, name, before)


def _fill_class(kind: type, before: Mapping[str, Any]) -> None:
    for name in list(vars(kind)):
        if not name.startswith("__") and name != "_abc_impl" and name not in before:
            type.__delattr__(kind, name)
    for name, value in before.items():
        if vars(kind).get(name, _NOTHING) is not value:
            type.__setattr__(kind, name, value)


def _fill_array(array: np.ndarray, before: np.ndarray) -> None:
    if array.flags.writeable and array.tobytes() != before.tobytes():
        array[...] = before


def _fill_leaf(tensor: Tensor, requires_grad: bool, grad: Tensor | None, hooks: Any) -> None:
    if tensor.requires_grad != requires_grad:
        tensor.requires_grad_(requires_grad)
    if tensor.grad is not grad:
        tensor.grad = grad
    if tensor._backward_hooks is not hooks:
        tensor._backward_hooks = hooks


# -- values of tensors -------------------------------------------------------------------------------------------------


class Writes:
    """What tensors held before a run wrote to them: an average, a counter, a clipped weight.

    Args:
        tensors: those that must come out as they were; nothing is copied unless it is written to.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self._held: dict[int, Tensor] = {}  # by storage, which views share
        for tensor in tensors:
            if tensor.layout == torch.strided and not tensor.is_meta:
                self._held[_storage(tensor)] = tensor
        self._before: dict[int, torch.UntypedStorage] = {}

    def note(self, args: Iterable[Any]) -> None:
        """Takes note of what an operation that is about to run may write to."""
        if not self._held:
            return
        for value in args:
            for tensor in value if isinstance(value, (list, tuple)) else (value,):
                if isinstance(tensor, Tensor) and tensor.layout == torch.strided and not tensor.is_meta:
                    storage = _storage(tensor)
                    if storage in self._held and storage not in self._before:
                        self._before[storage] = tensor.untyped_storage().clone()

    def undo(self) -> None:
        """Puts the values back."""
        for storage, before in self._before.items():
            memory = self._held[storage].untyped_storage()
            if memory.nbytes() != before.nbytes():  # a tensor that was empty until a first call filled it
                memory.resize_(before.nbytes())
            memory.copy_(before)


class _WritesNoted(TorchDispatchMode):
    def __init__(self, writes: Writes) -> None:
        super().__init__()
        self._writes = writes

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func._schema.is_mutable:
            self._writes.note((*args, *kwargs.values()))
        return func(*args, **kwargs)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


@contextmanager
def values_kept(tensors: Iterable[Tensor], *, watched: bool = True) -> Iterator[Writes]:
    """Puts the values of tensors back at the end, and their versions: a backward pass may still be waiting.

    Args:
        tensors: those that must come out as they were.
        watched: whether operations are watched here; otherwise whoever watches tells what this yields.
    """
    held = [tensor for tensor in tensors if tensor.layout == torch.strided and not tensor.is_inference()]
    memory = [tensor.detach() for tensor in held]
    writes = Writes(held)
    try:
        with torch.autograd._unsafe_preserve_version_counter(tuple(held)):
            try:
                with _WritesNoted(writes) if watched else nullcontext():
                    yield writes
            finally:
                writes.undo()
    finally:
        for tensor, before in zip(held, memory, strict=True):
            # `weight.data = smaller` puts other memory behind a tensor.
            if tensor.data_ptr() != before.data_ptr() or tensor.shape != before.shape:
                tensor.data = before
