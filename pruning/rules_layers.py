"""Rules for what computes across channels: products, convolutions, normalisations, embeddings, attention."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from pruning.labels import CONSUMER, NORM, PRODUCER, Axes, Axis, Call
from pruning.rules import RULES, kept, rule

# -- matrix products ---------------------------------------------------------------------------------------------------


def contract(call: Call, one: Axis | None, other: Axis | None) -> None:
    """A sum of products over two axes: a removed index leaves it as it was if either factor vanishes there."""
    call.trace.tie(one, other, "is multiplied with a dimension of fixed size")
    for axis in (one, other):
        call.trace.consume(axis)
        if axis is not None:
            call.trace.entry.summed.append(axis.labels)
    if one is not None and other is not None and not (one.zero or other.zero):
        call.trace.lose(one, "a sum of products over a dimension that shrinks, of values that do not vanish")


def product(call: Call, left: Tensor, right: Tensor) -> Axes:
    """(..., n, k) @ (..., k, m): k couples, n and m are handed on, leading dimensions couple."""
    trace, one, other = call.trace, call.trace.axes(left), call.trace.axes(right)
    contract(call, one[-1], other[-2])
    if trace.is_weight(left):
        trace.mark(one[-2], PRODUCER)
        trace.mark(one[-1], CONSUMER)
    if trace.is_weight(right):
        trace.mark(other[-2], CONSUMER)
        trace.mark(other[-1], PRODUCER)
    return (*(_shared(call, a, b) for a, b in zip(one[:-2], other[:-2], strict=True)), one[-2], other[-1])


def _shared(call: Call, one: Axis | None, other: Axis | None) -> Axis | None:
    call.trace.tie(one, other)
    return None if one is None or other is None else kept(one, one.zero or other.zero)


def add_bias(call: Call, axes: Axes, bias: Tensor) -> Axes:
    """Adds a tensor that is broadcast from the right."""
    own = call.trace.axes(bias)
    result = list(axes)
    for place in range(1, len(axes) + 1):
        axis, added = axes[-place], own[-place] if place <= len(own) else None
        there = place <= len(own) and bias.shape[-place] == call.outs[0].shape[-place]
        if there:
            call.trace.tie(axis, added)
        if call.trace.is_weight(bias):
            call.trace.mark(added, PRODUCER)
        result[-place] = axis and kept(axis, axis.zero and there and added is not None and added.zero)
    return tuple(result)


@rule("mm bmm dot vdot mv")
def matmul(call: Call) -> Axes:
    """Products of matrices and vectors."""
    left, right = (tensor for tensor in call.tensors()[:2])
    if min(left.dim(), right.dim()) >= 2:
        return product(call, left, right)
    one, other = call.trace.axes(left), call.trace.axes(right)
    contract(call, one[-1], other[-1] if right.dim() == 1 else other[-2])
    if call.trace.is_weight(left) and left.dim() > 1:
        call.trace.mark(one[-2], PRODUCER)
        call.trace.mark(one[-1], CONSUMER)
    return one[:-1] + (() if right.dim() == 1 else (*other[:-2], other[-1]))


@rule("addmm baddbmm addmv addbmm")
def addmm(call: Call) -> Axes:
    """A product and a bias."""
    _, left, right = call.tensors()[:3]
    if right.dim() == 1:
        one, other = call.trace.axes(left), call.trace.axes(right)
        contract(call, one[-1], other[0])
        return add_bias(call, one[:-1], call["self"])
    result = product(call, left, right)
    return add_bias(call, result if len(result) == call.outs[0].dim() else result[1:], call["self"])


@rule("_cdist_forward _euclidean_dist")
def distances(call: Call) -> Axes:
    """Lengths of differences: a removed index leaves them as they were if both vectors vanish there."""
    trace, one, other = call.trace, call.axes("x1"), call.axes("x2")
    trace.tie(one[-1], other[-1])
    trace.consume(one[-1])
    if one[-1] is not None and not (one[-1].zero and other[-1] is not None and other[-1].zero):
        trace.lose(one[-1], "a distance along a dimension that shrinks")
    lead = (_shared(call, a, b) for a, b in zip(one[:-2], other[:-2], strict=True))
    return tuple(axis and kept(axis, False) for axis in (*lead, one[-2], other[-2]))


@rule("_trilinear")
def trilinear(call: Call) -> Axes:
    """The sum that nn.Bilinear is made of: operands aligned by inserted dimensions, multiplied, summed."""
    rank = call["i1"].dim() + len(call["expand1"])
    rows = [_with_gaps(call.axes(f"i{number}"), call[f"expand{number}"], rank) for number in (1, 2, 3)]
    result: list[Axis | None] = []
    for dim in range(rank):
        axes = [row[dim] for number, row in enumerate(rows, 1) if dim not in call[f"expand{number}"]]
        first = next((axis for axis in axes if axis is not None), None)
        for axis in axes if first is not None else ():
            call.trace.tie(first, axis)
        if dim in call["sumdim"]:
            call.trace.consume(first)
            call.trace.mark(rows[1][dim], CONSUMER)
        else:
            call.trace.mark(rows[1][dim], PRODUCER)
            result.append(first)
    return tuple(result)


def _with_gaps(axes: Axes, gaps: list[int], rank: int) -> Axes:
    left = iter(axes)
    return tuple(None if dim in gaps else next(left) for dim in range(rank))


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


# -- look-ups ----------------------------------------------------------------------------------------------------------


@rule("embedding _embedding_bag _embedding_bag_forward_only")
def embedding(call: Call) -> list[Axes]:
    """Rows are chosen by the input, so they stay; columns are channels."""
    rows, columns = call.axes("weight")
    call.trace.pin(rows, "is looked up by the input")
    for axis in call.axes("indices"):
        call.trace.pin(axis, "is used to look up")
    if call.trace.is_weight(call["weight"]):
        call.trace.mark(columns, PRODUCER)
    if call["weight"].shape[1] == 1:
        columns = None
    return [(None,) * (call.outs[0].dim() - 1) + (columns,)]


# -- attention in one piece --------------------------------------------------------------------------------------------


@rule(
    "_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_flash_attention "
    "_scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention "
    "_scaled_dot_product_fused_attention_overrideable"
)
def attention(call: Call) -> list[Axes]:
    """Queries meet keys along the head width, weights meet values along the tokens."""
    query, key, value = (call.axes(name) for name in ("query", "key", "value"))
    contract(call, query[-1], key[-1])
    # One over the root of the head width, if none is given: a number that the rehearsal will see change.
    call.trace.entry.numbers += (call["query"].shape[-1] ** -0.5 if call["scale"] is None else call["scale"],)
    for axis in (key[-2], value[-2]):
        call.trace.pin(axis, "is a row of tokens")
    lead = tuple(
        _shared(call, a, _shared(call, b, c)) for a, b, c in zip(query[:-2], key[:-2], value[:-2], strict=True)
    )
    return [(*lead, query[-2], value[-1])]
