"""Trains a network and prunes it: reads the settings, builds the parts by name, starts training or evaluation."""

from __future__ import annotations

import os

# Threads that wait must not spin: on a machine that others use too, that made training ten times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if "LOCAL_RANK" in os.environ:  # started by torchrun: each process would say that it found no unused parameter
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

import sys
from collections.abc import Sequence

from utils import processes
from utils.console import Console
from utils.jobs.evaluate import evaluate
from utils.jobs.guard import guarded
from utils.jobs.prepare import assemble, prepare
from utils.jobs.train import follow, run_to_the_end
from utils.runs.environment import pick_device
from utils.runs.result import result_rows
from utils.runs.run_folder import RunFolder, resumed
from utils.runs.saving import Saving
from utils.settings import resolve
from utils.settings.command_line import CommandLine
from utils.settings.listing import print_list


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line; returns the exit code: 0, 2 for what the user can mend, 130 after Ctrl-C, 1 for a bug."""
    typed = CommandLine(sys.argv[1:] if argv is None else argv)
    console = Console(quiet=bool(typed.rough(()).get("quiet")))
    return guarded(console, lambda: run(typed, console))


def run(typed: CommandLine, console: Console) -> int:
    """Does what the settings ask for: compare many runs, help, list, evaluate, train, or go on training."""
    if typed.wants_help and processes.number():  # which the first process prints
        return 0
    if typed.names & {"experiment", "report"}:
        from utils.experiments.compare import compare  # a product of its own, with libraries of its own

        code = compare(typed, console, main, assemble)
        if code is not None:
            return code
    folder, chosen = resumed(typed) or (None, resolve.choose(typed))
    if chosen is None:  # --help was printed
        return 0
    console.take(quiet=chosen.core.quiet, warnings=chosen.warnings)
    finished = folder is not None and folder.result().get("status") == "finished"
    if not (chosen.core.list or chosen.core.eval or finished):
        return train(chosen, console, typed.argv, folder)
    if processes.number():  # of several processes one is enough for what follows
        return 0
    if chosen.core.list:
        print_list(console)
    elif chosen.core.eval:
        evaluate(chosen, prepare(chosen), console, typed.argv)
    elif folder:
        console.table("This run is finished", result_rows(folder.result()), folder.path)
    return 0


def train(chosen: resolve.Settings, console: Console, argv: Sequence[str], stopped: RunFolder | None) -> int:
    """Trains and prunes, in a new run folder or in that of a stopped run."""
    from utils.callbacks.attach import attach  # who looks at a run and draws it

    with processes.joined(pick_device(chosen.core.device), chosen.core.rank_timeout):
        with processes.first_goes_first():
            parts, pruning, trainer = assemble(chosen, console, stopped)
        if processes.number():
            return follow(trainer, parts.network, pruning, chosen, stopped)
        # Whatever the user may have got wrong has been said by now; only a run that starts leaves a folder.
        folder = stopped or RunFolder.create(chosen, argv)
        console.log_file = folder.output / "log.txt"
        saving = chosen.construct(Saving, folder=folder, network=parts.network, pruning=pruning)
        if stopped and saving.restore(trainer):
            console.info(f"going on at epoch {trainer.epoch}, batch {trainer.batch}")
        result = attach(trainer, saving, chosen, console, parts.data_set)
        return run_to_the_end(trainer, saving, result, console)


if __name__ == "__main__":
    sys.exit(main())
