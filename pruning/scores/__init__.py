"""Statistics that several criteria share: gradients, gates on nodes, activations, values per weight and node."""

from pruning.scores.activations import channel_sensitivities, visit_layers, weight_sensitivities
from pruning.scores.gradients import (
    accumulate_gradients,
    connection_sensitivities,
    hessian_gradient_products,
    on_device,
    pairs,
    require_node_signal,
    require_signal,
    scoring,
)
from pruning.scores.node_gates import elasticities, gate_gradients, node_gate_gradients, sum_over_producers
from pruning.scores.per_node import channels_read, norm_scales, over_group, weights_only
from pruning.scores.per_weight import magnitudes

__all__ = [
    "accumulate_gradients",
    "channel_sensitivities",
    "channels_read",
    "connection_sensitivities",
    "elasticities",
    "gate_gradients",
    "hessian_gradient_products",
    "magnitudes",
    "node_gate_gradients",
    "norm_scales",
    "on_device",
    "over_group",
    "pairs",
    "require_node_signal",
    "require_signal",
    "scoring",
    "sum_over_producers",
    "visit_layers",
    "weight_sensitivities",
    "weights_only",
]
