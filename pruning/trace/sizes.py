"""Reads, during a traced run, what every size in the code depends on.

`Sizes` gives out integers with origins for shapes and for attributes of modules, and takes down an equation wherever
the code says how large something is: at a view to (b, n, heads, width) the third number equals the number of heads that
are there, the fourth the width of one. After a choice of nodes these equations give every attribute its new value
(pruning/dry_run/solve.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pruning.modules.attributes import Attribute
from pruning.trace.labels import Axis, leaving
from pruning.trace.origins import Expression, Kept, Origin, Step, Width, expression_of, leaves
from pruning.trace.trace import Trace


@dataclass(frozen=True, eq=False, slots=True)
class Equation:
    """Two sizes that must be the same.

    Args:
        one: what the code says.
        other: what is there.
        what: where this was read, in the user's words: "view to [2, 5, 4, 8]".
        where: path of the module whose code it is.
        index: number of the operation in its run.
        made: what is there was made of the size; a dimension that was there says more of it.
    """

    one: Expression
    other: Expression
    what: str
    where: str
    index: int
    made: bool = False


# Calls that tell the code nothing of widths and are told nothing of them. Kernels' sizes and strides are none.
_LAYERS = "conv1d conv2d conv3d linear batch_norm layer_norm dropout dropout1d dropout2d dropout3d alpha_dropout"
_ACTIVATIONS = "relu relu_ relu6 leaky_relu elu gelu silu mish hardswish hardsigmoid hardtanh sigmoid tanh"
_ARITHMETIC = "add add_ __add__ __radd__ __iadd__ mul mul_ __mul__ __rmul__ __imul__ mean"
_POOLS = "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d"
_ADAPTIVE_POOLS = "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool2d"
_MOVES = "cat concat flatten permute transpose contiguous dim"
_WITHOUT_SIZES = frozenset(" ".join((_LAYERS, _ACTIVATIONS, _ARITHMETIC, _POOLS, _ADAPTIVE_POOLS, _MOVES)).split())

_FLAGS = (Tensor.device, Tensor.dtype, Tensor.ndim, Tensor.requires_grad, Tensor.is_cuda)


class Sizes(TorchFunctionMode):
    """Watches one traced run from Python's side.

    Args:
        trace: the run's labels.
    """

    def __init__(self, trace: Trace) -> None:
        super().__init__()
        self.trace = trace
        self.equations: list[Equation] = []
        self.derived: list[Attribute] = []  # integers that forward worked out and kept, with what stood there before
        self._made: list[Origin] = []
        self.handled = False  # whether the code could see or say how wide something is

    def kept(self, holder: Any, name: str, path: tuple[Any, ...], value: int) -> int:
        """Returns an attribute's integer with its origin."""
        return Origin(value, Kept(holder, name, path), self)

    def made(self, origin: Origin) -> None:
        """Takes note of an integer, so that it can be made to forget."""
        self._made.append(origin)

    def widths(self, tensor: Tensor, dims: Sequence[int]) -> list[int]:
        """Returns some of a tensor's sizes with their origins."""
        axes = self.trace.axes(tensor)
        return [self._width(tensor.shape[dim], axes[dim]) for dim in dims]

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        # The user's code may have kept some of the integers.
        for origin in self._made:
            origin.forget()
        self._made = []

    def equal(self, one: Expression, other: Expression, what: str, *, made: bool = False) -> None:
        """Takes down that two sizes are the same; constants and the same reading say nothing."""
        if one is other or not (leaves(one) or leaves(other)):
            return
        where = self.trace.stack[-1][0] if self.trace.stack else ""
        self.equations.append(Equation(one, other, what, where, len(self.trace.entries) - 1, made))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        attribute = getattr(func, "__self__", None) if name == "__get__" else None  # such as Tensor.shape
        if name not in _WITHOUT_SIZES and attribute not in _FLAGS:
            self.handled = True
        if name == "size" or attribute is Tensor.shape:
            return self._shape(func(*args, **kwargs), args, kwargs)
        reader = _READERS.get(name)
        if reader is None:
            return func(*args, **kwargs)
        self.trace.sizes_are_read = self._parts_are_read(name, args, kwargs)
        try:
            out = func(*args, **kwargs)
        finally:
            self.trace.sizes_are_read = False
        reader(self, out, args, kwargs)
        return out

    def _parts_are_read(self, name: str, args: Any, kwargs: Any) -> bool:
        """Says whether all bounds of a slice, or all sizes of parts, depend on widths or attributes."""
        given = args[1] if len(args) > 1 else next(iter(kwargs.values()), None)
        is_row = isinstance(given, (list, tuple))
        items: list[Any] = list(given) if isinstance(given, (list, tuple)) else [given]
        said: list[Any] = []
        if name == "__getitem__":
            for item in items:
                if isinstance(item, slice):
                    said += [item.start, item.stop]
        elif name == "arange":
            _, end, _ = _ends(args, kwargs)
            said.append(end)
        elif name == "narrow":
            said += args[2:]
        elif name == "roll" or (is_row and name in ("split", "split_with_sizes")):
            said += items
        bounds = [bound for bound in said if isinstance(bound, int) and int(bound) != 0]
        return bool(bounds) and all(self.origin(bound) is not None for bound in bounds)

    def _shape(self, found: Any, args: Any, kwargs: Any) -> Any:
        axes = self.trace.axes(args[0])
        if isinstance(found, int):
            dim = args[1] if len(args) > 1 else kwargs["dim"]
            return self._width(found, axes[dim])
        if not any(axes):
            return found
        widths = [self._width(size, axis) for size, axis in zip(found, axes, strict=True)]
        return torch.Size(widths)

    def _width(self, size: int, axis: Axis | None) -> int:
        return size if axis is None else Origin(size, Width(axis.labels), self)

    # -- what readers use ------------------------------------------------------------------------------------------

    def origin(self, value: Any) -> Expression | None:
        """Returns the expression of an integer that has one, None for constants and all else."""
        found = expression_of(value, self) if isinstance(value, Origin) else None
        return None if isinstance(found, int) else found

    def fits(self, value: Any, axis: Axis | None, size: int, what: str) -> None:
        """Takes down that a size in the code stands for a dimension."""
        expression = self.origin(value)
        if expression is not None:
            self.equal(expression, size if axis is None else Width(axis.labels), what)

    def shape_fits(self, sizes: Sequence[Any], out: Any, name: str) -> None:
        """Takes down that the code's sizes are a tensor's shape, aligned at its last dimension."""
        if not isinstance(out, Tensor):
            return
        what = f"{name} to {_shown(sizes)}"
        axes = self.trace.axes(out)
        for place in range(1, min(len(sizes), out.dim()) + 1):
            if isinstance(sizes[-place], int) and int(sizes[-place]) != -1:
                self.said(sizes[-place], out.dim() - place)
                self.fits(sizes[-place], axes[-place], out.shape[-place], what)

    def said(self, value: Any, dim: int) -> None:
        """Takes down where the code says a size as a plain number."""
        follows_module = isinstance(self.trace.module, nn.MultiheadAttention)  # its number of heads is no constant
        if self.origin(value) is None and not follows_module:
            self.trace.said_in_numbers.add((len(self.trace.entries) - 1, dim))


