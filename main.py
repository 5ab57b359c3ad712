"""Trains a network and prunes it: reads the settings, builds the parts by name, starts training or evaluation."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import islice
from typing import Any

import torch
from torch import nn

from data_sets._batches import make_batches
from pruning import PrunableNetwork
from trainers._pruning import Pruning
from utils import checkpoints, settings
from utils.console import Console, ProgressLines
from utils.ending import guarded, run_to_the_end
from utils.environment import pick_device
from utils.interrupts import StopRequests
from utils.listing import print_list
from utils.recorder import Recorder
from utils.result import Result, evaluation_record, evaluation_rows, result_rows
from utils.run_folder import RunFolder, resumed_settings
from utils.saving import Saving, load_start
from utils.settings import Settings
from utils.tensorboard import TensorBoard


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line; returns the exit code: 0, 2 for what the user can mend, 130 after Ctrl-C, 1 for a bug."""
    argv = list(sys.argv[1:] if argv is None else argv)
    console = Console(quiet="--quiet" in argv)
    return guarded(console, lambda: run(argv, console))


def run(argv: Sequence[str], console: Console) -> int:
    """Does what the settings ask for: help, list, evaluate, train, or go on training."""
    chosen = settings.parse(argv)
    if chosen is None:
        return 0
    for warning in chosen.warnings:
        console.warn(warning)
    if chosen.core.list:
        print_list(console)
        return 0
    if chosen.core.resume:
        return resume(chosen, console, argv)
    return evaluate(chosen, console, argv) if chosen.core.eval else train(chosen, console, argv)


def resume(typed: Settings, console: Console, argv: Sequence[str]) -> int:
    """Goes on with a stopped run, with the settings that it was started with."""
    folder, chosen = resumed_settings(typed.core.resume, typed.core.results_dir, argv)
    if folder.result().get("status") == "finished":
        console.table("This run is finished", result_rows(folder.result()), folder.path)
        return 0
    return train(chosen, console, argv, folder)


def prepare(chosen: Settings) -> dict[str, Any]:
    """Builds data, network and loss: the parts that constructors of trainers and testers name."""
    core = chosen.core
    checkpoints.seed_everything(core.seed)
    device = pick_device(core.device)
    data_set = chosen.build("data_sets")
    options = {"batch_size": core.batch_size, "device": device, "seed": core.seed, "tuning": core.tuning}
    options |= {"limit": core.limit_batches, "workers": core.workers}
    test_batches = make_batches(data_set, "test", **options)
    example = next(iter(test_batches))[0][:1]
    model = make_model(chosen, data_set, device)
    loss_function = chosen.build("losses")
    criterion = chosen.build("criterions")
    outer = criterion.unit == "weights" if core.outer_layer_pruning is None else core.outer_layer_pruning
    network = PrunableNetwork(model, example, loss=loss_function, outer_layers=outer)
    network.start_flops()  # dense, before anything is loaded into it

    def batches(part: str) -> Any:
        return make_batches(data_set, part, **options, augment=core.augment)

    parts = {"network": network, "loss_function": loss_function, "test_batches": test_batches}
    return parts | {"criterion": criterion, "data_set": data_set, "batches": batches, "device": device}


def make_model(chosen: Settings, data_set: Any, device: torch.device) -> nn.Module:
    """Builds the chosen model for the shapes of a data set."""
    return chosen.build("models", num_classes=data_set.num_classes, input_shape=data_set.input_shape).to(device)


def make_pruning(chosen: Settings, parts: dict[str, Any], console: Console) -> Pruning:
    """Builds the callback that prunes."""
    core, score = chosen.core, parts["batches"]("score")

    def fresh_model() -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(core.seed + 1)
            return make_model(chosen, parts["data_set"], parts["device"])

    def draw(event: int) -> list[Any]:
        return list(islice(score.epoch(event), core.score_batches))

    given = {"network": parts["network"], "criterion": parts["criterion"], "report": console.info}
    return chosen.construct(Pruning, **given, draw_batches=draw, fresh_model=fresh_model)


def train(chosen: Settings, console: Console, argv: Sequence[str], folder: RunFolder | None = None) -> int:
    """Trains and prunes, in a new run folder or in that of a stopped run."""
    core, parts = chosen.core, prepare(chosen)
    pruning = make_pruning(chosen, parts, console)
    old, folder = folder, folder or RunFolder.create(chosen, argv)
    saving = chosen.construct(Saving, folder=folder, network=parts["network"], pruning=pruning)
    if not saving.checkpoint.exists():
        load_start(parts["network"], core)
    trainer = chosen.build("trainers", **parts, train_batches=parts["batches"]("train"))
    if old and saving.restore(trainer):
        console.info(f"going on at epoch {trainer.epoch}, batch {trainer.batch}")
    console.log_file = folder.output / "log.txt"
    result = Result(chosen, parts["network"], pruning, parts["device"])
    board = [TensorBoard(folder.summary, result)] if core.tensorboard else []
    trainer.callbacks += [pruning, ProgressLines(console), *board, Recorder(folder, result), saving]
    trainer.callbacks += [StopRequests(core.max_training_minutes)]
    return run_to_the_end(trainer, saving, result, console)


def evaluate(chosen: Settings, console: Console, argv: Sequence[str]) -> int:
    """Runs a tester on a checkpoint."""
    parts = prepare(chosen)
    load_start(parts["network"], chosen.core)
    found = chosen.build("testers", **parts).evaluate()
    folder = RunFolder.create(chosen, argv)
    folder.write_result(evaluation_record(chosen, parts["network"], found))
    console.table("Evaluation", evaluation_rows(found, parts["network"]), folder.path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
