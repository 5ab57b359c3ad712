"""Who is told of a run's moments, in which order; and what is done to the network at its end."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from pruning import PrunableNetwork, shrink_dead
from pruning.export import SUFFIXES, export
from utils.console import Console, ProgressLines
from utils.interrupts import StopRequests
from utils.recorder import Recorder
from utils.result import Result
from utils.run_folder import RunFolder
from utils.saving import Saving
from utils.settings import Settings
from utils.tensorboard import TensorBoard


def attach(trainer: Any, saving: Saving, chosen: Settings, console: Console) -> Result:
    """Gives a trainer its callbacks and returns the one that knows the numbers."""
    network, folder = saving.network, saving.folder
    result = Result(chosen, network, saving.pruning, trainer.device)
    board = [TensorBoard(folder.summary, result)] if chosen.core.tensorboard else []
    shrinking = chosen.construct(DeadNodes, network=network, report=console.info)
    exporting = chosen.construct(Export, network=network, report=console.info, folder=folder)
    # What changes the network comes before those who look at it and save it; what is exported has been saved.
    trainer.callbacks += [saving.pruning, shrinking, ProgressLines(console), *board, Recorder(folder, result), saving]
    trainer.callbacks += [exporting, StopRequests(chosen.core.max_training_minutes)]
    return result


class DeadNodes:
    """Removes, at the end of training, the nodes that masked weights leave dead, if --shrink_dead asks for it.

    Args:
        network: what was trained, or loaded.
        report: told what went.
        shrink_dead: whether to do anything.
    """

    def __init__(self, *, network: PrunableNetwork, report: Callable[[str], None], shrink_dead: bool) -> None:
        self.network, self.report, self.wanted = network, report, shrink_dead

    def __call__(self, trainer: Any, moment: str) -> None:
        if moment == "train_end":
            self.shrink([trainer.optimizer])

    def shrink(self, optimizers: Iterable[torch.optim.Optimizer] = ()) -> None:
        """Shrinks the network and says what went."""
        if self.wanted:
            self.report(str(shrink_dead(self.network, optimizers=optimizers)))


class Export:
    """Writes the finished network into the run's models/, if --export names a format.

    Args:
        network: what was trained, or loaded.
        report: told what was written.
        folder: the run's folder.
        model: the model's name, which names the file (with - for /).
        export: the format, or "none".
    """

    def __init__(
        self, *, network: PrunableNetwork, report: Callable[[str], None], folder: RunFolder, model: str, export: str
    ) -> None:
        self.network, self.report, self.kind = network, report, export
        self.path = folder.models / f"{model.replace('/', '-')}{SUFFIXES.get(export, '')}"

    def __call__(self, trainer: Any, moment: str) -> None:
        if moment == "train_end":
            self.write()

    def write(self) -> None:
        """Writes the file and checks it.

        Raises:
            UsageError: if it cannot be written, or computes something else.
        """
        if self.kind != "none":
            self.report(str(export(self.network.model, self.network.example_inputs, self.path, self.kind)))
