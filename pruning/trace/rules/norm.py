"""Rules for normalisations."""

from __future__ import annotations

from torch import Tensor

from pruning.trace.call import Call
from pruning.trace.labels import NORM, Axes, Axis, with_zero
from pruning.trace.rules.table import rule


def _normalised(call: Call, first: int, *names: str) -> list[Axis | None]:
    """Ties a norm's own values (arguments `names`) to the dimensions from `first` on, which they stand for.

    There, weight and bias vanish with a removed index; along all others the bias turns zeros into something else.
    """
    trace = call.trace
    axes = [with_zero(axis, False) for axis in call.axes("input")]
    # Without an affine part, (0 - mean) / spread is what becomes of a zero.
    has_weight = isinstance(call["weight"], Tensor)
    has_bias = isinstance(call["bias"], Tensor) if call.has("bias") else True
    vanishes = has_weight and has_bias
    for name in names:
        for dim, own in enumerate(call.axes(name), first):
            trace.tie(axes[dim], own)
            trace.mark(own, NORM)
            axes[dim] = with_zero(axes[dim], vanishes)
    return axes


@rule(
    "native_batch_norm cudnn_batch_norm miopen_batch_norm _native_batch_norm_legit "
    "_native_batch_norm_legit_no_training _native_batch_norm_legit_functional _batch_norm_with_update "
    "_batch_norm_no_update"
)
def batch_norm(call: Call) -> list[Axes]:
    """Every channel by itself; its own affine values and statistics go with it. For most convolutional networks."""
    axes = _normalised(call, 1, "weight", "bias", "running_mean", "running_var")
    # In training, mean and spread are of the batch; in evaluation they are numbers that a channel brings along.
    of_batch = call["training"] if call.has("training") else "with_update" in call.name
    if of_batch:
        for axis in (axes[0], *axes[2:]):
            call.trace.lose(axis, "normalised over a dimension that shrinks")
    return [tuple(axes)]


@rule("native_layer_norm")
def layer_norm(call: Call) -> list[Axes]:
    """A statistic over channels: what is left changes a little when some go. For transformers and ConvNeXt."""
    first = len(call.axes("input")) - len(call["normalized_shape"])  # the last dimensions are normalised together
    axes = _normalised(call, first, "weight", "bias")
    for axis in axes[first:]:
        call.trace.lose(axis, "normalised over a dimension that shrinks")
    return [tuple(axes)]


@rule("native_group_norm")
def group_norm(call: Call) -> list[Axes]:
    """Groups lose equally many channels; where each channel is a group of its own, it goes by itself.

    For diffusion U-Nets and detectors trained on few pictures at a time.
    """
    trace = call.trace
    axes = _normalised(call, 1, "weight", "bias")
    groups = call["group"] if call.has("group") else call["num_groups"]
    channels = axes[1]
    if channels is not None and len(channels.labels) > groups:
        trace.couple(channels.labels.reshape(groups, -1))
        trace.lose(channels, "normalised over a group of channels that shrinks")
    for axis in axes[2:]:
        trace.lose(axis, "normalised over a dimension that shrinks")
    return [tuple(axes)]


@rule("_weight_norm_interface")
def weight_norm(call: Call) -> list[Axes]:
    """v * g / |v| per slice of one dimension; zeros do not change the length of v. For `weight_norm` (WaveNet)."""
    axes, lengths = call.axes("v"), call.axes("g")
    for axis, length in zip(axes, lengths, strict=True):
        if length is not None:  # g has size 1 along all other dimensions
            call.trace.tie(axis, length)
    return [axes]
