"""What all share that read or write such folders: the library itself, and what is refused for safety."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from pruning.errors import UsageError

# Files of a folder that can name code which lies beside them.
MAY_NAME_CODE: tuple[str, ...] = (
    "config.json",
    "tokenizer_config.json",
    "generation_config.json",
    "processor_config.json",
)
MAY_NAME_CODE += ("preprocessor_config.json",)
INSTALL = 'pip install -e ".[transformers]"'


def transformers_for(what: str) -> ModuleType:
    """Returns the library; a `UsageError` says what needs it where it is missing."""
    try:
        import transformers
    except ImportError as error:
        raise UsageError(f"{what} needs transformers, which is not installed: {INSTALL}") from error
    return transformers


def refuse_code(folder: Path) -> None:
    """Raises UsageError for a folder whose files name code of their own; such code is never run.

    Args:
        folder: in the form of transformers.
    """
    for name in MAY_NAME_CODE:
        content = read_json(folder / name) if (folder / name).is_file() else {}
        if content.get("auto_map"):
            why = "code that lies in a folder is never run"
            raise UsageError(f"{folder / name} names code of its own (auto_map): {why}, as with trust_remote_code.")


def read_json(file: Path) -> dict[str, Any]:
    """Returns the object in a JSON file; a `UsageError` names a file that holds none."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        why = " ".join(str(error).split())
        raise UsageError(f"{file} cannot be read: {why}.") from error
    if not isinstance(content, dict):
        raise UsageError(f"{file} is damaged: it holds no settings.")
    return content


@contextmanager
def quiet() -> Iterator[None]:
    """Without bars, and without warnings of what is checked here."""
    logging = transformers_for("this").utils.logging
    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()
