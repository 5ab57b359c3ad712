"""The callback behind --track_weights: how each layer's weights move, epoch by epoch."""

from __future__ import annotations

from typing import Any

import torch

from pruning import PrunableNetwork
from utils.callbacks.tensorboard import TensorBoard
from utils.files import as_csv, read_rows, write_atomic
from utils.runs.run_folder import RunFolder


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
        self.path, self.network, self.board = folder.output / "weights.csv", network, board
        self.rows: list[dict[str, float]] = []

    def __call__(self, trainer: Any, moment: str) -> None:
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
                self.board.scalars |= {f"tracked_weights/{name}": value for name, value in values.items()}

    def _signs(self) -> dict[str, torch.Tensor]:
        return {name: weight.detach().sign().to(torch.int8) for name, weight in self.network.prunable().items()}

    def _values(self, before: dict[str, torch.Tensor]) -> dict[str, float]:
        """Returns "<layer> <statistic>" -> value; one transfer from the device for all of them."""
        names, found = [], []
        for name, weight in self.network.prunable().items():
            there = weight.detach()[self.network.masks.of(name, weight)].float()
            if there.numel():  # a layer cut to nothing has no statistics
                then = before.get(name, weight.detach())  # a layer that was put in the place of another has no past
                flips = (weight.detach().sign() * then.to(weight.device) < 0).sum() / there.numel()
                names += [f"{name} {what}" for what in ("sign_flips", "mean", "variance")]
                found += [flips, there.mean(), there.var(correction=0)]
        return dict(zip(names, torch.stack(found).tolist(), strict=True)) if found else {}
