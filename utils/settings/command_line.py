"""The command line: taken apart once, and read once when it is known which flags there are."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from utils.settings.flags import Flag
from utils.settings.parser import make_parser

_NUMBER = re.compile(r"-\d+|-\d*\.\d+")  # what argparse takes for a negative number


@dataclass(frozen=True)
class Given:
    """A flag as it was typed (`--no-augment`), and the words that follow it up to the next one."""

    typed: str
    words: tuple[str, ...]

    @property
    def name(self) -> str:
        """The name of its setting: `augment`."""
        return self.typed.removeprefix("--").removeprefix("no-")


class CommandLine:
    """What a person typed after main.py.

    Which flags there are is known only when the parts are chosen, and the command line chooses them. So its words are
    first looked through for names; `read` gives every value its type, once, with all flags.

    Args:
        argv: the words.
    """

    def __init__(self, argv: Sequence[str]) -> None:
        self.argv = tuple(argv)
        self.given = tuple(_scanned(self.argv))
        self.names = frozenset(one.name for one in self.given)

    @property
    def wants_help(self) -> bool:
        return any(one.typed in ("-h", "--help") for one in self.given)

    def rough(self, flags: Iterable[Flag]) -> dict[str, Any]:
        """Returns what was typed by name, as text; switches as truth values. That is enough to choose the parts.

        Args:
            flags: those known by now. Of others, a flag without words is taken for a switch.
        """
        switches = {flag.name: flag.kind is bool for flag in flags}
        values: dict[str, Any] = {}
        for one in self.given:
            if one.typed == "--disable_autoconfig":  # as older command lines have it
                values["autoconfig"] = False
            elif switches.get(one.name, not one.words):
                values[one.name] = not one.typed.startswith("--no-")
            elif one.words:
                values[one.name] = one.words[0]
        return values

    def read(self, flags: Sequence[Flag], aliases: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
        """Returns what was typed in the types of these flags, and the words that belong to none of them.

        Args:
            flags: all that may be used.
            aliases: other spellings of them, alias -> name. Values come under the spelling that was typed.

        Raises:
            UsageError: for a value that does not fit its flag.
        """
        namespace, leftover = make_parser(flags, aliases).parse_known_args(list(self.argv))
        return vars(namespace), leftover


class InFile:
    """Settings that are there already, in their types, in the place of a command line: those of an experiment's run.

    Args:
        values: by flag name; None stands for the default.
    """

    wants_help = False

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = {name: value for name, value in values.items() if value is not None}
        self.names = frozenset(self.values)

    def rough(self, flags: Iterable[Flag]) -> dict[str, Any]:
        return dict(self.values)

    def read(self, flags: Sequence[Flag], aliases: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
        known = {*aliases, *(flag.name for flag in flags)}
        values = {name: value for name, value in self.values.items() if name in known}
        return values, [f"--{name}" for name in self.values if name not in known]


def _scanned(argv: Sequence[str]) -> Iterator[Given]:
    """Yields each flag with the words that follow it; words before the first flag belong to none."""
    typed: str | None = None
    words: list[str] = []
    for number, word in enumerate(argv):
        if word == "--":  # what follows are words, whatever they look like
            words += argv[number + 1 :]
            break
        if not _is_flag(word):
            words.append(word)
            continue
        if typed is not None:
            yield Given(typed, tuple(words))
        typed, equals, value = word.partition("=")
        words = [value] if equals else []
    if typed is not None:
        yield Given(typed, tuple(words))


def _is_flag(word: str) -> bool:
    """Whether argparse would take a word for a flag."""
    if not word.startswith("-") or word == "-" or _NUMBER.fullmatch(word):
        return False
    name = word.partition("=")[0]
    return " " not in name
