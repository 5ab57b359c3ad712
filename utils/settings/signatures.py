"""What a constructor can be told, read from its own signature, type hints and docstring."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import types
import typing
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from utils.settings.values import Limits, limits_of

REQUIRED = inspect.Parameter.empty

Part = type | Callable[..., Any]


class Parameter(NamedTuple):
    """One parameter of a constructor: its type, default (REQUIRED if there is none), help text and limits."""

    name: str
    annotation: Any
    default: Any
    help: str
    limits: Limits | None


def parameters_of(part: Part) -> list[Parameter]:
    """Returns the parameters of a constructor; `**kwargs` stands for those of the class above."""
    found: dict[str, Parameter] = {}
    for owner, function in _constructors(part):
        parameters = list(inspect.signature(function).parameters.values())
        if inspect.isclass(owner):
            parameters = parameters[1:]  # without self
        texts, hints = _argument_texts(owner), _hints(function)
        for parameter in parameters:
            named = parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
            if named and parameter.name not in found:
                text = texts.get(parameter.name, "")
                found[parameter.name] = _described(owner, parameter, hints.get(parameter.name, Any), text)
        passes_on = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
        if not passes_on:
            break
    return list(found.values())


def _described(owner: Any, parameter: inspect.Parameter, hint: Any, text: str) -> Parameter:
    default = _default(owner, parameter)
    annotation, limits = limits_of(hint)
    if annotation is Any:
        annotation = _guess(default)
    return Parameter(parameter.name, annotation, default, text, limits)


def _default(owner: Any, parameter: inspect.Parameter) -> Any:
    """A parameter's default; a dataclass with a default_factory shows a placeholder in its signature."""
    if dataclasses.is_dataclass(owner):
        for field in dataclasses.fields(owner):
            if field.name == parameter.name and field.default_factory is not dataclasses.MISSING:
                return field.default_factory()
    return parameter.default


def _guess(default: Any) -> Any:
    """The type of a parameter without one, by its default."""
    if isinstance(default, (list, tuple)) and default:
        return list[type(default[0])]  # type: ignore[misc]
    if default is REQUIRED or default is None:
        return str
    return type(default)


def _constructors(part: Part) -> list[tuple[Any, Callable[..., Any]]]:
    """The classes that have a constructor of their own, from a part upwards; of a function, itself."""
    if not inspect.isclass(part):
        return [(part, part)]
    classes = part.__mro__[:-1]  # without object
    return [(cls, cls.__dict__["__init__"]) for cls in classes if "__init__" in cls.__dict__]


# -- docstrings -------------------------------------------------------------------------------------------------------


def _argument_texts(owner: Any) -> dict[str, str]:
    """Help texts by parameter, from the docstrings of the class, its parents and their constructors."""
    documented: list[Any] = []
    for cls in getattr(owner, "__mro__", [owner]):
        documented.append(cls)
        if inspect.isclass(cls):
            documented.append(cls.__dict__.get("__init__"))
    texts: dict[str, str] = {}
    for one in documented:
        for name, text in _documented(getattr(one, "__doc__", None)):
            texts.setdefault(name, text)  # the nearest class has the word
    return texts


def _documented(docstring: str | None) -> Iterator[tuple[str, str]]:
    """Yields (parameter, text) of a docstring in Google's, Sphinx's or NumPy's style."""
    import docstring_parser  # only once something is asked for: it takes a tenth of a second

    try:
        entries = docstring_parser.parse(inspect.cleandoc(docstring or "")).params
    except docstring_parser.ParseError:
        # A docstring in a style of its own explains no flag, but forbids none either.
        return
    for entry in entries:
        text = " ".join((entry.description or "").split())
        for name in entry.arg_name.split(","):
            yield name.strip(), text


# -- type hints -------------------------------------------------------------------------------------------------------


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function, include_extras=True)
    except (NameError, TypeError, AttributeError):
        # A name imported for type checkers only: its parameter is handed over by the framework, the rest may be flags.
        return dict(_hints_one_by_one(function))


def _hints_one_by_one(function: Callable[..., Any]) -> Iterator[tuple[str, Any]]:
    names = getattr(function, "__globals__", {})
    for name, annotation in inspect.get_annotations(function).items():
        alone = types.SimpleNamespace(__annotations__={name: annotation})
        with contextlib.suppress(NameError, TypeError, AttributeError):
            yield name, typing.get_type_hints(alone, names, include_extras=True)[name]
