"""From what the user typed to one set of checked values.

Precedence: command line > --config > the run of a checkpoint (its network and data) > presets in autoconfig.json > what
the chosen parts want > defaults.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pruning.errors import UsageError
from utils.settings import registry
from utils.settings.command_line import CommandLine, InFile
from utils.settings.core import Core, check_together
from utils.settings.earlier_runs import find_run, is_pretrained_folder, loss_of, taken_over
from utils.settings.flags import OWN, Flag, canonical
from utils.settings.known import aliases, check_leftover, every_flag, unused
from utils.settings.parser import make_parser
from utils.settings.parts import LATER, TITLES, default_of, fixed_flags
from utils.settings.presets import AUTOCONFIG, TASK, Lines, checked, presets, read_yaml, switches
from utils.settings.registry import KINDS
from utils.settings.signatures import REQUIRED
from utils.settings.switches import Switches

Layer = dict[str, Any]


@dataclass
class Settings:
    """The core settings, every value by flag name, and what to tell the user about them."""

    core: Core
    values: dict[str, Any]
    warnings: list[str] = field(default_factory=list)

    def part(self, kind: str) -> str:
        """Returns the name of the chosen plug-in of one kind."""
        return str(self.values[KINDS[kind][0]])

    def build(self, kind: str, **given: Any) -> Any:
        """Makes the chosen plug-in of one kind, handing it what its constructor names."""
        return registry.build(kind, self.part(kind), self.values, given)

    def construct(self, part: Callable[..., Any], /, **given: Any) -> Any:
        """Calls a class or function that is no plug-in in the same way."""
        return registry.construct(part, self.values, given)


def parse(argv: Sequence[str]) -> Settings | None:
    """Returns the settings for the words of a command line, or None after --help was printed."""
    return choose(CommandLine(argv))


def choose(typed: CommandLine | InFile) -> Settings | None:
    """Returns the settings that were typed, or None after --help was printed.

    The parts are chosen first, by what was typed as text: only then is it known which flags there are. With all of them
    the command line is read, once.

    Raises:
        UsageError: in one line, for anything that does not fit.
    """
    config, short = _read_config(typed)
    rough = short.expand([config, typed.rough((*fixed_flags(), *short.flags))])
    start = _of_checkpoint(_merged(rough))
    values, _ = _resolve([start, *rough])
    flags = _chosen(values)
    if typed.wants_help:
        _print_help([start, *rough], flags)
        return None
    usable = [*flags, *short.flags]
    given, leftover = typed.read(usable, aliases(flags))
    warnings = check_leftover(leftover, usable, values)
    users = [config, _without_aliases(given, flags)]
    short.refuse_contradictions(users)
    values, origins = _resolve([start, *short.expand(users)])
    values |= _checked_wishes(values, origins, flags)
    values |= _of_teacher(values, flags)
    warnings += _idle(start | config, given, usable, evaluates=bool(values.get("eval")))
    return _finish(values, flags, warnings)


def settle(values: Mapping[str, Any]) -> Settings:
    """Returns the settings for values that have their types already, by flag name, checked as if they were typed."""
    chosen = choose(InFile(values))
    assert chosen is not None, "only a command line asks for help"
    return chosen


def read_fixed(typed: CommandLine) -> tuple[Layer, list[str]]:
    """Reads a command line that no plug-ins are chosen for: to resume a run, or to compare many.

    Returns:
        The settings that were typed, and the words that are no flags that every run has.
    """
    flags = list(fixed_flags())
    given, leftover = typed.read(flags, aliases(flags))
    return _without_aliases(given, flags), leftover


def settle_fixed(given: Layer) -> Settings:
    """Returns the settings that every run has: those that were given, and defaults."""
    return _finish(given, list(fixed_flags()), [])


def load(saved: Mapping[str, Any], changed: Mapping[str, Any], source: Any) -> Settings:
    """Returns the settings of a stopped run (the content of its settings.yaml), with `changed` put on top."""
    registry.use_plugin_dir(str(saved.get("plugin_dir") or ""))
    flags = _chosen(saved)
    values: Layer = {}
    for flag in flags:
        if flag.name in saved:
            values[flag.name] = flag.check(saved[flag.name], str(source))
        elif flag.default is not OWN and flag.name not in LATER:
            raise UsageError(f"{source} lacks {flag.name}; a run is taken up again only with all its settings.")
    return _finish(values | dict(changed), flags, [])


# -- the end: every flag has a value ----------------------------------------------------------------------------------


def _finish(values: Layer, flags: list[Flag], warnings: list[str]) -> Settings:
    complete = _complete(values, flags)
    own = {one.name: complete[one.name] for one in dataclasses.fields(Core)}
    core = Core(**own)
    # The core makes paths absolute; everyone must see the same ones.
    return Settings(core, complete | dataclasses.asdict(core), warnings)


def _complete(values: Mapping[str, Any], flags: Iterable[Flag]) -> Layer:
    """Returns a checked value of every flag; what parts name with different defaults stays away if nobody gave it."""
    complete: Layer = {}
    for flag in flags:
        if flag.name in values:
            complete[flag.name] = flag.check(values[flag.name])
        elif flag.default is REQUIRED:
            raise UsageError(f"--{flag.name} is needed by {flag.group}: {flag.help or 'it has no default'}.")
        elif flag.default is not OWN:
            complete[flag.name] = flag.default  # in whatever type its author likes
    for flag in flags:
        if flag.name in complete:
            flag.check_limits(complete[flag.name])
    check_together(complete)
    return complete


# -- layers -----------------------------------------------------------------------------------------------------------


def _read_config(typed: CommandLine | InFile) -> tuple[Layer, Switches]:
    """Reads --config, and looks up the switches that it or the command line mentions.

    The folder of the user's plug-ins, typed or in the file, is added first: it may hold flags.
    """
    # What decides where else settings and flags come from must be known before any other.
    users = typed.rough(fixed_flags())
    content: Mapping[str, Any] = {}
    where: Lines = str
    if users.get("config"):
        content, where = read_yaml(users["config"])
    registry.use_plugin_dir(str(users.get("plugin_dir", content.get("plugin_dir")) or ""))
    wanted = users.get("autoconfig", content.get("autoconfig", True))
    mentioned = typed.names | set(content)
    table: dict[str, Layer] = {}
    for name, settings in (switches() if wanted else {}).items():
        if name in mentioned:
            place = f"{AUTOCONFIG}, switch {name}"
            table[name] = _in_their_types(settings, lambda *_, place=place: place)
    short = Switches(table, fixed_flags())
    return _in_their_types(content, where, short.flags), short


def _in_their_types(content: Mapping[str, Any], where: Lines, others: Iterable[Flag] = ()) -> Layer:
    """Returns the settings of a file in the types of their flags."""
    known = {flag.name: flag for flag in (*fixed_flags(), *others)}
    if not set(content) <= set(known):
        known = every_flag(set(content) - set(known)) | known
        spellings = aliases(known.values())
        known |= {alias: known[name] for alias, name in spellings.items()}
    return checked(content, known, where)


def _of_checkpoint(users: Mapping[str, Any]) -> Layer:
    """What a run that --checkpoint_name names says about its network and data."""
    name = str(users.get("checkpoint_name") or "")
    if not name:
        return {}
    results = str(users.get("results_dir", Core().results_dir))
    return taken_over(find_run(name, results), users)


def _of_teacher(values: Mapping[str, Any], flags: Iterable[Flag]) -> Layer:
    """What a loss with a teacher takes from elsewhere: where the teacher lies, and the loss that it stands beside.

    That is the loss of the checkpoint's run, of the task, of the data set, or of the teacher, whichever is there first.
    """
    names = {flag.name for flag in flags}
    if not {"teacher", "base_loss"} <= names or not values.get("teacher"):
        return {}
    results = str(values.get("results_dir", Core().results_dir))
    name = str(values["teacher"])
    is_run = not is_pretrained_folder(name)
    teacher = find_run(name, results) if is_run else Path(name).expanduser().resolve()
    found: Layer = {"teacher": str(teacher)}  # which is then found again from wherever the run is resumed
    if "base_loss" in values:
        return found
    start = str(values.get("checkpoint_name") or "")
    losses = [loss_of(find_run(start, results))] if start else []
    task = [value for name, value, _ in presets([(TASK, str(values.get(TASK)))]) if name == "loss"]
    _, data_set = next(part for part in _parts(values) if part[0] == "data_sets")
    wishes = getattr(registry.find("data_sets", data_set), "wants", {})
    losses += [*task, wishes.get("loss", "")]
    losses += [loss_of(teacher)] if is_run else []
    own = next((loss for loss in losses if loss), None)
    return found | ({"base_loss": str(own)} if own else {})


def _without_aliases(given: Layer, flags: list[Flag]) -> Layer:
    """Returns what was typed by flag name, whatever the spelling."""
    given = dict(given)  # the caller's own stays as it was typed
    for alias, name in aliases(flags).items():
        if alias in given:
            typed = given.pop(alias)
            value = canonical(alias, typed)
            if given.setdefault(name, value) != value:
                raise UsageError(f"--{alias} {typed} and --{name} {given[name]} say two things; they are one setting.")
    return given


def _resolve(layers: list[Layer]) -> tuple[Layer, dict[str, str]]:
    """Merges the user's layers over presets and wishes of the parts, which depend on the parts that are chosen.

    Returns:
        The values, and where those stand that are not the user's.
    """
    users = _merged(layers)
    values: Layer = {}
    origins: dict[str, str] = {}
    # A preset may choose a part that has presets of its own; two more rounds settle that.
    for _ in range(3):
        chosen = values | users
        parts = list(_parts(chosen))
        below = list(_wishes(parts))
        if users.get("autoconfig", True):
            # A task chooses parts, whose own presets are closer to the point.
            below += presets([(TASK, str(chosen.get(TASK))), *parts])
        values = {name: value for name, value, _ in below} | users
        origins = {name: source for name, _, source in below if name not in users}
    return values, origins


def _merged(layers: list[Layer]) -> Layer:
    merged: Layer = {}
    for layer in layers:
        merged |= layer
    return merged


def _wishes(parts: Iterable[tuple[str, str]]) -> Iterator[tuple[str, Any, str]]:
    """Yields (setting, value, where it stands) of what parts want."""
    for kind, name in parts:
        wants = getattr(registry.find(kind, name), "wants", {})
        for setting, value in wants.items():
            yield setting, value, f"{kind} {name}, `wants`"


def _checked_wishes(values: Mapping[str, Any], origins: Mapping[str, str], flags: list[Flag]) -> Layer:
    """Returns what presets and parts ask for in the right types; unknown names are errors, as everywhere."""
    known = {flag.name: flag for flag in flags}
    if not set(origins) <= set(known):
        known |= every_flag(origins)
    asked_for = {name: values[name] for name in origins}
    return checked(asked_for, known, origins.__getitem__)


# -- the chosen parts and their flags ---------------------------------------------------------------------------------


def _parts(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields (kind, name) of the chosen plug-ins."""
    for kind, (setting, _) in KINDS.items():
        yield kind, str(values.get(setting) or default_of(setting))


