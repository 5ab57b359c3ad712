"""Every flag there is, also of parts that were not chosen: to name the nearest one, and to say which goes unused."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from pruning.errors import UsageError, nearest
from utils.settings import registry
from utils.settings.core import CORE_ALIASES
from utils.settings.flags import Flag
from utils.settings.parts import fixed_flags
from utils.settings.presets import switches
from utils.settings.registry import KINDS


def aliases(flags: Iterable[Flag]) -> dict[str, str]:
    """Other spellings of these flags: alias -> name."""
    names = {flag.name for flag in flags}
    spellings = CORE_ALIASES | registry.loaded_aliases()
    return {alias: name for alias, name in spellings.items() if name in names}


def every_flag(asked: Iterable[str] = ()) -> dict[str, Flag]:
    """Returns the flags that every run has and those of every plug-in that can be imported.

    Args:
        asked: names that are looked for; where one is not found, libraries of models are imported too, in seconds.
    """
    known = {flag.name: flag for flag in fixed_flags()}
    for kind in KINDS:
        for name in registry.names(kind):
            try:
                found = registry.flags(kind, name)
            except UsageError:
                # A broken file harms only those who ask for it.
                continue
            for flag in found:
                known.setdefault(flag.name, flag)
    if set(asked) <= {*known, *aliases(known.values())}:
        return known
    for kind, libraries in registry.FROM_LIBRARIES.items():
        for title, name in libraries.items():
            for flag in registry.flags(kind, name):
                known.setdefault(flag.name, dataclasses.replace(flag, group=f"{KINDS[kind][1]} {title}"))
    return known


def unused(name: str, owner: Flag) -> str:
    """Returns the warning for a flag that no chosen part uses, as it was typed."""
    return f"--{name} is not used: it belongs to {owner.group}."


def check_leftover(leftover: list[str], flags: Iterable[Flag], values: Mapping[str, Any]) -> list[str]:
    """Warns of flags that no chosen part uses, and refuses those that nothing uses.

    Args:
        leftover: the words of a command line that belong to no flag of the chosen parts, in their order.
        flags: those that the chosen parts have, and switches.
        values: the settings.
    """
    spelled = [word.removeprefix("--").split("=")[0] for word in leftover if word.startswith("--")]
    known = every_flag([name.removeprefix("no-") for name in spelled]) if spelled else {}
    spellings = aliases(known.values())
    warnings: list[str] = []
    for word in leftover:
        if not word.startswith("--"):
            # What follows an unused flag is its value.
            if not warnings:
                how = "settings are given as --flag value, switches as --flag or --no-flag"
                raise UsageError(f"Unexpected argument {word!r}; {how}.")
            continue
        name = word.removeprefix("--").split("=")[0]
        owner = known.get(spellings.get(name, name.removeprefix("no-")))
        if owner is None:
            names = [*known, *spellings, *(flag.name for flag in flags)]
            raise _no_such_flag(name, names, presets_hold=bool(values.get("autoconfig", True)))
        warnings.append(unused(name, owner))
    return warnings


def _no_such_flag(name: str, names: list[str], *, presets_hold: bool) -> UsageError:
    why = ""
    if presets_hold:
        names = [*names, *switches()]
    else:
        why = " Switches in utils/autoconfig.json are off with --disable_autoconfig."
    return UsageError(f"There is no flag --{name}.{nearest(name, names, prefix='--')}{why} See --help.")
