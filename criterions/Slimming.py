from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from pruning import Batches, NodeCriterion, PrunableState, UsageError
from pruning.scores import norm_scales


class Slimming(NodeCriterion):
    """Absolute scale of the norm behind each node, |gamma|, that training shrank (Liu et al. 2017, arXiv:1708.06519).

    Scales are all alike at first: the loss SlimmingL1 tells them apart until the one event, which --prune_delay puts
    off; fine-tuning is without it. Where several norms follow a node, the largest counts. A node without a norm takes
    the median of those that have one. No data.
    """

    moment = "during"
    needs_data = False
    wants: ClassVar[Mapping[str, Any]] = {"loss": "SlimmingL1"}

    def node_scores(self, network: PrunableState, batches: Batches) -> Tensor:
        scales = {name: scale.detach().abs() for name, scale in norm_scales(network)}
        scores = network.graph.reduce_to_nodes(scales, role="all", reduce="max")
        ones = {name: torch.ones_like(scale) for name, scale in scales.items()}
        there = network.graph.reduce_to_nodes(ones, role="all") > 0
        if not scales or not there.any():
            raise UsageError(f"Slimming ranks norm scales, and {type(network.model).__name__} has none on its nodes.")
        return torch.where(there, scores, scores[there].median())
