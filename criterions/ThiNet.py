import numpy as np
import torch
from torch import Tensor

from criterions._points import draw_points
from pruning import Batches, NodeCriterion, PrunableState
from pruning.scores import channels_read
from pruning.scores.activations import Layer, visit_layers


class ThiNet(NodeCriterion):
    """Filters whose sum is least missed by the layer that reads them, picked greedily (Luo et al., arXiv:1707.06342).

    What goes next is the filter that keeps sum over samples of (sum over the removed of their part in an output)^2
    smallest; samples are output values of the layers that read the group. The same share of every layer, of a limit
    that counts weights. Needs a trained network and data without labels.

    Args:
        points: images that samples are drawn from.
        per_point: output values drawn of each image.
        seed: of the draw (the run's own seed).
    """

    ranking = "local"
    counts = "weights"

    def __init__(self, *, points: int = 100, per_point: int = 10, seed: int = 333) -> None:
        if min(points, per_point) < 1:
            raise ValueError(f"points and per_point must be at least 1; {points} and {per_point} were given")
        self.points, self.per_point, self.seed = points, per_point, seed

    def node_scores(self, network: PrunableState, batches: Batches) -> Tensor:
        scores = torch.zeros(len(network.graph.nodes), dtype=torch.float64)
        for group, products in zip(network.graph.groups, self.products(network, batches), strict=True):
            order = removal_order(products)
            scores[torch.from_numpy(group.nodes)[order]] = torch.arange(len(order), dtype=torch.float64)
        return scores

    def products(self, network: PrunableState, batches: Batches) -> list[Tensor]:
        """Returns X^T X per group, X being (samples, nodes) the part of each node in the sampled output values."""
        generator = torch.Generator().manual_seed(self.seed)
        groups = [group.nodes for group in network.graph.groups]
        readers = {name: channels_read(network, name) for name, _ in network.weights()}
        found = [torch.zeros(len(nodes), len(nodes), dtype=torch.float64) for nodes in groups]

        def take(name: str, layer: Layer) -> None:
            dim, node_of_column = readers[name]
            read = [place for place, nodes in enumerate(groups) if np.isin(nodes, node_of_column).any()]
            if not read or not layer.reads(dim):
                return
            parts = torch.cat([self._parts(layer, entries, generator).cpu() for entries in layer.signed_entries()])
            for place in read:
                columns = np.flatnonzero(np.isin(node_of_column, groups[place]))
                nodes = np.searchsorted(groups[place], node_of_column[columns])
                by_column = parts[:, torch.from_numpy(columns)].double()
                # A node may have several columns, after a flatten.
                by_node = by_column.new_zeros(len(by_column), len(groups[place]))
                by_node.index_add_(1, torch.from_numpy(nodes), by_column)
                found[place] += by_node.t() @ by_node

        points = draw_points(network, batches, self.points, 0.1)
        visit_layers(network, points.own, take)
        return found

    def _parts(self, layer: Layer, entries: Tensor, generator: torch.Generator) -> Tensor:
        """Returns (samples, columns) what each column that is read contributes to output values drawn at random."""
        groups, width, _, positions = entries.shape
        if layer.how:
            weight = layer.by_group(layer.weight).flatten(3)  # (groups, outputs, channels, kernel)
            draws = self.per_point
        else:
            weight = layer.weight[None, :, :, None]
            draws = self.per_point * positions  # of a linear layer a position is a point

        def among(size: int) -> Tensor:
            return torch.randint(size, (draws,), generator=generator).to(entries.device)

        group = among(groups)
        output = among(weight.shape[1])
        position = among(positions)
        parts = (weight[group, output] * entries[group, :, :, position]).sum(2)  # (samples, channels / groups)
        if layer.how and groups > 1 and layer.transposed:
            whole = parts.new_zeros(draws, groups, width)
            whole[torch.arange(draws, device=parts.device), group] = parts
            return whole.flatten(1)
        return parts


def removal_order(products: Tensor) -> Tensor:
    """Returns the order in which columns of X go, from X^T X: each time that which leaves ||sum of the gone|| smallest.

    Ties go in order of position.
    """
    left, order = list(range(len(products))), []
    with_gone = torch.zeros_like(products[0]) if len(products) else products
    while left:
        # ||gone + x||^2 differs from one candidate to the next by x^2 + 2 gone x.
        worth = products.diagonal()[left] + 2 * with_gone[left]
        order.append(left.pop(int(worth.argmin())))
        with_gone = with_gone + products[order[-1]]
    return torch.tensor(order)
