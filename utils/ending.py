"""How a run ends, well or badly: the result is written, the state is kept, and the person is told in one line."""

from __future__ import annotations

import contextlib
import os
import shlex
import traceback
from collections.abc import Callable
from typing import Any

from pruning.errors import UsageError
from utils.console import Console
from utils.interrupts import Interrupted
from utils.result import Result, result_rows
from utils.saving import Saving


def guarded(console: Console, action: Callable[[], int]) -> int:
    """Runs an action and turns what it raises into one line and an exit code: 2 for what the user can mend, else 1."""
    try:
        return action()
    except UsageError as error:
        console.log(traceback.format_exc())
        console.error(str(error))
        return 2
    except KeyboardInterrupt:
        console.error("stopped; what was saved before stays")
        return 130
    except Exception as error:  # noqa: BLE001 - the last resort: one line for the person, the traceback for the log
        _unexpected(console, error)
        return 1


def run_to_the_end(trainer: Any, saving: Saving, result: Result, console: Console) -> int:
    """Trains, writes result.json whatever happens, and returns the exit code."""
    folder = saving.folder
    try:
        trainer.train()
    except Interrupted as stop:
        close(trainer)
        saving.save(trainer)
        folder.write_result(result.record(trainer, "interrupted"))
        console.warn(f"stopped by {stop}; go on with: {resume_command(saving)}")
        return stop.exit_code
    except BaseException as error:
        close(trainer)
        # A full disk may refuse this file too; the first error is the one to report.
        with contextlib.suppress(UsageError):
            folder.write_result(result.record(trainer, "failed"))
        if isinstance(error, UsageError) and saving.checkpoint.exists():
            raise UsageError(f"{error} Go on with: {resume_command(saving)}") from error
        raise
    record = result.record(trainer, "finished")
    folder.write_result(record)
    console.table("Result", result_rows(record), folder.path)
    return 0


def resume_command(saving: Saving) -> str:
    """Returns the command that takes the run up again."""
    return f"python main.py --resume {shlex.quote(os.path.relpath(saving.folder.path))}"


def close(trainer: Any) -> None:
    """Lets callbacks put away what they hold open."""
    for callback in trainer.callbacks:
        with contextlib.suppress(UsageError, OSError):
            getattr(callback, "close", lambda: None)()


def _unexpected(console: Console, error: Exception) -> None:
    console.log(traceback.format_exc())
    frame = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{type(error).__name__} in {frame.filename}, line {frame.lineno}: {error}"
    console.error(f"{where} (traceback: {console.log_file})" if console.log_file else where)
    if console.log_file is None:
        console.err.print(traceback.format_exc(), markup=False)
