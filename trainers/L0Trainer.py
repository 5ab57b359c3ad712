from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from pruning import Criterion, JointCriterion, PrunableNetwork, UsageError
from pruning.l0.gates import NodeGates
from trainers._average import Average
from trainers._optimization import Optimization
from trainers.DefaultTrainer import DefaultTrainer


class L0Trainer(DefaultTrainer):
    """Learns which nodes to keep: trains with hard-concrete gates on them (Louizos et al. 2018, arXiv:1712.01312).

    Evaluation uses deterministic gates and a running average of everything that is learned (norm statistics included).
    At the end of training the average stays, nodes whose gate is closed are removed and open gates become part of the
    weights. --l0_reg sets how sparse it becomes; there is no limit. What lies in models/ before is without gates.

    Args:
        droprate: share of the gates that starts closed, roughly: log alpha starts at ln((1 - droprate) / droprate).
        local_rep: draw gates anew for each sample instead of each batch.
        ema_decay: of the running average, per step.
        gate_rate: step size of the gates in multiples of --learning_rate; 1 in the paper, whose runs are long.
    """

    wants: ClassVar[Mapping[str, Any]] = {"loss": "L0CrossEntropy", "prune_criterion": "EmptyCrit"}

    def __init__(
        self,
        *,
        network: PrunableNetwork,
        criterion: Criterion,
        train_batches: Any,
        optimization: Optimization,
        loss_function: Callable[[Tensor, Tensor], Tensor],
        droprate: float = 0.5,
        local_rep: bool = False,
        ema_decay: float = 0.999,
        gate_rate: float = 10.0,
        report: Callable[[str], None] = print,
        **given: Any,
    ) -> None:
        cuts = criterion.unit != "weights" or isinstance(criterion, JointCriterion)
        if cuts or criterion.rewind_epoch is not None:
            why = f"{type(criterion).__name__} changes shapes or rewinds"
            raise UsageError(f"L0Trainer decides itself which nodes go; {why}. EmptyCrit fits.")
        if not gate_rate >= 0:
            raise ValueError(f"gate_rate must be at least 0; {gate_rate} was given")
        if hasattr(loss_function, "l2_reg"):  # the loss decays the weights, by the chance that they are there
            optimization = dataclasses.replace(optimization, l2_reg=0.0)
        self.gates = NodeGates(network, droprate=droprate, per_sample=local_rep, samples=len(train_batches.indices))
        self.average = Average(self._learned, ema_decay)
        self.report, self.gate_rate = report, gate_rate
        super().__init__(
            network=network,
            train_batches=train_batches,
            optimization=optimization,
            loss_function=loss_function,
            **given,
        )

    def make_optimizer(self) -> torch.optim.Optimizer:
        """One for weights and gates; gates do not decay."""
        optimizer = super().make_optimizer()
        rate = self.gate_rate * self.optimization.learning_rate
        optimizer.add_param_group({"params": [self.gates.log_alpha], "lr": rate, "weight_decay": 0.0})
        return optimizer

    def at(self, moment: str) -> None:
        """Folds the gates before anyone is told that training ended."""
        if moment == "train_start" and not self.resumed:
            self.report(self.gates.describe())
        if moment == "train_end" and self.network.gates is not None:
            self.average.take_over()
            self.network.enforce()
            self.report(self.gates.fold([self.optimizer]))
            self.metrics |= super().validate()
        super().at(moment)

    def step(self) -> None:
        """A step of weights and gates."""
        super().step()
        self.gates.clamp()
        self.average.update()

    def validate(self) -> dict[str, float]:
        """Accuracy and loss of the averaged network."""
        if self.network.gates is None:
            return super().validate()
        with self.average.in_place():
            self.network.enforce()
            self.gates.note_closed()
            return super().validate()

    def state_dict(self) -> dict[str, Any]:
        """As for every trainer, with gates and average until the gates are folded."""
        if self.network.gates is None:
            return super().state_dict()
        average = {"sums": self.average.sums, "updates": self.average.updates}
        return {**super().state_dict(), "gates": self.gates.state_dict(), "average": average}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over a state from `state_dict`; the network must be loaded already."""
        if "gates" in state:
            self.gates.load_state_dict(state["gates"])
            self.average.updates = state["average"]["updates"]
            self.average.sums = {name: t.to(self.device) for name, t in state["average"]["sums"].items()}
        else:
            self.gates.take_off()
        super().load_state_dict(state)

    def _learned(self) -> dict[str, Tensor]:
        named = [*self.network.model.named_parameters(), *self.network.model.named_buffers()]
        tensors = {name: tensor.detach() for name, tensor in named if tensor.is_floating_point()}
        return {**tensors, "log alpha": self.gates.log_alpha.detach()}
