"""The cells of an experiment on disk: which are finished, running, failed or left; one process at a time has one."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pruning.errors import UsageError
from utils.experiments.cell import Cell, Experiment, command
from utils.runs.run_folder import RunFolder

ATTEMPTS = 2  # a cell that fails is tried once more

STOPPED = (130, 143)  # exit codes of a run that was asked to stop and has saved its state

Run = Callable[[Sequence[str]], int]

Tell = Callable[[str, Cell], None]


class Stopped(Exception):
    """The process was asked to stop in the middle of a cell."""


class Cells:
    """An experiment's cells in its folder: `cells/` holds one ordinary run folder each.

    What is known beside the runs' own results (locks, errors, times) lies in `cells/.notes`, by the cell's key.

    Args:
        experiment: what is to be run.
        folder: the experiment's folder; made if needed.
    """

    def __init__(self, experiment: Experiment, folder: Path) -> None:
        self.experiment = experiment
        self.folder = folder
        self.runs = folder / "cells"
        self.notes = self.runs / ".notes"
        self._finished: dict[str, dict[str, Any]] = {}

    def make_folders(self) -> None:
        """Makes the folders, if they are not there."""
        try:
            self.notes.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"No folder can be made in {self.folder}: {error.strerror or error}.") from error

    # -- what is known ---------------------------------------------------------------------------------------------

    def run_of(self, cell: Cell) -> RunFolder | None:
        """Returns the newest run folder of a cell; one without settings was killed while it was made."""
        found: list[tuple[int, Path]] = []
        for name in self._names():
            # Two runs of one second are told apart by a number at the end.
            is_own = name.endswith(f"_{cell.key}") or re.search(rf"_{cell.key}_\d+$", name)
            settings = self.runs / name / "settings.yaml"
            if is_own and settings.is_file():
                found.append((settings.stat().st_mtime_ns, self.runs / name))
        return RunFolder(max(found)[1]) if found else None

    def _names(self) -> list[str]:
        """Returns the names of all run folders; looked at for every cell, so as plain strings."""
        try:
            return os.listdir(self.runs)
        except OSError:
            return []  # nothing has been run yet

    def record(self, cell: Cell) -> dict[str, Any] | None:
        """Returns result.json of a finished cell, None of another."""
        if cell.key in self._finished:
            return self._finished[cell.key]
        folder = self.run_of(cell)
        found = folder.result() if folder else {}
        if found.get("status") != "finished":
            return None
        # What is finished stays so; it is asked for after every other cell.
        self._finished[cell.key] = found
        return found

    def state(self, cell: Cell) -> str:
        """Returns "finished", "running", "failed", "interrupted" or "left"."""
        if self.record(cell) is not None:
            return "finished"
        if self.is_taken(cell):
            return "running"
        if self.error(cell):
            return "failed"
        return "interrupted" if self.run_of(cell) else "left"

    def error(self, cell: Cell) -> str:
        """Returns why a cell failed for good, or cannot start; empty for any other."""
        errors = self._noted(cell, "error")
        if len(errors) >= ATTEMPTS:
            return str(errors[-1])
        for before in (cell.start, cell.rewind):
            if before and self.record(before) is None and self.error(before):
                return f"{before.title}, from which it starts, failed"
        return ""

    def seconds(self, cell: Cell) -> float | None:
        """Returns how long a finished cell took, from its start to its end; None if it is not known."""
        return sum(self._noted(cell, "seconds")) or None

    def seconds_left(self, workers: int) -> float | None:
        """Returns an estimate from the finished cells, by method where one is finished; None before the first."""
        by_method: dict[str, list[float]] = {}
        left: list[Cell] = []
        for cell in self.experiment.cells:
            if self.record(cell) is None:
                if not self.error(cell):
                    left.append(cell)
                continue
            seconds = self.seconds(cell)
            if seconds:
                by_method.setdefault(cell.method, []).append(seconds)
        if not by_method:
            return None
        everyone = [seconds for known in by_method.values() for seconds in known]
        total = 0.0
        for cell in left:
            known = by_method.get(cell.method, everyone)
            total += sum(known) / len(known)
        return total / max(1, min(workers, len(left)))

    # -- what is done ----------------------------------------------------------------------------------------------

    def forget_failures(self) -> None:
        """Gives failed cells that nobody is at another chance: whoever starts anew may have mended the cause."""
        for cell in self.experiment.cells:
            if not self.is_taken(cell) and self._noted(cell, "error"):
                self._log(cell).unlink(missing_ok=True)

    def know(self, cell: Cell, record: dict[str, Any]) -> None:
        """Takes over the result of a cell finished on another machine, which a shared disk may show only later."""
        self._finished[cell.key] = record

    def note(self, cell: Cell, **what: Any) -> None:
        """Keeps something about a cell; short lines are appended whole, whoever else does so."""
        with open(self._log(cell), "a", encoding="utf-8") as file:
            file.write(json.dumps(what) + "\n")

    def work(self, run: Run, tell: Tell, pause: float = 0.5) -> None:
        """Takes cell after cell until each is finished or has failed, here or in another process.

        Args:
            run: runs a command line and returns its exit code.
            tell: told ("begin" or "end", cell).
            pause: seconds to wait where all that is left is in other hands.
        """
        while True:
            left = [cell for cell in self.experiment.cells if self.record(cell) is None and not self.error(cell)]
            if not left:
                return
            # `any` stops at the first one that could be run: what is left is then looked at anew.
            if not any(self.attempt(cell, run, tell) for cell in left):
                time.sleep(pause)

    def attempt(self, cell: Cell, run: Run, tell: Tell) -> bool:
        """Runs a cell, or goes on with it; says whether that was possible."""
        for before in (cell.start, cell.rewind):
            if before and self.record(before) is None:
                return False
        with self.taken(cell.key) as mine:
            # It may have been finished, or have failed, between the look at it and the lock.
            if not mine or self.record(cell) is not None or self.error(cell):
                return False
            tell("begin", cell)
            began = time.perf_counter()
            code, said = run_silently(run, self._command(cell))
            self.note(cell, seconds=round(time.perf_counter() - began, 3))
            if code in STOPPED:
                raise Stopped
            if self.record(cell) is None:
                self.note(cell, error=said or f"the run ended with exit code {code} and is not finished")
        tell("end", cell)
        return True

    def _command(self, cell: Cell) -> list[str]:
        """What begins a cell or goes on with it; after an error the other one of the two is tried."""
        folder = self.run_of(cell)
        resumed_in_vain = self._noted(cell, "error") and self._noted(cell, "resumed")
        if folder and not resumed_in_vain:
            self.note(cell, resumed=True)
            return ["--resume", str(folder.path), "--quiet"]
        values = dict(cell.settings)
        start = self.run_of(cell.start) if cell.start else None
        early = self.run_of(cell.rewind) if cell.rewind else None
        if start:
            values["checkpoint_name"] = str(start.path)
        if early:
            kept = next(early.models.glob("*_epoch_*"), early.models / "epoch")
            values["rewind_from"] = str(kept)
        values |= {"run_name": cell.run_name, "results_dir": str(self.runs), "quiet": True}
        return command(values)

    @contextlib.contextmanager
    def taken(self, name: str, *, wait: bool = False) -> Iterator[bool]:
        """Holds a lock that ends with this process, however that ends; gives whether it could be had."""
        how = fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB
        with open(self.notes / f"{name}.lock", "a", encoding="utf-8") as file:
            try:
                fcntl.flock(file, how)
            except BlockingIOError:
                yield False
                return
            yield True

    def is_taken(self, cell: Cell) -> bool:
        """Says whether some process is at a cell."""
        if not (self.notes / f"{cell.key}.lock").exists():
            return False
        with self.taken(cell.key) as mine:
            return not mine

    def _log(self, cell: Cell) -> Path:
        return self.notes / f"{cell.key}.log"

    def _noted(self, cell: Cell, what: str) -> list[Any]:
        """Returns everything of one kind that was noted about a cell, oldest first."""
        try:
            lines = self._log(cell).read_text(encoding="utf-8").splitlines()
        except OSError:
            return []
        found = []
        for line in lines:
            with contextlib.suppress(ValueError):  # a line that a killed process left half written
                note = json.loads(line)
                if what in note:
                    found.append(note[what])
        return found


def run_silently(run: Run, argv: Sequence[str]) -> tuple[int, str]:
    """Runs a command line; returns its exit code and its last error. All that it says stands in the run's own log."""
    said = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
        code = run(argv)
    lines = said.getvalue().splitlines()
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return code, errors[-1] if errors else ""
