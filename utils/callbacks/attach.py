"""Who is told of a run's moments, in which order; and what is done to the network at its end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from pruning import PrunableNetwork, shrink_dead
from pruning.export import SUFFIXES, export
from pruning.measure.confusion import tally_of
from utils.callbacks import pictures
from utils.callbacks.pictures import draw_confusion
from utils.callbacks.recorder import Recorder
from utils.callbacks.tensorboard import TensorBoard
from utils.callbacks.tracking import WeightTracking
from utils.console import Console, ProgressLines
from utils.files import read_rows
from utils.runs.interrupts import StopRequests
from utils.runs.result import Result
from utils.runs.run_folder import RunFolder
from utils.runs.saving import Saving
from utils.settings.core import Plots
from utils.settings.resolve import Settings


def attach(trainer: Any, saving: Saving, chosen: Settings, console: Console, data_set: Any) -> Result:
    """Gives a trainer its callbacks and returns the one that knows the numbers."""
    network, folder = saving.network, saving.folder
    result = Result(chosen, network, saving.pruning, trainer.device)
    plots = chosen.construct(Plots)
    board = TensorBoard(folder.summary, result, plots.histograms) if chosen.core.tensorboard else None
    recorder = Recorder(folder, result)
    names = getattr(data_set, "classes", None)
    drawing = Pictures(folder=folder, recorder=recorder, board=board, report=console.info, plots=plots, classes=names)
    tracking = [WeightTracking(folder, network, board)] if chosen.core.track_weights else []
    shrinking = chosen.construct(DeadNodes, network=network, report=console.info)
    exporting = chosen.construct(Export, network=network, report=console.info, folder=folder)
    # What changes the network comes before those who look at it and save it; what is exported has been saved.
    trainer.callbacks += [saving.pruning, shrinking, ProgressLines(console), *tracking, recorder, drawing]
    trainer.callbacks += [board] if board else []
    trainer.callbacks += [saving, exporting, StopRequests(chosen.core.max_training_minutes)]
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


class Pictures:
    """Callback that draws when training has ended.

    Args:
        folder: the run's folder.
        recorder: knows the numbers of every epoch.
        board: shows the same pictures; None for none.
        report: told what could not be drawn.
        plots: which pictures.
        classes: names of the classes, if the data set has any.
    """

    def __init__(
        self,
        *,
        folder: RunFolder,
        recorder: Recorder,
        board: TensorBoard | None,
        report: Callable[[str], None],
        plots: Plots,
        classes: Sequence[str] | None = None,
    ) -> None:
        self.folder, self.recorder, self.board, self.report = folder, recorder, board, report
        self.plots, self.classes = plots, classes

    def __call__(self, trainer: Any, moment: str) -> None:
        if moment == "train_end":
            self.draw(trainer)

    def draw(self, trainer: Any) -> None:
        """Draws every picture that is wanted and fits."""
        curve = read_rows(self.folder.output / "score_curve.csv")
        events = [event["epoch"] for event in self.recorder.result.pruning.history]
        self._put("overview", pictures.draw_overview(self.recorder.rows, events, curve))
        if (self.plots.weightplot or self.plots.netplot) and trainer.network.prunable():  # parameters may stand alone
            self._put("layers", pictures.draw_layers(trainer.network, self.plots.weightplot, self.plots.netplot))
        if self.plots.confusion:
            tally = tally_of(trainer.network.model, trainer.test_batches)
            self._put("confusion", draw_confusion(tally.report(), self.classes))
        if self.plots.saliency:
            self._put("saliency", pictures.draw_saliency(self._saliency(trainer)))

    def _saliency(self, trainer: Any) -> tuple[torch.Tensor, torch.Tensor] | None:
        try:
            return pictures.input_saliency(trainer.network, next(iter(trainer.test_batches)))
        except (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError) as error:
            # A network of the user's own may do what has no derivative; a picture must not end the run.
            self.report(f"no picture of the saliency: {type(error).__name__} {error}")
            return None

    def _put(self, name: str, figure: Any) -> None:
        if figure is None:
            return
        png = self.folder.write_picture(f"{name}.png", figure)
        if self.board is not None:
            self.board.images[name] = png
