"""Tries a network out on random inputs, and watches what its linear and convolutional layers are given."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pruning.errors import UsageError
from pruning.modules.calls import RUN_ERRORS, call_with, device_of, mapped
from pruning.modules.modes import undisturbed
from pruning.trace.outputs import ChooseOutputs, sorted_out

State = dict[str, Tensor]

READERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)

_TURNS = 3


@dataclass
class Reader:
    """A layer seen at work.

    Args:
        path: of the module.
        module: a Linear or a convolution with a weight of its own.
        low: (input channels,) smallest value seen, over samples and positions.
        high: (input channels,) largest value seen.
        followers: paths of the batch norms that were given its output as it was.
    """

    path: str
    module: nn.Module
    low: Tensor
    high: Tensor
    followers: set[str] = field(default_factory=set)

    def see(self, x: Tensor) -> None:
        """Takes note of an input; channels stand last for Linear, before the sides of the picture for convolutions."""
        sides = len(getattr(self.module, "kernel_size", ()))
        channels = x.detach().movedim(-1 - sides, 0).flatten(1)  # (channels, all else)
        self.low = torch.minimum(self.low, channels.amin(1))
        self.high = torch.maximum(self.high, channels.amax(1))

    @property
    def absorber(self) -> tuple[str, int] | None:
        """Where a constant added to the output can go, and its sign: a bias, or the mean that a norm takes off."""
        if isinstance(self.module._parameters.get("bias"), Tensor):
            return f"{self.path}.bias", 1
        # Several norms that read the same output would have to be changed together.
        if len(self.followers) == 1:
            (norm,) = self.followers
            return f"{norm}.running_mean", -1
        return None

    def steady(self) -> Tensor:
        """Returns per input channel: always the same value."""
        size = torch.maximum(self.low.abs(), self.high.abs())
        return (self.high - self.low <= 1e-9 * size) & size.isfinite()

    def padded_taps(self) -> Tensor | None:
        """Returns which taps of the kernel meet zeros of the padding on pictures of some size, None for Linear."""
        if not isinstance(self.module, nn.modules.conv._ConvNd):
            return None
        module = self.module
        outer = torch.zeros(module.kernel_size, dtype=torch.bool)
        if module.padding_mode != "zeros":
            return outer
        # Pairs (left, right), the last side first.
        around = module._reversed_padding_repeated_twice
        for side, (size, step) in enumerate(zip(module.kernel_size, module.dilation, strict=True)):
            left, right = around[-2 * side - 2], around[-2 * side - 1]
            place = torch.arange(size) * step
            meets_padding = (place < left) | (place > (size - 1) * step - right)
            shape = [1] * outer.dim()
            shape[side] = -1
            outer |= meets_padding.view(shape)
        return outer


class Bench:
    """A network's outputs on a few inputs, in double precision where the network goes along.

    Args:
        model: it stays as it is; runs take their parameters and buffers from a state.
        example_inputs: the first input; the others are random ones of its form.
        choose_outputs: what of the outputs counts, see `DependencyGraph`.

    Raises:
        UsageError: if the model does not run on the example.
    """

    def __init__(self, model: nn.Module, example_inputs: Any, choose_outputs: ChooseOutputs | None = None) -> None:
        self.model = model
        self.choose_outputs = choose_outputs
        self.device = device_of(model)
        self.readers: list[Reader] = []
        errors = []
        for dtype, self.tolerance in ((torch.float64, 1e-9), (None, 1e-4)):
            try:
                self._start(example_inputs, dtype)
                return
            except RUN_ERRORS as error:
                errors.append(error)
        raise UsageError(f"{type(model).__name__} does not run on its example inputs: {errors[-1]}") from errors[-1]

    def _start(self, example: Any, dtype: torch.dtype | None) -> None:
        # mps has no double precision.
        self.dtype = None if self.device.type == "mps" else dtype
        tensors = (*self.model.named_parameters(), *self.model.named_buffers())
        self.state = {name: self._cast(tensor.detach()).clone() for name, tensor in tensors}
        generator = torch.Generator().manual_seed(0)
        first = mapped(example, lambda tensor: self._cast(tensor.to(self.device)))
        self.inputs = [first]
        with _watched(self.model) as self.readers:
            self.outputs = [self._run(self.state, first)]
            for turn in range(1, _TURNS):
                inputs = mapped(first, functools.partial(_drawn, turn, generator))
                # Not every network takes any numbers.
                with contextlib.suppress(*RUN_ERRORS):
                    self.outputs.append(self._run(self.state, inputs))
                    self.inputs.append(inputs)

    def _cast(self, tensor: Tensor) -> Tensor:
        if self.dtype is None or not tensor.is_floating_point():
            return tensor
        return tensor.to(self.dtype)

    def _run(self, state: State, inputs: Any) -> list[Tensor]:
        with undisturbed(self.model, inputs), _default_dtype(self.dtype):
            returned = call_with(self.model, state, inputs)
            return sorted_out(returned, self.choose_outputs).protected

    def same(self, changes: Mapping[str, Tensor]) -> bool:
        """Says whether the outputs stay what they were with other values for some parameters or buffers."""
        for inputs, before in zip(self.inputs, self.outputs, strict=True):
            after = self._run(self.state | dict(changes), inputs)
            for one, other in zip(before, after, strict=True):
                if not _close(one, other, self.tolerance):
                    return False
        return True


@contextlib.contextmanager
def _default_dtype(dtype: torch.dtype | None) -> Iterator[None]:
    """Lets tensors that the network makes itself have the precision of the others."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype or before)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _drawn(turn: int, generator: torch.Generator, tensor: Tensor) -> Tensor:
    """Other numbers of the same form; whole numbers (tokens) change places, lengths and yes-or-no stay."""
    if tensor.is_floating_point():
        noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        return (turn * noise).to(tensor)
    if tensor.dim() > 1 and tensor.dtype != torch.bool:
        order = torch.randperm(tensor.numel(), generator=generator)
        return tensor.flatten()[order.to(tensor.device)].view_as(tensor)
    return tensor


