"""Who is told of a run's moments, and in which order."""

from __future__ import annotations

from typing import Any

from utils.callbacks.drawing import Pictures
from utils.callbacks.finishing import DeadNodes, Export
from utils.callbacks.recorder import Recorder
from utils.callbacks.tensorboard import TensorBoard
from utils.callbacks.tracking import WeightTracking
from utils.console import Console, ProgressLines
from utils.runs.interrupts import StopRequests
from utils.runs.result import Result
from utils.runs.saving import Saving
from utils.settings.core import Plots
from utils.settings.resolve import Settings
from utils.trainer import Callback, Trainer


def attach(trainer: Trainer, saving: Saving, chosen: Settings, console: Console, data_set: Any) -> Result:
    """Gives a trainer its callbacks and returns the one that knows the numbers."""
    core, network, folder = chosen.core, saving.network, saving.folder
    plots = chosen.construct(Plots)
    result = Result(chosen, network, saving.pruning, trainer.device)
    board = TensorBoard(folder.summary, result, plots.histograms) if core.tensorboard else None
    recorder = Recorder(folder, result)
    drawing = Pictures(
        folder=folder,
        recorder=recorder,
        board=board,
        report=console.info,
        plots=plots,
        classes=getattr(data_set, "classes", None),
    )
    shrinking = chosen.construct(DeadNodes, network=network, report=console.info)
    exporting = chosen.construct(Export, network=network, report=console.info, folder=folder)

    # What changes the network comes before those who look at it and save it; what is exported has been saved.
    callbacks: list[Callback] = [saving.pruning, shrinking, ProgressLines(console)]
    if core.track_weights:
        callbacks.append(WeightTracking(folder, network, board))
    # TensorBoard shows what the two before it have found and drawn.
    callbacks += [recorder, drawing]
    if board is not None:
        callbacks.append(board)
    callbacks += [saving, exporting, StopRequests(core.max_training_minutes)]
    trainer.callbacks += callbacks
    return result
