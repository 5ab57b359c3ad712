"""What every run has, beside the plug-ins that it chooses: which parts these are, and their flags."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from utils.settings.core import FLAG_OF_RULE
from utils.settings.flags import Flag, flags_of
from utils.settings.signatures import Part


@dataclass(frozen=True)
class FixedPart:
    """A part of every run.

    Args:
        title: heading of its flags.
        module: where it stands. It is imported when its flags are asked for, as a plug-in is: rooms above this one
            hold some.
        name: of the class or function whose parameters are its flags.
        handed_over: parameters that are no flags, since the program gives them.
        renamed: parameter -> flag, where they are not called the same.
    """

    title: str
    module: str
    name: str
    handed_over: tuple[str, ...] = ()
    renamed: Mapping[str, str] | None = None

    def find(self) -> Part:
        part: Part = getattr(importlib.import_module(self.module), self.name)
        return part

    def flags(self) -> list[Flag]:
        names = self.renamed or {}
        flags = flags_of(self.find(), self.title, self.handed_over)
        return [replace(flag, name=names.get(flag.name, flag.name)) for flag in flags]


GIVEN = ("network", "batches", "draw_batches", "fresh_model", "early_model", "report")

# The core comes first: where others name a setting of it, they mean that one.
FIXED = (
    FixedPart("core", "utils.settings.core", "Core"),
    FixedPart("nodes", "pruning.state", "NodeRules", renamed=FLAG_OF_RULE),
    FixedPart("layers", "pruning.modules.by_name", "LayerRules"),
    FixedPart("pictures", "utils.settings.core", "Plots"),
    FixedPart("pruning", "trainers._pruning", "Pruning", ("criterion", *GIVEN)),
    FixedPart("pruning", "utils.jobs.parts", "ScoreBatches", GIVEN),
    FixedPart("pruning", "utils.jobs.parts", "early_model", GIVEN),
    FixedPart("batches", "data_sets._batches", "make_batches", ("data_set", "part", "device", "limit")),
    FixedPart("saving", "utils.runs.saving", "Saving", ("folder", "pruning", *GIVEN)),
    FixedPart("experiments", "utils.experiments.asked", "Asked"),
)

# Settings that came later: runs made before did what their defaults say.
LATER = frozenset(("only", "skip", "shares", "max_share", "unit", "uniform"))

TITLES = frozenset(part.title for part in FIXED)


@cache
def fixed_flags() -> tuple[Flag, ...]:
    """Returns the flags that every run has: those of the core, then those of the other fixed parts."""
    found: dict[str, Flag] = {}
    for part in FIXED:
        for flag in part.flags():
            found.setdefault(flag.name, flag)
    return tuple(found.values())


def flags_by_part() -> dict[str, list[Flag]]:
    """Returns the flags that every run has, by the title of the part that declares them."""
    found: dict[str, list[Flag]] = {}
    for flag in fixed_flags():
        found.setdefault(flag.group, []).append(flag)
    return found


def default_of(name: str) -> Any:
    """Returns the default of a flag that every run has."""
    return next(flag.default for flag in fixed_flags() if flag.name == name)
