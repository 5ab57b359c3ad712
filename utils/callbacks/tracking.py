"""The callback behind --track_weights: how each layer's weights move, epoch by epoch."""

from __future__ import annotations

import torch
from torch import Tensor

from pruning import PrunableNetwork
from utils.callbacks.tensorboard import TensorBoard
from utils.files import as_csv, read_rows, write_atomic
from utils.runs.run_folder import RunFolder
from utils.trainer import Trainer, TrainingMoment

STATISTICS = ("sign_flips", "mean", "variance")


class WeightTracking:
    """Writes output/weights.csv, one line an epoch: per layer the share of sign flips, the mean and the variance.

    All three are of the weights that are there: masked ones count nowhere. A weight has flipped if it has the other
    sign than at the end of the epoch before (at first: than at the start of training).

    Args:
        folder: the run's folder.
        network: what is trained.
        board: shows the same curves; None for none.
    """

    def __init__(self, folder: RunFolder, network: PrunableNetwork, board: TensorBoard | None) -> None:
        self.path = folder.output / "weights.csv"
        self.network = network
        self.board = board
        self.rows: list[dict[str, float]] = []

    def __call__(self, trainer: Trainer, moment: TrainingMoment) -> None:
        if moment == "train_start":
            self.rows = read_rows(self.path, before=trainer.epoch)
            # Kept with the trainer: a stopped run compares with the same signs, and cuts of nodes reach them.
            trainer.memory.setdefault("signs", self._signs())
        elif moment == "epoch_end":
            values = self._values(trainer.memory["signs"])
            trainer.memory["signs"] = self._signs()
            self.rows.append({"epoch": trainer.epoch, **values})
            write_atomic(self.path, as_csv(self.rows))
            if self.board is not None:
                tagged = {f"tracked_weights/{name}": value for name, value in values.items()}
                self.board.scalars |= tagged

    def _signs(self) -> dict[str, Tensor]:
        signs = {}
        for name, weight in self.network.prunable().items():
            signs[name] = weight.detach().sign().to(torch.int8)
        return signs

    def _values(self, before: dict[str, Tensor]) -> dict[str, float]:
        """Returns "<layer> <statistic>" -> value; one transfer from the device for all of them."""
        names: list[str] = []
        found: list[Tensor] = []
        for name, weight in self.network.prunable().items():
            now = weight.detach()
            there = now[self.network.masks.of(name, weight)].float()
            if not there.numel():  # a layer cut to nothing has no statistics
                continue
            then = before.get(name, now)  # a layer that was put in the place of another has no past
            flipped = now.sign() * then.to(now.device) < 0
            names += [f"{name} {what}" for what in STATISTICS]
            found += [flipped.sum() / there.numel(), there.mean(), there.var(correction=0)]
        if not found:
            return {}
        return dict(zip(names, torch.stack(found).tolist(), strict=True))
