from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from criterions._guarantee import CUT, Guaranteed, largest_epsilon, log_term
from criterions._points import outputs_of_layers
from pruning import Batches, CompressedNetwork, PrunableState, WeightCriterion
from pruning.scores import weight_sensitivities


class SiPP(Guaranteed, WeightCriterion):
    """Sensitivity: the largest share of a weight in its output over the points of S (Baykal et al., arXiv:1910.05422).

    max over S of the mean over positions of w a / (sum of the products of its sign), ranked over all layers. Needs a
    trained network and data without labels. Promises hold for linear layers; a mean over positions has none.

    Args:
        points: samples of S; as many as the theory asks for at this delta if not given.
        delta: probability with which the theory's promise may fail, above 0 to below 1.
    """

    over_positions: ClassVar[Literal["mean", "max"]] = "mean"
    theorem = CUT

    def __init__(self, *, points: int | None = None, delta: float = 1e-16) -> None:
        super().__init__(points, delta)
        self._scores: dict[str, Tensor] = {}
        self._factors: dict[str, Tensor] = {}

    def weight_scores(self, network: PrunableState, batches: Batches) -> dict[str, Tensor]:
        self._scores = weight_sensitivities(network, self.draw_points(network, batches).own, self.over_positions)
        return self._scores

    def new_values(self, network: PrunableState, batches: Batches) -> dict[str, Tensor]:
        weights, factors = dict(network.weights()), self._factors
        values = {name: weights[name].detach() * factor.to(weights[name]) for name, factor in factors.items()}
        if self._drawn is not None:
            kept = {name: values.get(name, w.detach()) * network.masks.of(name, w) for name, w in weights.items()}
            self.tell(network, kept, {name: self._epsilon(network, name) for name in kept})
        self._scores, self._factors = {}, {}  # good for one event
        return values

    def _epsilon(self, network: PrunableState, name: str) -> float | None:
        weight = network.model.get_parameter(name)
        if self.over_positions == "mean" and weight.dim() > 2 or self._drawn is None:
            return None
        sizes = self._scores[name].cpu().double().flatten()
        factors, kept = self._factors.get(name, torch.ones_like(sizes)), network.masks.of(name, weight).cpu()
        logarithm = log_term(outputs_of_layers(network)[name], self._drawn.delta)
        return largest_epsilon(sizes, factors.flatten(), kept.flatten(), parts_of(network, name), logarithm)


def parts_of(network: PrunableState, name: str) -> Tensor:
    """Returns (entries,) the part of each weight: twice the number of its filter, and one more if it is negative."""
    weight, module = network.model.get_parameter(name), network.model.get_submodule(network.owners()[name])
    rows = torch.arange(weight.shape[0])
    if getattr(module, "transposed", False):  # (channels, outputs of the channel's group, *kernel)
        groups, width = module.groups, weight.shape[1]
        rows = (rows * groups // weight.shape[0] * width)[:, None] + torch.arange(width)
    rows = rows.view(*rows.shape, *[1] * (weight.dim() - rows.dim())).expand(weight.shape)
    return (2 * rows + (weight.detach().cpu() < 0)).flatten()


def SiPPNet(model: nn.Module, loader: Batches, **options: Any) -> CompressedNetwork:
    """Returns a copy of a network that SiPP compresses, see `CompressedNetwork`; options are those of SiPP."""
    return CompressedNetwork(model, loader, SiPP(**options))