def _shown(sizes: Sequence[Any]) -> str:
    """Returns sizes as plain numbers; a tensor among them stays what it is, since to read it would be an operation."""
    shown = [str(int(size)) if isinstance(size, int) else "a tensor" for size in sizes]
    return f"[{', '.join(shown)}]"


Reader = Callable[[Sizes, Any, Any, Any], None]

_READERS: dict[str, Reader] = {}


def _reads(names: str) -> Callable[[Reader], Reader]:
    """Enters a function that reads the sizes of calls to torch's functions and methods of these names."""

    def enter(reader: Reader) -> Reader:
        _READERS.update(dict.fromkeys(names.split(), reader))
        return reader

    return enter


def _listed(values: Sequence[Any], kwargs: dict[str, Any], *names: str) -> list[Any]:
    """Returns sizes that were given one by one, as one sequence, or by keyword."""
    for name in names:
        if name in kwargs:
            values = (kwargs[name],)
    if values and isinstance(values[0], (list, tuple)):
        return list(values[0])
    return [value for value in values if isinstance(value, int)]


def _argument(args: Any, kwargs: Any, place: int, name: str, default: Any = None) -> Any:
    return args[place] if place < len(args) else kwargs.get(name, default)


@_reads("view reshape expand broadcast_to")
def _viewed(sizes: Sizes, out: Any, args: Any, kwargs: Any) -> None:
    sizes.shape_fits(_listed(args[1:], kwargs, "shape", "size"), out, "view")


