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
        readers = {name: channels_read(network, name)[1] for name, _ in network.weights()}
        count = len(network.graph.nodes)

        def take(name: str, layer: Layer) -> None:
            columns = np.flatnonzero(readers[name] >= 0)
            if len(columns):
                ranks = _ranks(layer, columns, readers[name][columns], count)
                totals[name] = totals.get(name, 0) + ranks

        points = draw_points(network, batches, self.points, 0.1)
        visit_layers(network, points.own, take)
        largest = torch.stack([torch.zeros(count, dtype=torch.float64), *totals.values()]).amax(0)
        return largest / points.number


def _ranks(layer: Layer, columns: np.ndarray, nodes: np.ndarray, count: int) -> Tensor:
    """Returns (nodes,) the sum over the images of the rank of each node's map."""
    found, inputs = torch.zeros(count, dtype=torch.float64), layer.signed_inputs()
    for node in np.unique(nodes):
        maps = inputs[:, torch.from_numpy(columns[nodes == node]).to(inputs.device)]  # (B, channels, *positions)
        if maps.dim() == 2:  # a flattened map: its side is the largest divisor up to the square root
            width = maps.shape[1]
            side = next(s for s in range(math.isqrt(width), 0, -1) if width % s == 0)
            maps = maps.reshape(len(maps), side, -1)
        found[int(node)] = float(torch.linalg.matrix_rank(maps).double().sum())
    return found
