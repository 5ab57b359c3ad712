import torch
from torch import Tensor

from pruning import Batches, NodeCriterion, PrunableState


class StructuredRandom(NodeCriterion):
    """Random nodes, the same share of every layer: the baseline that every method must beat (arXiv:2006.00896).

    Args:
        seed: of the draw (the run's own seed).
    """

    ranking = "local"
    needs_data = False

    def __init__(self, *, seed: int = 333) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def node_scores(self, network: PrunableState, batches: Batches) -> Tensor:
        return torch.rand(len(network.graph.nodes), generator=self.generator, dtype=torch.float64)