@_reads("unflatten")
def _unflattened(sizes: Sizes, out: Any, args: Any, kwargs: Any) -> None:
    dim = int(_argument(args, kwargs, 1, "dim")) % args[0].dim()
    parts = _argument(args, kwargs, 2, "sizes" if "sizes" in kwargs else "unflattened_size", ())
    axes, what = sizes.trace.axes(out), f"unflatten to {_shown(parts)}"
    for place, size in enumerate(parts):
        if isinstance(size, int) and int(size) != -1:
            sizes.said(size, dim + place)
            sizes.fits(size, axes[dim + place], out.shape[dim + place], what)


@_reads("zeros ones empty full rand randn")
def _made(sizes: Sizes, out: Any, args: Any, kwargs: Any) -> None:
    sizes.shape_fits(_listed(args, kwargs, "size"), out, "a new tensor")


def _ends(args: Any, kwargs: Any) -> tuple[Any, Any, Any]:
    """Returns start, end and step of a call to `arange`."""
    given = list(args[:3])
    if len(given) == 1 and "end" not in kwargs:
        return 0, given[0], kwargs.get("step", 1)
    start, end, step = (given + [None] * 3)[:3]
    start = kwargs.get("start", 0) if start is None else start
    return start, kwargs.get("end") if end is None else end, kwargs.get("step", 1) if step is None else step


