"""An argparse parser made of flags, whose complaints are one line each."""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pruning.errors import UsageError
from utils.settings.flags import COMPLEMENTS, Flag


class Parser(argparse.ArgumentParser):
    """Raises where argparse would print its usage and exit."""

    def error(self, message: str) -> Any:
        # "argument --epochs: takes ..." without the word argument, and without the colon before a verb.
        found = re.match(r"argument (--\w+)\S*: (takes )?", message)
        if found:
            message = f"{found[1]} {found[2] or ''}{message[found.end() :]}"
        if not message.endswith("?"):
            message = message.rstrip(".") + "."
        raise UsageError(message)


def make_parser(flags: Sequence[Flag], aliases: Mapping[str, str], *, grouped: bool = False) -> Parser:
    """Returns a parser.

    Args:
        flags: what may be typed.
        aliases: other spellings of these flags, alias -> name.
        grouped: put each flag under the heading of its group, for --help.
    """
    parser = Parser(
        prog="main.py",
        usage="python main.py [--flag value ...]",
        description="Trains a network and prunes it. Precedence: command line > --config > presets > defaults. "
        "The flags that every run has come first, then those of the chosen parts.",
        allow_abbrev=False,
        add_help=grouped,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=32, width=110),
    )
    groups: dict[str, Any] = {}
    for flag in flags:
        if flag.group not in groups:
            groups[flag.group] = parser.add_argument_group(flag.group) if grouped else parser
        group = groups[flag.group]
        flag.add_to(group)
        for alias, name in aliases.items():
            if name == flag.name:
                _spelled(flag, alias).add_to(group)
    if any(flag.name == "autoconfig" for flag in flags):
        # As older command lines have it.
        silent: dict[str, Any] = {"default": argparse.SUPPRESS, "help": argparse.SUPPRESS}
        parser.add_argument("--disable_autoconfig", dest="autoconfig", action="store_false", **silent)
    return parser


def _spelled(flag: Flag, alias: str) -> Flag:
    """Returns the same flag under another spelling."""
    how = "stands for 1 minus" if alias in COMPLEMENTS else "the same as"
    return dataclasses.replace(flag, name=alias, default=None, help=f"{how} --{flag.name}")
