"""The callback that writes for TensorBoard: scalars named as in result.json, sparsity per layer, histograms."""

from __future__ import annotations

import os
import socket
import struct
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pruning import PrunableNetwork, UsageError
from utils.runs.result import Result
from utils.trainer import Trainer, TrainingMoment

if TYPE_CHECKING:
    from tensorboard.compat.proto.summary_pb2 import Summary

HISTOGRAM_BINS = 64


class TensorBoard:
    """Writes each epoch's scalars; weights and the architecture at the start and at the end.

    Args:
        folder: where the event files go; a resumed run adds one.
        result: knows the numbers of the run.
        histograms: whether to write the weights of each layer, at the start and at the end.

    Attributes:
        scalars: further values by tag, put here by other callbacks, written with the next epoch.
        images: PNG files by tag, written at the end.
    """

    def __init__(self, folder: Path, result: Result, histograms: bool = True) -> None:
        self.folder = folder
        self.result = result
        self.histograms = histograms
        # Taken now: by the time training starts, the network may have been pruned.
        self.before = _describe(result.network)
        self.file: EventFile | None = None
        self.scalars: dict[str, float] = {}
        self.images: dict[str, bytes] = {}

    def __call__(self, trainer: Trainer, moment: TrainingMoment) -> None:
        if moment not in ("train_start", "epoch_end", "train_end"):
            return
        try:
            self._write(trainer, moment)
        except OSError as error:
            raise UsageError(f"{self.folder} cannot be written: {error.strerror or error}.") from error

    def _write(self, trainer: Trainer, moment: TrainingMoment) -> None:
        if self.file is None:
            self.file = self._start(trainer)
        if moment == "epoch_end":
            self._write_scalars(trainer)
        elif moment == "train_end":
            # One step further than any epoch: a run stopped between here and its end writes this again, and only this.
            step = trainer.epoch + 1
            self._look(trainer, "architecture/after", _describe(trainer.network), step)
            for tag, png in self.images.items():
                self._add(_image(tag, png), step)
        # A run killed after its next checkpoint must not miss what came before it.
        self.file.flush()
        if moment == "train_end":
            self.close()

    def close(self) -> None:
        """Writes what is still in memory."""
        if self.file is not None:
            # Forgotten first: what fails to close must not be closed again.
            file, self.file = self.file, None
            file.close()

    def _start(self, trainer: Trainer) -> EventFile:
        # A resumed run repeats the steps after its checkpoint; what was written of them is dropped.
        go_on = trainer.resumed and any(self.folder.glob("*tfevents*"))
        purge_step = trainer.epoch + 1 if go_on else 0
        self.file = EventFile(self.folder, purge_step)
        if not go_on:
            self._look(trainer, "architecture/before", self.before, 0)
        return self.file

    def _write_scalars(self, trainer: Trainer) -> None:
        from torch.utils.tensorboard.summary import scalar

        values = dict(self.result.numbers(trainer))
        for name, sparsity in trainer.network.layer_sparsities().items():
            values[f"sparsity_per_layer/{name}"] = sparsity
        values |= self.scalars
        for name, value in values.items():
            self._add(scalar(name, value), trainer.epoch)

    def _look(self, trainer: Trainer, tag: str, architecture: str, step: int) -> None:
        from torch.utils.tensorboard.summary import histogram, text

        self._add(text(tag, architecture), step)
        if not self.histograms:
            return
        for name, weight in trainer.network.prunable().items():
            if weight.numel():
                values = weight.detach().float().cpu().numpy()
                self._add(histogram(f"weights/{name}", values, HISTOGRAM_BINS), step)

    def _add(self, summary: Summary, step: int) -> None:
        assert self.file is not None
        self.file.add(step, summary=summary)


def _image(tag: str, png: bytes) -> Summary:
    from tensorboard.compat.proto.summary_pb2 import Summary

    # The header of a PNG file holds width and height after its first sixteen bytes.
    width, height = struct.unpack(">II", png[16:24])
    image = Summary.Image(height=height, width=width, colorspace=4, encoded_image_string=png)
    return Summary(value=[Summary.Value(tag=tag, image=image)])


class EventFile:
    """One event file of TensorBoard.

    Written in the thread that trains, unlike torch's SummaryWriter: there a full disk is a traceback of another thread.

    Args:
        folder: where the file is made.
        purge_step: readers drop what older files of the folder hold from this step on.
    """

    def __init__(self, folder: Path, purge_step: int) -> None:
        # Imported late: it takes longer than everything else that a short run needs.
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        self.event = Event
        # Readers take files in the order of their names.
        moment = f"{time.time_ns():020d}"
        name = f"events.out.tfevents.{moment}.{socket.gethostname()}.{os.getpid()}"
        self.file = open(folder / name, "xb")  # noqa: SIM115 - stays open as long as the run
        self.records = RecordWriter(self.file)
        self.add(purge_step, file_version="brain.Event:2")
        self.add(purge_step, session_log=SessionLog(status=SessionLog.START))

    def add(self, step: int, **content: Any) -> None:
        """Adds one record."""
        event = self.event(wall_time=time.time(), step=step, **content)
        self.records.write(event.SerializeToString())

    def flush(self) -> None:
        """Hands everything to the disk."""
        self.file.flush()

    def close(self) -> None:
        """Ends the file."""
        self.file.close()


def _describe(network: PrunableNetwork) -> str:
    """Returns the modules and, per prunable weight, its shape and what is left of it, as Markdown."""
    # Four spaces make a block of code.
    lines = ["    " + line for line in str(network.model).splitlines()]
    lines += ["", "| weight | shape | left of the start |", "|---|---|---|"]
    sparsities = network.layer_sparsities().values()
    for (name, weight), sparsity in zip(network.prunable().items(), sparsities, strict=True):
        left = 1 - sparsity
        lines.append(f"| {name} | {tuple(weight.shape)} | {left:.4f} |")
    return "\n".join(lines)
