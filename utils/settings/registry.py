"""Plug-ins by name: a file whose name is its class's. Folders are listed without importing; one file is imported."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from torch import nn

from pruning.errors import UsageError, nearest
from pruning.prune.criterion import Criterion
from utils.settings.flags import Flag, flags_of
from utils.settings.signatures import REQUIRED, Part, parameters_of

ROOT = Path(__file__).resolve().parents[2]

# kind (folder) -> (the setting that names it, what a person calls it)
KINDS = {
    "models": ("model", "model"),
    "data_sets": ("data_set", "data set"),
    "criterions": ("prune_criterion", "criterion"),
    "losses": ("loss", "loss"),
    "trainers": ("train_scheme", "trainer"),
    "testers": ("test_scheme", "tester"),
}

# What a class must be, or be able to do, to be a plug-in of its kind.
BASES: dict[str, type] = {"models": nn.Module, "criterions": Criterion}

METHODS = {"data_sets": ("train", "test"), "losses": ("__call__",), "trainers": ("train",), "testers": ("evaluate",)}

# Networks that come from other libraries -> one of them; all of a library take the same flags.
FROM_LIBRARIES = {"models": {"torchvision/NAME, timm/NAME": "torchvision/resnet18", "hf/FOLDER, hf/TYPE": "hf/"}}

# What the framework gives by name; every other constructor parameter is a flag.
HANDED_OVER = frozenset(
    ("num_classes", "input_shape", "task", "model", "network", "criterion", "loss_function", "callbacks")
    + ("train_batches", "test_batches", "batches", "data_set", "device", "report")
    + ("load_teacher", "make_loss")
)


def use_plugin_dir(directory: str) -> None:
    """Adds a folder of the user's own, with sub-folders like `criterions/`; its files win over ours.

    Args:
        directory: the folder, in place of the one added before; empty for none.
    """
    folder = Path(directory).expanduser().resolve()
    rooms: list[str] = []
    if directory:
        if not folder.is_dir():
            raise UsageError(f"--plugin_dir {directory}: there is no such folder.")
        rooms = [kind for kind in KINDS if (folder / kind).is_dir()]
        if not rooms:
            raise UsageError(f"--plugin_dir {directory} holds none of the folders {', '.join(KINDS)}.")
    for kind in KINDS:
        # A package's path may hold several folders; what is in the first one is found first.
        folders = [str(ROOT / kind)]
        if kind in rooms:
            folders.insert(0, str(folder / kind))
        importlib.import_module(kind).__path__[:] = folders
    importlib.invalidate_caches()  # files may have been put there a moment ago


def names(kind: str) -> list[str]:
    """Returns the plug-ins of one kind, without importing them."""
    stems = {file.stem for file in _files(kind)}
    return sorted((stem for stem in stems if not stem.startswith("_")), key=str.lower)


def find(kind: str, name: str) -> Part:
    """Returns the class (or, for `library/name`, the builder function) of a plug-in.

    Raises:
        UsageError: for an unknown name (with the nearest ones and the full list) or a file that cannot be used (with
            its path and line).
    """
    if "/" in name:
        library, rest = name.split("/", 1)
        if any(file.stem == f"_{library}" for file in _files(kind)):
            resolve: Callable[[str], Part] = _import(kind, f"_{library}").resolve
            return resolve(rest)
    known = names(kind)
    if name not in known:
        word = KINDS[kind][1]
        raise UsageError(f"There is no {word} {name!r}.{nearest(name, known)} Known: {', '.join(known)}.")
    module = _import(kind, name)
    found = getattr(module, name, None)
    if not inspect.isclass(found):
        own = [cls.__name__ for cls in vars(module).values() if _is_class_of(module, cls)]
        raise UsageError(f"{module.__file__} must hold `class {name}`; it defines {', '.join(own) or 'no class'}.")
    _check_contract(kind, found, module)
    return found


def _is_class_of(module: ModuleType, found: Any) -> bool:
    return inspect.isclass(found) and found.__module__ == module.__name__


def _check_contract(kind: str, found: type, module: ModuleType) -> None:
    base = BASES.get(kind, object)
    if not issubclass(found, base):
        needed = f"it does not inherit {base.__name__}"
        raise UsageError(f"{module.__file__}: class {found.__name__} is no {KINDS[kind][1]}: {needed}.")
    for method in METHODS.get(kind, ()):
        # Looked up in the classes, not by hasattr: every class has a __call__, the one that makes its objects.
        if not any(method in vars(cls) for cls in found.__mro__):
            needed = f"it has no method {method}()"
            raise UsageError(f"{module.__file__}: class {found.__name__} is no {KINDS[kind][1]}: {needed}.")


def flags(kind: str, name: str) -> list[Flag]:
    """Returns the flags of a plug-in."""
    return flags_of(find(kind, name), f"{KINDS[kind][1]} {name}", HANDED_OVER)


def loaded_aliases() -> dict[str, str]:
    """Returns the other spellings of flags that imported plug-ins declare (class attribute `aliases`)."""
    found: dict[str, str] = {}
    for module in list(sys.modules.values()):
        kind, _, name = getattr(module, "__name__", "").partition(".")
        if kind in KINDS and name:
            plug_in = getattr(module, name, None)
            found |= getattr(plug_in, "aliases", {})
    return found


# -- making parts -----------------------------------------------------------------------------------------------------


def build(kind: str, name: str, values: Mapping[str, Any], given: Mapping[str, Any] | None = None) -> Any:
    """Makes a plug-in; its constructor gets what it names, from the settings' values and what is given."""
    part = find(kind, name)
    try:
        return construct(part, values, given or {})
    except UsageError:
        raise
    except ValueError as error:
        if _raised_outside(error, part):
            raise
        raise UsageError(f"{KINDS[kind][1].capitalize()} {name}: {error}.") from error


