"""Rules for pictures: pixel and channel shuffles, windows, pooling, resizing, padding of the sides."""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

from pruning.trace.call import Call
from pruning.trace.labels import Axes, Axis
from pruning.trace.rules.table import rule
from pruning.trace.rules.view import lone


@rule("pixel_shuffle col2im")
def gathered(call: Call) -> Axes:
    """(C k k, ...) -> (C, H, W): all k k slices of a channel couple."""
    *lead, channels = _sides_pinned(call, 2 if call.name == "aten.pixel_shuffle" else 1)
    if channels is not None:
        table = channels.labels.reshape(-1, _window(call))
        call.trace.couple(table.T)
        if call.trace.choose(lambda: len(table) > 1):
            channels = Axis(table[:, 0], channels.zero)
        else:
            lone(call, channels)
            channels = None
    return (*lead, channels, None, None)


@rule("pixel_unshuffle im2col")
def spread(call: Call) -> Axes:
    """(C, H, W) -> (C k k, ...): the slices of a channel, or the places of its window, carry its label."""
    *lead, channels = _sides_pinned(call, 2)
    sides = (None,) * (call.outs[0].dim() - len(lead) - 1)
    return (*lead, channels and channels.take(np.repeat(np.arange(len(channels.labels)), _window(call))), *sides)


def _window(call: Call) -> int:
    if call.has("kernel_size"):
        return math.prod(call["kernel_size"])
    return call["upscale_factor" if call.has("upscale_factor") else "downscale_factor"] ** 2


@rule("channel_shuffle")
def channel_shuffle(call: Call) -> Axes:
    """Groups interleave, so each must lose equally many channels."""
    axes = call.axes("self")
    channels = axes[1]
    if channels is not None:
        table = channels.labels.reshape(call["groups"], -1)
        call.trace.couple(table)
        channels = Axis(table.T.reshape(-1), channels.zero)
    return (axes[0], channels, *axes[2:])


def _sides_pinned(call: Call, count: int) -> Axes:
    """Returns the axes before a picture's sides, which must stay."""
    axes = call.axes("self")
    for axis in axes[len(axes) - count :]:
        call.trace.pin(axis, "is a side of a picture")
    return axes[: len(axes) - count]


@rule(
    "reflection_pad1d replication_pad1d reflection_pad2d replication_pad2d reflection_pad3d replication_pad3d "
    "upsample_nearest1d upsample_linear1d upsample_nearest2d upsample_bilinear2d upsample_bicubic2d upsample_nearest3d "
    "upsample_trilinear3d _upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d "
    "_upsample_bilinear2d_aa _upsample_bicubic2d_aa avg_pool2d avg_pool3d max_pool2d_with_indices "
    "max_pool3d_with_indices _adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_max_pool2d adaptive_max_pool3d "
    "fractional_max_pool2d fractional_max_pool3d max_unpool2d max_unpool3d"
)
def picture(call: Call) -> list[Axes]:
    """Pooling, resizing and padding of pictures: channels pass one by one, the sides must stay."""
    sides = int(next(letter for letter in call.name if letter in "123"))
    passed = _sides_pinned(call, sides) + (None,) * sides
    if call.has("indices") and isinstance(call["indices"], Tensor):
        for one, other in zip(passed, call.axes("indices"), strict=True):
            call.trace.tie(one, other)
    return [passed for _ in call.outs]
