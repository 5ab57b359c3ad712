"""The tables of the README and of docs/, made from the plug-ins and the settings.

    python docs/make_tables.py

writes them anew, between the marks `<!-- generated: NAME -->` and `<!-- end: NAME -->`.
"""

from __future__ import annotations

import ast
import re
import sys
import typing
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from pruning import Criterion  # noqa: E402 - the path has to be set first
from pruning.errors import UsageError  # noqa: E402
from utils.settings import registry  # noqa: E402
from utils.settings.core import CORE_ALIASES  # noqa: E402
from utils.settings.flags import Flag  # noqa: E402
from utils.settings.listing import first_line, paper  # noqa: E402
from utils.settings.parts import fixed_flags  # noqa: E402
from utils.settings.signatures import REQUIRED  # noqa: E402
from utils.settings.values import format_value  # noqa: E402

PAGES = ("criteria.md", "data.md", "evaluation.md", "flags.md")
FILES = (ROOT / "README.md", ROOT / "pruning" / "README.md", *(ROOT / "docs" / page for page in PAGES))

# What a criterion removes and when, in the order in which the README lists the families.
UNITS = {
    "weights": "single weights (masks)",
    "nodes": "channels and neurons (cut out)",
    "ranks": "ranks (two smaller layers)",
}
MOMENTS = ("before", "during", "after")

# The engine's rooms from the ground up, with the files that lie beside them; a room imports only those above it.
FLOORS: tuple[str, ...] = ("errors.py", "masks.py", "distributed.py", "modules", "measure", "trace", "trace/rules")
FLOORS += (
    "dry_run",
    "cut",
    "graph",
    "weights.py",
    "state.py",
    "scores",
    "prune",
    "l0",
    "low_rank",
    "dead",
    "export.py",
)
FLOORS += ("pretrained", "network.py", "compressed.py", "former_names.py")
OPTIONAL_NOTE = " Optional: nothing else of the engine needs it."
OPTIONAL = ("l0", "low_rank", "dead", "export.py", "pretrained", "compressed.py", "former_names.py")

Names = Callable[[str], Iterable[str]]


def plug_ins(kind: str) -> list[str]:
    """Returns the names of the plug-ins in the project's own rooms, without those of a --plugin_dir."""
    files = (registry.ROOT / kind).glob("*.py")
    return sorted((file.stem for file in files if not file.stem.startswith("_")), key=str.lower)


def rewrite(texts: list[str], names: Names = plug_ins) -> list[str]:
    """Returns the texts with every generated table made anew.

    Args:
        texts: of all files; `<!-- generated: NAME -->` and `<!-- end: NAME -->` stand around each table.
        names: kind -> the plug-ins that the tables speak of.

    Raises:
        UsageError: where a table has no place, or more than one.
    """
    for name, make in TABLES.items():
        block = re.compile(rf"(<!-- generated: {name} -->\n).*?(\n<!-- end: {name} -->)", re.DOTALL)
        if sum(len(block.findall(text)) for text in texts) != 1:
            raise UsageError(f"One file must hold `<!-- generated: {name} -->` ... `<!-- end: {name} -->`, once.")
        lines = "\n".join(make(names))
        texts = [block.sub(lambda found, lines=lines: f"{found[1]}\n{lines}\n{found[2]}", text) for text in texts]  # type: ignore[misc]
    return texts


def criteria(names: Names) -> dict[str, type[Criterion]]:
    """Returns the criteria by name."""
    found = {name: registry.find("criterions", name) for name in names("criterions")}
    return {name: part for name, part in found.items() if isinstance(part, type) and issubclass(part, Criterion)}


def criteria_table(names: Names) -> list[str]:
    """Returns one row per criterion: what it is, its paper, its unit and its moment."""
    rows = []
    for name, part in criteria(names).items():
        what = first_line(part).replace(f" ({paper(part)})", "").rstrip(".")
        rows.append([f"`{name}`", _escaped(what), _linked(paper(part)), part.unit, part.moment])
    return _table(["criterion", "what it removes by", "paper", "unit", "moment"], rows)


def families_table(names: Names) -> list[str]:
    """Returns one row per family, which is a unit and a moment, with the names of its criteria."""
    found = criteria(names)
    rows = []
    for unit, title in UNITS.items():
        for moment in MOMENTS:
            family = [name for name, part in found.items() if (part.unit, part.moment) == (unit, moment)]
            if family:
                rows.append([title, moment, ", ".join(family)])
    return _table(["what goes", "when", "criteria"], rows)


