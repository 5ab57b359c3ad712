"""Ctrl-C and time limits: the batch is finished, the state is saved, then the run ends."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

from pruning.distributed import largest, world
from utils.trainer import Trainer, TrainingMoment

TIME_IS_OVER, ALONE = 1000, 1001  # greater than any signal's number

STOPPING_POINTS = ("event_end", "train_start", "batch_end", "epoch_end")


class Interrupted(Exception):
    """The run was asked to stop between two batches; `exit_code` says by what."""

    def __init__(self, reason: str, exit_code: int) -> None:
        super().__init__(reason)
        self.exit_code = exit_code


class StopRequests:
    """Callback that turns SIGINT, SIGTERM, the time limit and the end of torchrun into `Interrupted` between batches.

    A second signal does not wait for the batch: it raises KeyboardInterrupt at once. The signals are caught from the
    making of this object, so that pruning before training can be stopped too, until `close`.

    Args:
        max_minutes: training time of this session; a resumed run has as much again. None for no limit.
    """

    def __init__(self, max_minutes: float | None) -> None:
        self.max_seconds = None if max_minutes is None else max_minutes * 60
        self.seconds_before: float | None = None
        self.received: int | None = None
        self.process = os.getpid()
        # Killed for good, torchrun leaves its processes behind: they would write into a run that is taken up again.
        self.parent = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None
        self.handlers: dict[int, Any] = {}
        # Python hands signals to the main thread only; in another one they stay with whoever runs us.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self.handlers[number] = signal.signal(number, self._receive)

    def __call__(self, trainer: Trainer, moment: TrainingMoment) -> None:
        if moment == "train_end":
            self.close()
        if moment not in STOPPING_POINTS:
            return
        # Of several processes all stop at the same batch, for the reason of any.
        reason = largest(self._reason(trainer))
        if reason == ALONE:
            raise Interrupted("the end of torchrun", 143)
        if reason == TIME_IS_OVER:
            raise Interrupted("the end of --max_training_minutes", 124)
        if reason:
            raise Interrupted(signal.Signals(reason).name, 128 + reason)

    def _reason(self, trainer: Trainer) -> int:
        """Returns the number of a signal, ALONE, TIME_IS_OVER, or 0 for going on."""
        if self.received is not None:
            return self.received
        if self.parent is not None and os.getppid() != self.parent:
            return ALONE
        return TIME_IS_OVER if self._is_over(trainer) else 0

    def _is_over(self, trainer: Trainer) -> bool:
        if self.max_seconds is None:
            return False
        trained = trainer.totals["seconds_training"]
        if self.seconds_before is None:
            self.seconds_before = trained
        return trained - self.seconds_before >= self.max_seconds and trainer.epoch < trainer.epochs

    def close(self) -> None:
        """Gives the signals back to whoever had them."""
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        self.handlers = {}

    def _receive(self, number: int, frame: FrameType | None) -> None:
        # Forked loader processes inherit this handler, and a terminal's Ctrl-C reaches them too: they go on serving.
        if os.getpid() != self.process:
            return
        # Of several processes each gets the signal from the terminal and again from what has started them.
        if self.received is not None and world() == 1:
            raise KeyboardInterrupt
        self.received = number
