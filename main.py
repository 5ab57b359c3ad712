"""Trains a network and prunes it: reads the settings, builds the parts by name, starts training or evaluation."""

from __future__ import annotations

import os

# Threads that wait must not spin: on a machine that others use too, that made training ten times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if "LOCAL_RANK" in os.environ:  # started by torchrun: each process would say that it found no unused parameter
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

import sys
from collections.abc import Sequence
from itertools import islice
from typing import Any

from data_sets._batches import make_batches
from pruning import PrunableNetwork
from trainers._pruning import Pruning
from utils import processes
from utils.callbacks.attach import attach
from utils.console import Console
from utils.experiments.compare import compare
from utils.jobs.evaluate import evaluate
from utils.jobs.preflight import check_fit
from utils.jobs.train import follow, guarded, run_to_the_end
from utils.runs.checkpoints import seed_everything
from utils.runs.environment import forget_peak_memory, pick_device
from utils.runs.result import result_rows
from utils.runs.run_folder import RunFolder, resumed
from utils.runs.saving import Saving, early_network, load_start, other_run
from utils.settings import resolve
from utils.settings.core import node_rules, without_effect
from utils.settings.listing import print_list


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line; returns the exit code: 0, 2 for what the user can mend, 130 after Ctrl-C, 1 for a bug."""
    argv = list(sys.argv[1:] if argv is None else argv)
    console = Console(quiet="--quiet" in argv)
    return guarded(console, lambda: run(argv, console))


def run(argv: Sequence[str], console: Console) -> int:
    """Does what the settings ask for: compare many runs, help, list, evaluate, train, or go on training."""
    if (code := compare(argv, console, main, assemble)) is not None:
        return code
    if processes.number() and {"-h", "--help"} & set(argv):  # which the first process prints
        return 0
    folder, chosen = resumed(argv) or (None, resolve.parse(argv))
    if chosen is None:  # --help was printed
        return 0
    console.take(quiet=chosen.core.quiet, warnings=chosen.warnings)
    finished = folder is not None and folder.result().get("status") == "finished"
    if not (chosen.core.list or chosen.core.eval or finished):
        return train(chosen, console, argv, folder)
    if processes.number():  # of several processes one is enough for what follows
        return 0
    if chosen.core.list:
        print_list(console)
    elif chosen.core.eval:
        evaluate(chosen, prepare(chosen), console, argv)
    elif folder:
        console.table("This run is finished", result_rows(folder.result()), folder.path)
    return 0


def train(chosen: resolve.Settings, console: Console, argv: Sequence[str], stopped: RunFolder | None) -> int:
    """Trains and prunes, in a new run folder or in that of a stopped run."""
    with processes.joined(pick_device(chosen.core.device), chosen.core.rank_timeout):
        with processes.first_goes_first():
            parts, pruning, trainer = assemble(chosen, console, stopped)
        if processes.number():
            return follow(trainer, parts["network"], pruning, chosen, stopped)
        # Whatever the user may have got wrong has been said by now; only a run that starts leaves a folder.
        folder = stopped or RunFolder.create(chosen, argv)
        console.log_file = folder.output / "log.txt"
        saving = chosen.construct(Saving, folder=folder, network=parts["network"], pruning=pruning)
        if stopped and saving.restore(trainer):
            console.info(f"going on at epoch {trainer.epoch}, batch {trainer.batch}")
        result = attach(trainer, saving, chosen, console, parts["data_set"])
        return run_to_the_end(trainer, saving, result, console)


def prepare(chosen: resolve.Settings) -> dict[str, Any]:
    """Builds data, network, loss and criterion: what constructors of trainers and testers name."""
    core, device = chosen.core, pick_device(chosen.core.device)
    seed_everything(core.seed)
    forget_peak_memory(device)
    data_set = chosen.build("data_sets")
    shapes = {"num_classes": data_set.num_classes, "input_shape": data_set.input_shape}

    def batches(part: str) -> Any:
        return chosen.construct(make_batches, data_set=data_set, part=part, device=device, limit=core.limit_batches)

    def fresh_model() -> Any:
        return chosen.build("models", **shapes).to(device)

    test_batches = batches("test")
    example = next(iter(test_batches))[0][:1]
    model, loss_function, criterion = fresh_model(), chosen.build("losses"), chosen.build("criterions")
    rules, outer = node_rules(chosen.values), criterion.unit == "nodes" or core.outer_layer_pruning is not False
    network = PrunableNetwork(model, example, loss=loss_function, outer_layers=outer, node_rules=rules)
    network.note_start(latency=core.measure_latency)  # dense, before anything is loaded into it
    parts = {"network": network, "loss_function": loss_function, "criterion": criterion, "device": device}
    parts |= {"data_set": data_set, "batches": batches, "test_batches": test_batches, "fresh_model": fresh_model}
    return parts | {"load_run": lambda run: other_run(run, chosen, network, shapes)}


def assemble(chosen: resolve.Settings, console: Console, stopped: RunFolder | None = None) -> tuple[Any, Pruning, Any]:
    """Builds everything that training needs, and loads what it starts from."""
    parts, core = prepare(chosen), chosen.core
    if idle := without_effect(chosen.values, parts["criterion"]):
        console.warn(idle)
    score, network, fresh = parts["batches"]("score"), parts["network"], parts["fresh_model"]
    draw = lambda event, count=core.score_batches: list(islice(score.epoch(event), count))  # noqa: E731
    parts |= {"draw_batches": draw, "report": console.info}
    early = (lambda: early_network(core.rewind_from, fresh(), network)) if core.rewind_from else None
    pruning = chosen.construct(Pruning, **parts, early_model=early)
    load_start(network, core, stopped)
    train_batches = parts["batches"]("train")
    check_fit(network, parts["data_set"], train_batches, parts["test_batches"])
    return parts, pruning, chosen.build("trainers", **parts, train_batches=train_batches)


if __name__ == "__main__":
    sys.exit(main())
