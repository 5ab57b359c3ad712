"""The rule for attention in one piece."""

from __future__ import annotations

from pruning.trace.call import Call
from pruning.trace.labels import Axes
from pruning.trace.rules.matmul import _shared, contract
from pruning.trace.rules.table import rule

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
