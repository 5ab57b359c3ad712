"""Rules for pictures: pixel and channel shuffles, windows, pooling, resizing, padding of the sides."""

from __future__ import annotations

import math

from torch import Tensor

from pruning.trace.call import Call
from pruning.trace.labels import Axes, Axis
from pruning.trace.rules.table import rule


def _sides_pinned(call: Call, count: int) -> Axes:
    """Returns the axes before a picture's sides, the last `count` dimensions, which must stay."""
    axes = call.axes("self")
    first = len(axes) - count
    for axis in axes[first:]:
        call.trace.pin(axis, "is a side of a picture")
    return axes[:first]


# -- between channels and places ---------------------------------------------------------------------------------------


@rule("pixel_shuffle col2im")
def gathered(call: Call) -> Axes:
    """(C k k, ...) -> (C, H, W): all k k slices of a channel couple. For super-resolution (ESPCN) and `F.fold`."""
    trace = call.trace
    sides = 2 if call.name == "aten.pixel_shuffle" else 1  # col2im gets places in one row
    *lead, channels = _sides_pinned(call, sides)
    if channels is not None:
        table = channels.labels.reshape(-1, _window(call))  # (C, k k)
        trace.couple(table.T)
        if trace.choose(lambda: len(table) > 1):
            channels = Axis(table[:, 0], channels.zero)
        else:
            trace.pin(channels, "a single position of it is picked")
            channels = None
    return (*lead, channels, None, None)


@rule("pixel_unshuffle im2col")
def spread(call: Call) -> Axes:
    """(C, H, W) -> (C k k, ...): the slices of a channel, or the places of its window, carry its label.

    For restoration networks, which make sides smaller so, and `F.unfold`.
    """
    *lead, channels = _sides_pinned(call, 2)
    if channels is not None:
        channels = channels.repeated(_window(call))
    sides = call.outs[0].dim() - len(lead) - 1
    return (*lead, channels, *(None,) * sides)


def _window(call: Call) -> int:
    """Returns how many places one channel has in a window, k k."""
    if call.has("kernel_size"):
        return math.prod(call["kernel_size"])
    if call.has("upscale_factor"):
        return call["upscale_factor"] ** 2
    return call["downscale_factor"] ** 2


@rule("channel_shuffle")
def channel_shuffle(call: Call) -> Axes:
    """Groups interleave, so each must lose equally many channels. For ShuffleNet where it calls torch's own."""
    batch, channels, *sides = call.axes("self")
    if channels is not None:
        table = channels.labels.reshape(call["groups"], -1)
        call.trace.couple(table)
        channels = Axis(table.T.reshape(-1), channels.zero)
    return (batch, channels, *sides)


# -- pooling, resizing, padding ----------------------------------------------------------------------------------------


@rule(
    "reflection_pad1d replication_pad1d reflection_pad2d replication_pad2d reflection_pad3d replication_pad3d "
    "upsample_nearest1d upsample_linear1d upsample_nearest2d upsample_bilinear2d upsample_bicubic2d upsample_nearest3d "
    "upsample_trilinear3d _upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d "
    "_upsample_bilinear2d_aa _upsample_bicubic2d_aa avg_pool2d avg_pool3d max_pool2d_with_indices "
    "max_pool3d_with_indices _adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_max_pool2d adaptive_max_pool3d "
    "fractional_max_pool2d fractional_max_pool3d max_unpool2d max_unpool3d"
)
def picture(call: Call) -> list[Axes]:
    """Channels pass one by one, the sides must stay. For every convolutional network that pools, U-Nets, SegNet."""
    sides = next(int(letter) for letter in call.name if letter in "123")  # upsample_nearest2d has two
    passed = _sides_pinned(call, sides) + (None,) * sides
    indices = call.get("indices")
    if isinstance(indices, Tensor):  # max_unpool puts values back where max_pool took them from
        for own, of_indices in zip(passed, call.axes("indices"), strict=True):
            call.trace.tie(own, of_indices)
    return [passed for _ in call.outs]
