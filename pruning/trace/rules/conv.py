"""Rules for convolutions."""

from __future__ import annotations

from torch import Tensor

from pruning.trace.call import Call
from pruning.trace.labels import CONSUMER, PRODUCER, Axes, Axis, with_zero
from pruning.trace.rules.matmul import contract
from pruning.trace.rules.table import RULES, rule


@rule(
    "convolution _convolution convolution_overrideable cudnn_convolution mkldnn_convolution _slow_conv2d_forward "
    "_conv_depthwise2d"
)
def convolution(call: Call) -> Axes:
    """Input channels meet dimension 1 of the weight, dimension 0 is handed on; transposed ones the other way round."""
    trace = call.trace
    x = call.axes("input") if call.has("input") else call.axes("self")  # (batch, channels, *sides)
    weight = call.axes("weight")  # (out, in / groups, *sides), transposed (in, out / groups, *sides)
    groups = call.get("groups", 1)
    transposed = call.get("transposed", False)

    sides = [_side(call, x[dim], dim, transposed) for dim in range(2, len(x))]
    producer, consumer = weight[0], weight[1]
    if transposed:
        producer, consumer = consumer, producer

    if groups == 1:
        contract(call, x[1], consumer)
        channels = producer
    elif transposed:
        channels = _grouped_transposed(call, x[1], weight, groups)
    else:
        channels = _grouped(call, x[1], weight, groups)

    if trace.is_weight(call["weight"]):
        trace.mark(producer, PRODUCER)
        trace.mark(consumer, CONSUMER)
        if transposed and weight[1] is None:  # a depthwise one: its only slices are those along dimension 0
            trace.mark(weight[0], PRODUCER)
    axes: Axes = (x[0], channels, *sides)
    bias = call.get("bias")
    return axes if bias is None else _channel_bias(call, axes, bias)


def _channel_bias(call: Call, axes: Axes, bias: Tensor) -> Axes:
    """Adds one number per channel, so that zeros stay only where that number goes as well."""
    channels = axes[1]
    (added,) = call.trace.axes(bias)
    call.trace.tie(channels, added)
    call.trace.mark(added, PRODUCER)
    result = [with_zero(axis, False) for axis in axes]
    if channels is not None and added is not None:
        result[1] = with_zero(channels, channels.zero and added.zero)
    return tuple(result)


def _side(call: Call, axis: Axis | None, dim: int, transposed: bool) -> Axis | None:
    """Returns the axis of a picture's side; most stay, for a kernel's neighbours are neighbours in the picture."""
    trace = call.trace
    if not transposed and call.has("stride"):
        steps, margins = call["stride"], call["padding"]  # one number may stand for all sides
        step = steps[(dim - 2) % len(steps)]
        margin = margins[(dim - 2) % len(margins)]
        kernel = call["weight"].shape
        # A kernel of one place looks at each position alone (as MLP-Mixer mixes tokens).
        if step == 1 and kernel[dim] == 1 and margin == 0:
            return axis
        # Channels laid out as one long picture, which look at their neighbours (ECA, arXiv:1910.03151).
        one_kernel = kernel[:2] == (1, 1)
        if step == 1 and one_kernel and _keeps_sides(call):
            trace.lose(axis, "a convolution along a dimension that shrinks")
            return with_zero(axis, False)
    trace.pin(axis, "is a side of a picture or a kernel")
    trace.pin(call.axes("weight")[dim], "is a side of a picture or a kernel")
    return None


def _keeps_sides(call: Call) -> bool:
    return call.outs[0].shape[2:] == call["input"].shape[2:]


def _grouped(call: Call, enters: Axis | None, weight: Axes, groups: int) -> Axis | None:
    """Every group loses equally many; a depthwise convolution ties its input to its output and loses groups.

    Depthwise ones are in MobileNet, EfficientNet and ConvNeXt, the others in ResNeXt and RegNet.
    """
    trace = call.trace
    rows, columns = weight[:2]  # (out, in / groups)
    trace.consume(enters)
    depthwise = trace.choose(lambda: call["weight"].shape[1] == 1)
    if depthwise and enters is not None and rows is not None:
        per_group = len(rows.labels) // groups
        trace.tie(enters.repeated(per_group), rows)  # each channel makes so many rows
        return rows
    if depthwise:
        trace.pin(rows, "is convolved depthwise with channels of fixed number")

    if enters is None:
        trace.pin(columns, "meets a dimension of fixed size")
    else:
        per_group = len(enters.labels) // groups
        trace.couple(enters.labels.reshape(groups, per_group))
        trace.tie(enters.take(slice(0, per_group)), columns)
    if rows is not None:
        trace.couple(rows.labels.reshape(groups, -1))  # the first of every group goes with the first of all others
    return rows


def _grouped_transposed(call: Call, enters: Axis | None, weight: Axes, groups: int) -> Axis | None:
    """The output repeats dimension 1 of the weight for every group."""
    trace = call.trace
    rows, columns = weight[:2]  # (in, out / groups)
    contract(call, enters, rows)
    depthwise = trace.choose(lambda: call["weight"].shape[0] == groups)
    if depthwise and rows is not None:
        trace.pin(columns, "belongs to every group of a transposed convolution")
        per_group = call["weight"].shape[1]
        return rows.repeated(per_group)
    if rows is not None:
        trace.couple(rows.labels.reshape(groups, -1))
    return None if columns is None else columns.tiled(groups)


def deformable(call: Call) -> Axes:
    """A convolution whose kernel looks where offsets say (Dai et al. 2017, arXiv:1703.06211); those are places."""
    for axis in (*call.axes("offset"), *call.axes("mask")):
        call.trace.pin(axis, "says where a kernel looks")
    channels = call.axes("input")[1]
    if channels is not None and call["offset_groups"] > 1:
        call.trace.couple(channels.labels.reshape(call["offset_groups"], -1))
    return convolution(call)


RULES["torchvision.deform_conv2d"] = deformable
