"""Rules for normalisations."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from pruning.trace.call import Call
from pruning.trace.labels import NORM, Axes, Axis, kept
from pruning.trace.rules.table import rule

# -- normalisations ----------------------------------------------------------------------------------------------------


@rule(
    "native_batch_norm cudnn_batch_norm miopen_batch_norm _native_batch_norm_legit "
    "_native_batch_norm_legit_no_training _native_batch_norm_legit_functional _batch_norm_with_update "
    "_batch_norm_no_update"
)
def batch_norm(call: Call) -> list[Axes]:
    """Every channel by itself; its own affine values and statistics go with it."""
    axes = _normalised(call, 1, "weight", "bias", "running_mean", "running_var")
    if call["training"] if call.has("training") else "with_update" in call.name:
        _changes(call, axes[:1] + axes[2:], "normalised over a dimension that shrinks")
    return [tuple(axes)]


def _changes(call: Call, axes: Sequence[Axis | None], why: str) -> None:
    for axis in axes:
        call.trace.lose(axis, why)


def _normalised(call: Call, first: int, *names: str) -> list[Axis | None]:
    """Ties a norm's own values to the dimensions from `first` on, which they stand for.

    There, weight and bias vanish with a removed index; along all others the bias turns zeros into something else.
    """
    axes = [kept(axis, False) for axis in call.axes("input")]
    affine = isinstance(call["weight"], Tensor) and (not call.has("bias") or isinstance(call["bias"], Tensor))
    for name in names:
        for dim, own in enumerate(call.axes(name), first):
            call.trace.tie(axes[dim], own)
            call.trace.mark(own, NORM)
            axes[dim] = kept(axes[dim], affine)
    return axes


@rule("native_layer_norm")
def layer_norm(call: Call) -> list[Axes]:
    """A statistic over channels: what is left changes a little when some go."""
    first = len(call.axes("input")) - len(call["normalized_shape"])
    axes = _normalised(call, first, "weight", "bias")
    _changes(call, axes[first:], "normalised over a dimension that shrinks")
    return [tuple(axes)]


@rule("native_group_norm")
def group_norm(call: Call) -> list[Axes]:
    """Groups lose equally many channels; where each channel is a group of its own, it goes by itself."""
    axes = _normalised(call, 1, "weight", "bias")
    groups, channels = call["group" if call.has("group") else "num_groups"], axes[1]
    if channels is not None and len(channels.labels) > groups:
        call.trace.couple(channels.labels.reshape(groups, -1))
        call.trace.lose(channels, "normalised over a group of channels that shrinks")
    _changes(call, axes[2:], "normalised over a dimension that shrinks")
    return [tuple(axes)]


@rule("_weight_norm_interface")
def weight_norm(call: Call) -> list[Axes]:
    """v * g / |v| per slice of one dimension; zeros do not change the length of v."""
    axes, lengths = call.axes("v"), call.axes("g")
    for axis, length in zip(axes, lengths, strict=True):
        if length is not None:
            call.trace.tie(axis, length)
    return [axes]
