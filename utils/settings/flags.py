"""Constructor parameters as command-line flags: what a part can be told, read from its own signature and docstring."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import inspect
import types
import typing
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import docstring_parser

from pruning import Criterion, UsageError
from pruning.errors import nearest

REQUIRED = inspect.Parameter.empty


class _Own:
    def __str__(self) -> str:
        return "each part's own"


# The default of a flag that two parts name with different defaults.
OWN = _Own()


COMPLEMENTS = frozenset(("keep_ratio",))  # spellings that say 1 minus what their setting says


def canonical(spelling: str, value: Any) -> Any:
    """Returns the value of a setting that was given under some spelling."""
    return round(1 - value, 12) if spelling in COMPLEMENTS else value


@dataclass(frozen=True)
class Flag:
    """One command-line flag: `name` with its annotation, default, help text, and the group it stands in."""

    name: str
    annotation: Any
    default: Any
    help: str
    group: str

    @property
    def kind(self) -> Any:
        """The annotation without `| None`."""
        options = [a for a in typing.get_args(self.annotation) if a is not type(None)]
        return options[0] if _is_union(self.annotation) and len(options) == 1 else self.annotation

    @property
    def nested(self) -> bool:
        """Whether the value names another criterion, which is built and handed over."""
        return isinstance(self.kind, type) and issubclass(self.kind, Criterion)

    def add_to(self, parser: Any) -> None:
        """Declares the flag on an argparse parser or group; what is not typed leaves no trace in the result."""
        text = self.help
        if self.default is not REQUIRED and self.default is not None and self.default != "":
            text = f"{text} (default: {format_value(self.default)})".lstrip()
        help_text = text.replace("%", "%%") or " "
        common: dict[str, Any] = {"dest": self.name, "default": argparse.SUPPRESS, "help": help_text}
        if self.kind is bool:
            parser.add_argument(f"--{self.name}", action=argparse.BooleanOptionalAction, **common)
            return
        several = _is_list(self.kind)
        common |= {"type": self._convert(_item(self.kind) if several else self.kind), "metavar": self._metavar()}
        parser.add_argument(f"--{self.name}", **common, **({"nargs": "*"} if several else {}))

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
        inner = (typing.get_args(self.kind) or (self.kind,))[0]
        return getattr(inner, "__name__", "value").upper()

    def _wanted(self) -> str:
        if typing.get_origin(self.kind) is typing.Literal:
            return "one of " + ", ".join(str(option) for option in typing.get_args(self.kind))
        if _is_list(self.kind):
            count = f"{_length(self.kind)} " if _length(self.kind) else ""
            return count + {int: "whole numbers", float: "numbers"}.get(_item(self.kind), "values")
        words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
        return words.get(self.kind, self.type_name())

    def type_name(self) -> str:
        """The type as a person would write it, for the README's table."""
        if typing.get_origin(self.kind) is typing.Literal:
            return "|".join(str(option) for option in typing.get_args(self.kind))
        if self.nested:
            return "criterion"
        if self.kind is bool:
            return "switch"
        name = getattr(self.kind, "__name__", str(self.kind))
        arguments = [getattr(a, "__name__", "") for a in typing.get_args(self.kind) if a is not Ellipsis]
        return f"{name} of {arguments[0]}" if arguments else name

    def check(self, value: Any, source: str = "") -> Any:
        """Returns a value as this flag's type, or raises UsageError naming the file that it came from, if any."""
        if value is None and (self.default is None or _is_union(self.annotation)):
            return None
        try:
            return parse_value(self.kind, value)
        except (TypeError, ValueError, OverflowError) as error:
            name = f"{source}: {self.name}" if source else f"--{self.name}"
            raise UsageError(f"{name} takes {self._wanted()}; {value!r} was given.") from error


def format_value(value: Any) -> str:
    """A default as it would be typed."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, (list, tuple)):
        return " ".join(str(item) for item in value) or "none"
    return str(value)


def flags_of(part: type | Callable[..., Any], group: str, handed_over: Iterable[str] = ()) -> list[Flag]:
    """Returns the flags that a part's constructor declares: one per parameter whose value can be typed.

    Args:
        part: a class, or a function that builds a model.
        group: heading in the help text.
        handed_over: parameters that the framework gives, which are no flags.
    """
    flags = []
    for parameter, annotation, text in parameters_of(part):
        if parameter.name in handed_over:
            continue
        if dataclasses.is_dataclass(annotation):
            flags += flags_of(typing.cast(type, annotation), group, handed_over)
        elif typable(annotation):
            flags.append(Flag(parameter.name, annotation, parameter.default, text, group))
    return flags


def parameters_of(part: type | Callable[..., Any]) -> list[tuple[inspect.Parameter, Any, str]]:
    """Returns (parameter, annotation, help) of a constructor; `**kwargs` stands for those of the class above."""
    found: dict[str, tuple[inspect.Parameter, Any, str]] = {}
    for owner, function in _constructors(part):
        texts = _argument_texts(owner)
        hints = _hints(function)
        parameters = list(inspect.signature(function).parameters.values())
        if inspect.isclass(owner):
            parameters = parameters[1:]
        for parameter in parameters:
            named = parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
            if named and parameter.name not in found:
                parameter = parameter.replace(default=_default(owner, parameter))
                annotation = hints.get(parameter.name, Any)
                annotation = _guess(parameter.default) if annotation is Any else annotation
                found[parameter.name] = (parameter, annotation, texts.get(parameter.name, ""))
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return list(found.values())


def _default(owner: Any, parameter: inspect.Parameter) -> Any:
    """A parameter's default; a dataclass with a default_factory shows a placeholder in its signature."""
    for field in dataclasses.fields(owner) if dataclasses.is_dataclass(owner) else ():
        if field.name == parameter.name and field.default_factory is not dataclasses.MISSING:
            return field.default_factory()
    return parameter.default


