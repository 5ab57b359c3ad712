"""What a run is made of, and what its pruning starts from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from itertools import islice
from typing import Annotated, Any, Protocol

import torch
from torch import Tensor, nn

from data_sets._batches import Batches
from pruning.network import PrunableNetwork
from pruning.prune.criterion import Criterion
from utils.runs.saving import early_network


class DataSet(Protocol):
    """A data set: what its files hold, and for which networks.

    One whose targets are no classes says so by an attribute `task`: "language", "regression" or "segmentation".
    """

    input_shape: tuple[int, ...]
    num_classes: int

    def train(self) -> Any:
        """Returns the training data: (inputs, labels) or a torch Dataset."""

    def test(self) -> Any:
        """Returns the test data, in the same form."""


def task_of(data_set: DataSet) -> str:
    """Returns what a data set is for: "classification" unless it says another task."""
    return str(getattr(data_set, "task", "classification"))


@dataclass(frozen=True)
class Parts:
    """What is built for every run. Constructors of trainers and testers get of it what they name.

    Args:
        network: what is trained and pruned, on its device.
        loss_function: (outputs, targets) -> loss.
        criterion: what is worth keeping.
        device: where all of it computes.
        data_set: the data, not yet in batches.
        batches: makes the batches of "train", "test" or "score".
        test_batches: those of "test".
        fresh_model: makes the model anew, with other initial values.
        load_run: the name of a run -> its finished network.
    """

    network: PrunableNetwork
    loss_function: Callable[[Any, Tensor], Tensor]
    criterion: Criterion
    device: torch.device
    data_set: DataSet
    batches: Callable[[str], Batches]
    test_batches: Batches
    fresh_model: Callable[[], nn.Module]
    load_run: Callable[[str], PrunableNetwork]

    def by_name(self) -> dict[str, Any]:
        """Returns the parts as arguments for a constructor."""
        # Not asdict, which would copy the network.
        return {one.name: getattr(self, one.name) for one in fields(self)}


class ScoreBatches:
    """Draws the batches that a pruning event scores on.

    Args:
        batches: those of "score".
        score_batches: training batches, not augmented, on which each pruning event scores.
    """

    def __init__(self, *, batches: Batches, score_batches: Annotated[int, {"at_least": 1}] = 5) -> None:
        self.batches, self.count = batches, score_batches

    def __call__(self, event: int, count: int | None = None) -> list[tuple[Tensor, Tensor]]:
        """Returns the batches of an event, whose number says in which order the data are gone through.

        Args:
            event: its number, from 0.
            count: how many, if not as many as scores need.
        """
        count = self.count if count is None else count
        return list(islice(self.batches.epoch(event), count))


def early_model(
    *, network: PrunableNetwork, fresh_model: Callable[[], nn.Module], rewind_from: str = ""
) -> Callable[[], tuple[nn.Module, int]] | None:
    """Returns what makes the network with early weights and says after how many epochs they were; None for neither.

    Args:
        network: what is pruned.
        fresh_model: makes its model anew.
        rewind_from: file with early weights of this network (see keep_epochs) to which those that stay go back after
            the last pruning event; training that has not begun by then begins with the epoch after them.
    """
    if not rewind_from:
        return None
    return lambda: early_network(rewind_from, fresh_model(), network)
