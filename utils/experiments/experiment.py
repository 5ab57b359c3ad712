"""An experiment file: what it compares, checked line by line, and the runs ("cells") that it expands to."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import product
from pathlib import Path
from typing import Any

from pruning.errors import UsageError, nearest
from utils.experiments.demand import Demand
from utils.experiments.report_data import Wanted
from utils.experiments.spacing import spaced
from utils.settings import registry, resolve
from utils.settings.core import Core
from utils.settings.flags import Flag, canonical
from utils.settings.known import aliases, every_flag
from utils.settings.parts import fixed_flags
from utils.settings.presets import Lines, checked, read_yaml, switches
from utils.settings.switches import Switches

KEYS = ("name", "base", "compare", "spacing", "retrain", "mode", "rewind_epoch", "dense", "report", "resources")

MODES = ("one_shot", "cascade", "cascade_rewind")

DENSE = "EmptyCrit"

# What tells runs apart; training again changes none of it.
GRID = ("model", "prune_criterion", "pruning_limit", "seed")

GENERATED = ("seed", "pruning_limit", "prune_through", "keep_epochs")

# Where and how fast a run is made is no part of what it is.
WHEREABOUTS = ("results_dir", "data_dir", "plugin_dir", "device", "workers", "tensorboard", "save_freq")

RUNNERS = (
    *("run_name", "results_dir", "config", "resume", "eval", "list", "quiet", "max_training_minutes", "report"),
    *("experiment", "status", "dry_run", "ray", "prune_through", "rewind_from", "keep_epochs"),
)


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
        return hashlib.sha256(json.dumps([own, from_where], sort_keys=True, default=str).encode()).hexdigest()[:8]

    @property
    def title(self) -> str:
        """What it is, for a person."""
        limit = f" {self.limit:g}" if self.method else ""
        return f"{self.method or 'dense'}{limit}{', ' * bool(self.group)}{self.group}, seed {self.seed}"

    @property
    def run_name(self) -> str:
        # The key comes last and whole: long names are cut before it.
        return f"{self.title.replace(', ', '_').replace(' ', '-')[:80]}_{self.key}"


@dataclass
class Method:
    """An entry under `compare: prune_criterion`: a criterion, its options, and what it is called."""

    name: str
    options: dict[str, Any]
    label: str
    where: str
    lines: dict[str, str] = field(default_factory=dict)  # where each option stands


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
        return "".join(letter if letter.isalnum() or letter in "._-+" else "-" for letter in self.name)[:100]


def read(path: str, typed: Mapping[str, Any] | None = None) -> Experiment:
    """Reads an experiment file, checks every key, name and value of it, and expands it.

    Args:
        path: the YAML file.
        typed: core settings that win over the file's.

    Raises:
        UsageError: with the line, for whatever does not fit.
    """
    content, where = read_yaml(path, "--experiment")
    return _Reader(path, content, where, dict(typed or {})).experiment()


class _Reader:
    def __init__(self, path: str, content: dict[str, Any], where: Lines, typed: dict[str, Any]) -> None:
        self.path, self.content, self.where, self.typed = path, content, where, typed
        if not content:
            raise UsageError(f"--experiment {path} is empty; it takes {', '.join(KEYS)}.")
        self._refuse_unknown(content, KEYS)
        base = self._block("base")
        registry.use_plugin_dir(str(typed.get("plugin_dir", base.get("plugin_dir")) or ""))
        self.known = _known()
        self.base = {"tensorboard": False} | self._settings("base", base)
        self.retrain = self._settings_at(self._block("retrain"), ("retrain",), but=GRID)
        self.mode = self._choice("mode", MODES, "one_shot")
        self.from_dense = "retrain" in content or self.mode != "one_shot"
        self.dense = self._choice("dense", ("once per seed", "none"), "once per seed") == "once per seed"
        if self.from_dense and not self.dense:
            raise UsageError(f"{where('dense')}: retraining starts from a dense run; dense: none leaves it out.")
        self.rewind_epoch = self._rewind_epoch()
        self.compare = self._compared(self._block("compare"))
        self.limits, self.every = self._limits()
        self.seen: list[dict[str, Any]] = []
        self.idle: dict[tuple[str, str], str] = {}

    def experiment(self) -> Experiment:
        """Returns the checked and expanded experiment."""
        methods = self._methods()
        # An entry that prunes nothing is the dense run, with that entry's options; one with a label of its own is not.
        same = [method for method in methods if method.name == DENSE and method.label.startswith(DENSE)]
        methods = [method for method in methods if method not in same]
        unpruned = Method(DENSE, {}, "", self.where("base"))
        if same:
            unpruned.options, unpruned.lines = same[0].options, same[0].lines
        name = self.content.get("name", Path(self.path).stem)
        if isinstance(name, (dict, list)) or not any(letter.isalnum() for letter in str(name or "")):
            raise UsageError(f"{self.where('name')}: name is that of a folder, with a letter or digit; got {name!r}.")
        wanted = Wanted.read(self.content.get("report"), partial(self.where, "report"))
        demand = Demand.read(self.content.get("resources"), partial(self.where, "resources"))
        labels = [method.label for method in methods]
        found = Experiment(" ".join(str(name).split()), wanted, labels, source=self.path, demand=demand)
        for seed, (group, others) in product(self.compare["seed"], self._groups()):
            found.cells += self._cells(methods, unpruned if self.dense else None, seed, (group, others))
        unique = {cell.key: cell for cell in found.cells}
        found.cells = list(unique.values())
        # In a comparison few settings are used by every run; one that is used by none is a slip.
        found.warnings = [f"{line}: {said}" for (line, _), said in self.idle.items() if said]
        return found

    def _cells(
        self, methods: list[Method], dense: Method | None, seed: int, group: tuple[str, dict[str, Any]]
    ) -> Iterator[Cell]:
        """Yields the cells of one seed: the dense run first, then method by method with rising limits."""
        label, others = group
        start = None
        if dense:
            early = {"keep_epochs": [self.rewind_epoch]} if self.mode == "cascade_rewind" else {}
            given = self.base | others | dense.options | early
            epochs = (given | self.typed).get("epochs", Core().epochs)
            if self.rewind_epoch > max(epochs, 0):
                place = self.where("rewind_epoch")
                raise UsageError(f"{place}: rewind_epoch {self.rewind_epoch} is after the {epochs} of the dense run.")
            yield (start := self._cell(dense, label, 0.0, seed, given))
        for method in methods:
            before = start if self.from_dense else None
            for limit, through in self._steps(method):
                given = self.base | (self.retrain if self.from_dense else {}) | others | method.options
                given |= {"prune_through": through} if through else {}
                rewind = start if self.mode == "cascade_rewind" else None
                epochs = (given | self.typed).get("epochs", Core().epochs)
                if rewind and 0 < epochs <= self.rewind_epoch:
                    told = f"training goes on after rewind_epoch; {method.label} has {epochs} epochs."
                    raise UsageError(f"{self.where('rewind_epoch')}: {told}")
                cell = self._cell(method, label, limit, seed, given, before, rewind)
                yield cell
                before = cell if self.mode != "one_shot" else before

    def _cell(
        self,
        method: Method,
        group: str,
        limit: float,
        seed: int,
        given: dict[str, Any],
        start: Cell | None = None,
        rewind: Cell | None = None,
    ) -> Cell:
        values = given | {"prune_criterion": method.name, "pruning_limit": limit, "seed": seed} | self.typed
        self._check(values, method)
        return Cell(method.label, group, limit, seed, values, method.where, start, rewind)

    def _check(self, values: dict[str, Any], method: Method) -> None:
        """Lets the command line's own checks look at a cell; what the grid generates has been looked at."""
        values = {name: value for name, value in values.items() if name not in GENERATED}
        if values in self.seen:
            return
        self.seen.append(values)
        try:
            chosen = resolve.settle(values)
        except UsageError as error:
            raise UsageError(f"{method.where}: {error}") from error
        for name in values.keys() - self.typed.keys():
            said = [line for line in chosen.warnings if re.search(rf"--(no-)?{name}\b", line)]
            place = (self._line_of(name, method), name)
            # Whoever uses it once settles the matter.
            self.idle[place] = self.idle.get(place, said[0]) if said else ""

    def _line_of(self, name: str, method: Method) -> str:
        """Returns where the setting of a cell comes from."""
        block = "compare" if name in self.compare else "retrain" if name in self.retrain and method.label else "base"
        return method.lines.get(name) or self.where(block, name)

    def _steps(self, method: Method) -> Iterator[tuple[float, list[float]]]:
        """Yields the limits that are trained and reported, with those that are only pruned through on the way."""
        limits = [method.options["pruning_limit"]] if "pruning_limit" in method.options else self.limits
        for place in range(0, len(limits), self.every):
            *through, limit = limits[place : place + self.every]
            yield limit, through

    def _groups(self) -> list[tuple[str, dict[str, Any]]]:
        names = [name for name in self.compare if name not in ("prune_criterion", "pruning_limit", "seed")]
        groups = (dict(zip(names, values, strict=True)) for values in product(*(self.compare[name] for name in names)))
        return [(", ".join(f"{name} {value}" for name, value in group.items()), group) for group in groups]

    # -- reading ---------------------------------------------------------------------------------------------------

    def _methods(self) -> list[Method]:
        entries = self.compare["prune_criterion"]
        names = [entry["name"] if isinstance(entry, Mapping) else entry for entry in entries]
        found: list[Method] = []
        for number, (entry, name) in enumerate(zip(entries, names, strict=True)):
            place = ("compare", "prune_criterion", number)
            options = {k: v for k, v in entry.items() if k not in ("name", "label")} if isinstance(entry, dict) else {}
            label = entry.get("label") if isinstance(entry, dict) else None
            options = self._settings_at(options, place, but=("seed", "prune_criterion"))
            if label is not None and (not isinstance(label, str) or not label.strip() or label == "dense"):
                raise UsageError(f"{self.where(*place)}: a label is text, and not dense; {label!r} was given.")
            if label is None:
                told = ", ".join(f"{key} {value}" for key, value in options.items()) if names.count(name) > 1 else ""
                label = f"{name} ({told})" if told else name
            if label in [method.label for method in found]:
                raise UsageError(f"{self.where(*place)}: {label} is there twice; give one of them a `label`.")
            try:
                registry.find("criterions", name)
            except UsageError as error:
                raise UsageError(f"{self.where(*place)}: {error}") from error
            lines = {option: self.where(*place, option) for option in options}
            found.append(Method(name, options, label, self.where(*place), lines))
        return found

    def _limits(self) -> tuple[list[float], int]:
        if "spacing" in self.content:
            if "pruning_limit" in self.compare:
                raise UsageError(f"{self.where('spacing')}: spacing stands instead of compare's pruning_limit.")
            return spaced(self.content["spacing"], partial(self.where, "spacing"))
        limits = self.compare.get("pruning_limit", [self.base.get("pruning_limit", Core().pruning_limit)])
        wrong = next((limit for limit in limits if not 0 <= limit < 1), None)
        if wrong is not None:
            place = self.where("compare", "pruning_limit")
            raise UsageError(f"{place}: pruning_limit is a fraction removed, 0 to below 1; {wrong} was given.")
        return sorted(set(limits)), 1

    def _compared(self, block: dict[str, Any]) -> dict[str, list[Any]]:
        """Returns setting -> the values to compare."""
        found: dict[str, list[Any]] = {}
        for name, values in block.items():
            values = values if isinstance(values, list) else [values]
            if not values:
                raise UsageError(f"{self.where('compare', name)}: {name} has no values to compare.")
            if name == "prune_criterion":
                found[name] = [self._entry(entry, number) for number, entry in enumerate(values)]
                continue
            self._refuse_unknown({name: values}, self.known, "compare", but=("plugin_dir",))
            flag = self.known[name]
            places = [self.where("compare", name, number) for number in range(len(values))]
            checks = [canonical(name, flag.check(value, place)) for value, place in zip(values, places, strict=True)]
            if flag.name in self.typed:
                raise UsageError(f"--{flag.name} cannot be typed: {places[0]} compares values of it.")
            for number, value in enumerate(checks):
                if value in checks[:number]:
                    raise UsageError(f"{places[number]}: {name} {value} is there twice.")
            found[flag.name] = checks
        default = self.base.get("prune_criterion", Core().prune_criterion)
        found.setdefault("prune_criterion", [default])
        found.setdefault("seed", [self.base.get("seed", Core().seed)])
        for number, seed in enumerate(found["seed"]):
            if not 0 <= seed < 2**63:
                raise UsageError(f"{self.where('compare', 'seed', number)}: seed must be 0 to below 2**63; got {seed}.")
        return found

    def _entry(self, entry: Any, number: int) -> Any:
        named = isinstance(entry, dict) and isinstance(entry.get("name"), str)
        if not named and not isinstance(entry, str):
            place = self.where("compare", "prune_criterion", number)
            raise UsageError(f"{place}: an entry is a criterion's name or {{name: ..., option: ...}}; got {entry!r}.")
        return entry

    def _rewind_epoch(self) -> int:
        """Returns the epoch to go back to, which the dense runs must reach: they keep its weights."""
        epoch, place = self.content.get("rewind_epoch", 0), self.where("rewind_epoch")
        if type(epoch) is not int or epoch < 0:
            raise UsageError(f"{place}: rewind_epoch is a number of epochs, 0 for the initial weights.")
        if "rewind_epoch" in self.content and self.mode != "cascade_rewind":
            raise UsageError(f"{place}: rewind_epoch is for mode: cascade_rewind; the mode is {self.mode}.")
        return epoch

    def _settings(self, block: str, content: dict[str, Any]) -> dict[str, Any]:
        return self._settings_at(content, (block,))

    def _settings_at(
        self, content: Mapping[str, Any], place: tuple[Any, ...], but: Sequence[str] = ()
    ) -> dict[str, Any]:
        """Returns the settings that stand at a place, by flag name, in their flags' types."""
        self._refuse_unknown(content, self.known, *place, but=but)
        return checked(content, self.known, partial(self.where, *place))

    def _refuse_unknown(
        self, content: Mapping[str, Any], known: Mapping[str, Any] | Sequence[str], *place: Any, but: Sequence[str] = ()
    ) -> None:
        if place and not set(content) <= set(known):
            self.known |= {name: flag for name, flag in _known(content).items() if name not in self.known}
        for name in content:
            line = self.where(*place, name)
            if name not in known:
                kind = "setting" if place else "key"
                raise UsageError(f"{line}: there is no {kind} {name!r}.{nearest(str(name), list(known))}")
            if place and name in but:
                raise UsageError(f"{line}: {name} cannot stand here; it belongs under base or compare.")
            if place and name in RUNNERS:
                raise UsageError(f"{line}: {name} is set by the runner of experiments; it cannot stand here.")

    def _block(self, name: str) -> dict[str, Any]:
        block = self.content.get(name) or {}
        if not isinstance(block, dict):
            raise UsageError(f"{self.where(name)}: {name} must hold `setting: value` lines.")
        return block

    def _choice(self, name: str, options: Sequence[str], default: str) -> str:
        value = self.content.get(name, default)
        if value not in options:
            raise UsageError(
                f"{self.where(name)}: {name} is one of {', '.join(options)}; {value!r} was given."
                f"{nearest(str(value), list(options))}"
            )
        return str(value)


def command(values: Mapping[str, Any]) -> list[str]:
    """Returns settings as the words of a command line."""
    words: list[str] = []
    for name, value in values.items():
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no-{name}")
        elif isinstance(value, (list, tuple)):
            words += [f"--{name}", *map(str, value)]
        elif value is not None:
            words.append(f"--{name}={value}")
    return words


def _known(asked: Iterable[str] = ()) -> dict[str, Flag]:
    """Every setting that may stand in a file, by name and by other spellings."""
    known = every_flag(asked)
    known |= {alias: known[name] for alias, name in aliases(known.values()).items()}
    short = Switches(switches(), fixed_flags())
    return {flag.name: flag for flag in short.flags} | known
