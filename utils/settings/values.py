"""Values of settings: which types can be typed, how text becomes a value, and which values are allowed."""

from __future__ import annotations

import contextlib
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, TypedDict

from pruning.errors import UsageError
from pruning.prune.criterion import Criterion


class Limits(TypedDict, total=False):
    """Which numbers a setting takes; of a list, every item.

    Keys:
        at_least: the smallest one.
        above: they are greater than this.
        below: they are smaller than this.
        words: what is said instead of the bound that is not kept.
    """

    at_least: float
    above: float
    below: float
    words: str


def limits_of(annotation: Any) -> tuple[Any, Limits | None]:
    """Takes `Annotated[int, {"at_least": 1}]` apart; returns the type, and its limits where there are some."""
    if typing.get_origin(annotation) is not typing.Annotated:
        return annotation, None
    kind, *notes = typing.get_args(annotation)
    # Whoever else annotates (a documentation tool, say) uses other types than a dict.
    limits = [note for note in notes if isinstance(note, dict)]
    return kind, typing.cast(Limits, limits[0]) if limits else None


def check_limits(name: str, value: Any, limits: Limits) -> None:
    """Raises UsageError for a value of a flag, or an item of it, that is out of its limits."""
    items = value if isinstance(value, (list, tuple)) else [value]
    for item in items:
        broken = "" if item is None else _broken_bound(item, limits)
        if broken:
            raise UsageError(f"--{name} {limits.get('words') or broken}; {item} was given.")


def _broken_bound(number: float, limits: Limits) -> str:
    """Returns which bound a number does not keep; asked so that nan keeps none."""
    if "at_least" in limits and not number >= limits["at_least"]:
        return f"must be at least {limits['at_least']}"
    if "above" in limits and not number > limits["above"]:
        return f"must be above {limits['above']}" if limits["above"] else "must be positive"
    if "below" in limits and not number < limits["below"]:
        return f"must be below {limits['below']}"
    return ""


def format_value(value: Any) -> str:
    """A default as it would be typed."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, dict):
        value = pairs_of(value)
    if isinstance(value, (list, tuple)):
        return " ".join(str(item) for item in value) or "none"
    return str(value)


def pairs_of(mapping: Mapping[str, Any]) -> list[str]:
    """A mapping as it would be typed: `name=value` for each."""
    return [f"{name}={value}" for name, value in mapping.items()]


# -- types ------------------------------------------------------------------------------------------------------------


def is_union(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (typing.Union, types.UnionType)


def is_list(kind: Any) -> bool:
    return kind in (list, tuple) or typing.get_origin(kind) in (list, tuple)


def is_mapping(kind: Any) -> bool:
    """Whether numbers by name are taken, typed as `name=number name=number`."""
    return typing.get_origin(kind) is dict and typing.get_args(kind) == (str, float)


def takes_several(kind: Any) -> bool:
    """Whether several words can be typed."""
    return is_list(kind) or is_mapping(kind)


def length_of(kind: Any) -> int:
    """How many items a tuple has, 0 for any number."""
    arguments = typing.get_args(kind)
    fixed = typing.get_origin(kind) is tuple and Ellipsis not in arguments
    return len(arguments) if fixed else 0


def item_of(kind: Any) -> Any:
    """The type of a list's items."""
    arguments = typing.get_args(kind)
    return arguments[0] if arguments else str


def options_of(union: Any) -> list[Any]:
    """The types of a union without None."""
    return [option for option in typing.get_args(union) if option is not type(None)]


def typable(kind: Any) -> bool:
    """Whether a value of this type can be typed, and so be a flag."""
    if is_union(kind):
        return all(typable(option) for option in options_of(kind))
    if is_list(kind):
        inner = item_of(kind)
        return inner is not bool and not takes_several(inner) and typable(inner)
    if is_mapping(kind):
        return True
    if typing.get_origin(kind) is typing.Literal:
        return True
    readable = (str, int, float, Path, Criterion)
    return isinstance(kind, type) and issubclass(kind, readable) and not issubclass(kind, Enum)


# -- reading ----------------------------------------------------------------------------------------------------------


def parse_value(kind: Any, value: Any) -> Any:
    """Returns a value, typed or from a file, as a type; raises TypeError, ValueError or OverflowError otherwise."""
    if typing.get_origin(kind) is typing.Literal:
        return _parse_choice(typing.get_args(kind), value)
    if is_union(kind):
        return _parse_union(kind, value)
    if is_list(kind):
        return _parse_list(kind, value)
    if is_mapping(kind):
        return _parse_mapping(value)
    if kind is bool:
        # The text "false" would count as true, so only YAML's and argparse's own truth values pass.
        if not isinstance(value, bool):
            raise TypeError(value)
        return value
    if isinstance(value, (bool, dict, list, tuple)):
        raise TypeError(value)
    if kind is int:
        return _whole_number(value)
    # YAML reads 1e-3 as text, so numbers may come as strings.
    return kind(value) if kind in (float, Path) else str(value)


def _parse_choice(choices: Iterable[Any], value: Any) -> Any:
    for choice in choices:
        if str(choice) == str(value):
            return choice
    raise ValueError(value)


def _parse_union(union: Any, value: Any) -> Any:
    # Text comes last: everything can be read as text.
    kinds = sorted(options_of(union), key=lambda option: option is str)
    for kind in kinds:
        try:
            return parse_value(kind, value)
        except (TypeError, ValueError, OverflowError):
            continue
    raise ValueError(value)


def _parse_list(kind: Any, value: Any) -> Sequence[Any]:
    if isinstance(value, str) and item_of(kind) is str:
        value = [value]  # of a file, which need not put one name in brackets
    if not isinstance(value, (list, tuple)):
        raise TypeError(value)
    if length_of(kind) not in (0, len(value)):
        raise TypeError(value)
    items = [parse_value(item_of(kind), item) for item in value]
    wants_tuple = tuple in (kind, typing.get_origin(kind))
    return tuple(items) if wants_tuple else items


def _parse_mapping(value: Any) -> dict[str, float]:
    """Reads {name: number}, or `name=number` words, each name once."""
    if isinstance(value, str):
        value = [value]
    if isinstance(value, (list, tuple)):
        pairs: dict[str, Any] = {}
        for word in value:
            name, _, number = str(word).rpartition("=")
            if not name or name in pairs:
                raise ValueError(word)
            pairs[name] = number
        value = pairs
    if not isinstance(value, dict):
        raise TypeError(value)
    found = {}
    for name, number in value.items():
        if not isinstance(name, str):
            raise TypeError(name)
        found[name] = parse_value(float, number)
    return found


def _whole_number(value: Any) -> int:
    """Reads 80, also when written 8e1 or 80.0."""
    if isinstance(value, int):
        return value
    # Not by way of float, which knows whole numbers exactly only up to 2**53.
    with contextlib.suppress(ValueError):
        return int(str(value))
    number = float(value)
    if number != int(number):
        raise ValueError(value)
    return int(number)
