"""`--list`: every plug-in with one line."""

from __future__ import annotations

import re
from typing import Any

from pruning.errors import UsageError
from pruning.prune.criterion import Criterion
from utils.console import Console
from utils.settings import registry

# Networks that are no files of ours.
LIBRARIES = {
    "models": [
        ("torchvision/NAME", "any classifier of torchvision"),
        ("timm/NAME", "any model of timm"),
        ("hf/FOLDER", "a model in the form of transformers"),
        ("hf/TYPE", "any type of transformers, such as llama, with --hf_config"),
    ]
}


def print_list(console: Console) -> None:
    """Prints every plug-in of every kind; a broken file is named with its error."""
    for kind, (setting, word) in registry.KINDS.items():
        several = "losses" if word == "loss" else f"{word}s"
        console.out.print(f"\n{several} (--{setting})", style="bold", markup=False)
        rows = [describe(kind, name) for name in registry.names(kind)]
        rows += LIBRARIES.get(kind, [])
        width = max(len(name) for name, _ in rows)
        for name, text in rows:
            console.out.print(f"  {name:<{width}}  {text}", markup=False)


def describe(kind: str, name: str) -> tuple[str, str]:
    """Returns a plug-in's name and its line: what it is; for criteria also unit and moment."""
    try:
        part = registry.find(kind, name)
    except UsageError as error:
        why = " ".join(str(error).split())
        return name, f"cannot be used: {why}"
    text = first_line(part)
    if isinstance(part, type) and issubclass(part, Criterion):
        text = f"{part.unit:<7}  {part.moment:<6}  {text}"
    return name, text


def first_line(part: Any) -> str:
    """Returns the first line of a docstring."""
    lines = (part.__doc__ or "").strip().splitlines()
    return lines[0] if lines else "(no description)"


def paper(part: Any) -> str:
    """Returns what a docstring's first line cites, or an empty string."""
    found = re.search(r"\(([^()]*arXiv:[^()]*)\)", first_line(part))
    return found.group(1) if found else ""
