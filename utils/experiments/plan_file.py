"""An experiment file, read and checked line by line."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pruning.errors import UsageError, nearest
from utils.experiments.cell import DENSE, Method, told
from utils.experiments.demand import Demand
from utils.experiments.spacing import spaced
from utils.experiments.wanted import Wanted
from utils.settings import registry
from utils.settings.core import Core
from utils.settings.flags import Flag, canonical
from utils.settings.known import aliases, every_flag
from utils.settings.parts import fixed_flags
from utils.settings.presets import Lines, checked, read_yaml, switches
from utils.settings.switches import Switches

KEYS = ("name", "base", "compare", "spacing", "retrain", "mode", "rewind_epoch", "dense", "report", "resources")

MODES = ("one_shot", "cascade", "cascade_rewind")

# What tells runs apart; training again changes none of it.
GRID = ("model", "prune_criterion", "pruning_limit", "seed")

RUNNERS = (
    *("run_name", "results_dir", "config", "resume", "eval", "list", "quiet", "max_training_minutes", "report"),
    *("experiment", "status", "dry_run", "ray", "prune_through", "rewind_from", "keep_epochs"),
)

# A comparison has a report of its own; a file that wants these of every run says so under base.
FOR_EVERY_RUN = {"tensorboard": False, "pictures": False}


@dataclass
class Plan:
    """What a file says, checked.

    Args:
        name: of the experiment.
        base: settings of every run.
        retrain: settings of runs that start from another one's network.
        compare: setting -> the values to compare; "prune_criterion" and "seed" are always there.
        methods: the criteria to compare, without the dense runs.
        unpruned: what the dense runs are made with.
        limits: sparsities, ascending.
        every: how many of them share one retraining.
        mode: one of `MODES`.
        from_dense: whether pruned runs start from the network of a dense one.
        dense: whether there are dense runs.
        rewind_epoch: the epoch to whose weights pruned runs go back.
        wanted: what the report shows.
        demand: what one run takes of a cluster's node.
    """

    name: str
    base: dict[str, Any]
    retrain: dict[str, Any]
    compare: dict[str, list[Any]]
    methods: list[Method]
    unpruned: Method
    limits: list[float]
    every: int
    mode: str
    from_dense: bool
    dense: bool
    rewind_epoch: int
    wanted: Wanted
    demand: Demand


class PlanFile:
    """The content of a file, and what is said about what does not fit in it.

    Args:
        path: the YAML file.
        typed: core settings that win over the file's.

    Attributes:
        where: names of keys, from the outside in -> the line where that stands, for messages.
        known: every setting that may stand in the file, by name and by other spellings.
    """

    def __init__(self, path: str, typed: Mapping[str, Any]) -> None:
        self.content: dict[str, Any]
        self.where: Lines
        self.content, self.where = read_yaml(path, "--experiment")
        self.path = path
        self.typed = dict(typed)
        if not self.content:
            raise UsageError(f"--experiment {path} is empty; it takes {', '.join(KEYS)}.")
        for key in self.content:
            if key not in KEYS:
                raise UsageError(f"{self.where(key)}: there is no key {key!r}.{nearest(str(key), KEYS)}")
        # The user's own plug-ins have settings too.
        plugin_dir = self.typed.get("plugin_dir", self.block("base").get("plugin_dir"))
        registry.use_plugin_dir(str(plugin_dir or ""))
        self.known = _known()

    def block(self, name: str) -> dict[str, Any]:
        """Returns the `setting: value` lines below a key, none where it is not there."""
        block = self.content.get(name) or {}
        if not isinstance(block, dict):
            raise UsageError(f"{self.where(name)}: {name} must hold `setting: value` lines.")
        return block

    def choice(self, name: str, options: Sequence[str], default: str) -> str:
        """Returns the value of a key that is one of several words."""
        value = self.content.get(name, default)
        if value not in options:
            told = f"{name} is one of {', '.join(options)}; {value!r} was given."
            raise UsageError(f"{self.where(name)}: {told}{nearest(str(value), list(options))}")
        return str(value)

    def settings(self, content: Mapping[str, Any], *place: Any, but: Sequence[str] = ()) -> dict[str, Any]:
        """Returns the settings that stand at a place, by flag name, in their flags' types."""
        self.refuse_unknown(content, *place, but=but)
        return checked(content, self.known, partial(self.where, *place))

    def refuse_unknown(self, names: Iterable[str], *place: Any, but: Sequence[str] = ()) -> None:
        """Raises UsageError for a name that is no setting, or that cannot stand at this place."""
        names = list(names)
        if not set(names) <= set(self.known):
            # Flags of libraries' models are looked up only where a file may mean one of them: that takes seconds.
            self.known = _known(names) | self.known
        for name in names:
            line = self.where(*place, name)
            if name not in self.known:
                raise UsageError(f"{line}: there is no setting {name!r}.{nearest(str(name), list(self.known))}")
            if name in but:
                raise UsageError(f"{line}: {name} cannot stand here; it belongs under base or compare.")
            if name in RUNNERS:
                raise UsageError(f"{line}: {name} is set by the runner of experiments; it cannot stand here.")