@_reads("arange")
def _counted(sizes: Sizes, out: Any, args: Any, kwargs: Any) -> None:
    start, end, step = _ends(args, kwargs)
    expression, (axis,) = sizes.origin(end), sizes.trace.axes(out)
    if expression is None or axis is None or not (isinstance(start, int) and isinstance(step, int)):
        return
    span = int(end) - int(start)
    if int(start):
        expression = Step("-", expression, expression_of(start, sizes), span)
    if int(step) != 1:
        expression = Step("//", expression, expression_of(step, sizes), span // int(step), span % int(step) == 0)
    sizes.equal(expression, Width(axis.labels), f"arange to {int(end)}", made=True)


@_reads("new_zeros new_ones new_empty new_full")
def _made_like(sizes: Sizes, out: Any, args: Any, kwargs: Any) -> None:
    sizes.shape_fits(_listed(args[1:], kwargs, "size"), out, "a new tensor")


@_reads("split split_with_sizes tensor_split")
def _split(sizes: Sizes, outs: Any, args: Any, kwargs: Any) -> None:
    given = _argument(args, kwargs, 1, "split_size_or_sections" if "split_size_or_sections" in kwargs else "split_size")
    dim = int(_argument(args, kwargs, 2, "dim", 0))
    if isinstance(given, int):
        whole = [out for out in outs if out.shape[dim] == int(given)]
        for out in whole:  # the last part may be shorter
            sizes.fits(given, sizes.trace.axes(out)[dim], out.shape[dim], f"split into parts of {int(given)}")
    elif isinstance(given, (list, tuple)) and len(given) == len(outs):
        what = f"split into {_shown(given)}"
        some_known = any(sizes.origin(size) is not None for size in given)
        for size, out in zip(given, outs, strict=True):
            axis = sizes.trace.axes(out)[dim]
            sizes.fits(size, axis, out.shape[dim], what)
            if some_known and axis is not None and isinstance(size, int) and sizes.origin(size) is None:
                sizes.equal(Width(axis.labels), int(size), what)  # a number among origins is a constant


@_reads("narrow")
def _narrowed(sizes: Sizes, out: Any, args: Any, kwargs: Any) -> None:
    dim = int(_argument(args, kwargs, 1, "dim"))
    start, length = _argument(args, kwargs, 2, "start"), _argument(args, kwargs, 3, "length")
    if isinstance(start, int) and isinstance(length, int):
        _bounded(sizes, sizes.trace.axes(args[0])[dim], start, start + length)


@_reads("__getitem__")
def _sliced(sizes: Sizes, out: Any, args: Any, kwargs: Any) -> None:
    index = args[1] if isinstance(args[1], tuple) else (args[1],)
    known = (int, slice, type(None), type(...))
    if not any(isinstance(item, slice) for item in index) or not all(isinstance(item, known) for item in index):
        return
    axes = sizes.trace.axes(args[0])
    named = [item for item in index if item is not None and item is not ...]
    dim = 0
    for item in index:
        if item is ...:
            dim = len(axes) - (len(named) - dim)
        elif isinstance(item, slice):
            if item.step is None:
                _bounded(sizes, axes[dim], item.start, item.stop)
            dim += 1
        elif item is not None:
            dim += 1


def _bounded(sizes: Sizes, axis: Axis | None, start: Any, stop: Any) -> None:
    """A bound of a slice is the number of places before it, counted from the end if it is negative."""
    if axis is None:
        return
    for bound in (start, stop):
        expression = sizes.origin(bound)
        if expression is None or abs(int(bound)) > len(axis.labels):
            continue
        place = int(bound)
        what = f"a slice at {place}"
        if place > 0:
            sizes.equal(expression, Width(axis.labels[:place]), what)
        elif place < 0:
            sizes.equal(Step("-", 0, expression, -place), Width(axis.labels[place:]), what)


@_reads("roll")
def _rolled(sizes: Sizes, out: Any, args: Any, kwargs: Any) -> None:
    """As many places leave a dimension at one end as it is shifted by."""
    shifts, dims = _argument(args, kwargs, 1, "shifts"), _argument(args, kwargs, 2, "dims", ())
    shifts, dims = (given if isinstance(given, (list, tuple)) else (given,) for given in (shifts, dims))
    axes = sizes.trace.axes(args[0])
    for shift, dim in zip(shifts, dims, strict=False):
        expression, axis = sizes.origin(shift), axes[int(dim)]
        if expression is None or axis is None or not 0 < abs(int(shift)) < len(axis.labels):
            continue
        if int(shift) < 0:
            expression = Step("-", 0, expression, -int(shift))
        places = leaving(axis.labels, int(shift))
        sizes.equal(expression, Width(places), f"a roll by {int(shift)}")


@_reads("layer_norm rms_norm")
def _normalised(sizes: Sizes, out: Any, args: Any, kwargs: Any) -> None:
    sizes.shape_fits(_listed(args[1:2], kwargs, "normalized_shape"), out, "a norm")


@_reads("conv1d conv2d conv3d")
def _convolved(sizes: Sizes, out: Any, args: Any, kwargs: Any) -> None:
    groups = _argument(args, kwargs, 6, "groups", 1)
    if sizes.origin(groups) is None:
        return
    channels, depthwise = sizes.trace.axes(args[0])[-out.dim() + 1], int(groups) == args[0].shape[-out.dim() + 1]
    sizes.fits(groups, channels if depthwise else None, int(groups), f"a convolution of {int(groups)} groups")
