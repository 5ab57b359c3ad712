"""What callbacks see of a trainer, and at which moments they are called."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from pruning import PrunableNetwork, Step
from pruning.measure.measures import Better

# "train_start" and "train_end" come once in a session; "event_end" follows each pruning event before or after
# training; "epoch_trained" comes before an epoch's evaluation, when `epoch` does not count it yet, and "epoch_end"
# after it, when it does.
TrainingMoment = Literal["train_start", "event_end", "batch_end", "epoch_trained", "epoch_end", "train_end"]


class TrainingBatches(Protocol):
    """What callbacks see of the data: how many batches an epoch has, and the batches, (inputs, targets)."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]: ...


class Trainer(Protocol):
    """A trainer as callbacks see it; `DefaultTrainer` and what inherits from it.

    Attributes:
        network: what is trained and pruned.
        optimizer: moves the weights; a trainer may replace it when a run is taken up again.
        device: where batches and the network are.
        train_batches, test_batches: the data.
        callbacks: who is called at each moment, in this order.
        epoch: epochs that are trained and evaluated, so the present one's number, from 0.
        epochs: how many there will be.
        batch: batches of the present epoch that are trained.
        metrics: the newest "train_loss", "test_loss" and what the loss measures ("test_accuracy"), as far as known.
        measures: what the loss measures, the main one first: which way is good ("higher", "lower", None if unknown).
        totals: "samples_seen", "seconds_training" and "training_flops" since the very start of the run.
        memory: what callbacks keep by parameter name; it is saved with the trainer and cut along with the network.
        resumed: whether this session goes on with a stopped run.
    """

    network: PrunableNetwork
    optimizer: torch.optim.Optimizer
    device: torch.device
    train_batches: TrainingBatches
    test_batches: TrainingBatches
    callbacks: list[Callback]
    epoch: int
    epochs: int
    batch: int
    metrics: dict[str, float]
    measures: dict[str, Better | None]
    totals: dict[str, float]
    memory: dict[str, dict[str, Tensor]]
    resumed: bool

    def train(self) -> dict[str, float]:
        """Trains from the present epoch to the last one and returns the metrics of the last epoch."""

    def check_finite(self) -> None:
        """Raises UsageError if the loss or a weight is no longer a finite number."""

    def state_dict(self) -> dict[str, Any]:
        """Returns everything that training needs to go on exactly from here, but the network itself."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over a state from `state_dict`; the network must be loaded already."""


class Callback(Protocol):
    """Who is told of a run's moments. One that holds something open has a method `close` too."""

    def __call__(self, trainer: Trainer, moment: TrainingMoment, /) -> None: ...


class PruningCallback(Protocol):
    """What the rest of a run asks of the callback that prunes.

    Attributes:
        asked: the sparsity that the events lead to, NaN where it is not fixed in advance.
        complete: whether every scheduled event took place.
        counted: what sparsities are fractions of: "weights", "nodes", ...
        steps: what each event did.
        history: the same as plain values, with the sparsity of every layer, for output/pruning_events.json.
    """

    steps: list[Step]
    history: list[dict[str, Any]]
    counted: str

    @property
    def asked(self) -> float: ...

    @property
    def complete(self) -> bool: ...

    def __call__(self, trainer: Trainer, moment: TrainingMoment, /) -> None: ...

    def state_dict(self) -> dict[str, Any]:
        """Returns everything that later events need."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over a state from `state_dict`; the network must be loaded already."""
