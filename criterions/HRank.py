import math

import numpy as np
import torch
from torch import Tensor

from criterions._points import draw_points
from pruning import Batches, NodeCriterion, PrunableState
from pruning.scores import channels_read
from pruning.scores.activations import Layer, visit_layers


class HRank(NodeCriterion):
    """Rank of each filter's feature map, on average over images (Lin et al. 2020, arXiv:2002.10179).

    The map as the layers that read it get it; the largest counts where several do. A neuron's map is one number: its
    rank says on how many images it is not zero. The same share of every layer, of a limit that counts weights. Needs a
    trained network and data without labels.

    Args:
        points: images to average over.
    """

    ranking = "local"
    counts = "weights"

    def __init__(self, *, points: int = 100) -> None:
        if points < 1:
            raise ValueError(f"points must be at least 1; {points} was given")
        self.points = points

    def node_scores(self, network: PrunableState, batches: Batches) -> Tensor:
        totals: dict[str, Tensor] = {}
        readers = {name: channels_read(network, name) for name, _ in network.weights()}
        count = len(network.graph.nodes)

        def take(name: str, layer: Layer) -> None:
            dim, node_of_column = readers[name]
            columns = np.flatnonzero(node_of_column >= 0)
            if not len(columns) or not layer.reads(dim):
                return
            ranks = _ranks(layer, columns, node_of_column[columns], count)
            if name in totals:
                ranks = totals[name] + ranks
            totals[name] = ranks

        points = draw_points(network, batches, self.points, 0.1)
        visit_layers(network, points.own, take)
        # A node that nobody reads has no map.
        nothing = torch.zeros(count, dtype=torch.float64)
        largest = torch.stack([nothing, *totals.values()]).amax(0)
        return largest / points.number


def _ranks(layer: Layer, columns: np.ndarray, nodes: np.ndarray, count: int) -> Tensor:
    """Returns (nodes,) the sum over the images of the rank of each node's map."""
    found = torch.zeros(count, dtype=torch.float64)
    inputs = layer.signed_inputs()
    for node in np.unique(nodes):
        own_columns = torch.from_numpy(columns[nodes == node]).to(inputs.device)
        maps = inputs[:, own_columns]  # (B, channels, *positions)
        if maps.dim() == 2:
            # A flattened map, whose sides are not known any more.
            maps = maps.reshape(len(maps), _side_of(maps.shape[1]), -1)
        ranks = torch.linalg.matrix_rank(maps)
        found[int(node)] = float(ranks.double().sum())
    return found


def _side_of(width: int) -> int:
    """Returns the largest divisor up to the square root."""
    for side in range(math.isqrt(width), 1, -1):
        if width % side == 0:
            return side
    return 1
