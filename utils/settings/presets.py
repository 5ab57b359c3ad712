"""Settings from files: --config FILE.yaml and the presets in autoconfig.json."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pruning.errors import UsageError, nearest
from utils.settings.flags import Flag, canonical
from utils.settings.registry import KINDS

if TYPE_CHECKING:
    import yaml

AUTOCONFIG = Path(__file__).parents[1] / "autoconfig.json"

TASK = "task"  # the setting that stands for parts

# Says where a setting stands, by the names that lead to it.
Lines = Callable[..., str]

# These names: ("base", "epochs"); entries of a list have numbers.
Place = tuple[Any, ...]


def read_yaml(path: str, flag: str = "--config") -> tuple[dict[str, Any], Lines]:
    """Returns the content of a file, and a function that says where a setting of it stands: `where("base", "epochs")`.

    Args:
        path: the file.
        flag: what it was given with, for messages.

    Raises:
        UsageError: naming the file and, where there is one, the line.
    """
    import yaml  # --help and --list do without

    try:
        text = Path(path).expanduser().read_text(encoding="utf-8")
        content = yaml.safe_load(text)
        tree = yaml.compose(text, Loader=yaml.SafeLoader)  # the same once more, with the lines
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise UsageError(f"{flag} {path} cannot be read: {why}.") from error
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        line = f", line {mark.line + 1}" if mark else ""
        why = problem or " ".join(str(error).split())
        raise UsageError(f"{flag} {path}{line}: no valid YAML, {why}.") from error
    if content is None:
        return {}, lambda *names: path
    if not isinstance(content, dict):
        raise UsageError(f"{flag} {path} must hold `name: value` lines.")
    lines: dict[Place, int] = {}
    for place, number in _places(tree, ()):
        if place in lines:
            raise UsageError(f"{flag} {path}, line {number}: {place[-1]} is given twice.")
        lines[place] = number

    def where(*names: Any) -> str:
        # What has no line of its own, such as a default, stands where its block does.
        for size in range(len(names), 0, -1):
            if names[:size] in lines:
                return f"{path}, line {lines[names[:size]]}"
        return path

    return content, where


def _places(node: yaml.Node, above: Place) -> Iterator[tuple[Place, int]]:
    """Yields every key of a tree, and every number of a list's entry, with its line."""
    inner: list[tuple[Any, yaml.Node, yaml.Node]] = []  # the key, where it stands, and what is below it
    if node.id == "mapping":
        inner = [(key.value, key, value) for key, value in node.value]
    elif node.id == "sequence":
        inner = [(number, value, value) for number, value in enumerate(node.value)]
    for key, marked, value in inner:
        place = (*above, key)
        yield place, marked.start_mark.line + 1
        yield from _places(value, place)


def checked(content: Mapping[Any, Any], known: Mapping[str, Flag], where: Lines) -> dict[str, Any]:
    """Returns the values of a file by flag name, in their flags' types.

    Args:
        content: setting -> value.
        known: every flag there is, by name and by other spellings.
        where: says where a setting stands.
    """
    values: dict[str, Any] = {}
    for name, given in content.items():
        line = where(name)
        if name not in known:
            raise UsageError(f"{line}: there is no setting {name!r}.{nearest(str(name), known)}")
        flag = known[name]
        value = canonical(name, flag.check(given, line))
        # Two spellings of one setting may stand in a file, if they say the same.
        before = values.setdefault(flag.name, value)
        if before != value:
            raise UsageError(f"{line}: {flag.name} is given twice, as {before} and as {value}.")
    return values


def presets(parts: Iterable[tuple[str, str]]) -> Iterator[tuple[str, Any, str]]:
    """Yields (setting, value, where it stands) of what autoconfig.json holds for some parts.

    Args:
        parts: (kind, name) of each; a task is one of them.
    """
    table = _read_autoconfig()
    for kind, name in parts:
        setting = kind if kind == TASK else KINDS[kind][0]
        of_part = table.get(setting, {}).get(name, {})
        for preset, value in of_part.items():
            yield preset, value, f"{AUTOCONFIG}, {setting} {name}"


def switches() -> dict[str, dict[str, Any]]:
    """Returns what autoconfig.json has under "switch": a flag -> the settings that giving it stands for."""
    return _read_autoconfig().get("switch", {})


def _read_autoconfig() -> dict[str, dict[str, dict[str, Any]]]:
    """Returns setting -> name of a part -> presets; "switch" stands among the settings."""
    try:
        table = json.loads(AUTOCONFIG.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{AUTOCONFIG} cannot be read: {error}. --disable_autoconfig goes without it.") from error
    if not isinstance(table, dict) or not all(_is_table(inner) for inner in table.values()):
        raise UsageError(f"{AUTOCONFIG} must hold {{setting: {{name: {{flag: value}}}}}}.")
    settings = ["switch", TASK]
    settings += [setting for setting, _ in KINDS.values()]
    for name in table:
        if name not in settings:
            raise UsageError(f"{AUTOCONFIG} holds presets of {name!r}; there are {', '.join(sorted(settings))}.")
    return table


def _is_table(inner: Any) -> bool:
    return isinstance(inner, dict) and all(isinstance(preset, dict) for preset in inner.values())
