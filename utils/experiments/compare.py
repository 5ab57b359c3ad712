"""The commands about many runs: --experiment FILE, with --status or --dry_run, and --report PATTERN."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pruning.errors import UsageError
from utils import processes
from utils.console import Console
from utils.experiments import experiment
from utils.experiments.asked import Asked
from utils.experiments.cell import Cell, plain_name
from utils.experiments.cells import Cells, Run
from utils.experiments.report.gather import gather, gather_runs
from utils.experiments.report.page import write
from utils.experiments.runner import LocalRunner, Runner, check_all, duration
from utils.settings import resolve
from utils.settings.command_line import CommandLine

Check = Callable[[Any, Console], Any]

OWN = ("experiment", "status", "dry_run", "workers", "ray", "results_dir", "quiet", "report")


def compare(typed: CommandLine, console: Console, run: Run, check: Check) -> int | None:
    """Does what --experiment or --report ask for; returns the exit code, None if neither was given.

    Args:
        typed: the command line.
        console: what the person sees.
        run: runs the command line of one run; a function of a module.
        check: builds a run from its settings without starting it, and raises what would keep it from running.
    """
    if typed.wants_help:
        return None
    given, others = resolve.read_fixed(typed)
    asked = next((name for name in ("experiment", "report") if name in given), None)
    if asked is None:
        return None
    if processes.launched() > 1:
        raise UsageError(f"--{asked} is for one process that starts others (--workers); torchrun is for one long run.")
    if others:
        raise UsageError(f"{others[0]} cannot be given with --{asked}; settings of the runs stand in the file.")
    chosen = resolve.settle_fixed(given)
    console.take(quiet=chosen.core.quiet, warnings=[])
    results = Path(chosen.core.results_dir)
    wanted: Asked = chosen.construct(Asked)
    workers = chosen.values["workers"] or 1
    if asked == "report":
        folder = write(gather_runs(wanted.report, results), _report_folder(wanted.report, results))
        console.out.print(f"report: {folder / 'report.html'}", markup=False)
        return 0
    over = {name: value for name, value in given.items() if name not in OWN}
    forbidden = next((name for name in over if name in experiment.RUNNERS), None)
    if forbidden:
        raise UsageError(f"--{forbidden} cannot be given with --experiment; the runner sets it.")
    plan = experiment.read(wanted.experiment, over)
    for warning in plan.warnings:
        console.warn(warning)
    cells = Cells(plan, results / plan.slug)
    if wanted.status or wanted.dry_run:
        show = _status if wanted.status else _plan
        show(cells, workers, console)
        return 0
    kind: Callable[..., Runner] = partial(LocalRunner, workers=workers)
    if wanted.ray:
        from utils.experiments.cluster import ClusterRunner, connect  # which few need

        kind = partial(ClusterRunner, ray=connect(wanted.ray, cells.experiment.demand))
    return _run(cells, kind, console, run, check)


def _run(cells: Cells, kind: Callable[..., Runner], console: Console, run: Run, check: Check) -> int:
    def check_command(argv: Sequence[str]) -> None:
        check(resolve.parse(argv), console)

    def command_of(cell: Cell) -> list[str]:
        # The runner itself may lack the GPU that its workers have.
        return experiment.command(dict(cell.settings) | {"device": "cpu"})

    check_all(cells, check_command, command_of)
    cells.make_folders()
    runner = kind(cells, run, console=console, report=CurrentReport(cells))
    code = runner.go()
    _status(cells, runner.slots, console)
    console.out.print(f"report: {cells.folder / 'report.html'}", markup=False)
    return code


class CurrentReport:
    """Keeps the report of an experiment up to date while its runs are made.

    Writing it draws every curve anew, which takes longer than a small run. So it is written only when at least
    `PATIENCE` times as long has passed as it took the last time, and at the end.
    """

    PATIENCE = 20

    def __init__(self, cells: Cells) -> None:
        self.cells = cells
        self.not_before = 0.0

    def __call__(self, last: bool) -> None:
        """A run has ended; `last` says that it was the last one."""
        began = time.monotonic()
        if began < self.not_before and not last:
            return
        with self.cells.taken("report", wait=True):  # another runner may be writing it too
            write(gather(self.cells), self.cells.folder, plots=last)
        ended = time.monotonic()
        self.not_before = ended + self.PATIENCE * (ended - began)


def _status(cells: Cells, workers: int, console: Console) -> None:
    """Prints how many cells of each method are in which state, why cells failed, and the time left."""
    states = {cell: cells.state(cell) for cell in cells.experiment.cells}
    rows = []
    for method in ["", *cells.experiment.methods]:
        own = [state for cell, state in states.items() if cell.method == method]
        if own:
            rows.append((method or "dense", _counted(own)))
    for cell, state in states.items():
        if state == "failed":
            rows.append((cell.title, f"failed: {cells.error(cell)}"))
    everyone = list(states.values())
    rows.append(("all", _counted(everyone)))
    if set(everyone) - {"finished", "failed"}:
        left = cells.seconds_left(workers)
        estimate = f"about {duration(left)}" if left else "not known before a cell is finished"
        rows.append(("time left", estimate))
    console.table(cells.experiment.name, rows, cells.folder)


def _counted(states: Sequence[str]) -> str:
    counts = []
    for kind in ("finished", "running", "interrupted", "failed", "left"):
        if kind in states:
            counts.append(f"{states.count(kind)} {kind}")
    return f"{', '.join(counts)} of {len(states)}"


def _plan(cells: Cells, workers: int, console: Console) -> None:
    """Prints every cell with its state and what it starts from, then the estimate."""
    for cell in cells.experiment.cells:
        origin = f", from {cell.start.title}" if cell.start else ""
        console.out.print(f"{cells.state(cell):<12} {cell.title}{origin}", markup=False)
    _status(cells, workers, console)


def _report_folder(pattern: str, results: Path) -> Path:
    """Returns a folder beside the runs, named after the pattern."""
    name = plain_name(Path(pattern).name).strip("-")
    return results / f"report_{name or 'all'}"
