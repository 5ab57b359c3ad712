"""What the theory promises of a layer after a cut, and what is measured on points that the scores never saw.

Assumption (SiPP, arXiv:1910.05422; PFP, arXiv:1911.07412): a fresh point's share of an entry is at most K times its
sensitivity, the largest share over S; it fails with probability delta if S has C ln(8 eta_max eta_sum / delta) points.

Sampling theorem: entries of a part (a filter's weights of one sign; a layer's channels) stay with probabilities
min(1, m s_j / S) and are divided by them. What one entry may add is then at most K S / m of the part, so by
Bernstein's inequality m = (K / 3) (6 + 2 epsilon) S ln(8 eta / delta) / epsilon^2 samples hold each of eta outputs,
for both signs of weights and of inputs, within (1 +- epsilon) with probability 1 - delta.

Cut theorem: what goes without a draw takes away at most K times the sum of its sensitivities, and never more than all.

Each layer for itself: given the inputs that it had before the cut.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from criterions._points import C, Points, draw_points
from criterions._sampling import SAFE, K
from pruning import Batches, PrunableState
from pruning.prune.criterion import Facts
from pruning.scores.activations import TINY, Layer, visit_layers

SAMPLED = "sampling theorem, m = (K/3) (6 + 2 epsilon) S ln(8 eta/delta) / epsilon^2 samples"
CUT = "cut theorem, epsilon = K times the sensitivities that go"


class Guaranteed:
    """Of a criterion that draws S, and says after an event what is promised of each layer and what is measured.

    Args:
        points: samples of S; None for as many as the theory asks for.
        delta: asked probability of failure.
    """

    wants: Mapping[str, Any] = {"hold_out": 0.1}
    theorem: str = ""

    def __init__(self, points: int | None, delta: float) -> None:
        if points is not None and points < 1:
            raise ValueError(f"points must be at least 1; {points} was given")
        if not 0 < delta < 1:
            raise ValueError(f"delta must lie in (0, 1); {delta} was given")
        self.points, self.delta = points, delta
        self._drawn: Points | None = None
        self._facts: tuple[str, Facts] = ("", {})

    def draw_points(self, network: PrunableState, batches: Batches) -> Points:
        """Returns S and fresh points, which are kept until the event has been told of."""
        self._drawn = draw_points(network, batches, self.points, self.delta)
        return self._drawn

    def facts(self) -> tuple[str, Facts]:
        told, self._facts = self._facts, ("", {})
        return told

    def tell(self, network: PrunableState, changed: Mapping[str, Tensor], epsilons: Mapping[str, float | None]) -> None:
        """Notes promises and measures errors, while the network still has the weights of before the event.

        Args:
            network: as it was before the cut.
            changed: the weights after it, zero where they are gone; of the same shapes.
            epsilons: what is promised of each of these layers, None for nothing.
        """
        points, self._drawn = self._drawn, None
        if points is None:
            return
        # A probability of failure of 1 promises nothing.
        if points.delta >= 1:
            epsilons = dict.fromkeys(changed)
        errors = measured_errors(network, changed, points.fresh)
        facts = {}
        for name in changed:
            facts[name] = {"epsilon": epsilons[name], "measured_error": errors.get(name)}
        promised = any(row["epsilon"] is not None for row in facts.values())
        self._facts = self._note(points, promised), facts

    def _note(self, points: Points, promised: bool) -> str:
        measured = ""
        if points.fresh:
            measured = f"Measured: the largest such error on {points.fresh_number} fresh points."
        if not promised:
            why = f"from an S of {points.number} points" if self.theorem else f"for {type(self).__name__}"
            return f"No guarantee {why}. {measured}".strip()
        promise = "each output's positive and negative part within 1 +- epsilon, given the layer's dense inputs"
        constants = f"K = {K:g}, C = {C:g}, S of {points.number} points, delta = {points.delta:.3g} per layer"
        return f"Promise: {promise} ({self.theorem}; {constants}). {measured}".strip()


def largest_epsilon(sizes: Tensor, factors: Tensor, kept: Tensor, parts: Tensor, log_term: float) -> float:
    """Returns the epsilon that holds for every part of a layer; infinite where a part was drawn without bounds.

    Args:
        sizes: (n,) sensitivities, float64.
        factors: (n,) what each entry is multiplied by if it stays: above 1 it was drawn with probability 1 / factor.
        kept: (n,) which stay.
        parts: (n,) number of the part of each entry.
        log_term: ln(8 eta / delta).
    """
    felt = sizes > 0  # no output feels the others
    sizes, factors, kept, parts = sizes[felt], factors[felt], kept[felt], parts[felt]
    count = int(parts.max()) + 1 if len(parts) else 1
    drawn = factors > 1 + 2 * SAFE
    cut = ~kept & ~drawn
    lost = sizes.new_zeros(count).index_add_(0, parts, sizes * cut)
    # S / m of a part is s / probability of any entry that was drawn in proportion to s.
    shares = (sizes * factors).masked_fill(~drawn, 0)
    largest = sizes.new_zeros(count).scatter_reduce_(0, parts, shares, "amax")
    ratio = K / 3 * log_term * largest
    by_draw = ratio + (ratio.square() + 6 * ratio).sqrt()  # the sampling theorem, solved for epsilon
    by_cut = (K * lost).clamp_max(1)
    return float((by_draw + by_cut).max())


def measured_errors(network: PrunableState, changed: Mapping[str, Tensor], fresh: Batches) -> dict[str, float]:
    """Returns the largest relative error of the parts of any output, per layer, on the dense network's activations.

    Args:
        network: as it was before the cut.
        changed: the weights after it, of the same shapes.
        fresh: batches of points; none leave nothing measured.
    """
    errors: dict[str, float] = {}

    def take(name: str, layer: Layer) -> None:
        if name not in changed:
            return
        for half, other in zip(layer.halves(), layer.halves(changed[name]), strict=True):
            before = layer.sums(half)
            difference = (layer.sums(other) - before).abs()
            # Where nothing was before, a relative error has no meaning.
            error = torch.where(before > TINY, difference / before, 0).max()
            errors[name] = max(errors.get(name, 0.0), float(error))

    if fresh:
        visit_layers(network, fresh, take)
    return errors


def log_term(outputs: float, delta: float) -> float:
    """Returns ln(8 eta / delta) of a layer with so many outputs per point."""
    return math.log(8 * outputs / delta)