def _known(asked: Iterable[str] = ()) -> dict[str, Flag]:
    flags = every_flag(asked)
    short = Switches(switches(), fixed_flags())
    known = {flag.name: flag for flag in short.flags} | flags
    for alias, name in aliases(flags.values()).items():
        known[alias] = flags[name]
    return known


# -- from the top of a file to its end ---------------------------------------------------------------------------------


def read_plan(file: PlanFile) -> Plan:
    """Checks everything that a file says.

    Raises:
        UsageError: with the line, for whatever does not fit.
    """
    base = FOR_EVERY_RUN | file.settings(file.block("base"), "base")
    retrain = file.settings(file.block("retrain"), "retrain", but=GRID)
    mode = file.choice("mode", MODES, "one_shot")
    from_dense = "retrain" in file.content or mode != "one_shot"
    dense = file.choice("dense", ("once per seed", "none"), "once per seed") == "once per seed"
    if from_dense and not dense:
        raise UsageError(f"{file.where('dense')}: retraining starts from a dense run; dense: none leaves it out.")
    rewind_epoch = _rewind_epoch(file, mode)
    compare = _compared(file, base)
    limits, every = _limits(file, base, compare)
    methods, unpruned = _split_dense(_methods(file, compare["prune_criterion"]), file.where("base"))
    return Plan(
        name=_name(file),
        base=base,
        retrain=retrain,
        compare=compare,
        methods=methods,
        unpruned=unpruned,
        limits=limits,
        every=every,
        mode=mode,
        from_dense=from_dense,
        dense=dense,
        rewind_epoch=rewind_epoch,
        wanted=Wanted.read(file.content.get("report"), partial(file.where, "report")),
        demand=Demand.read(file.content.get("resources"), partial(file.where, "resources")),
    )


def _name(file: PlanFile) -> str:
    name = file.content.get("name", Path(file.path).stem)
    is_text = not isinstance(name, (dict, list))
    if not is_text or not any(letter.isalnum() for letter in str(name or "")):
        place = file.where("name")
        raise UsageError(f"{place}: name is that of a folder, with a letter or digit; got {name!r}.")
    return " ".join(str(name).split())


def _rewind_epoch(file: PlanFile, mode: str) -> int:
    """Returns the epoch to go back to, which the dense runs must reach: they keep its weights."""
    place = file.where("rewind_epoch")
    epoch = file.content.get("rewind_epoch", 0)
    if type(epoch) is not int or epoch < 0:
        raise UsageError(f"{place}: rewind_epoch is a number of epochs, 0 for the initial weights.")
    if "rewind_epoch" in file.content and mode != "cascade_rewind":
        raise UsageError(f"{place}: rewind_epoch is for mode: cascade_rewind; the mode is {mode}.")
    return epoch


