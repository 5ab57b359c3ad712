"""Ctrl-C and time limits: the batch is finished, the state is saved, then the run ends."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any


class Interrupted(Exception):
    """The run was asked to stop between two batches; `exit_code` says by what."""

    def __init__(self, reason: str, exit_code: int) -> None:
        super().__init__(reason)
        self.exit_code = exit_code


class StopRequests:
    """Callback that turns SIGINT, SIGTERM and the time limit into an `Interrupted` between two batches.

    A second Ctrl-C does not wait for the batch.
    """

    def __init__(self, max_minutes: float | None) -> None:
        self.max_seconds = max_minutes * 60 if max_minutes is not None else None
        self.received: int | None = None
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._receive)

    def __call__(self, trainer: Any, moment: str) -> None:
        if moment not in ("train_start", "batch_end", "epoch_end"):
            return
        if self.received is not None:
            raise Interrupted(signal.Signals(self.received).name, 128 + self.received)
        used = trainer.totals["seconds_training"]
        if self.max_seconds is not None and used >= self.max_seconds and trainer.epoch < trainer.epochs:
            raise Interrupted(f"--max_training_minutes {self.max_seconds / 60:g} is over", 124)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.received = number
