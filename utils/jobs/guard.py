"""What the person reads when something goes wrong: one line, and an exit code."""

from __future__ import annotations

import traceback
from collections.abc import Callable

import torch

from pruning.errors import UsageError
from utils import processes
from utils.console import Console


def guarded(console: Console, action: Callable[[], int]) -> int:
    """Runs an action and turns what it raises into one line and an exit code: 2 for what the user can mend, else 1."""
    try:
        return action()
    except UsageError as error:
        console.log(traceback.format_exc())
        if processes.is_local_first():
            console.error(str(error))
        return 2
    except KeyboardInterrupt as stop:
        if processes.is_local_first():
            console.error(str(stop) or "stopped; what was saved before stays")
        return 130
    except Exception as error:  # noqa: BLE001 - the last resort: one line for the person, the traceback for the log
        if _out_of_memory(error):
            console.log(traceback.format_exc())
            console.error("There is not enough memory for that: a smaller network or --batch_size takes less.")
            return 2
        _unexpected(console, error)
        return 1


def _out_of_memory(error: Exception) -> bool:
    # On the CPU torch has no class of its own for it.
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)


def _unexpected(console: Console, error: Exception) -> None:
    """Says where a bug showed itself; the traceback goes to the log, or to the person where there is none yet."""
    console.log(traceback.format_exc())
    frame = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{type(error).__name__} in {frame.filename}, line {frame.lineno}: {error}"
    if console.log_file:
        where = f"{where} (traceback: {console.log_file})"
    console.error(where)
    # Asked again, since the log may have turned out to be one that cannot be written.
    if console.log_file is None:
        console.err.print(traceback.format_exc(), markup=False)
