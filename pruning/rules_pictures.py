"""Rules for pictures: pixel and channel shuffles, windows, pooling, resizing, padding of the sides."""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

from pruning.labels import Axes, Axis, Call, Labels
from pruning.rules import rule
from pruning.rules_moves import lone


@rule("pixel_shuffle")
def pixel_shuffle(call: Call) -> Axes:
    """(C r r, H, W) -> (C, H r, W r): all r r slices of a channel couple."""
    axes, factor = call.axes("self"), call["upscale_factor"] ** 2
    _pin_last(call, axes, 2)
    channels = axes[-3]
    if channels is not None:
        table = channels.labels.reshape(-1, factor)
        call.trace.couple(table.T)
        channels = _first_of(call, channels, table)
    return (*axes[:-3], channels, None, None)


def _first_of(call: Call, axis: Axis, table: Labels) -> Axis | None:
    if call.trace.choose(lambda: len(table) > 1):
        return Axis(table[:, 0], axis.zero)
    lone(call, axis)
    return None


@rule("pixel_unshuffle")
def pixel_unshuffle(call: Call) -> Axes:
    """(C, H r, W r) -> (C r r, H, W): the slices of a channel carry its label."""
    axes, factor = call.axes("self"), call["downscale_factor"] ** 2
    _pin_last(call, axes, 2)
    channels = axes[-3]
    return (*axes[:-3], channels and channels.take(np.repeat(np.arange(len(channels.labels)), factor)), None, None)


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


@rule("im2col")
def im2col(call: Call) -> Axes:
    """(N, C, H, W) -> (N, C k k, L): the window positions of a channel follow each other."""
    axes = call.axes("self")
    _pin_last(call, axes, 2)
    window = math.prod(call["kernel_size"])
    channels = axes[-3]
    return (*axes[:-3], channels and channels.take(np.repeat(np.arange(len(channels.labels)), window)), None)


@rule("col2im")
def col2im(call: Call) -> Axes:
    """(N, C k k, L) -> (N, C, H, W): the windows of a channel are summed into it."""
    axes, window = call.axes("self"), math.prod(call["kernel_size"])
    _pin_last(call, axes, 1)
    channels = axes[-2]
    if channels is not None:
        table = channels.labels.reshape(-1, window)
        call.trace.couple(table.T)
        channels = _first_of(call, channels, table)
    return (*axes[:-2], channels, None, None)


def _pin_last(call: Call, axes: Axes, count: int) -> None:
    for axis in axes[len(axes) - count :]:
        call.trace.pin(axis, f"{call.name.split('.')[1]} works along it as a picture's side")


@rule(
    "reflection_pad1d",
    "replication_pad1d",
    "reflection_pad2d",
    "replication_pad2d",
    "reflection_pad3d",
    "replication_pad3d",
    "upsample_nearest1d",
    "upsample_linear1d",
    "upsample_nearest2d",
    "upsample_bilinear2d",
    "upsample_bicubic2d",
    "upsample_nearest3d",
    "upsample_trilinear3d",
    "_upsample_nearest_exact1d",
    "_upsample_nearest_exact2d",
    "_upsample_nearest_exact3d",
    "_upsample_bilinear2d_aa",
    "_upsample_bicubic2d_aa",
    "avg_pool1d",
    "avg_pool2d",
    "avg_pool3d",
    "max_pool2d_with_indices",
    "max_pool3d_with_indices",
    "_adaptive_avg_pool2d",
    "_adaptive_avg_pool3d",
    "adaptive_avg_pool1d",
    "adaptive_avg_pool2d",
    "adaptive_avg_pool3d",
    "adaptive_max_pool2d",
    "adaptive_max_pool3d",
    "fractional_max_pool2d",
    "fractional_max_pool3d",
    "max_unpool2d",
    "max_unpool3d",
)
def picture(call: Call) -> list[Axes]:
    """Pooling, resizing and padding of pictures: channels pass one by one, the sides must stay."""
    tensor = call["self"]
    axes, sides = call.trace.axes(tensor), int(next(letter for letter in call.name if letter in "123"))
    for axis in axes[len(axes) - sides :]:
        call.trace.pin(axis, "is a side of a picture")
    passed = axes[: len(axes) - sides] + (None,) * sides
    if call.has("indices") and isinstance(call["indices"], Tensor):
        for one, other in zip(passed, call.axes("indices"), strict=True):
            if one is not None or other is not None:
                call.trace.tie(one, other)
    return [passed for _ in call.outs]
