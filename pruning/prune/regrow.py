"""Dynamic sparse training: the weakest weights of each layer make room for others, and its sparsity stays."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pruning.distributed import broadcast_by_name
from pruning.errors import UsageError
from pruning.modules.calls import Batches
from pruning.prune.criterion import Criterion, WeightCriterion
from pruning.prune.rank import Budget, check_scores, keep_top_global
from pruning.state import PrunableState


def grows(criterion: Criterion) -> bool:
    """Whether a criterion also says what should grow: it then has `grow_scores`, see `WeightCriterion`."""
    if hasattr(criterion, "grow_scores") and not isinstance(criterion, WeightCriterion):
        raise UsageError(f"{type(criterion).__name__} has grow_scores, but only criteria of weights can grow.")
    return hasattr(criterion, "grow_scores")


def regrow(
    network: PrunableState,
    criterion: Any,
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
    trained = {name for name, weight in network.weights() if weight.requires_grad}
    alive = {name: mask for name, mask in network.alive().items() if name in trained and not bool(mask.all())}
    sign = -1 if invert else 1
    scores = criterion.weight_scores(network, batches)
    worth = broadcast_by_name({name: sign * score.detach() for name, score in scores.items()})
    check_scores(worth, alive)
    scores = criterion.grow_scores(network, batches)
    growth = broadcast_by_name({name: sign * score.detach() for name, score in scores.items()})
    check_scores(growth, {name: torch.ones_like(mask) for name, mask in alive.items()})
    masks, same = {}, {}
    for name, mask in alive.items():
        masks[name] = _moved({name: worth[name]}, {name: growth[name]}, share, Budget(0, {name: mask}, network.slices))
        same[name] = mask & masks[name]
    # First only what is left of the old: what grows then finds zeros, whatever the places held before.
    network.masks.set(same)
    network.enforce()
    for optimizer in optimizers:
        network.masks.apply_to_optimizer(optimizer, network.prunable())
    network.masks.set(masks)
    return sum(int((masks[name] & ~alive[name]).count_nonzero()) for name in alive)


def _moved(worth: dict[str, Tensor], growth: dict[str, Tensor], share: float, budget: Budget) -> Tensor:
    """Returns the new mask of one layer, with as many weights as the old one in `budget.alive`."""
    ((name, alive),) = budget.alive.items()
    count = int(alive.count_nonzero())
    stays = keep_top_global(worth, replace(budget, keep=count - int(share * count + 1e-9)))[name]
    missing = count - int(stays.count_nonzero())
    return stays | keep_top_global(growth, Budget(missing, {name: ~stays}), min_keep=0)[name]
