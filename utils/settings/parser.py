"""An argparse parser made of flags, whose complaints are one line each."""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from pruning.errors import UsageError
from utils.settings.flags import COMPLEMENTS, Flag


class Parser(argparse.ArgumentParser):
    """Raises where argparse would print its usage and exit."""

    def error(self, message: str) -> Any:
        message = re.sub(r"^argument (--\w+)\S*: (takes )?", lambda found: f"{found[1]} {found[2] or ''}", message)
        raise UsageError(message if message.endswith("?") else message.rstrip(".") + ".")


def make_parser(flags: list[Flag], aliases: Mapping[str, str], *, grouped: bool = False) -> Parser:
    """Returns a parser.

    Args:
        flags: what may be typed.
        aliases: other spellings of these flags, alias -> name.
        grouped: put each flag under the heading of its group, for --help.
    """
    parser = Parser(
        prog="main.py",
        usage="python main.py [--flag value ...]",
        description="Trains a network and prunes it. Flags: the core ones, then those of the chosen parts.",
        allow_abbrev=False,
        add_help=grouped,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=32, width=110),
    )
    groups: dict[str, Any] = {}
    for flag in flags:
        if flag.group not in groups:
            groups[flag.group] = parser.add_argument_group(flag.group) if grouped else parser
        flag.add_to(groups[flag.group])
        for alias in (alias for alias, name in aliases.items() if name == flag.name):
            how = "stands for 1 minus" if alias in COMPLEMENTS else "the same as"
            other = dataclasses.replace(flag, name=alias, default=None, help=f"{how} --{flag.name}")
            other.add_to(groups[flag.group])
    if any(flag.name == "autoconfig" for flag in flags):
        silent: dict[str, Any] = {"default": argparse.SUPPRESS, "help": argparse.SUPPRESS}
        parser.add_argument("--disable_autoconfig", dest="autoconfig", action="store_false", **silent)
    return parser
