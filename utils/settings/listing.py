"""`--list`: every plug-in with one line."""

from __future__ import annotations

import re
from typing import Any

from pruning import Criterion
from pruning.errors import UsageError
from utils.console import Console
from utils.settings import registry

LIBRARIES = {"models": [("torchvision/NAME", "any classifier of torchvision"), ("timm/NAME", "any model of timm")]}


def print_list(console: Console) -> None:
    """Prints every plug-in of every kind; a broken file is named with its error."""
    for kind, (setting, word) in registry.KINDS.items():
        console.out.print(f"\n{word}s (--{setting})".replace("losss", "losses"), style="bold", markup=False)
        rows = [describe(kind, name) for name in registry.names(kind)] + LIBRARIES.get(kind, [])
        width = max(len(name) for name, _ in rows)
        for name, text in rows:
            console.out.print(f"  {name:<{width}}  {text}", markup=False)


def describe(kind: str, name: str) -> tuple[str, str]:
    """Returns a plug-in's name and its line: what it is; for criteria also unit and moment."""
    try:
        part = registry.find(kind, name)
    except UsageError as error:
        return name, f"cannot be used: {' '.join(str(error).split())}"
    text = first_line(part)
    if isinstance(part, type) and issubclass(part, Criterion):
        text = f"{part.unit:<7}  {part.moment:<6}  {text}"
    return name, text


def first_line(part: Any) -> str:
    """Returns the first line of a docstring."""
    return ((part.__doc__ or "").strip().splitlines() or ["(no description)"])[0]


def paper(part: Any) -> str:
    """Returns what a docstring's first line cites, or an empty string."""
    found = re.search(r"\(([^()]*arXiv:[^()]*)\)", first_line(part))
    return found.group(1) if found else ""
