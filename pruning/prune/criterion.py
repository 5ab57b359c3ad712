"""What a criterion is: the worth of a unit, and when to act. It never touches masks or tensors; the engine does."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from torch import Tensor

from pruning.errors import UsageError
from pruning.modules.calls import Batches
from pruning.prune.rank import Budget, keep_top_global
from pruning.prune.schedule import Schedule, one_shot
from pruning.state import PrunableState, Ranking

# What a criterion says of each weight after an event, beside its name in the report; None for what it does not know.
Facts = Mapping[str, Mapping[str, float | None]]

Moment = Literal["before", "during", "after"]


class Criterion:
    """Base of every criterion.

    Class attributes say what the method is:
        unit: what it removes, "weights", "nodes" or "ranks".
        counts: what its limit counts, its unit if not said.
        moment: when it acts, "before", "during" or "after" training.
        schedule: limit -> sparsities that lead to it, a function of `pruning.schedule` or of your own; a constructor
            that has a say in it sets the attribute of the object.
        needs_data: whether its scores look at batches.
        threshold: score under which a unit goes; the final sparsity is then not fixed in advance, whatever the limit
            (of 0: no event). None ranks up to the limit.
        wants: settings that the method asks for, such as {"loss": "..."}; what the user typed wins.
        revives: whether an event may bring back weights that earlier ones removed, with the value they had; for events
            without training between them.
        event_epochs: epochs at whose end it acts during training, where the method itself says so; None for the user's.
        rewind_epoch: the epoch whose end is the state that training returns to after each event; None for no rewinding.
    """

    unit: ClassVar[str] = "weights"
    counts: ClassVar[str] = ""
    moment: Moment = "before"
    schedule: Schedule = staticmethod(one_shot)
    needs_data: bool = True
    threshold: float | None = None
    wants: ClassVar[Mapping[str, Any]] = {}
    revives: ClassVar[bool] = False
    event_epochs: list[int] | None = None
    rewind_epoch: int | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if hasattr(cls, "targets"):
            raise UsageError(f"{cls.__name__}.targets(limit) is called sparsities(limit) today; rename it.")
        own = vars(cls).get("schedule")
        is_method = getattr(own, "__qualname__", "") == f"{cls.__qualname__}.schedule"
        if inspect.isfunction(own) and not is_method:
            # Otherwise Python would hand it the criterion in the place of the limit.
            cls.schedule = staticmethod(own)

    def sparsities(self, limit: float) -> list[float]:
        """Returns the sequence of sparsities that leads to the limit, one per pruning event."""
        return self.schedule(limit)

    def announcement(self, limit: float) -> str:
        """Returns a line for the person before the first event, "" for none."""
        if self.threshold is None:
            return ""
        name = type(self).__name__
        return f"{name} removes what scores under {self.threshold}: the final sparsity is not fixed in advance"

    def facts(self) -> tuple[str, Facts]:
        """Returns a line and {weight: numbers to stand beside it in the report} for the last event; asked once."""
        return "", {}

    def new_values(self, network: PrunableState, batches: Batches) -> dict[str, Tensor] | None:
        """Returns {parameter name: new values} for weights that change with a cut, or None. Called after each event."""
        return None


class WeightCriterion(Criterion):
    """A criterion that scores single weights.

    One that also has `grow_scores(network, batches)`, which returns the same form as `weight_scores`, trains sparsely
    from the start: while training goes on, each layer's weakest weights make room for those whose grow score is
    highest (`pruning.growing`). It may draw random numbers, from torch's own generator; the engine seeds it.

    Class attributes:
        delta_t: for those that grow, optimizer steps between updates; None for once an epoch.
    """

    unit = "weights"
    delta_t: int | None = None

    def update_share(self, progress: float) -> float:
        """Returns which share of each layer's weights an update replaces, from the share of training that is done."""
        return 0.3

    def weight_scores(self, network: PrunableState, batches: Batches) -> dict[str, Tensor]:
        """Returns {parameter name: tensor of the parameter's shape} for `network.weights()`; higher is kept."""
        raise UsageError(f"{type(self).__name__} must define weight_scores(network, batches)")

    def select(self, scores: Mapping[str, Tensor], budget: Budget) -> dict[str, Tensor]:
        """Returns keep-masks per weight. By default the best `budget.keep` over all layers.

        Where the user gives layers a share of their own, each of them is asked for by itself, and the others together.
        """
        return keep_top_global(scores, budget)


class NodeCriterion(Criterion):
    """A criterion that scores nodes: output channels or neurons with everything coupled to them.

    Class attributes:
        ranking: "global" ranks all nodes together, "local" takes the same share of every layer.
        min_share: share of the nodes that every layer had at the start which it keeps, or half of what the target
            leaves where that is less.
        carried: tensors by parameter name, of the shapes of the parameters, that an event cuts along with them.
    """

    unit = "nodes"
    carried: Mapping[str, Tensor] = {}
    ranking: ClassVar[Ranking] = "global"
    min_share: ClassVar[float] = 0.0

    def node_scores(self, network: PrunableState, batches: Batches) -> Tensor:
        """Returns one value per node of `network.graph`, shape (nodes,); higher is kept."""
        raise UsageError(f"{type(self).__name__} must define node_scores(network, batches)")

    def draw(self, network: PrunableState, keep: Tensor) -> Tensor:
        """Returns which nodes stay, as many of each group as in `keep`, (nodes,) bool; by default the best, `keep`."""
        return keep

    def before_cut(self, network: PrunableState, keep: Tensor) -> None:
        """Told which nodes stay, (nodes,) bool, once all is decided and nothing is cut yet."""


class JointCriterion(Criterion):
    """A criterion that scores weights and nodes on one scale; its limit counts weights."""

    def joint_scores(self, network: PrunableState, batches: Batches) -> tuple[dict[str, Tensor], Tensor]:
        """Returns scores per ranked weight (as `WeightCriterion.weight_scores`) and per node, from one pass."""
        raise UsageError(f"{type(self).__name__} must define joint_scores(network, batches)")
