"""Espalier's engine: scores, masks, structure and shrinkage. Usable alone, on any network."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from pruning.former_names import install as _install_former_names

# Whoever wants one name waits for the modules of that name only: all of them together take seconds.
if TYPE_CHECKING:
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
    from pruning.graph.graph import DependencyGraph
    from pruning.graph.marks import keep, tie
    from pruning.low_rank.criterion import LowRankCriterion
    from pruning.masks import WeightMasks
    from pruning.modules.by_name import LayerRules
    from pruning.modules.calls import Batches
    from pruning.network import PrunableNetwork
    from pruning.pretrained.folders import from_pretrained, save_pretrained
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
    "LayerRules",
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
    "from_pretrained",
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
    "save_pretrained",
    "schedule",
    "select",
    "shrink_dead",
    "tie",
]

# Public name -> the module, below `pruning`, that holds it. The imports above say the same to type checkers.
_HOMES = {
    "Batches": "modules.calls",
    "Budget": "prune.rank",
    "CompressedNetwork": "compressed",
    "Criterion": "prune.criterion",
    "DependencyGraph": "graph.graph",
    "JointCriterion": "prune.criterion",
    "LayerRules": "modules.by_name",
    "LowRank": "cut.factorize",
    "LowRankCriterion": "low_rank.criterion",
    "NodeCriterion": "prune.criterion",
    "NodeRules": "state",
    "PrunableNetwork": "network",
    "PrunableState": "state",
    "PruneReport": "prune.report",
    "PruningPlan": "cut.plan",
    "ShrinkReport": "dead.shrink",
    "Step": "prune.report",
    "UsageError": "errors",
    "WeightCriterion": "prune.criterion",
    "WeightMasks": "masks",
    "extras_of": "cut.load",
    "from_pretrained": "pretrained.folders",
    "keep": "graph.marks",
    "load_pruned": "cut.load",
    "prune_batchnorm": "cut.by_hand",
    "prune_conv": "cut.by_hand",
    "prune_in_channels": "cut.by_hand",
    "prune_linear": "cut.by_hand",
    "prune_out_channels": "cut.by_hand",
    "prune_related_conv": "cut.by_hand",
    "prune_related_linear": "cut.by_hand",
    "register_rule": "trace.rules.table",
    "regrow": "prune.regrow",
    "resize_like": "cut.load",
    "save_pretrained": "pretrained.folders",
    "schedule": "prune.schedule",
    "select": "prune.rank",
    "shrink_dead": "dead.shrink",
    "tie": "graph.marks",
}

# Public names that are modules themselves.
_MODULES = ("schedule", "select")

_install_former_names()


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first asked for (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"pruning.{_HOMES[name]}")
    value = module if name in _MODULES else getattr(module, name)
    globals()[name] = value  # the next look finds it without coming here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
