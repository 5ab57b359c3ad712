"""Flags that stand for other settings, as the section "switch" of autoconfig.json maps them.

A new name is a switch (`--l0`): what it stands for counts as given where the switch is given. The name of a flag that a
part has (`--attack NAME`) chooses that part, unless the user chose another one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from pruning.errors import UsageError
from utils.settings import registry
from utils.settings.flags import Flag, format_value
from utils.settings.registry import KINDS


class Switches:
    """Switches with what they stand for.

    Args:
        table: name -> settings, of those that the user mentions.
        core: the core flags.
    """

    def __init__(self, table: Mapping[str, Mapping[str, Any]], core: Iterable[Flag]) -> None:
        self.table = table
        known = {flag.name: flag for flag in core}
        owners = {name: known.get(name) or _flag_of_part(name, settings) for name, settings in table.items()}
        self.flags = [
            Flag(name, bool, False, f"short for {typed(table[name])}", "switches") for name in table if not owners[name]
        ]
        self.choosing = [
            dataclasses.replace(flag, default=None, help=f"{flag.help} Chooses {typed(table[name])}.", group="switches")
            for name, flag in owners.items()
            if flag
        ]

    def expand(self, layers: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        """Returns layers of settings, the later ones stronger, with what the switches in them stand for.

        Raises:
            UsageError: if a switch is given together with something else than it stands for.
        """
        layers = list(layers)
        given = {name: value for layer in layers for name, value in layer.items()}
        on = [flag.name for flag in self.flags if given.get(flag.name)]
        result = [dict(self.table[flag.name]) for flag in self.choosing]
        for layer in layers:
            result += [dict(self.table[name]) for name in on if layer.get(name)]
            result.append({name: value for name, value in layer.items() if name not in {f.name for f in self.flags}})
        self._refuse_contradictions(on, {name: value for layer in result for name, value in layer.items()})
        return result

    def _refuse_contradictions(self, on: list[str], values: Mapping[str, Any]) -> None:
        for name in on:
            for setting, value in self.table[name].items():
                if values[setting] == value:
                    continue
                wanted, there = typed({setting: value}), typed({setting: values[setting]})
                other = next((o for o in on if self.table[o].get(setting, value) != value), None)
                if other:
                    raise UsageError(f"--{name} and --{other} contradict each other: {wanted} and {there}.")
                raise UsageError(f"--{name} stands for {wanted}; {there} was given too. Give one of them.")


def typed(settings: Mapping[str, Any]) -> str:
    """Settings as a person would type them."""
    switches = {True: "--{}", False: "--no-{}"}
    words = [
        switches[value].format(name) if isinstance(value, bool) else f"--{name} {format_value(value)}"
        for name, value in settings.items()
    ]
    return " ".join(words)


def _flag_of_part(name: str, settings: Mapping[str, Any]) -> Flag | None:
    """Returns the flag of this name that one of the parts has which the settings choose."""
    parts = [(kind, settings[setting]) for kind, (setting, _) in KINDS.items() if setting in settings]
    try:
        return next((flag for kind, part in parts for flag in registry.flags(kind, part) if flag.name == name), None)
    except UsageError:
        return None  # what is broken is said to those who give the switch, when the part is looked for
