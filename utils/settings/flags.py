"""Constructor parameters as command-line flags."""

from __future__ import annotations

import argparse
import dataclasses
import typing
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from pruning.errors import UsageError, nearest
from pruning.prune.criterion import Criterion
from utils.settings.signatures import REQUIRED, Part, parameters_of
from utils.settings.values import (
    Limits,
    check_limits,
    format_value,
    is_list,
    is_mapping,
    is_union,
    item_of,
    length_of,
    options_of,
    parse_value,
    takes_several,
    typable,
)


class _Own:
    def __str__(self) -> str:
        return "each part's own"


# The default of a flag that two parts name with different defaults.
OWN = _Own()

# Spellings that say 1 minus what their setting says.
COMPLEMENTS = frozenset(("keep_ratio",))


def canonical(spelling: str, value: Any) -> Any:
    """Returns the value of a setting that was given under some spelling."""
    return round(1 - value, 12) if spelling in COMPLEMENTS else value


@dataclass(frozen=True)
class Flag:
    """One command-line flag: `name` with its annotation, default, help text, the group it stands in, and limits."""

    name: str
    annotation: Any
    default: Any
    help: str
    group: str
    limits: Limits | None = None

    @property
    def kind(self) -> Any:
        """The annotation without `| None`."""
        if is_union(self.annotation):
            options = options_of(self.annotation)
            if len(options) == 1:
                return options[0]
        return self.annotation

    @property
    def nested(self) -> bool:
        """Whether the value names another criterion, which is built and handed over."""
        return isinstance(self.kind, type) and issubclass(self.kind, Criterion)

    def add_to(self, parser: Any) -> None:
        """Declares the flag on an argparse parser or group; what is not typed leaves no trace in the result."""
        common: dict[str, Any] = {"dest": self.name, "default": argparse.SUPPRESS, "help": self._help()}
        if self.kind is bool:
            parser.add_argument(f"--{self.name}", action=argparse.BooleanOptionalAction, **common)
            return
        kind = self.kind
        if takes_several(kind):
            common["nargs"] = "*"
        if is_mapping(kind) or (is_list(kind) and item_of(kind) is str):
            common["action"] = "extend"  # names that are typed again come on top
        if is_mapping(kind):
            convert: Callable[[str], Any] = self._checked_pair
        else:
            convert = self._convert(item_of(kind) if is_list(kind) else kind)
        parser.add_argument(f"--{self.name}", type=convert, metavar=self._metavar(), **common)

    def _checked_pair(self, text: str) -> str:
        """Returns a `name=number` word as it is, once it is known to be one: all of them together make the value."""
        self._convert(self.kind)(text)
        return text

    def _help(self) -> str:
        text = self.help
        if self.default is not REQUIRED and self.default is not None and self.default != "":
            text = f"{text} (default: {format_value(self.default)})".lstrip()
        # argparse replaces %(...)s in help texts, and prints a flag without one on no line of its own.
        return text.replace("%", "%%") or " "

    def _convert(self, kind: Any) -> Callable[[str], Any]:
        def convert(text: str) -> Any:
            try:
                return parse_value(kind, text)
            except (TypeError, ValueError, OverflowError) as error:
                options = [str(option) for option in typing.get_args(kind) if isinstance(option, str)]
                close = nearest(text, options)
                raise argparse.ArgumentTypeError(f"takes {self._wanted()}; {text!r} was given.{close}") from error

        return convert

    def _metavar(self) -> str:
        if self.nested:
            return "CRITERION"
        if typing.get_origin(self.kind) is typing.Literal:
            return "{" + ",".join(str(option) for option in typing.get_args(self.kind)) + "}"
        if is_mapping(self.kind):
            return "NAME=NUMBER"
        inner = (typing.get_args(self.kind) or (self.kind,))[0]
        return getattr(inner, "__name__", "value").upper()

    def _wanted(self) -> str:
        if typing.get_origin(self.kind) is typing.Literal:
            return "one of " + ", ".join(str(option) for option in typing.get_args(self.kind))
        if is_list(self.kind):
            words = {int: "whole numbers", float: "numbers"}.get(item_of(self.kind), "values")
            count = length_of(self.kind)
            return f"{count} {words}" if count else words
        if is_mapping(self.kind):
            return "NAME=NUMBER, once for each name"
        words_of = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
        return words_of.get(self.kind, self.type_name())

    def type_name(self) -> str:
        """The type as a person would write it, for the table of flags in the documentation."""
        if typing.get_origin(self.kind) is typing.Literal:
            return "|".join(str(option) for option in typing.get_args(self.kind))
        if self.nested:
            return "criterion"
        if self.kind is bool:
            return "switch"
        if is_mapping(self.kind):
            return "name=number"
        name = getattr(self.kind, "__name__", str(self.kind))
        arguments = [getattr(a, "__name__", "") for a in typing.get_args(self.kind) if a is not Ellipsis]
        return f"{name} of {arguments[0]}" if arguments else name

    def check(self, value: Any, source: str = "") -> Any:
        """Returns a value as this flag's type, or raises UsageError naming the file that it came from, if any."""
        if value is None and (self.default is None or is_union(self.annotation)):
            return None
        try:
            return parse_value(self.kind, value)
        except (TypeError, ValueError, OverflowError) as error:
            name = f"{source}: {self.name}" if source else f"--{self.name}"
            raise UsageError(f"{name} takes {self._wanted()}; {value!r} was given.") from error

    def check_limits(self, value: Any) -> None:
        """Raises UsageError for a value, in this flag's type, that is out of its limits."""
        if self.limits:
            check_limits(self.name, value, self.limits)


def flags_of(part: Part, group: str, handed_over: Iterable[str] = ()) -> list[Flag]:
    """Returns the flags that a part's constructor declares: one per parameter whose value can be typed.

    Args:
        part: a class, or a function that builds a model.
        group: heading in the help text.
        handed_over: parameters that the framework gives, which are no flags.
    """
    handed_over = frozenset(handed_over)
    flags = []
    for parameter in parameters_of(part):
        if parameter.name in handed_over:
            continue
        if dataclasses.is_dataclass(parameter.annotation):
            flags += flags_of(typing.cast(type, parameter.annotation), group, handed_over)
        elif typable(parameter.annotation):
            flag = Flag(
                parameter.name, parameter.annotation, parameter.default, parameter.help, group, parameter.limits
            )
            flags.append(flag)
    return flags
