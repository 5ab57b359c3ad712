"""Flags that stand for other settings, as the section "switch" of autoconfig.json maps them.

A new name is a switch (`--l0`): what it stands for counts as given where the switch is given. The name of a flag that a
part has (`--attack NAME`) chooses that part, unless the user chose another one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pruning.errors import UsageError
from utils.settings import registry
from utils.settings.flags import Flag
from utils.settings.registry import KINDS
from utils.settings.values import format_value


class Switches:
    """Switches with what they stand for.

    Args:
        table: name -> settings, of those that the user mentions.
        core: the core flags.
    """

    def __init__(self, table: Mapping[str, Mapping[str, Any]], core: Iterable[Flag]) -> None:
        self.table = table
        self.flags: list[Flag] = []
        self.choosing: list[Flag] = []
        known = {flag.name: flag for flag in core}
        for name, settings in table.items():
            owner = known.get(name) or _flag_of_part(name, settings)
            if owner:
                text = f"{owner.help} Chooses {typed(settings)}."
                self.choosing.append(dataclasses.replace(owner, default=None, help=text, group="switches"))
            else:
                self.flags.append(Flag(name, bool, False, f"short for {typed(settings)}", "switches"))

    def expand(self, layers: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Returns layers of settings, the later ones stronger, with what the switches in them stand for."""
        on = self._on(layers)
        switches = {flag.name for flag in self.flags}
        # What chooses a part is weakest: the user may have chosen another one.
        result = [dict(self.table[flag.name]) for flag in self.choosing]
        for layer in layers:
            result += [dict(self.table[name]) for name in on if layer.get(name)]
            result.append({name: value for name, value in layer.items() if name not in switches})
        return result

    def refuse_contradictions(self, layers: Sequence[dict[str, Any]]) -> None:
        """Raises UsageError if a switch in layers is given together with something else than it stands for."""
        values: dict[str, Any] = {}
        for layer in self.expand(layers):
            values |= layer
        on = self._on(layers)
        for name in on:
            for setting, value in self.table[name].items():
                if values[setting] == value:
                    continue
                wanted, there = typed({setting: value}), typed({setting: values[setting]})
                for other in on:
                    if self.table[other].get(setting, value) != value:
                        raise UsageError(f"--{name} and --{other} contradict each other: {wanted} and {there}.")
                raise UsageError(f"--{name} stands for {wanted}; {there} was given too. Give one of them.")

    def _on(self, layers: Sequence[dict[str, Any]]) -> list[str]:
        """The switches that are on when all layers are merged."""
        given: dict[str, Any] = {}
        for layer in layers:
            given |= layer
        return [flag.name for flag in self.flags if given.get(flag.name)]


def typed(settings: Mapping[str, Any]) -> str:
    """Settings as a person would type them."""
    words = []
    for name, value in settings.items():
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no-{name}")
        else:
            words.append(f"--{name} {format_value(value)}")
    return " ".join(words)


def _flag_of_part(name: str, settings: Mapping[str, Any]) -> Flag | None:
    """Returns the flag of this name that one of the parts has which the settings choose."""
    for kind, (setting, _) in KINDS.items():
        if setting not in settings:
            continue
        try:
            flags = registry.flags(kind, settings[setting])
        except UsageError:
            return None  # what is broken is said to those who give the switch, when the part is looked for
        for flag in flags:
            if flag.name == name:
                return flag
    return None
