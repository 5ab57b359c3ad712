from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, SequentialLR

from pruning import Criterion, UsageError
from pruning.scores import norm_scales
from trainers.DefaultTrainer import DefaultTrainer

# Beyond this the authors cut the shift inside a gate off; here it is held, so that the function stays what it is.
LARGEST_SHIFT = 10.0
LOW = 0.1  # the lowest learning rate, as a fraction of --learning_rate


class TickTock(DefaultTrainer):
    """Trains with a gate on every norm, in the phases of a criterion that has them (arXiv:1909.08174).

    Tick: gates, the norms' shifts and the last layer train at a tenth of --learning_rate; each batch is scored. Tock:
    everything trains, with `gate_reg` times the sum of |phi|; the learning rate rises to its value and falls again.
    Then fine-tuning by --lr_schedule. The gated norm is phi (s x + t): phi starts as the norm's scale, s as 1, t as
    shift / scale. The network keeps scale = phi s and shift = phi t all the time and is an ordinary one in every
    checkpoint; phi and t are what the optimizer moves.

    Args:
        gate_reg: strength of the sum of absolute gates in Tock epochs.
    """

    def __init__(self, *, criterion: Criterion, gate_reg: float = 1e-3, **given: Any) -> None:
        if not hasattr(criterion, "phases"):
            name = type(criterion).__name__
            raise UsageError(f"TickTock trains in the phases of a criterion such as GateDecorators; {name} has none.")
        if not 0 <= gate_reg < float("inf"):
            raise ValueError(f"gate_reg must be at least 0; {gate_reg} was given")
        self.criterion: Any = criterion
        self.gate_reg = gate_reg
        super().__init__(**given)
        parameters = dict(self.network.model.named_parameters())
        scales = dict(norm_scales(self.network))
        self.gates: list[tuple[Parameter, Parameter | None]] = []
        for name, scale in scales.items():
            shift = parameters.get(f"{name.removesuffix('weight')}bias")
            self.gates.append((scale, shift))
        *_, last_path = self.network.owners().values()
        last = self.network.model.get_submodule(last_path)
        self.ticking = {id(parameter) for parameter in last.parameters()}  # what trains in a Tick
        for gate in self.gates:
            self.ticking.update(id(parameter) for parameter in gate)

    @property
    def phase(self) -> str:
        return self.criterion.phases[self.epoch]

    def make_schedule(self) -> LRScheduler:
        steps, ticks, tocks = len(self.train_batches), self.criterion.ticks, self.criterion.tocks
        rounds = self.epochs - self.criterion.phases.count("tune")

        def factor(step: int) -> float:
            place = step / steps % (ticks + tocks) - ticks  # in epochs, from the start of the Tocks
            if place < 0:
                return LOW
            # 0 at both ends of the Tocks, 1 in their middle.
            height = 1 - abs(2 * place / tocks - 1)
            return LOW + (1 - LOW) * height

        ticktock = LambdaLR(self.optimizer, factor)
        if rounds == self.epochs:
            return ticktock
        tuning = self.optimization.make_schedule(self.optimizer, self.epochs - rounds, steps)
        return SequentialLR(self.optimizer, [ticktock, tuning], milestones=[rounds * steps])

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        value = super().loss(outputs, targets)
        if self.phase != "tock" or not self.gates:
            return value
        sizes = [gate_of(*gate).abs().sum() for gate in self.gates]
        return value + self.gate_reg * torch.stack(sizes).sum()

    def step(self) -> None:
        if self.phase == "tick":
            slopes = {name: p.grad for name, p in self.network.model.named_parameters() if p.grad is not None}
            self.criterion.gather(self.network, slopes, self.scaler.get_scale())
            self._freeze()
        with ExitStack() as stack:
            for scale, shift in self.gates:
                if shift is not None and scale.grad is not None and shift.grad is not None:
                    stack.enter_context(gated(scale, shift))
            super().step()

    def _freeze(self) -> None:
        """Takes the gradients of what does not train in a Tick, so that the optimizer passes it by."""
        for parameter in self.network.model.parameters():
            if id(parameter) not in self.ticking:
                parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"gathered": self.criterion.gathered}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        gathered = state["gathered"]
        self.criterion.gathered = None if gathered is None else gathered.to(self.device)


def gate_of(scale: Tensor, shift: Tensor | None) -> Tensor:
    """Returns phi: the norm's scale, or its shift in channels that hardly anything but the shift comes from."""
    if shift is None:
        return scale
    return torch.where(_scaled(scale, shift), scale, shift)


@contextmanager
def gated(scale: Parameter, shift: Parameter) -> Iterator[None]:
    """Lets a norm's parameters stand for phi and t, their gradients too, for the length of an optimizer's step."""
    if scale.grad is None or shift.grad is None:
        raise ValueError("a gate stands for parameters that have gradients")
    with torch.no_grad():
        scaled, phi = _scaled(scale, shift), gate_of(scale, shift)
        s = torch.where(scaled, 1, scale / shift)
        # Where both are 0 the channel is silent, and its gate may open it again.
        t = torch.where(scaled, torch.where(scale == 0, 0, shift / scale), 1)
        # By the chain rule: scale = phi s and shift = phi t.
        of_phi = s * scale.grad + t * shift.grad
        of_t = torch.where(scaled, phi * shift.grad, 0)
        scale.grad, shift.grad = of_phi, of_t
        scale.copy_(phi)
        shift.copy_(t)
    try:
        yield
    finally:
        with torch.no_grad():
            t = torch.where(scaled, shift, 1)
            shift.copy_(scale * t)
            scale.mul_(s)


def _scaled(scale: Tensor, shift: Tensor) -> Tensor:
    return shift.abs() <= LARGEST_SHIFT * scale.abs()
