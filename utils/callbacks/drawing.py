"""The callback that draws a run's pictures, once, when training has ended."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from pruning.measure.confusion import tally_of
from utils.callbacks import pictures
from utils.callbacks.recorder import Recorder
from utils.callbacks.tensorboard import TensorBoard
from utils.files import read_rows
from utils.runs.run_folder import RunFolder
from utils.settings.core import Plots
from utils.trainer import Trainer, TrainingMoment

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Pictures:
    """Draws when training has ended.

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
        self.folder = folder
        self.recorder = recorder
        self.board = board
        self.report = report
        self.plots = plots
        self.classes = classes

    def __call__(self, trainer: Trainer, moment: TrainingMoment) -> None:
        if moment == "train_end" and self.plots.pictures:
            self.draw(trainer)

    def draw(self, trainer: Trainer) -> None:
        """Draws every picture that is wanted and fits."""
        plots, network = self.plots, trainer.network
        curve = read_rows(self.folder.output / "score_curve.csv")
        events = [event["epoch"] for event in self.recorder.result.pruning.history]
        self._put("overview", pictures.draw_overview(self.recorder.rows, events, curve, self._main(trainer)))
        # A network of parameters that belong to no layer has nothing to show by layer.
        if (plots.weightplot or plots.netplot) and network.prunable():
            self._put("layers", pictures.draw_layers(network, plots.weightplot, plots.netplot))
        if plots.confusion and "accuracy" in trainer.measures:
            tally = tally_of(network.model, trainer.test_batches)
            self._put("confusion", pictures.draw_confusion(tally.report(), self.classes))
        if plots.saliency:
            self._put("saliency", pictures.draw_saliency(self._saliency(trainer)))

    @staticmethod
    def _main(trainer: Trainer) -> str:
        """Returns the measure that the overview shows: the main one, or the loss where it measures nothing."""
        return next(iter(trainer.measures), "loss")

    def _saliency(self, trainer: Trainer) -> tuple[torch.Tensor, torch.Tensor] | None:
        batch = next(iter(trainer.test_batches))
        try:
            return pictures.input_saliency(trainer.network, batch)
        except (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError) as error:
            # A network of the user's own may do what has no derivative; a picture must not end the run.
            self.report(f"no picture of the saliency: {type(error).__name__} {error}")
            return None

    def _put(self, name: str, figure: Figure | None) -> None:
        if figure is None:
            return
        png = self.folder.write_picture(f"{name}.png", figure)
        if self.board is not None:
            self.board.images[name] = png