def _chosen(values: Mapping[str, Any]) -> list[Flag]:
    """The flags that every run has and those of the chosen plug-ins; a flag that two parts name is one flag."""
    by_name = {flag.name: flag for flag in fixed_flags()}
    for kind, name in _parts(values):
        _join(by_name, registry.flags(kind, name))
    # A part may take another criterion, which has flags of its own.
    for flag in list(by_name.values()):
        inner = values.get(flag.name)
        if flag.nested and inner and isinstance(inner, str):
            _join(by_name, registry.flags("criterions", inner))
    return list(by_name.values())


def _join(by_name: dict[str, Flag], flags: Iterable[Flag]) -> None:
    for flag in flags:
        known = by_name.setdefault(flag.name, flag)
        if known.group not in TITLES and known.default != flag.default:
            # Typed, the value is for both; not typed, neither part's default may become the other's.
            by_name[flag.name] = dataclasses.replace(known, default=OWN)


def _idle(files: Mapping[str, Any], given: Mapping[str, Any], usable: list[Flag], *, evaluates: bool) -> list[str]:
    """Returns warnings of known settings that this run does not use.

    Args:
        files: settings of --config and of the run of a checkpoint.
        given: what was typed.
        usable: the flags that the chosen parts have.
        evaluates: whether a tester runs.
    """
    names = {flag.name for flag in usable}
    warnings = [unused(name, every_flag([name])[name]) for name in files if name not in names]
    # Only what was typed: a file may be the settings of another run, which name a tester too.
    setting, word = KINDS["testers"]
    of_testers = [flag.name for flag in usable if flag.name == setting or flag.group.startswith(f"{word} ")]
    idle = [f"--{name}" for name in of_testers if name in given]
    if idle and not evaluates:
        warnings.append(f"Not used without --eval --checkpoint_name RUN: {', '.join(idle)}.")
    return warnings


def _print_help(layers: list[Layer], flags: list[Flag]) -> None:
    """Prints the flags with the defaults that hold for the chosen parts, presets included."""
    users = _merged(layers)
    choosing = [setting for setting, _ in KINDS.values()]
    chosen = {name: users[name] for name in (*choosing, "autoconfig") if name in users}
    below, _ = _resolve([chosen])
    shown = []
    for flag in flags:
        if flag.name in below and flag.name not in users:
            flag = dataclasses.replace(flag, default=below[flag.name])
        shown.append(flag)
    if users.get("autoconfig", True):
        short = Switches(switches(), fixed_flags())
        names = {flag.name for flag in shown}
        shown += [flag for flag in (*short.flags, *short.choosing) if flag.name not in names]
    make_parser(shown, aliases(shown), grouped=True).print_help()
