"""What --eval does: a tester runs on a checkpoint, and what it finds is a run folder's result."""

from __future__ import annotations

from collections.abc import Sequence

from utils.callbacks.finishing import DeadNodes, Export
from utils.console import Console
from utils.jobs.parts import Parts
from utils.jobs.preflight import check_loss
from utils.runs.result import evaluation_record, evaluation_rows
from utils.runs.run_folder import RunFolder
from utils.runs.saving import load_start
from utils.settings import registry
from utils.settings.resolve import Settings
from utils.settings.signatures import parameters_of


def evaluate(chosen: Settings, parts: Parts, console: Console, argv: Sequence[str]) -> None:
    """Runs a tester on a checkpoint.

    Args:
        chosen: the settings.
        parts: what constructors of testers may name: network, data, loss, device.
        console: what the person sees.
        argv: the command line.
    """
    network = parts.network
    load_start(network, chosen.core)
    if _uses_the_loss(chosen):
        check_loss(network, *next(iter(parts.test_batches)))
    tester = chosen.build("testers", **parts.by_name())
    folder = RunFolder.create(chosen, argv)
    chosen.construct(DeadNodes, network=network, report=console.info).shrink()
    # A tester that only writes files returns nothing.
    found = chosen.construct(tester.evaluate, folder=folder, console=console) or {}
    folder.write_result(evaluation_record(chosen, network, found, parts.device))
    console.table("Evaluation", evaluation_rows(tester, found, folder.result()), folder.path)
    chosen.construct(Export, network=network, report=console.info, folder=folder).write()


def _uses_the_loss(chosen: Settings) -> bool:
    """Says whether the tester names the loss: to time a network, say, it need not fit the data."""
    tester = registry.find("testers", chosen.part("testers"))
    return any(parameter.name == "loss_function" for parameter in parameters_of(tester))