def _close(one: Tensor, other: Tensor, tolerance: float) -> bool:
    if one.shape != other.shape or not one.is_floating_point():
        return torch.equal(one, other)
    finite = one[one.isfinite()]
    size = float(finite.abs().max()) if finite.numel() else 0.0
    return torch.allclose(one, other, rtol=0, atol=tolerance * size, equal_nan=True)


@contextlib.contextmanager
def _watched(model: nn.Module) -> Iterator[list[Reader]]:
    """Fills a list of readers, in the order of their first call, while the network runs."""
    readers: dict[str, Reader] = {}
    # What a reader made last: the tensor, its version (it may be written over), and the reader.
    last_made: dict[int, tuple[Tensor, int, Reader]] = {}

    def given(path: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        x = args[0] if args else kwargs["input"]
        channels = x.shape[-1 - len(getattr(module, "kernel_size", ()))]
        infinity = torch.full((channels,), torch.inf, dtype=x.dtype, device=x.device)
        readers.setdefault(path, Reader(path, module, infinity, -infinity)).see(x)

    def made(path: str, module: nn.Module, args: Any, y: Tensor) -> None:
        last_made.clear()  # only a norm that comes right after counts
        last_made[id(y)] = (y, y._version, readers[path])

    def normed(path: str, module: nn.Module, args: Any) -> None:
        if not args or id(args[0]) not in last_made:
            return
        _, version, reader = last_made[id(args[0])]
        if version == args[0]._version:
            reader.followers.add(path)

    found: list[Reader] = []
    with contextlib.ExitStack() as stack:
        for path, module in model.named_modules():
            hooks: list[Any] = []
            if isinstance(module, READERS) and "weight" in module._parameters:
                hooks.append(module.register_forward_pre_hook(functools.partial(given, path), with_kwargs=True))
                hooks.append(module.register_forward_hook(functools.partial(made, path)))
            elif isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
                hooks.append(module.register_forward_pre_hook(functools.partial(normed, path)))
            for hook in hooks:
                stack.callback(hook.remove)
        yield found
        found += readers.values()
