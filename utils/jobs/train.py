"""Training to its end, good or bad: the result is written, the state is kept, and the person is told in one line."""

from __future__ import annotations

import contextlib
import os
import shlex

from pruning.errors import UsageError
from pruning.network import PrunableNetwork
from utils import processes
from utils.callbacks.finishing import DeadNodes
from utils.console import Console
from utils.runs.interrupts import Interrupted, StopRequests
from utils.runs.result import Result, result_rows
from utils.runs.run_folder import RunFolder
from utils.runs.saving import Saving
from utils.settings.resolve import Settings
from utils.trainer import PruningCallback, Trainer


def run_to_the_end(trainer: Trainer, saving: Saving, result: Result, console: Console) -> int:
    """Trains, writes result.json whatever happens, and returns the exit code."""
    try:
        return _train(trainer, saving, result, console)
    except BaseException as error:
        status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        # A full disk may refuse this file too, and a broken network cannot be counted: the first error is reported.
        with contextlib.suppress(Exception):
            saving.folder.write_result(result.record(trainer, status))
        # What the user must mend before the first batch would stop the same run again.
        if trainer.totals["samples_seen"] or not isinstance(error, UsageError):
            _raise_with_advice(error, saving)
        raise
    finally:
        close(trainer)


def _train(trainer: Trainer, saving: Saving, result: Result, console: Console) -> int:
    folder = saving.folder
    try:
        with processes.losses_told():
            trainer.train()
    except Interrupted as stop:
        # It comes between two batches, so the state is one that training can go on from.
        saving.save(trainer)
        folder.write_result(result.record(trainer, "interrupted"))
        close(trainer)
        console.warn(f"stopped by {stop}; go on with: {resume_command(saving)}")
        return stop.exit_code
    record = result.record(trainer, "finished")
    folder.write_result(record)
    console.table("Result", result_rows(record), folder.path)
    return 0


def follow(
    trainer: Trainer,
    network: PrunableNetwork,
    pruning: PruningCallback,
    chosen: Settings,
    stopped: RunFolder | None,
) -> int:
    """Trains and prunes along with the first process, which says and saves everything; returns the exit code."""
    if stopped:
        chosen.construct(Saving, folder=stopped, network=network, pruning=pruning).restore(trainer)
    # Here too, since every process must hold the same network.
    shrinking = chosen.construct(DeadNodes, network=network, report=lambda line: None)
    trainer.callbacks += [pruning, shrinking, StopRequests(chosen.core.max_training_minutes)]
    try:
        trainer.train()
    except Interrupted as stop:
        return stop.exit_code
    return 0


def _raise_with_advice(error: BaseException, saving: Saving) -> None:
    """Raises the error anew with what the user can do next, if that is known."""
    if not saving.checkpoint.exists():
        return
    if isinstance(error, KeyboardInterrupt):
        raise KeyboardInterrupt(f"stopped at once; go on with: {resume_command(saving)}") from error
    if isinstance(error, UsageError):
        # Numbers that diverged would do so again: the way on is another run from the state before.
        way_on = "Go on with: " + resume_command(saving)
        if getattr(error, "happens_again", False):
            name, model = shlex.quote(saving.folder.path.name), shlex.quote(saving.checkpoint.name)
            way_on = f"To start from it: --checkpoint_name {name} --checkpoint_model {model}."
        raise UsageError(f"{error} {way_on}") from error


def resume_command(saving: Saving) -> str:
    """Returns the command that takes the run up again."""
    return f"{processes.command()} --resume {shlex.quote(os.path.relpath(saving.folder.path))}"


def close(trainer: Trainer) -> None:
    """Lets callbacks put away what they hold open."""
    for callback in trainer.callbacks:
        put_away = getattr(callback, "close", None)
        if put_away is None:
            continue
        # A disk that is full has been told of by then.
        with contextlib.suppress(UsageError, OSError):
            put_away()
