"""What a criterion of ranks is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from pruning.cut.factorize import Factors, Layer, truncated
from pruning.errors import UsageError
from pruning.modules.calls import Batches
from pruning.prune.criterion import Criterion, Facts
from pruning.state import PrunableState


class LowRankCriterion(Criterion):
    """A criterion that puts two smaller layers in the place of one (`pruning.decompose`); its limit counts weights.

    Each layer takes the smallest rank whose error is at most a level that is the same for all of them, and the engine
    finds the level (`pruning.ranks`).

    Class attributes:
        lost: what its errors are, in a line for the report.
    """

    unit = "ranks"
    counts = "weights"
    lost: ClassVar[str] = ""
    chosen: Mapping[str, Mapping[str, Any]] = {}  # by layer, of the last event

    def rank_errors(
        self, network: PrunableState, layers: Mapping[str, Layer], batches: Batches
    ) -> dict[str, dict[int, Tensor]]:
        """Returns layer -> {subspaces: (ranks,) what is lost at rank 1, 2, ... of each of them}, alike for all layers.

        Args:
            network: as it is before the event.
            layers: module path -> the layer, as one dense layer if it was decomposed before.
            batches: (inputs, targets) pairs.
        """
        raise UsageError(f"{type(self).__name__} must define rank_errors(network, layers, batches)")

    def factors(self, path: str, layer: Layer, rank: int, subspaces: int) -> Factors:
        """Returns what takes a layer's place; by default the nearest factors of that rank, by singular values."""
        return truncated(layer, rank, subspaces)

    def facts(self) -> tuple[str, Facts]:
        parts = ("encoder", "decoder")
        return self.lost, {f"{path}.{part}.weight": facts for path, facts in self.chosen.items() for part in parts}