def _constructors(part: type | Callable[..., Any]) -> list[tuple[Any, Callable[..., Any]]]:
    if not inspect.isclass(part):
        return [(part, part)]
    return [(cls, cls.__dict__["__init__"]) for cls in part.__mro__[:-1] if "__init__" in cls.__dict__]


def _argument_texts(owner: Any) -> dict[str, str]:
    """Help texts by parameter, from the docstrings of the class, its parents and their constructors."""
    texts: dict[str, str] = {}
    for cls in getattr(owner, "__mro__", [owner]):
        for documented in (cls, cls.__dict__.get("__init__") if inspect.isclass(cls) else None):
            for name, text in _documented(getattr(documented, "__doc__", None)):
                texts.setdefault(name, text)
    return texts


def _documented(docstring: str | None) -> list[tuple[str, str]]:
    try:
        entries = docstring_parser.parse(inspect.cleandoc(docstring or "")).params
    except docstring_parser.ParseError:
        # A docstring in a style of its own explains no flag, but forbids none either.
        return []
    return [
        (name.strip(), " ".join((entry.description or "").split()))
        for entry in entries
        for name in entry.arg_name.split(",")
    ]


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function)
    except (NameError, TypeError, AttributeError):
        # A name imported for type checkers only: its parameter is handed over by the framework, the rest may be flags.
        return dict(_hints_one_by_one(function))


def _hints_one_by_one(function: Callable[..., Any]) -> Iterator[tuple[str, Any]]:
    names = getattr(function, "__globals__", {})
    for name, annotation in inspect.get_annotations(function).items():
        with contextlib.suppress(NameError, TypeError, AttributeError):
            yield name, typing.get_type_hints(types.SimpleNamespace(__annotations__={name: annotation}), names)[name]


def _guess(default: Any) -> Any:
    if isinstance(default, (list, tuple)) and default:
        return list[type(default[0])]  # type: ignore[misc]
    return str if default is REQUIRED or default is None else type(default)


def _is_union(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (typing.Union, types.UnionType)


def _is_list(kind: Any) -> bool:
    return kind in (list, tuple) or typing.get_origin(kind) in (list, tuple)


def _length(kind: Any) -> int:
    """How many items a tuple has, 0 for any number."""
    arguments = typing.get_args(kind)
    return len(arguments) if typing.get_origin(kind) is tuple and Ellipsis not in arguments else 0


def _item(kind: Any) -> Any:
    """The type of a list's items."""
    return (typing.get_args(kind) or (str,))[0]


def _options(union: Any) -> list[Any]:
    """The types of a union, text last: everything can be read as text."""
    return sorted((a for a in typing.get_args(union) if a is not type(None)), key=lambda option: option is str)


def typable(kind: Any) -> bool:
    """Whether a value of this type can be typed, and so be a flag."""
    if _is_union(kind):
        return all(typable(option) for option in _options(kind))
    if _is_list(kind):
        inner = _item(kind)
        return inner is not bool and not _is_list(inner) and typable(inner)
    if typing.get_origin(kind) is typing.Literal:
        return True
    readable = (str, int, float, Path, Criterion)
    return isinstance(kind, type) and issubclass(kind, readable) and not issubclass(kind, Enum)


def parse_value(kind: Any, value: Any) -> Any:
    """Returns a value, typed or from a file, as a type; raises TypeError, ValueError or OverflowError otherwise."""
    if typing.get_origin(kind) is typing.Literal:
        return _parse_option(typing.get_args(kind), value)
    if _is_union(kind):
        return _parse_first(_options(kind), value)
    if _is_list(kind):
        if not isinstance(value, (list, tuple)) or _length(kind) not in (0, len(value)):
            raise TypeError(value)
        items = [parse_value(_item(kind), item) for item in value]
        return tuple(items) if tuple in (kind, typing.get_origin(kind)) else items
    if kind is bool or isinstance(value, (bool, dict, list, tuple)):
        if kind is not bool or not isinstance(value, bool):
            raise TypeError(value)
        return value
    if kind is int:
        return _whole_number(value)
    # YAML reads 1e-3 as text, so numbers may come as strings.
    return kind(value) if kind in (float, Path) else str(value)


def _parse_option(options: Iterable[Any], value: Any) -> Any:
    for option in options:
        if str(option) == str(value):
            return option
    raise ValueError(value)


def _parse_first(kinds: Iterable[Any], value: Any) -> Any:
    for kind in kinds:
        try:
            return parse_value(kind, value)
        except (TypeError, ValueError, OverflowError):
            continue
    raise ValueError(value)


def _whole_number(value: Any) -> int:
    """Reads 80, also when written 8e1 or 80.0."""
    if isinstance(value, int):
        return value
    with contextlib.suppress(ValueError):
        return int(value) if isinstance(value, str) else int(str(value))
    number = float(value)
    if number != int(number):
        raise ValueError(value)
    return int(number)
