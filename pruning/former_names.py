"""Modules that once lay flat in `pruning/`, under their former names: plug-ins that import them go on working."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

# Former module -> the modules, below `pruning`, that hold its names today.
FORMER: dict[str, tuple[str, ...]] = {
    "controls": ("prune.controls",),
    "count": ("modules.calls", "modules.modes", "measure.flops", "measure.latency"),
    "criterion": ("prune.criterion", "low_rank.criterion", "modules.calls"),
    "decompose": ("cut.factorize",),
    "drawing": ("graph.render",),
    "evaluate": ("measure.evaluate",),
    "events": ("prune.step", "prune.nodes", "prune.joint"),
    "functions": ("cut.by_hand",),
    "gates": ("scores.node_gates",),
    "growing": ("prune.regrow",),
    "hard_concrete": ("l0.gates",),
    "history": ("graph.history",),
    "labels": ("trace.labels", "trace.call", "trace.schema", "modules.calls"),
    "limits": ("prune.limit",),
    "loading": ("cut.load",),
    "nodes": ("graph.nodes",),
    "paths": ("dead.reach",),
    "plan": ("cut.plan",),
    "prunable": ("modules.weights",),
    "ranks": ("low_rank.ranks",),
    "readers": ("l0.readers",),
    "report": ("prune.report",),
    "rules": ("trace.rules.table", "trace.rules.pointwise", "trace.rules.reduce", "trace.labels"),
    "schedule": ("prune.schedule",),
    "select": ("prune.rank", "prune.layout", "state"),
    "sensitivity": ("scores.activations",),
    "shrink": ("cut.tensors", "modules.attributes"),
    "tally": ("measure.confusion",),
}


class _FormerModule(ModuleType):
    """Looks a name up where it stands today."""

    def __getattr__(self, name: str) -> Any:
        former = self.__name__.rpartition(".")[2]
        if not name.startswith("__"):
            for today in FORMER[former]:
                module = importlib.import_module(f"pruning.{today}")
                if hasattr(module, name):
                    return getattr(module, name)
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds former modules once nothing else has found them."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        package, _, name = fullname.rpartition(".")
        if package != "pruning" or name not in FORMER:
            return None
        return importlib.machinery.ModuleSpec(fullname, self)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return _FormerModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """There is nothing to run: names are looked up when they are asked for."""


def install() -> None:
    """Lets former modules be imported, after everything that really exists."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
