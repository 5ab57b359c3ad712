"""Dynamic sparse training: the weakest weights of each layer make room for others, and its sparsity stays."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Protocol, TypeGuard

import torch
from torch import Tensor

from pruning.distributed import broadcast_by_name
from pruning.errors import UsageError
from pruning.modules.calls import Batches
from pruning.prune.criterion import Criterion, WeightCriterion
from pruning.prune.rank import Budget, check_scores, keep_top_global
from pruning.state import PrunableState


class Grower(Protocol):
    """A criterion of weights that also says what should grow, see `WeightCriterion`."""

    needs_data: bool
    delta_t: int | None

    def weight_scores(self, network: PrunableState, batches: Batches) -> dict[str, Tensor]: ...

    def grow_scores(self, network: PrunableState, batches: Batches) -> dict[str, Tensor]: ...

    def update_share(self, progress: float) -> float: ...


def grows(criterion: Criterion) -> TypeGuard[Grower]:
    """Whether a criterion also says what should grow: it then has `grow_scores`, see `WeightCriterion`."""
    if not hasattr(criterion, "grow_scores"):
        return False
    if not isinstance(criterion, WeightCriterion):
        raise UsageError(f"{type(criterion).__name__} has grow_scores, but only criteria of weights can grow.")
    return True


def regrow(
    network: PrunableState,
    criterion: Grower,
    share: float,
    batches: Batches = (),
    *,
    optimizers: Iterable[torch.optim.Optimizer] = (),
    invert: bool = False,
) -> int:
    """One update of the masks: per layer the weakest weights go, and as many grow where none was.

    A place that was dropped in this update may be chosen again; it then stays as it was, as in RigL's own code
    (arXiv:1911.11134). All others that grow start at zero, with a cleared memory in the optimizers. The number of
    weights of each layer stays exactly what it was, and layers that are dense, or do not learn, stay as they are.

    Args:
        network: pruned by masks already.
        criterion: `weight_scores` ranks what is there, `grow_scores` what could be; higher stays, or grows, first.
        share: of each layer's weights that are replaced, rounded down, 0 to 1.
        batches: (inputs, targets) pairs to score on.
        optimizers: whose memory of what grows is cleared.
        invert: drop the best and grow the worst (a control experiment).

    Returns:
        How many weights were replaced.

    Raises:
        UsageError: if scores are missing, misshapen or not finite; nothing has changed then.
    """
    alive = _movable(network)
    worth = _scores(criterion.weight_scores(network, batches), invert)
    check_scores(worth, alive)
    growth = _scores(criterion.grow_scores(network, batches), invert)
    # Whatever is gone may come back, so there every place needs a score.
    check_scores(growth, {name: torch.ones_like(mask) for name, mask in alive.items()})
    masks, same = {}, {}
    for name, mask in alive.items():
        layer = Budget(0, {name: mask}, network.slices)
        masks[name] = _moved({name: worth[name]}, {name: growth[name]}, share, layer)
        same[name] = mask & masks[name]
    # First only what is left of the old: what grows then finds zeros, whatever the places held before.
    network.masks.set(same)
    network.enforce()
    for optimizer in optimizers:
        network.masks.apply_to_optimizer(optimizer, network.prunable())
    network.masks.set(masks)
    return sum(int((masks[name] & ~alive[name]).count_nonzero()) for name in alive)


def _movable(network: PrunableState) -> dict[str, Tensor]:
    """Returns the keep-masks of the layers that are sparse and learn: the others stay as they are."""
    alive = network.alive()
    movable = {}
    for name, weight in network.weights():
        if weight.requires_grad and not bool(alive[name].all()):
            movable[name] = alive[name]
    return movable


def _scores(given: Mapping[str, Tensor], invert: bool) -> dict[str, Tensor]:
    """Returns the first process's scores, with the worst first where they are inverted."""
    scores = {name: score.detach() for name, score in given.items()}
    if invert:
        scores = {name: -score for name, score in scores.items()}
    return broadcast_by_name(scores)


def _moved(worth: dict[str, Tensor], growth: dict[str, Tensor], share: float, budget: Budget) -> Tensor:
    """Returns the new mask of one layer, with as many weights as the old one in `budget.alive`."""
    ((name, alive),) = budget.alive.items()
    count = int(alive.count_nonzero())
    dropped = int(share * count + 1e-9)  # 0.3 * 10 is a little less than 3
    stays = keep_top_global(worth, replace(budget, keep=count - dropped))[name]
    # The guards may keep more than was asked, so what is missing is counted.
    missing = count - int(stays.count_nonzero())
    grown = keep_top_global(growth, Budget(missing, {name: ~stays}), min_keep=0)[name]
    return stays | grown
