"""Runs an experiment to its end: warm worker processes, progress, a report after every cell."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from pruning.errors import UsageError
from pruning.measure.measures import number as as_text
from pruning.measure.measures import words_of
from utils.console import Console
from utils.experiments.cell import Cell
from utils.experiments.cells import Cells, Run, Stopped
from utils.runs.result import measures_in


class Runner(ABC):
    """Brings every cell of an experiment to its end; where that happens is a subclass's business.

    Args:
        cells: what is to be run, and where.
        run: runs a command line and returns its exit code; a function of a module, so that workers find it.
        console: told of progress.
        report: writes the report anew; called with True at the end.
    """

    slots = 1  # how many cells are run at a time

    def __init__(self, cells: Cells, run: Run, *, console: Console, report: Callable[[bool], None]) -> None:
        self.cells = cells
        self.run = run
        self.console = console
        self.report = report
        self.by_key = {cell.key: cell for cell in cells.experiment.cells}

    def go(self) -> int:
        """Runs to the end; returns the exit code: 0, 1 if a cell is not finished, 130 if it was asked to stop."""
        self.cells.forget_failures()
        with _terminated_like_interrupted():
            try:
                self._work()
            except KeyboardInterrupt:
                self.console.warn("stopping: the workers save where they are; the same command goes on")
                return 130
            finally:
                self._end()
                self.report(True)
        return int(any(self.cells.record(cell) is None for cell in self.by_key.values()))

    @abstractmethod
    def _work(self) -> None:
        """Goes on until no cell is left."""

    @abstractmethod
    def _end(self) -> None:
        """Lets cells that are still at work save themselves, and waits for that; a second interrupt does not wait."""

    def _told(self, cell: Cell) -> None:
        """A cell has ended: says how, and shows it in the report."""
        done = sum(self.cells.record(other) is not None for other in self.by_key.values())
        how = self._how_it_ended(cell)
        left = self.cells.seconds_left(self.slots)
        if left:
            how += f"; about {duration(left)} left"
        self.console.info(f"[{done}/{len(self.by_key)}] {cell.title}: {how}")
        self.report(False)

    def _how_it_ended(self, cell: Cell) -> str:
        record = self.cells.record(cell)
        if record is None:
            error = self.cells.error(cell)
            return f"failed: {error}" if error else "failed, is tried again"
        main = f"test_{next(iter(measures_in(record)), 'loss')}"
        value, seconds = record.get(main), self.cells.seconds(cell)
        how = "finished" if value is None else f"{words_of(main)} {as_text(value)}"
        return f"{how} in {seconds:.0f} s" if seconds else how


class LocalRunner(Runner):
    """Keeps processes on this machine busy.

    Args:
        workers: processes; more than one get processor cores (and GPUs, if there are) of their own.
    """

    def __init__(self, cells: Cells, run: Run, *, workers: int, **told: Any) -> None:
        super().__init__(cells, run, **told)
        self.places = places(min(workers, len(self.by_key)))  # who never gets a cell is memory lost
        self.slots = len(self.places)
        self.workers: list[Worker] = []

    def _work(self) -> None:
        self.workers = [Worker.start(self, place) for place in self.places]
        while self.workers:
            self._listen()

    def _listen(self) -> None:
        by_pipe: dict[Any, Worker] = {worker.pipe: worker for worker in self.workers}
        for pipe in wait(list(by_pipe)):
            worker = by_pipe[pipe]
            try:
                what, key = worker.pipe.recv()
            except (EOFError, OSError):
                self._gone(worker)
                continue
            worker.cell = self.by_key[key] if what == "begin" else None
            if what == "end":
                self._told(self.by_key[key])

    def _gone(self, worker: Worker) -> None:
        """A worker has ended: because nothing is left, or because something ended it."""
        worker.process.join()
        self.workers.remove(worker)
        code = worker.process.exitcode
        if code == 0:
            return
        if worker.cell is None:
            raise UsageError(f"A worker ended with exit code {code} before it had a cell.")
        # Of a process that a signal ended, the code is the signal's number, negative.
        how = f"signal {-code}" if code and code < 0 else f"exit code {code}"
        self.cells.note(worker.cell, error=f"its process ended by {how} (out of memory, perhaps)")
        self._told(worker.cell)
        self.workers.append(Worker.start(self, worker.place))

    def _end(self) -> None:
        for worker in self.workers:
            worker.pipe.close()  # which the worker notices
        for worker in self.workers:
            with suppress(KeyboardInterrupt):
                worker.process.join()
                continue
            worker.process.kill()  # asked to stop twice
        self.workers = []


@dataclass
class Place:
    """Where a worker runs.

    Args:
        cores: the processor cores that it is bound to; empty for all.
        gpu: what CUDA_VISIBLE_DEVICES is for it; None for what it is.
    """

    cores: list[int]
    gpu: str | None = None


def places(workers: int) -> list[Place]:
    """Returns a place per worker: equal shares of the cores, GPUs in turn. One worker alone has the whole machine."""
    if workers <= 1:
        return [Place([])]
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    share = max(1, len(cores) // workers)
    gpus = _visible_gpus()
    found = []
    for number in range(workers):
        # With more workers than cores, several share one.
        own = [cores[place % len(cores)] for place in range(number * share, (number + 1) * share)] if cores else []
        found.append(Place(own, gpus[number % len(gpus)] if gpus else None))
    return found


def _visible_gpus() -> list[str]:
    """Returns the names that CUDA_VISIBLE_DEVICES gives the GPUs of this process."""
    count = torch.cuda.device_count()
    if not count:
        return []
    everything = ",".join(str(number) for number in range(count))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or everything
    return visible.split(",")


@dataclass
class Worker:
    """A process that takes cells, the pipe it tells of them, and the cell it is at."""

    process: Any
    pipe: Connection
    place: Place
    cell: Cell | None = None

    @classmethod
    def start(cls, runner: Runner, place: Place) -> Worker:
        """Starts a process; a fresh one, since a forked copy of this one's threads and GPU state would not work."""
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(runner.cells, runner.run, theirs, place))
        with _environment(CUDA_VISIBLE_DEVICES=place.gpu):
            process.start()
        theirs.close()
        return cls(process, ours, place)