def lines_table(kind: str, what: str, names: Names) -> list[str]:
    """Returns one row per plug-in of a kind: its name and its first line."""
    rows = [[f"`{name}`", _escaped(first_line(registry.find(kind, name)))] for name in names(kind)]
    return _table([registry.KINDS[kind][1], what], rows)


def floors_table(_names: Names) -> list[str]:
    """Returns one row per room of the engine and per file in it, with the first line of each."""
    rows = []
    for floor in FLOORS:
        place = ROOT / "pruning" / floor
        files = [place] if place.is_file() else [file for file in sorted(place.glob("*.py")) if file.stem != "__init__"]
        if place.is_dir():
            optional = "*optional* " if floor in OPTIONAL else ""
            rows.append([f"**{floor}/**", optional + _purpose(place / "__init__.py").replace(OPTIONAL_NOTE, "")])
        for file in files:
            optional = "*optional* " if floor in OPTIONAL and place.is_file() else ""
            rows.append([f"`{file.relative_to(ROOT / 'pruning').as_posix()}`", optional + _purpose(file)])
    return _table(["floor, file", "what is in it"], rows)


def _purpose(file: Path) -> str:
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return _escaped(text.partition("\n")[0])


def core_flags_table(_names: Names) -> list[str]:
    """Returns one row per core setting."""
    rows = [_row(flag) for flag in fixed_flags()]
    return _table(["flag", "type", "meaning", "default"], rows)


def part_flags_table(names: Names) -> list[str]:
    """Returns one row per flag of a plug-in's constructor, with the parts that share it."""
    core = {flag.name for flag in fixed_flags()}
    owners: dict[tuple[str, ...], list[str]] = {}
    for kind in registry.KINDS:
        sources = {name: name for name in names(kind)} | registry.FROM_LIBRARIES.get(kind, {})
        for title, name in sources.items():
            for flag in registry.flags(kind, name):
                if flag.name not in core:
                    owners.setdefault(tuple(_row(flag)), []).append(title)
    rows = [[*row, ", ".join(parts)] for row, parts in owners.items()]
    return _table(["flag", "type", "meaning", "default", "of"], rows)


TABLES: dict[str, Callable[[Names], list[str]]] = {
    "families": families_table,
    "criteria": criteria_table,
    "floors": floors_table,
    "models": partial(lines_table, "models", "what it is"),
    "data sets": partial(lines_table, "data_sets", "what it is"),
    "testers": partial(lines_table, "testers", "what it measures"),
    "core flags": core_flags_table,
    "flags of the parts": part_flags_table,
}


def _row(flag: Flag) -> list[str]:
    spellings = [flag.name, *(alias for alias, name in _aliases().items() if name == flag.name)]
    if flag.kind is bool:
        spellings.append(f"no-{flag.name}")
    flags = ", ".join(f"`--{spelling}`" for spelling in spellings)
    return [flags, _type(flag), _escaped(flag.help), _default(flag.default)]


def _aliases() -> dict[str, str]:
    return CORE_ALIASES | registry.loaded_aliases()


def _type(flag: Flag) -> str:
    if typing.get_origin(flag.kind) is typing.Literal:
        return ", ".join(f"`{option}`" for option in typing.get_args(flag.kind))
    return flag.type_name()


def _default(value: Any) -> str:
    if value is REQUIRED:
        return "required"
    return "" if value is None or value == "" else f"`{format_value(value)}`"


def _linked(citation: str) -> str:
    return re.sub(r"arXiv:(\d{4}\.\d{4,5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", citation)


def _escaped(text: str) -> str:
    """Text as Markdown shows it literally inside a table; code spans are left alone but for bars."""
    parts = re.split(r"(`[^`]*`)", text)
    plain = [re.sub(r"([*<>])", r"\\\1", part) if place % 2 == 0 else part for place, part in enumerate(parts)]
    return "".join(plain).replace("|", "\\|")


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def main(files: Sequence[Path] = FILES) -> int:
    """Writes the tables anew, where they are not current."""
    texts = [file.read_text(encoding="utf-8") for file in files]
    for file, text, new in zip(files, texts, rewrite(texts), strict=True):
        if new != text:
            file.write_text(new, encoding="utf-8")
        print(f"{file.name} {'was current' if new == text else 'has new tables'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
