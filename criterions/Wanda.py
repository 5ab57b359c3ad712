from collections.abc import Mapping

import torch
from torch import Tensor

from pruning import Batches, Budget, PrunableState, WeightCriterion, select
from pruning.scores.activations import Layer, visit_layers


class Wanda(WeightCriterion):
    """Weight times the norm of its input, compared within each output (Sun et al. 2024, arXiv:2306.11695).

    |w_ij| ||a_j||_2, the norm over all points, and in a convolution over all positions that the kernel entry meets.
    Each output keeps the same share of its weights. Needs a trained network and data without labels.
    """

    def __init__(self) -> None:
        self._outputs: dict[str, tuple[int, ...]] = {}

    def weight_scores(self, network: PrunableState, batches: Batches) -> dict[str, Tensor]:
        squares = {}
        for name, weight in network.weights():
            squares[name] = torch.zeros_like(weight, dtype=torch.float32)
        self._outputs = {name: network.output_dims(name) for name in squares}

        def take(name: str, layer: Layer) -> None:
            layer.add_to(squares[name], layer.input_squares())

        network.unscored |= visit_layers(network, batches, take)
        scores = {}
        for name, weight in network.weights():
            scores[name] = weight.detach().abs() * squares[name].sqrt()
        return scores

    def select(self, scores: Mapping[str, Tensor], budget: Budget) -> dict[str, Tensor]:
        places = {}
        for name, score in scores.items():
            # What is gone takes the last places, so that outputs that lost much lose no more than others.
            left = score.masked_fill(~budget.alive[name], -torch.inf)
            places[name] = _places(left, self._outputs[name])
        return select.keep_top_global(places, budget)


def _places(scores: Tensor, outputs: tuple[int, ...]) -> Tensor:
    """Returns minus the place of each score among those of its output, as a share of their number.

    Ties go in order of position.
    """
    outputs_first = scores.movedim(outputs, tuple(range(len(outputs))))
    rows = outputs_first.flatten(len(outputs)).flatten(0, -2).double()  # (outputs, entries of each)
    order = rows.sort(dim=1, descending=True, stable=True).indices
    width = rows.shape[1]
    places = torch.arange(width, device=rows.device, dtype=torch.float64).expand_as(rows)
    place_of_score = torch.empty_like(rows).scatter_(1, order, places)
    shares = -(place_of_score / width).view(outputs_first.shape)
    return shares.movedim(tuple(range(len(outputs))), outputs)
