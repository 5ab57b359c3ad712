"""When the masks of a criterion that grows move: every so many optimizer steps, by a share that training decides."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from pruning import Batches, regrow
from pruning.prune.regrow import Grower

if TYPE_CHECKING:
    from trainers.DefaultTrainer import DefaultTrainer


class Growing:
    """Lets a criterion's masks move while training goes on, see `pruning.prune.regrow`.

    What an update does hangs on the weights, the masks and the step alone, so a stopped run goes on as if it had not
    been stopped.

    Args:
        criterion: has `grow_scores`; its `delta_t` and `update_share` say when and how much.
        draw_batches: number of an event -> batches to score on.
        report: told how much was replaced, once an epoch.
        first: number of the first update, those before it being the criterion's own events.
        invert: drop the best and grow the worst.
        seed: of what the scores may draw.
    """

    def __init__(
        self,
        criterion: Grower,
        draw_batches: Callable[[int], Batches],
        report: Callable[[str], None],
        *,
        first: int,
        invert: bool,
        seed: int,
    ) -> None:
        self.criterion, self.draw_batches, self.report = criterion, draw_batches, report
        self.first, self.invert, self.seed = first, invert, seed
        self.replaced, self.updates = 0, 0

    def steps(self, trainer: DefaultTrainer) -> dict[int, float]:
        """Returns optimizer step -> share of the weights, for every update of the training."""
        every = self._every(trainer)
        total = len(trainer.train_batches) * trainer.epochs
        shares = {}
        for step in range(every, total, every):
            share = self.criterion.update_share(step / total)
            if share > 0:
                shares[step] = share
        return shares

    def update(self, trainer: DefaultTrainer, step: int, share: float) -> None:
        """Moves the masks after a step."""
        number = self.first + step // self._every(trainer) - 1
        batches = self.draw_batches(number) if self.criterion.needs_data else ()
        # Draws of its own, and the run's random numbers go on as if there had been none.
        with torch.random.fork_rng():
            torch.manual_seed(self.seed + number)
            self.replaced += regrow(
                trainer.network,
                self.criterion,
                share,
                batches,
                optimizers=[trainer.optimizer],
                invert=self.invert,
            )
        self.updates += 1

    def _every(self, trainer: DefaultTrainer) -> int:
        """Returns how many steps lie between updates: those of an epoch, unless the criterion says."""
        return self.criterion.delta_t or len(trainer.train_batches)

    def tell(self) -> None:
        """Reports the updates since the last time."""
        if self.updates:
            times = "one update" if self.updates == 1 else f"{self.updates} updates"
            self.report(f"replaced {self.replaced:,} weights in {times} of the masks")
        self.replaced, self.updates = 0, 0
