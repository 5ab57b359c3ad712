"""What the person sees: progress on a terminal, plain lines in a pipe, one table at the end."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console as RichConsole

from pruning.measure.measures import number
from utils import processes
from utils.trainer import Trainer, TrainingMoment

if TYPE_CHECKING:
    from rich.progress import Progress


class Console:
    """Prints to the terminal, and to the log file of the run once there is one."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        width = None
        if not sys.stdout.isatty() and "COLUMNS" not in os.environ:
            # A file or a pipe has no width of its own; rich would take 80 columns and break long lines of the table.
            width = 140
        self.first = not processes.number()  # of several processes the first one speaks
        self.out = RichConsole(highlight=False, soft_wrap=True, width=width, quiet=not self.first)
        self.err = RichConsole(stderr=True, highlight=False, soft_wrap=True)
        self.log_file: Path | None = None

    def take(self, *, quiet: bool, warnings: Iterable[str]) -> None:
        """Takes over what the settings say: how much to print, and what to warn of."""
        self.quiet = quiet
        for warning in warnings:
            self.warn(warning)

    def info(self, line: str) -> None:
        """A line that --quiet leaves out."""
        self.log(line)
        if not self.quiet:
            self.out.print(line, markup=False)

    def warn(self, line: str) -> None:
        """A warning, on standard error."""
        self.log(f"warning: {line}")
        if self.first:
            self.err.print(f"warning: {line}", style="yellow", markup=False)

    def error(self, line: str) -> None:
        """An error, in one line on standard error."""
        self.log(f"error: {line}")
        who = "" if self.first else f" in process {processes.number()}"
        one_line = " ".join(line.split())  # whatever a library's message looks like
        self.err.print(f"error{who}: {one_line}", style="red", markup=False)

    def log(self, text: str) -> None:
        """Writes to the log only. A log that cannot be written must not end a run."""
        if self.log_file is None:
            return
        try:
            with open(self.log_file, "a", encoding="utf-8") as file:
                file.write(text.rstrip("\n") + "\n")
        except OSError as error:
            self.log_file = None
            print(f"warning: the log cannot be written: {error}", file=sys.stderr)

    def track(self, items: Iterable[Any], what: str) -> Iterable[Any]:
        """Yields the items; on a terminal a bar shows how many are done, unless --quiet was given."""
        if self.quiet or not self.out.is_terminal:
            return items
        from rich.progress import track  # many commands show no bar

        return track(items, what, console=self.out, transient=True)

    def table(self, title: str, rows: Iterable[tuple[str, str]], folder: Path) -> None:
        """Two columns, what and how much, and where the files are; printed even when quiet."""
        from rich.table import Table
        from rich.text import Text

        table = Table(title=title, show_header=False, title_justify="left")
        table.add_column("what")
        table.add_column("how much", overflow="fold")
        rows = list(rows)
        for what, how_much in rows:
            table.add_row(Text(what), Text(how_much))  # as it is: text in brackets is no style
        self.out.print(table)
        self.out.print(f"results: {os.path.relpath(folder)}", markup=False)
        self.log("\n".join(f"{what}: {how_much}" for what, how_much in rows))


class ProgressLines:
    """Callback that shows how training goes: a bar on a terminal, one line per epoch elsewhere."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bar: Progress | None = None

    def __call__(self, trainer: Trainer, moment: TrainingMoment) -> None:
        if moment == "train_start" and self.console.out.is_terminal and not self.console.quiet:
            self._start(trainer)
        elif moment == "batch_end" and self.bar is not None:
            before = trainer.epoch * len(trainer.train_batches)
            self.bar.update(self.task, completed=before + trainer.batch)
        elif moment == "epoch_end":
            self._epoch(trainer)
        elif moment == "train_end":
            self.close()

    def close(self) -> None:
        """Takes the bar away, at the end or when something goes wrong."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def _start(self, trainer: Trainer) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        columns = [TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[state]}")]
        # Taken away at the end: the table of results says it all.
        self.bar = Progress(*columns, TimeRemainingColumn(), console=self.console.out, transient=True)
        total = trainer.epochs * len(trainer.train_batches)
        self.task = self.bar.add_task(f"epoch 1/{trainer.epochs}", total=total, state="")
        self.bar.start()

    def _epoch(self, trainer: Trainer) -> None:
        metrics = dict(trainer.metrics)
        metrics["weight_sparsity"] = trainer.network.weight_sparsity()
        state = describe_metrics(metrics, next(iter(trainer.measures), "loss"))
        line = f"epoch {trainer.epoch}/{trainer.epochs}  {state}"
        if self.bar is not None:
            # The bar names the epoch that comes next, the log the one that has ended.
            running = min(trainer.epoch + 1, trainer.epochs)
            self.bar.update(self.task, description=f"epoch {running}/{trainer.epochs}", state=state)
            self.console.log(line)
        else:
            self.console.info(line)


def describe_metrics(metrics: Mapping[str, float], main: str = "accuracy") -> str:
    """One line of the metrics that change over training: the losses, the main measure, the sparsity."""
    names = dict.fromkeys(["train_loss", f"train_{main}", "test_loss", f"test_{main}", "weight_sparsity"])
    return "  ".join(f"{name} {number(metrics[name])}" for name in names if name in metrics)
