"""Espalier's engine: scores, masks, structure and shrinkage. Usable alone, on any network."""

from pruning.compressed import CompressedNetwork
from pruning.cut.by_hand import (
    prune_batchnorm,
    prune_conv,
    prune_in_channels,
    prune_linear,
    prune_out_channels,
    prune_related_conv,
    prune_related_linear,
)
from pruning.cut.factorize import LowRank
from pruning.cut.load import extras_of, load_pruned, resize_like
from pruning.cut.plan import PruningPlan
from pruning.dead.shrink import ShrinkReport, shrink_dead
from pruning.errors import UsageError
from pruning.former_names import install as _install_former_names
from pruning.graph.graph import DependencyGraph
from pruning.graph.marks import keep, tie
from pruning.low_rank.criterion import LowRankCriterion
from pruning.masks import WeightMasks
from pruning.modules.calls import Batches
from pruning.network import PrunableNetwork
from pruning.prune import rank as select
from pruning.prune import schedule
from pruning.prune.criterion import Criterion, JointCriterion, NodeCriterion, WeightCriterion
from pruning.prune.rank import Budget
from pruning.prune.regrow import regrow
from pruning.prune.report import PruneReport, Step
from pruning.state import NodeRules, PrunableState
from pruning.trace.rules.table import register_rule

__all__ = [
    "Batches",
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
    "PrunableState",
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

_install_former_names()