def _compared(file: PlanFile, base: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Returns setting -> the values to compare."""
    found: dict[str, list[Any]] = {}
    for name, given in file.block("compare").items():
        values = given if isinstance(given, list) else [given]
        if not values:
            raise UsageError(f"{file.where('compare', name)}: {name} has no values to compare.")
        if name == "prune_criterion":
            found[name] = values  # with options, perhaps: `_methods` looks at them
            for number, entry in enumerate(values):
                _check_entry(file, entry, number)
            continue
        file.refuse_unknown([name], "compare", but=("plugin_dir",))
        flag = file.known[name]
        found[flag.name] = _values(file, name, flag, values)
    found.setdefault("prune_criterion", [base.get("prune_criterion", Core().prune_criterion)])
    found.setdefault("seed", [base.get("seed", Core().seed)])
    for number, seed in enumerate(found["seed"]):
        if not 0 <= seed < 2**63:
            place = file.where("compare", "seed", number)
            raise UsageError(f"{place}: seed must be 0 to below 2**63; got {seed}.")
    return found


def _values(file: PlanFile, name: str, flag: Flag, values: Sequence[Any]) -> list[Any]:
    """Returns the values of one setting in its type, each of them once."""
    found: list[Any] = []
    for number, given in enumerate(values):
        place = file.where("compare", name, number)
        value = canonical(name, flag.check(given, place))
        if flag.name in file.typed:
            raise UsageError(f"--{flag.name} cannot be typed: {place} compares values of it.")
        if value in found:
            raise UsageError(f"{place}: {name} {value} is there twice.")
        found.append(value)
    return found


def _check_entry(file: PlanFile, entry: Any, number: int) -> None:
    if isinstance(entry, str) or (isinstance(entry, dict) and isinstance(entry.get("name"), str)):
        return
    place = file.where("compare", "prune_criterion", number)
    raise UsageError(f"{place}: an entry is a criterion's name or {{name: ..., option: ...}}; got {entry!r}.")


def _limits(file: PlanFile, base: Mapping[str, Any], compare: Mapping[str, list[Any]]) -> tuple[list[float], int]:
    """Returns the sparsities, ascending, and how many of them share one retraining."""
    if "spacing" in file.content:
        if "pruning_limit" in compare:
            raise UsageError(f"{file.where('spacing')}: spacing stands instead of compare's pruning_limit.")
        return spaced(file.content["spacing"], partial(file.where, "spacing"))
    usual = base.get("pruning_limit", Core().pruning_limit)
    limits = compare.get("pruning_limit", [usual])
    for limit in limits:
        if not 0 <= limit < 1:
            place = file.where("compare", "pruning_limit")
            raise UsageError(f"{place}: pruning_limit is a fraction removed, 0 to below 1; {limit} was given.")
    return sorted(set(limits)), 1


def _methods(file: PlanFile, entries: Sequence[Any]) -> list[Method]:
    """Returns the entries under `prune_criterion`, each with a label of its own."""
    names = [entry["name"] if isinstance(entry, dict) else entry for entry in entries]
    found: list[Method] = []
    for number, (entry, name) in enumerate(zip(entries, names, strict=True)):
        place = ("compare", "prune_criterion", number)
        line = file.where(*place)
        options = dict(entry) if isinstance(entry, dict) else {}
        options.pop("name", None)
        label = _given_label(options.pop("label", None), line)
        options = file.settings(options, *place, but=("seed", "prune_criterion"))
        if not label:
            label = _own_label(name, options, is_alone=names.count(name) == 1)
        if label in [method.label for method in found]:
            raise UsageError(f"{line}: {label} is there twice; give one of them a `label`.")
        try:
            registry.find("criterions", name)
        except UsageError as error:
            raise UsageError(f"{line}: {error}") from error
        lines = {option: file.where(*place, option) for option in options}
        found.append(Method(name, options, label, line, lines))
    return found


def _given_label(label: Any, line: str) -> str:
    """Returns a label that stands in the file, "" where none does."""
    if label is None:
        return ""
    if not isinstance(label, str) or not label.strip() or label == "dense":
        raise UsageError(f"{line}: a label is text, and not dense; {label!r} was given.")
    return label


def _own_label(name: str, options: Mapping[str, Any], *, is_alone: bool) -> str:
    """Returns the criterion's name, with its options where the same criterion is there more than once."""
    settings = ", ".join(f"{key} {told(value)}" for key, value in options.items())
    return name if is_alone or not settings else f"{name} ({settings})"


def _split_dense(methods: Sequence[Method], where: str) -> tuple[list[Method], Method]:
    """Returns the methods that prune, and what the dense runs are made with.

    An entry that prunes nothing is the dense run, with that entry's options; one with a label of its own is not.
    """
    unpruned = Method(DENSE, {}, "", where)
    pruned: list[Method] = []
    given: list[Method] = []
    for method in methods:
        is_dense = method.name == DENSE and method.label.startswith(DENSE)
        (given if is_dense else pruned).append(method)
    if given:
        unpruned.options, unpruned.lines = given[0].options, given[0].lines
    return pruned, unpruned
