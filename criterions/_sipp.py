"""What SiPP and its variants share: sensitivities of weights, drawing those that stay, and what is promised of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.modules.conv import _ConvTransposeNd

from criterions._guarantee import Guaranteed, largest_epsilon, log_term
from criterions._points import entries_of_channel, kernel_of, outputs_of_layers, rows_of
from criterions._sampling import K, Parts, draw
from pruning import Batches, Budget, PrunableState, select
from pruning.scores import weight_sensitivities

# (sizes, their parts, how many stay) -> probability of each to stay, and what it is multiplied by if it does
Chances = Callable[[Tensor, Parts, int], tuple[Tensor, Tensor]]

# Layer -> (part of each weight, what the papers multiply the sum of a part's sensitivities by), see `Parts`.
PartsOfLayers = Mapping[str, tuple[Tensor, float]]


class Sensitivities(Guaranteed):
    """Scores weights by SiPP's sensitivity, and tells after an event what is promised of each layer.

    Class attributes:
        over_positions: what becomes of the shares at the positions of an image; only the largest one comes with a
            promise.

    Args:
        points: samples of S; as many as the theory asks for at this delta if not given.
        delta: probability with which the theory's promise may fail, above 0 to below 1.
    """

    over_positions: ClassVar[Literal["mean", "max"]] = "mean"

    def __init__(self, *, points: int | None = None, delta: float = 1e-16) -> None:
        super().__init__(points, delta)
        # Both are of one event, and forgotten once it has been told of.
        self._scores: dict[str, Tensor] = {}
        self._factors: dict[str, Tensor] = {}  # what each weight is multiplied by if it stays

    def weight_scores(self, network: PrunableState, batches: Batches) -> dict[str, Tensor]:
        points = self.draw_points(network, batches)
        self._scores = weight_sensitivities(network, points.own, self.over_positions)
        return self._scores

    def new_values(self, network: PrunableState, batches: Batches) -> dict[str, Tensor]:
        values = reweighted(network, self._factors)
        if self._drawn is not None:
            kept, epsilons = {}, {}
            for name, weight in network.weights():
                dense = values.get(name, weight.detach())
                kept[name] = dense * network.masks.of(name, weight)
                epsilons[name] = self._epsilon(network, name)
            self.tell(network, kept, epsilons)
        self._scores, self._factors = {}, {}
        return values

    def _epsilon(self, network: PrunableState, name: str) -> float | None:
        weight = network.model.get_parameter(name)
        # A mean over the positions of a convolution bounds no single one of them.
        has_no_bound = self.over_positions == "mean" and bool(kernel_of(network, name))
        if has_no_bound or self._drawn is None:
            return None
        sizes = self._scores[name].cpu().double().flatten()
        factors = self._factors.get(name, torch.ones_like(sizes)).flatten()
        kept = network.masks.of(name, weight).cpu().flatten()
        logarithm = log_term(outputs_of_layers(network)[name], self._drawn.delta)
        return largest_epsilon(sizes, factors, kept, parts_of(network, name), logarithm)


def reweighted(network: PrunableState, factors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the weights times their factors, by name."""
    values = {}
    for name, factor in factors.items():
        weight = network.model.get_parameter(name)
        values[name] = weight.detach() * factor.to(weight)
    return values


def parts_of(network: PrunableState, name: str) -> Tensor:
    """Returns (entries,) the part of each weight: twice the number of its filter, and one more if it is negative."""
    weight = network.model.get_parameter(name)
    module = network.model.get_submodule(network.owners()[name])
    if isinstance(module, _ConvTransposeNd):
        # (channels, outputs of the channel's group, *kernel): filters of a group are numbered after the group before
        groups, width = module.groups, weight.shape[1]
        group_of_channel = torch.arange(weight.shape[0]) * groups // weight.shape[0]
        filters = (group_of_channel * width)[:, None] + torch.arange(width)
        kernel_dims = weight.dim() - filters.dim()
        filters = filters.view(*filters.shape, *[1] * kernel_dims)
    else:
        outputs = network.output_dims(name)
        shape = [size if dim in outputs else 1 for dim, size in enumerate(weight.shape)]
        filters = torch.arange(math.prod(shape)).view(shape)
    filters = filters.expand(weight.shape)
    negative = weight.detach().cpu() < 0
    return (2 * filters + negative).flatten()


def parts_of_layers(network: PrunableState, delta: float) -> dict[str, tuple[Tensor, float]]:
    """Returns the part of each weight and the scale 2 K ln(8 (P + 1) k / delta) of its sums, P positions, k entries."""
    outputs = outputs_of_layers(network)
    found = {}
    for name, _ in network.weights():
        positions = outputs[name] / rows_of(network, name)
        kernel = entries_of_channel(network, name)
        scale = 2 * K * math.log(8 * (positions + 1) * kernel / delta)
        found[name] = (parts_of(network, name), scale)
    return found


def draw_weights(
    scores: Mapping[str, Tensor], budget: Budget, layers: PartsOfLayers, chances: Chances, seed: int
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Draws as many weights as may stay.

    Args:
        scores: sensitivity of each weight.
        budget: how many may stay, and what is still there.
        layers: the part of each weight, and the scale of each layer's sums.
        chances: says with which probability each stays, and what it is multiplied by then.
        seed: of the draw.

    Returns:
        Keep-masks, and factors of the weights; no factors where the draw had nothing to decide.
    """
    nothing = {name: torch.zeros_like(mask) for name, mask in budget.alive.items()}
    # What the guards keep of every layer is no matter of chance.
    least = select.guarded(nothing, scores, budget)
    sizes = torch.cat([_sizes(scores[name], mask & ~least[name]) for name, mask in budget.alive.items()])
    places = budget.keep - sum(int(mask.count_nonzero()) for mask in least.values())
    if not 0 < places < int(sizes.count_nonzero()):  # what no output feels is ranked, never drawn
        return select.keep_top_global(scores, budget), {}
    parts = Parts.of([layers[name] for name in budget.alive])
    probabilities, factors = chances(sizes, parts, places)
    drawn = draw(probabilities, torch.Generator().manual_seed(seed))
    lengths = [mask.numel() for mask in least.values()]
    masks, factors_of_layers = {}, {}
    pieces = zip(least.items(), drawn.split(lengths), factors.split(lengths), strict=True)
    for (name, mask), chosen, factor in pieces:
        masks[name] = mask | chosen.view(mask.shape).to(mask.device)
        factors_of_layers[name] = factor.view(mask.shape)
    return masks, factors_of_layers


def renewed(factors: Mapping[str, Tensor], drawn: Iterable[str], new: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the factors of an event after some of its layers were drawn, perhaps anew.

    Args:
        factors: those before.
        drawn: names of the layers.
        new: their factors; none for a layer in which the draw had nothing to decide.
    """
    drawn = set(drawn)
    others = {name: factor for name, factor in factors.items() if name not in drawn}
    return others | dict(new)


def inverse(probabilities: Tensor) -> Tensor:
    """Returns what makes up for a draw: 1 / probability, 1 for what cannot be drawn."""
    return torch.where(probabilities > 0, 1 / probabilities, 1.0)


def _sizes(scores: Tensor, pool: Tensor) -> Tensor:
    """Returns a layer's scores, flat, at least 0, and 0 for what is not drawn."""
    sizes = scores.detach().cpu().double()
    # Under an inverted ranking the least sensitive are the most likely to stay.
    lowest = min(0.0, float(sizes.min()))
    return (sizes - lowest).masked_fill(~pool.cpu(), 0).flatten()
