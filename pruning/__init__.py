"""Espalier's engine: scores, masks, structure and shrinkage. Usable alone, on any network."""

from pruning import schedule, select
from pruning.compressed import CompressedNetwork
from pruning.criterion import Criterion, JointCriterion, LowRankCriterion, NodeCriterion, WeightCriterion
from pruning.dead import ShrinkReport, shrink_dead
from pruning.decompose import LowRank
from pruning.errors import UsageError
from pruning.functions import (
    prune_batchnorm,
    prune_conv,
    prune_in_channels,
    prune_linear,
    prune_out_channels,
    prune_related_conv,
    prune_related_linear,
)
from pruning.graph import DependencyGraph, keep, tie
from pruning.growing import regrow
from pruning.loading import extras_of, load_pruned, resize_like
from pruning.masks import WeightMasks
from pruning.network import PrunableNetwork
from pruning.plan import PruningPlan
from pruning.report import PruneReport, Step
from pruning.rules import register_rule
from pruning.select import Budget, NodeRules

__all__ = [
    "Budget",
    "CompressedNetwork",
    "Criterion",
    "DependencyGraph",
    "JointCriterion",
    "LowRank",
    "LowRankCriterion",
    "NodeCriterion",
    "NodeRules",
    "PrunableNetwork",
    "PruneReport",
    "PruningPlan",
    "ShrinkReport",
    "Step",
    "UsageError",
    "WeightCriterion",
    "WeightMasks",
    "extras_of",
    "keep",
    "load_pruned",
    "prune_batchnorm",
    "prune_conv",
    "prune_in_channels",
    "prune_linear",
    "prune_out_channels",
    "prune_related_conv",
    "prune_related_linear",
    "register_rule",
    "regrow",
    "resize_like",
    "schedule",
    "select",
    "shrink_dead",
    "tie",
]
