"""The rule for attention in one piece."""

from __future__ import annotations

from functools import partial

from pruning.trace.call import Call
from pruning.trace.labels import Axes
from pruning.trace.rules.matmul import contract, couple_factors
from pruning.trace.rules.table import rule


@rule(
    "_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_flash_attention "
    "_scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention "
    "_scaled_dot_product_fused_attention_overrideable"
)
def attention(call: Call) -> list[Axes]:
    """Queries meet keys along the head width, weights meet values along the tokens.

    For networks that run on data: without data, attention arrives as the products that it is made of.
    """
    trace = call.trace
    # (batch, heads, tokens, head width) each
    query, key, value = call.axes("query"), call.axes("key"), call.axes("value")
    contract(call, query[-1], key[-1])
    scale = call["scale"]
    if scale is None:  # one over the root of the head width: a number that the dry run will see change
        scale = call["query"].shape[-1] ** -0.5
    trace.entry.numbers += (scale,)
    for axis in (key[-2], value[-2]):
        trace.pin(axis, "is a row of tokens")

    lead = []
    for dim in (0, 1):
        for axis in (query[dim], key[dim], value[dim]):
            trace.batched(axis)
        shared = couple_factors(call, key[dim], value[dim])
        times = trace.choose(partial(_queries_per_key, call, dim))
        if times > 1:  # each key-value head is for several queries that follow each other
            if call["key"].shape[dim] == 1:
                lead.append(query[dim])
                continue
            shared = None if shared is None else shared.repeated(times)
        lead.append(couple_factors(call, query[dim], shared))
    return [(*lead, query[-2], value[-1])]  # (batch, heads, tokens, head width of the values)


def _queries_per_key(call: Call, dim: int) -> int:
    times: int = call["query"].shape[dim] // call["key"].shape[dim]
    return times
