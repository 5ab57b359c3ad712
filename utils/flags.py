"""Constructor parameters as command-line flags: what a part can be told, read from its own signature and docstring."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import types
import typing
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import docstring_parser

from pruning import Criterion, UsageError

REQUIRED = inspect.Parameter.empty


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
        text = self.help.replace("%", "%%")
        if self.default is not REQUIRED and self.default is not None and self.default != "":
            text = f"{text} (default: {format_value(self.default)})".lstrip()
        kind = self.kind
        common: dict[str, Any] = {"dest": self.name, "default": argparse.SUPPRESS, "help": text or " "}
        if kind is bool:
            parser.add_argument(f"--{self.name}", action=argparse.BooleanOptionalAction, **common)
        elif typing.get_origin(kind) in (list, tuple):
            item = _converter((typing.get_args(kind) or (str,))[0])
            parser.add_argument(f"--{self.name}", nargs="*", type=item, metavar=self._metavar(), **common)
        elif typing.get_origin(kind) is typing.Literal:
            options = typing.get_args(kind)
            parser.add_argument(f"--{self.name}", type=type(options[0]), choices=options, **common)
        else:
            parser.add_argument(f"--{self.name}", type=_converter(kind), metavar=self._metavar(), **common)

    def _metavar(self) -> str:
        if self.nested:
            return "CRITERION"
        inner = (typing.get_args(self.kind) or (self.kind,))[0]
        return getattr(inner, "__name__", "value").upper()

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

    def check(self, value: Any, source: str) -> Any:
        """Returns a value from a file as this flag's type, or raises UsageError naming the source."""
        if value is None and (self.default is None or _is_union(self.annotation)):
            return None
        try:
            return _from_file(self.kind, value)
        except (TypeError, ValueError) as error:
            raise UsageError(f"{source}: {self.name} takes {self.type_name()}; {value!r} was given.") from error


def format_value(value: Any) -> str:
    """A default as it would be typed."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, (list, tuple)):
        return " ".join(str(item) for item in value) or "none"
    return str(value)


def flags_of(part: type | Callable[..., Any], group: str, handed_over: Iterable[str] = ()) -> list[Flag]:
    """Returns the flags that a part's constructor declares.

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
        else:
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
                annotation = hints.get(parameter.name, _guess(parameter.default))
                found[parameter.name] = (parameter, annotation, texts.get(parameter.name, ""))
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return list(found.values())


def _constructors(part: type | Callable[..., Any]) -> list[tuple[Any, Callable[..., Any]]]:
    if not inspect.isclass(part):
        return [(part, part)]
    return [(cls, cls.__dict__["__init__"]) for cls in part.__mro__[:-1] if "__init__" in cls.__dict__]


def _argument_texts(owner: Any) -> dict[str, str]:
    """Help texts by parameter, from the docstrings of the class, its parents and their constructors."""
    texts: dict[str, str] = {}
    for cls in getattr(owner, "__mro__", [owner]):
        for documented in (cls, cls.__dict__.get("__init__") if inspect.isclass(cls) else None):
            for entry in docstring_parser.parse(inspect.cleandoc(getattr(documented, "__doc__", None) or "")).params:
                texts.setdefault(entry.arg_name, " ".join((entry.description or "").split()))
    return texts


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function)
    except NameError:
        # A name imported for type checkers only; its parameter is handed over by the framework, not typed.
        return {}


def _guess(default: Any) -> Any:
    return str if default is REQUIRED or default is None else type(default)


def _is_union(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (typing.Union, types.UnionType)


def _converter(kind: Any) -> Callable[[str], Any]:
    if kind is int:
        return _whole_number
    return kind if kind is float else str


def _whole_number(text: str) -> int:
    """Reads 80, also when written 8e1 or 80.0."""
    number = float(text)
    if number != int(number):
        raise ValueError(text)
    return int(number)


_whole_number.__name__ = "whole number"


def _from_file(kind: Any, value: Any) -> Any:
    if typing.get_origin(kind) is typing.Literal:
        if value not in typing.get_args(kind):
            raise ValueError(value)
        return value
    if typing.get_origin(kind) in (list, tuple):
        if not isinstance(value, (list, tuple)):
            raise TypeError(value)
        return [_from_file((typing.get_args(kind) or (str,))[0], item) for item in value]
    if kind is bool or isinstance(value, bool):
        if kind is not bool or not isinstance(value, bool):
            raise TypeError(value)
        return value
    # YAML reads 1e-3 as text, so numbers may come as strings.
    return _converter(kind)(value)
