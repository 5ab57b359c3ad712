"""Statistics that several criteria share: gradients, gates on nodes, activations, values per node."""

from pruning.scores.activations import channel_sensitivities, visit_layers, weight_sensitivities
from pruning.scores.gradients import (
    accumulate_gradients,
    hessian_gradient_products,
    on_device,
    pairs,
    require_node_signal,
    require_signal,
    scoring,
)
from pruning.scores.node_gates import gate_gradients, node_gate_gradients, sum_over_producers
from pruning.scores.per_node import norm_scales, over_group, weights_only

__all__ = [
    "accumulate_gradients",
    "channel_sensitivities",
    "gate_gradients",
    "hessian_gradient_products",
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