def _work(cells: Cells, run: Run, pipe: Connection, place: Place) -> None:
    """What a worker does."""
    if hasattr(os, "setpgrp"):
        os.setpgrp()  # a terminal's Ctrl-C is for the runner, which asks its workers to stop; twice would be at once
    if place.cores:
        os.sched_setaffinity(0, place.cores)
        torch.set_num_threads(len(place.cores))
    threading.Thread(target=_stop_with_parent, args=(pipe,), daemon=True).start()
    with suppress(Stopped, KeyboardInterrupt, BrokenPipeError):
        cells.work(run, lambda what, cell: pipe.send((what, cell.key)))


def _stop_with_parent(pipe: Connection) -> None:
    """Waits until the runner closes the pipe or is gone, then asks this process to stop: a run saves its state."""
    with suppress(EOFError, OSError):
        pipe.recv()
    os.kill(os.getpid(), signal.SIGTERM)


@contextmanager
def _environment(**values: str | None) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    given = {name: value for name, value in values.items() if value is not None}
    os.environ.update(given)
    yield
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """Lets SIGTERM end the runner as Ctrl-C does."""

    def stop(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def duration(seconds: float) -> str:
    """Returns a time as a person says it."""
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def check_all(cells: Cells, check: Callable[[Sequence[str]], None], argv_of: Callable[[Cell], list[str]]) -> None:
    """Builds, before the first cell starts, one run of each kind that is left, so that what cannot run is said now."""
    seen: set[tuple[str, str]] = set()
    for cell in reversed(cells.experiment.cells):  # the highest limits need the most events
        kind = cell.method, cell.group
        if kind in seen or cells.record(cell) is not None:
            continue
        seen.add(kind)
        try:
            check(argv_of(cell))
        except UsageError as error:
            raise UsageError(f"{cell.where}: {cell.title}: {error}") from error
