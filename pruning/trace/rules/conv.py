"""Rules for convolutions."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from pruning.trace.call import Call
from pruning.trace.labels import CONSUMER, PRODUCER, Axes, Axis, kept
from pruning.trace.rules.matmul import contract
from pruning.trace.rules.table import RULES, rule

# -- convolutions ------------------------------------------------------------------------------------------------------


@rule(
    "convolution _convolution convolution_overrideable cudnn_convolution mkldnn_convolution _slow_conv2d_forward "
    "_conv_depthwise2d"
)
def convolution(call: Call) -> Axes:
    """Input channels meet dimension 1 of the weight, dimension 0 is handed on; transposed ones the other way round."""
    x, weight = call.axes("input" if call.has("input") else "self"), call.axes("weight")
    groups = call["groups"] if call.has("groups") else 1
    transposed = call.has("transposed") and call["transposed"]
    sides = tuple(_side(call, place, transposed) for place in range(2, len(x)))
    if groups == 1:
        enters, leaves = (weight[0], weight[1]) if transposed else (weight[1], weight[0])
        contract(call, x[1], enters)
        channels = leaves
    else:
        channels = (_grouped_transposed if transposed else _grouped)(call, x[1], weight, groups)
    if call.trace.is_weight(call["weight"]):
        call.trace.mark(weight[1 if transposed else 0], PRODUCER)
        call.trace.mark(weight[0 if transposed else 1], CONSUMER)
        if transposed and weight[1] is None:  # a depthwise one: its only slices are those along dimension 0
            call.trace.mark(weight[0], PRODUCER)
    axes: Axes = (x[0], channels, *sides)
    bias = call["bias"] if call.has("bias") else None
    return axes if bias is None else _channel_bias(call, axes, bias)


def _side(call: Call, place: int, transposed: bool) -> Axis | None:
    """A side passes where a kernel of one place looks at each of its positions alone (as MLP-Mixer mixes tokens)."""
    x, weight = call.axes("input" if call.has("input") else "self")[place], call.axes("weight")[place]
    if not transposed and call.has("stride"):
        steps, margins = call["stride"], call["padding"]  # one number may stand for all sides
        single = steps[(place - 2) % len(steps)] == 1
        if single and call["weight"].shape[place] == 1 and margins[(place - 2) % len(margins)] == 0:
            return x
        # Channels laid out as one long picture, which look at their neighbours (ECA, arXiv:1910.03151).
        if single and call["weight"].shape[:2] == (1, 1) and call.outs[0].shape[2:] == call["input"].shape[2:]:
            call.trace.lose(x, "a convolution along a dimension that shrinks")
            return x and kept(x, False)
    for axis in (x, weight):
        call.trace.pin(axis, "is a side of a picture or a kernel")
    return None


def deformable(call: Call) -> Axes:
    """A convolution whose kernel looks where offsets say (Dai et al. 2017, arXiv:1703.06211); those are places."""
    for axis in (*call.axes("offset"), *call.axes("mask")):
        call.trace.pin(axis, "says where a kernel looks")
    channels = call.axes("input")[1]
    if channels is not None and call["offset_groups"] > 1:
        call.trace.couple(channels.labels.reshape(call["offset_groups"], -1))
    return convolution(call)


RULES["torchvision.deform_conv2d"] = deformable


def _channel_bias(call: Call, axes: Axes, bias: Tensor) -> Axes:
    channels, added = axes[1], call.trace.axes(bias)[0]
    call.trace.tie(channels, added)
    call.trace.mark(added, PRODUCER)
    zero = channels is not None and channels.zero and added is not None and added.zero
    return (kept(axes[0], False), kept(channels, zero), *(kept(axis, False) for axis in axes[2:]))


def _grouped(call: Call, enters: Axis | None, weight: Axes, groups: int) -> Axis | None:
    """Every group loses equally many; a depthwise convolution ties its input to its output and loses groups."""
    trace, rows = call.trace, weight[0]
    trace.consume(enters)
    alone = trace.choose(lambda: call["weight"].shape[1] == 1)
    if alone and enters is not None and rows is not None:
        per_group = len(rows.labels) // groups
        trace.tie(enters.take(np.repeat(np.arange(groups), per_group)), rows)
        return rows
    if alone:
        trace.pin(rows, "is convolved depthwise with channels of fixed number")
    if enters is not None:
        trace.couple(enters.labels.reshape(groups, -1))
        trace.tie(enters.take(slice(0, len(enters.labels) // groups)), weight[1])
    else:
        trace.pin(weight[1], "meets a dimension of fixed size")
    if rows is not None:
        trace.couple(rows.labels.reshape(groups, -1))
    return rows


def _grouped_transposed(call: Call, enters: Axis | None, weight: Axes, groups: int) -> Axis | None:
    """Weight of (in, out / groups): the output repeats dimension 1 for every group."""
    trace, (rows, columns) = call.trace, weight[:2]
    contract(call, enters, rows)
    alone = trace.choose(lambda: call["weight"].shape[0] == groups)
    if alone and rows is not None:
        trace.pin(columns, "belongs to every group of a transposed convolution")
        return rows.take(np.repeat(np.arange(groups), call["weight"].shape[1]))
    if rows is not None:
        trace.couple(rows.labels.reshape(groups, -1))
    return columns and columns.take(np.tile(np.arange(len(columns.labels)), groups))
