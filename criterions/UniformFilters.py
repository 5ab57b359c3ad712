import torch
from torch import Tensor

from pruning import Batches, NodeCriterion, PrunableState


class UniformFilters(NodeCriterion):
    """Random filters, the same share of every layer, with a limit that counts weights: what PFP must beat.

    StructuredRandom under the name of PFP's comparison (arXiv:1911.07412).

    Args:
        seed: of the draw (the run's own seed).
    """

    counts = "weights"
    ranking = "local"
    needs_data = False

    def __init__(self, *, seed: int = 333) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def node_scores(self, network: PrunableState, batches: Batches) -> Tensor:
        return torch.rand(len(network.graph.nodes), generator=self.generator, dtype=torch.float64)