def construct(part: Part, values: Mapping[str, Any], given: Mapping[str, Any]) -> Any:
    """Calls a constructor with what it names; dataclasses and criteria among its parameters are built first."""
    arguments: dict[str, Any] = {}
    for parameter in parameters_of(part):
        name, annotation = parameter.name, parameter.annotation
        if name in given:
            arguments[name] = given[name]
        elif dataclasses.is_dataclass(annotation):
            arguments[name] = construct(cast(type, annotation), values, given)
        elif name in values:
            arguments[name] = _value_for(name, annotation, values, given)
        elif parameter.default is REQUIRED:
            raise UsageError(f"{getattr(part, '__name__', part)} needs --{name}.")
    return part(**arguments)


def _value_for(name: str, annotation: Any, values: Mapping[str, Any], given: Mapping[str, Any]) -> Any:
    """Returns a setting's value; where a constructor wants a criterion and the value is a name, the criterion."""
    value = values[name]
    flag = Flag(name, annotation, default=None, help="", group="")
    if not (flag.nested and isinstance(value, str)):
        return value
    # Inside, the name stands for its default: a criterion that took itself as its inner one would never end.
    inner = {other: own for other, own in values.items() if other != name}
    return build("criterions", value, inner, given)


def _raised_outside(error: ValueError, part: Any) -> bool:
    """Whether an error came from deeper than the constructor's own checks, and so is no wrong setting."""
    frames = traceback.extract_tb(error.__traceback__)
    own = ("__init__", "__post_init__", getattr(part, "__name__", ""))
    return not frames or frames[-1].name not in own


# -- files ------------------------------------------------------------------------------------------------------------


def _files(kind: str) -> list[Path]:
    """The Python files of a kind, the user's own first."""
    found: list[Path] = []
    for folder in importlib.import_module(kind).__path__:
        found += sorted(Path(folder).glob("*.py"))
    return [file for file in found if file.stem != "__init__"]


def _import(kind: str, name: str) -> ModuleType:
    file = next(file for file in _files(kind) if file.stem == name)
    imported = sys.modules.get(f"{kind}.{name}")
    if imported is not None and Path(imported.__file__ or "").resolve() != file.resolve():
        del sys.modules[f"{kind}.{name}"]  # of another plug-in folder, used before in this process
    try:
        return importlib.import_module(f"{kind}.{name}")
    except UsageError:
        raise
    except SyntaxError as error:
        raise UsageError(f"{error.filename or file}, line {error.lineno or '?'}: {error.msg}.") from error
    except (Exception, SystemExit) as error:  # a plug-in may fail in any way while it is imported
        line = _line_in(error, file)
        raise UsageError(f"{file}, line {line}: {type(error).__name__}: {error}") from error


def _line_in(error: BaseException, file: Path) -> int | str:
    """The last line of a file that an error went through."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == file]
    if not frames:
        return "?"
    return frames[-1].lineno or "?"
