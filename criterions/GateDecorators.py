from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from pruning import Batches, NodeCriterion, PrunableState, UsageError, schedule
from pruning.scores import accumulate_gradients, norm_scales, require_node_signal, sum_over_producers


class GateDecorators(NodeCriterion):
    """Change of the loss with gates on the norms, |phi dL/dphi|, in Ticks (You et al. 2019, arXiv:1909.08174).

    A gate phi multiplies a norm's output. The score is summed over the batches of a Tick epoch, in which only gates,
    the norms' shifts and the last layer train, and over the gates of a node; each Tick ends with an event. Tock epochs
    train everything with small gates. Rounds of Ticks and Tocks repeat for two thirds of the epochs, fine-tuning has
    the rest. A node without a gate is scored as if one stood before or behind its activation, whichever says more.

    Args:
        ticks: Tick epochs of a round; fewer where the epochs do not suffice for a whole round.
        tocks: Tock epochs of a round, fewer likewise.
        epochs: passes over the training data.
    """

    moment = "during"
    min_share = 0.1
    wants: ClassVar[dict[str, Any]] = {"train_scheme": "TickTock", "optimizer": "SGD", "learning_rate": 1e-2}

    def __init__(self, *, ticks: int = 10, tocks: int = 10, epochs: int = 80) -> None:
        limits = (("ticks", ticks, 1), ("tocks", tocks, 0), ("epochs", epochs, 2))
        for name, value, least in limits:
            if value < least:
                raise ValueError(f"{name} must be at least {least}; {value} was given")
        room = 2 * epochs // 3  # fine-tuning has the rest
        self.rounds = max(1, room // (ticks + tocks))
        if room < ticks + tocks:
            ticks = max(1, room * ticks // (ticks + tocks))
            tocks = min(tocks, room - ticks)
        self.ticks, self.tocks = ticks, tocks
        one_round = ["tick"] * ticks + ["tock"] * tocks
        rounds = one_round * self.rounds
        self.phases = rounds + ["tune"] * (epochs - len(rounds))  # one per epoch
        tick_epochs = [epoch for epoch, phase in enumerate(self.phases) if phase == "tick"]
        self.event_epochs = tick_epochs
        self.schedule = partial(schedule.linear, steps=len(tick_epochs))
        self.gathered: Tensor | None = None

    def announcement(self, limit: float) -> str:
        share = 100 * limit / self.phases.count("tick")
        tune = self.phases.count("tune")
        how = f"{self.rounds} x ({self.ticks} Tick + {self.tocks} Tock epochs), then {tune} epochs of fine-tuning"
        paper = "the paper: 0.5 % for VGG-16 on CIFAR, 0.2 % for ResNets"
        return f"GateDecorators: {how}; each Tick removes {share:.2f} % of the nodes ({paper})"

    def gather(self, network: PrunableState, slopes: Mapping[str, Tensor], scale: float = 1.0) -> None:
        """Adds a batch's scores to those of the present Tick.

        Args:
            network: what is trained.
            slopes: parameter name -> derivative of the batch's loss.
            scale: factor that the slopes carry (mixed precision).
        """
        # Scaled slopes may overflow; the optimizer skips such a batch, and so does the score.
        scores = (gate_scores(network, slopes) / scale).nan_to_num(0, 0, 0)
        if self.gathered is not None:
            scores = self.gathered + scores
        self.gathered = scores

    def node_scores(self, network: PrunableState, batches: Batches) -> Tensor:
        if self.gathered is None:  # no Tick went before, so these batches are looked at
            names = [name for name, parameter in network.model.named_parameters() if parameter.is_floating_point()]
            for batch in batches:
                slopes, _ = accumulate_gradients(network, [batch], names=names)
                self.gather(network, slopes)
        if self.gathered is None:
            raise UsageError("GateDecorators scores on data, and it was given no batches.")
        scores, self.gathered = self.gathered, None
        return require_node_signal(scores)


@torch.no_grad()
def gate_scores(network: PrunableState, slopes: Mapping[str, Tensor]) -> Tensor:
    """Returns (nodes,) the sum of |phi dL/dphi| over each node's gates.

    A gate multiplies both scale and shift of its norm, so phi dL/dphi = gamma dL/dgamma + beta dL/dbeta, however phi
    and what it multiplies share them out.
    """
    parameters, graph = dict(network.model.named_parameters()), network.graph
    gates = {}
    for name, scale in norm_scales(network):
        if name not in slopes:
            continue
        change = scale * slopes[name]
        shift = f"{name.removesuffix('weight')}bias"
        if shift in slopes:
            change = change + parameters[shift] * slopes[shift]
        gates[name] = change.abs()
    ones = {name: torch.ones_like(gate) for name, gate in gates.items()}
    gated = graph.reduce_to_nodes(ones, role="all") > 0
    scores = graph.reduce_to_nodes(gates, role="all")
    if gated.all():
        return scores
    # A gate before the activation changes the loss by the sum over the producers, one behind it over the consumers.
    products = {name: parameters[name] * slope for name, slope in slopes.items()}
    before = sum_over_producers(network, products)
    behind = graph.reduce_to_nodes(products, role="consumer").to(before)
    without_gate = torch.maximum(before.abs(), behind.abs())
    return torch.where(gated.to(before.device), scores.to(before), without_gate)
