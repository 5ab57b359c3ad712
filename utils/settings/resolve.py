"""From what the user typed to one set of checked values.

What the user typed wins over --config, that over what the run of a checkpoint was made with (its network and data),
that over the presets in autoconfig.json, those over what the chosen parts want, that over defaults.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pruning.errors import UsageError, nearest
from utils.settings import registry
from utils.settings.core import CORE_ALIASES, Core, core_flags
from utils.settings.earlier_runs import find_run, taken_over
from utils.settings.flags import OWN, REQUIRED, Flag, canonical
from utils.settings.parser import make_parser
from utils.settings.presets import AUTOCONFIG, Lines, checked, presets, read_yaml, switches
from utils.settings.registry import KINDS
from utils.settings.switches import Switches


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
    """Returns the settings for a command line, or None after --help was printed.

    Raises:
        UsageError: in one line, for anything that does not fit.
    """
    config, short = _read_config(argv)
    users = short.expand([config, typed(argv, short.flags)[0]])
    start = _of_checkpoint(_merged(users))
    values, _ = _resolve([start, *users])
    outer = _chosen(values)
    # Only with the flags of the parts is it known whether one of them was given a criterion, which has flags too.
    flags = _chosen(values | vars(make_parser(outer, aliases(outer)).parse_known_args(list(argv))[0]))
    if {"-h", "--help"} & set(argv):
        _print_help([start, *users], flags)
        return None
    typable = [*flags, *short.flags]
    namespace, extras = make_parser(typable, aliases(flags)).parse_known_args(list(argv))
    warnings = _check_extras(extras, typable, values)
    values, origins = _resolve([start, *short.expand([config, _without_aliases(vars(namespace), flags)])])
    values |= _checked_wishes(values, origins, flags)
    names = {flag.name for flag in typable}
    warnings += [_unused(name, every_flag([name])[name]) for name in start | config if name not in names]
    # A file may be the settings of another run, which name a tester too.
    idle = [f"--{flag.name}" for flag in flags if flag.name in vars(namespace) and _of_testers(flag)]
    if idle and not values.get("eval"):
        warnings.append(f"Not used without --eval --checkpoint_name RUN: {', '.join(idle)}.")
    return _finish(values, flags, warnings)


def typed(argv: Sequence[str], switches: Iterable[Flag] = ()) -> tuple[dict[str, Any], list[str]]:
    """Returns the core settings and switches that were typed, and the arguments that are none of them."""
    flags = [*core_flags(), *switches]
    namespace, others = make_parser(flags, aliases(flags)).parse_known_args(list(argv))
    return vars(namespace), others


def load(saved: Mapping[str, Any], changed: Mapping[str, Any], source: Path) -> Settings:
    """Returns the settings of a stopped run (the content of its settings.yaml), with `changed` put on top."""
    registry.use_plugin_dir(str(saved.get("plugin_dir") or ""))
    flags = _chosen(saved)
    lacking = next((flag for flag in flags if flag.name not in saved and flag.default is not OWN), None)
    if lacking:
        raise UsageError(f"{source} lacks {lacking.name}; a run is taken up again only with all its settings.")
    values = {flag.name: flag.check(saved[flag.name], str(source)) for flag in flags if flag.name in saved}
    return _finish(values | dict(changed), flags, [])


def _finish(values: dict[str, Any], flags: list[Flag], warnings: list[str]) -> Settings:
    complete = {flag.name: values.get(flag.name, flag.default) for flag in flags}
    missing = next((flag for flag in flags if complete[flag.name] is REQUIRED), None)
    if missing:
        raise UsageError(f"--{missing.name} is needed by {missing.group}: {missing.help or 'it has no default'}.")
    complete = {flag.name: _value(flag, values) for flag in flags if complete[flag.name] is not OWN}
    core = Core(**{f.name: complete[f.name] for f in dataclasses.fields(Core)})
    return Settings(core, complete | dataclasses.asdict(core), warnings)


def _value(flag: Flag, values: Mapping[str, Any]) -> Any:
    """A given value in its flag's type; a default is its author's business."""
    return flag.check(values[flag.name]) if flag.name in values else flag.default


def _print_help(layers: list[dict[str, Any]], flags: list[Flag]) -> None:
    """Prints the flags with the defaults that hold for the chosen parts, presets included."""
    users = _merged(layers)
    chosen = {setting: users[setting] for setting, _ in KINDS.values() if setting in users}
    below, _ = _resolve([chosen | {name: users[name] for name in ("autoconfig",) if name in users}])
    flags = [
        dataclasses.replace(flag, default=below[flag.name]) if flag.name in below and flag.name not in users else flag
        for flag in flags
    ]
    if users.get("autoconfig", True):
        short, names = Switches(switches(), core_flags()), {flag.name for flag in flags}
        flags += [flag for flag in (*short.flags, *short.choosing) if flag.name not in names]
    make_parser(flags, aliases(flags), grouped=True).print_help()


def aliases(flags: list[Flag]) -> dict[str, str]:
    """Other spellings of these flags: alias -> name."""
    names = {flag.name for flag in flags}
    return {alias: name for alias, name in (CORE_ALIASES | registry.loaded_aliases()).items() if name in names}


def _without_aliases(typed: dict[str, Any], flags: list[Flag]) -> dict[str, Any]:
    for alias, name in aliases(flags).items():
        if alias in typed:
            given = typed.pop(alias)
            value = canonical(alias, given)
            if typed.setdefault(name, value) != value:
                raise UsageError(f"--{alias} {given} and --{name} {typed[name]} say two things; they are one setting.")
    return typed


def _resolve(layers: list[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, str]]:
    """Merges the user's layers over presets and wishes of the parts, which depend on the parts that are chosen.

    Returns:
        The values, and where those stand that are not the user's.
    """
    users = _merged(layers)
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    # A preset may choose a part that has presets of its own; two rounds settle that.
    for _ in range(3):
        parts = list(_parts({setting: values.get(setting, users.get(setting)) for setting, _ in KINDS.values()}))
        below = [*_wishes(parts), *(presets(parts) if users.get("autoconfig", True) else ())]
        values = {name: value for name, value, _ in below} | users
        origins = {name: source for name, _, source in below if name not in users}
    return values, origins


def _merged(layers: list[dict[str, Any]]) -> dict[str, Any]:
    return {name: value for layer in layers for name, value in layer.items()}


def _wishes(parts: Iterable[tuple[str, str]]) -> Iterator[tuple[str, Any, str]]:
    for kind, name in parts:
        for setting, value in getattr(registry.find(kind, name), "wants", {}).items():
            yield setting, value, f"{kind} {name}, `wants`"


def _checked_wishes(values: Mapping[str, Any], origins: Mapping[str, str], flags: list[Flag]) -> dict[str, Any]:
    """Returns what presets and parts ask for in the right types; unknown names are errors, as everywhere."""
    known = {flag.name: flag for flag in flags}
    if not set(origins) <= set(known):
        known |= every_flag(origins)
    return checked({name: values[name] for name in origins}, known, origins.__getitem__)


def _parts(chosen: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    defaults = {f.name: f.default for f in dataclasses.fields(Core)}
    for kind, (setting, _) in KINDS.items():
        yield kind, str(chosen.get(setting) or defaults[setting])


def _chosen(values: Mapping[str, Any]) -> list[Flag]:
    """The core flags and those of the chosen parts; a flag that two parts name is one flag."""
    by_name = {flag.name: flag for flag in core_flags()}
    for kind, name in _parts(values):
        _join(by_name, registry.flags(kind, name))
    for flag in [flag for flag in by_name.values() if flag.nested and values.get(flag.name)]:
        _join(by_name, registry.flags("criterions", values[flag.name]))
    return list(by_name.values())


def _join(by_name: dict[str, Flag], flags: Iterable[Flag]) -> None:
    for flag in flags:
        known = by_name.setdefault(flag.name, flag)
        if known.group != "core" and known.default != flag.default:
            # Typed, the value is for both; not typed, neither part's default may become the other's.
            by_name[flag.name] = dataclasses.replace(known, default=OWN)


def every_flag(asked: Iterable[str] = ()) -> dict[str, Flag]:
    """Returns the flags of the core and of every plug-in that can be imported.

    Args:
        asked: names that are looked for; where one is not found, libraries of models are imported too, in seconds.
    """
    known = {flag.name: flag for flag in core_flags()}
    for kind in KINDS:
        for name in registry.names(kind):
            try:
                found = registry.flags(kind, name)
            except UsageError:
                # A broken file harms only those who ask for it.
                continue
            for flag in found:
                known.setdefault(flag.name, flag)
    if set(asked) <= {*known, *aliases(list(known.values()))}:
        return known
    for kind, libraries in registry.FROM_LIBRARIES.items():
        for title, name in libraries.items():
            for flag in registry.flags(kind, name):
                known.setdefault(flag.name, dataclasses.replace(flag, group=f"{KINDS[kind][1]} {title}"))
    return known


def _check_extras(extras: list[str], flags: list[Flag], values: Mapping[str, Any]) -> list[str]:
    """Warns of flags that no chosen part uses, and refuses those that nothing uses."""
    asked = {extra[2:].split("=")[0].removeprefix("no-") for extra in extras if extra.startswith("--")}
    known = every_flag(asked) if asked else {}
    warnings, follows = [], False
    for extra in extras:
        if not extra.startswith("--"):
            if not follows:
                how = "settings are given as --flag value, switches as --flag or --no-flag"
                raise UsageError(f"Unexpected argument {extra!r}; {how}.")
            continue
        name = extra.removeprefix("--").split("=")[0]
        spellings = aliases(list(known.values()))
        owner = known.get(spellings.get(name, name.removeprefix("no-")))
        if owner is None:
            presets_hold = values.get("autoconfig", True)
            names = [*known, *spellings, *(flag.name for flag in flags), *(switches() if presets_hold else ())]
            why = "" if presets_hold else " Switches in utils/autoconfig.json are off with --disable_autoconfig."
            raise UsageError(f"There is no flag --{name}.{nearest(name, names, prefix='--')}{why} See --help.")
        follows = True
        warnings.append(_unused(name, owner))
    return warnings


def _unused(name: str, owner: Flag) -> str:
    return f"--{name} is not used: it belongs to {owner.group}."


def _of_testers(flag: Flag) -> bool:
    setting, word = KINDS["testers"]
    return flag.name == setting or flag.group.startswith(f"{word} ")


def _of_checkpoint(users: Mapping[str, Any]) -> dict[str, Any]:
    """What a run that --checkpoint_name names says about its network and data."""
    name = str(users.get("checkpoint_name") or "")
    return taken_over(find_run(name, str(users.get("results_dir", Core().results_dir))), users) if name else {}


def _read_config(argv: Sequence[str]) -> tuple[dict[str, Any], Switches]:
    """Reads --config, and looks up the switches that it or the command line mentions.

    The folder of the user's plug-ins, typed or in the file, is added first: it may hold flags.
    """
    core, _ = typed(argv)
    content, where = read_yaml(core["config"]) if core.get("config") else ({}, str)
    registry.use_plugin_dir(str(core.get("plugin_dir", content.get("plugin_dir")) or ""))
    mentioned = {word.split("=")[0].removeprefix("--").removeprefix("no-") for word in argv} | set(content)
    table = switches() if core.get("autoconfig", content.get("autoconfig", True)) else {}
    given = {
        name: _in_their_types(settings, lambda _, name=name: f"{AUTOCONFIG}, switch {name}")  # type: ignore[misc]
        for name, settings in table.items()
        if name in mentioned
    }
    short = Switches(given, core_flags())
    return _in_their_types(content, where, short.flags), short


def _in_their_types(content: Mapping[str, Any], where: Lines, switches: Iterable[Flag] = ()) -> dict[str, Any]:
    """Returns the settings of a file in the types of their flags."""
    known = {flag.name: flag for flag in (*core_flags(), *switches)}
    if not set(content) <= set(known):
        known = every_flag(set(content) - set(known)) | known
        known |= {alias: known[name] for alias, name in aliases(list(known.values())).items()}
    return checked(content, known, where)
