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
        self.gates = [(scale, parameters.get(f"{n.removesuffix('weight')}bias")) for n, scale in scales.items()]
        last = self.network.model.get_submodule(list(self.network.owners().values())[-1])
        self.ticking = {id(p) for p in [*last.parameters(), *(p for gate in self.gates for p in gate)]}

    @property
    def phase(self) -> str:
        return self.criterion.phases[self.epoch]

    def make_schedule(self) -> LRScheduler:
        steps, ticks, tocks = len(self.train_batches), self.criterion.ticks, self.criterion.tocks
        rounds = self.epochs - self.criterion.phases.count("tune")

        def factor(step: int) -> float:
            place = step / steps % (ticks + tocks) - ticks  # in epochs, from the start of the Tocks
            return LOW if place < 0 else LOW + (1 - LOW) * (1 - abs(2 * place / tocks - 1))

        ticktock = LambdaLR(self.optimizer, factor)
        if rounds == self.epochs:
            return ticktock
        tuning = self.optimization.make_schedule(self.optimizer, self.epochs - rounds, steps)
        return SequentialLR(self.optimizer, [ticktock, tuning], milestones=[rounds * steps])

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        value = super().loss(outputs, targets)
        if self.phase != "tock" or not self.gates:
            return value
        return value + self.gate_reg * torch.stack([gate_of(*gate).abs().sum() for gate in self.gates]).sum()

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
    return scale if shift is None else torch.where(_scaled(scale, shift), scale, shift)


@contextmanager
def gated(scale: Parameter, shift: Parameter) -> Iterator[None]:
    """Lets a norm's parameters stand for phi and t, their gradients too, for the length of an optimizer's step."""
    with torch.no_grad():
        scaled, phi = _scaled(scale, shift), gate_of(scale, shift)
        s = torch.where(scaled, 1, scale / shift)
        # Where both are 0 the channel is silent, and its gate may open it again.
        t = torch.where(scaled, torch.where(scale == 0, 0, shift / scale), 1)
        scale.grad, shift.grad = s * scale.grad + t * shift.grad, torch.where(scaled, phi * shift.grad, 0)
        scale.copy_(phi), shift.copy_(t)
    try:
        yield
    finally:
        with torch.no_grad():
            t = torch.where(scaled, shift, 1)
            shift.copy_(scale * t), scale.mul_(s)


def _scaled(scale: Tensor, shift: Tensor) -> Tensor:
    return shift.abs() <= LARGEST_SHIFT * scale.abs()
