"""Espalier's engine: scores, masks, structure and shrinkage. Usable alone, on any network."""

from pruning import schedule, select
from pruning.criterion import Criterion, WeightCriterion
from pruning.errors import UsageError
from pruning.masks import WeightMasks
from pruning.network import PrunableNetwork, PruneReport, Step
from pruning.select import Budget

__all__ = [
    "Budget",
    "Criterion",
    "PrunableNetwork",
    "PruneReport",
    "Step",
    "UsageError",
    "WeightCriterion",
    "WeightMasks",
    "schedule",
    "select",
]
