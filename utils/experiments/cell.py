"""What an experiment consists of: its runs ("cells"), its methods, and the whole of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from utils.experiments.demand import Demand
from utils.experiments.wanted import Wanted
from utils.settings.values import format_value, pairs_of

DENSE = "EmptyCrit"

# Where and how fast a run is made, and what is drawn of it, is no part of what it is.
WHEREABOUTS = ("results_dir", "data_dir", "plugin_dir", "device", "workers", "tensorboard", "pictures", "save_freq")


@dataclass(frozen=True, eq=False)
class Cell:
    """One run of an experiment.

    Args:
        method: its label in tables and plots; empty for a dense run.
        group: what else is compared (model, data set, ...), as `name value`; empty if nothing is.
        limit: the sparsity asked for.
        seed: of the run.
        settings: what would be typed after main.py.
        where: the line of the file that asks for it.
        start: the cell whose network this one starts from.
        rewind: the dense cell to whose early weights this one goes back after pruning.
    """

    method: str
    group: str
    limit: float
    seed: int
    settings: Mapping[str, Any]
    where: str
    start: Cell | None = None
    rewind: Cell | None = None

    @cached_property
    def key(self) -> str:
        """Eight letters that differ wherever the outcome may: a finished cell is found again by them."""
        own = {name: value for name, value in self.settings.items() if name not in WHEREABOUTS}
        from_where = [cell.key if cell else "" for cell in (self.start, self.rewind)]
        text = json.dumps([own, from_where], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    @property
    def title(self) -> str:
        """What it is, for a person."""
        what = f"{self.method} {self.limit:g}" if self.method else "dense"
        if self.group:
            what = f"{what}, {self.group}"
        return f"{what}, seed {self.seed}"

    @property
    def run_name(self) -> str:
        # The key comes last and whole: long names are cut before it.
        name = self.title.replace(", ", "_").replace(" ", "-")
        return f"{name[:80]}_{self.key}"


@dataclass
class Method:
    """An entry under `compare: prune_criterion`.

    Args:
        name: of the criterion.
        options: settings that its runs have beside those of all runs.
        label: what it is called in tables and plots; empty for the dense runs.
        where: its line in the file.
        lines: the line of each option.
    """

    name: str
    options: dict[str, Any]
    label: str
    where: str
    lines: dict[str, str] = field(default_factory=dict)


@dataclass
class Experiment:
    """What a file says, and the cells it stands for, in the order in which they are run."""

    name: str
    wanted: Wanted
    methods: list[str]
    cells: list[Cell] = field(default_factory=list)
    source: str = ""
    demand: Demand = Demand()
    warnings: list[str] = field(default_factory=list)

    @property
    def slug(self) -> str:
        """The name as that of a folder."""
        return plain_name(self.name)[:100]


def plain_name(text: str) -> str:
    """Returns a text in letters that every file system takes."""
    return "".join(letter if letter.isalnum() or letter in "._-+" else "-" for letter in text)


def told(value: Any) -> str:
    """A value in a table: numbers by name as they would be typed, all others as they are."""
    return format_value(value) if isinstance(value, dict) else str(value)


def command(values: Mapping[str, Any]) -> list[str]:
    """Returns settings as the words of a command line."""
    words: list[str] = []
    for name, value in values.items():
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no-{name}")
        elif isinstance(value, (list, tuple)):
            words += [f"--{name}", *map(str, value)]
        elif isinstance(value, dict):
            words += [f"--{name}", *pairs_of(value)]
        elif value is not None:
            words.append(f"--{name}={value}")
    return words
