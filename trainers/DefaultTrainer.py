from __future__ import annotations

import contextlib
import copy
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from pruning import PrunableNetwork, UsageError
from pruning.distributed import rank, world
from pruning.measure.evaluate import sums_of, total_sums
from pruning.measure.measures import Better, Sums, added_up, kind_of, values_of
from pruning.modules.calls import call, inputs_for, mapped, samples_in
from trainers._optimization import Optimization
from trainers._processes import added_sums, expect, level, replicated, sums_of_batch, weight_of_share

# How often a GPU is asked whether the loss is still a number; asking makes it wait.
FINITE_CHECK_EVERY = 50
ZERO_STAYS_ZERO = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop)


class Diverged(UsageError):
    """Numbers are no longer finite. Going on from the same state would come to the same end."""

    happens_again = True


class DefaultTrainer:
    """Minimises the loss batch by batch; inherit and override one of its methods for another way to train.

    Everything else (pruning, logging, saving) is a callback, called as callback(trainer, moment) at the moments
    "train_start", "batch_end", "epoch_trained", "epoch_end" and "train_end", and "event_end" after each pruning
    event before or after training.

    Args:
        amp: mixed precision: bfloat16, or float16 with scaled gradients where a GPU lacks it.
        compile: compile the network with torch.compile.
    """

    def __init__(
        self,
        *,
        network: PrunableNetwork,
        loss_function: Callable[[Any, Any], Tensor],
        train_batches: Any,
        test_batches: Any,
        optimization: Optimization,
        epochs: int,
        eval_freq: int = 1,
        callbacks: Sequence[Callable[[DefaultTrainer, str], None]] = (),
        amp: bool = False,
        compile: bool = False,
    ) -> None:
        self.network, self.loss_function = network, loss_function
        self.train_batches, self.test_batches = train_batches, test_batches
        self.optimization, self.epochs, self.eval_freq = optimization, epochs, eval_freq
        self.callbacks = list(callbacks)
        self.model: nn.Module = network.model
        if compile:
            self.model = cast(nn.Module, torch.compile(network.model))
        self.device = next(network.model.parameters()).device
        self.optimizer = self.make_optimizer()
        self.schedule = self.make_schedule()
        self.precision = _half_precision(self.device) if amp else None
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision is torch.float16)
        self.epoch, self.batch = 0, 0
        self.share = 1.0  # what this process's gradients count in those of the batch, where several share it
        self.metrics: dict[str, float] = {}
        self.inputs: Any = None  # of the batch that is trained on
        self.measures: dict[str, Better | None] = {}  # what the loss measures, the main one first: which way is good
        self.memory: dict[str, dict[str, Tensor]] = {}  # what callbacks keep by parameter name; saved, and cut along
        self.totals = {"samples_seen": 0, "seconds_training": 0.0, "training_flops": 0.0}
        self.resumed = False
        self._sums: Sums | None = None
        self._clock = time.perf_counter()
        self._masks_hold = False  # whether the step just made cannot have moved a removed weight

    # -- the loop --------------------------------------------------------------------------------------------------

    def train(self) -> dict[str, float]:
        """Trains from the present epoch to the last one and returns the metrics of the last epoch."""
        self.at("train_start")
        while self.epoch < self.epochs:
            self.flops_per_sample = self.network.flops(masked=True)
            self._clock = time.perf_counter()
            self.train_epoch()
            self._close_epoch()
            self.at("epoch_trained")
            if (self.epoch + 1) % self.eval_freq == 0 or self.epoch + 1 == self.epochs:
                self.metrics |= self.validate()
            self.epoch, self.batch = self.epoch + 1, 0
            self.at("epoch_end")
        if not self.epochs:  # a network that is only pruned
            self.metrics |= self.validate()
        self.at("train_end")
        return self.metrics

    def train_epoch(self) -> None:
        """One pass over the training data, from the present batch on."""
        share = {"share": (rank(), world())} if world() > 1 else {}
        with replicated(self):
            self.model.train()
            for inputs, targets in self.train_batches.epoch(self.epoch, start=self.batch, **share):
                if world() > 1:
                    self.share = weight_of_share(samples_in(targets), self.batch_size())
                outputs, loss = self.train_batch(inputs, targets)
                if not self._masks_hold:
                    self.network.enforce()
                self._masks_hold = False
                self.record(outputs, targets, loss)
                self.batch += 1
                self.at("batch_end")

    def train_batch(self, inputs: Any, targets: Any) -> tuple[Any, Tensor]:
        """One update; returns the outputs and the loss."""
        self.optimizer.zero_grad(set_to_none=True)
        self.inputs = inputs
        with self.autocast():
            outputs = self.forward(inputs_for(self.loss_function, self.network.model, inputs, targets))
            loss = self.loss(outputs, targets)
        expect(self.model, loss)
        self.scaler.scale(loss).backward()
        self.step()
        return mapped(outputs, Tensor.detach), loss.detach()

    def forward(self, inputs: Any) -> Any:
        """The network's outputs for a batch."""
        return call(self.model, inputs)

    def loss(self, outputs: Any, targets: Any) -> Tensor:
        """What is minimised: the data term, and the loss's own penalty on the network if it has one."""
        # A loss that looks at the inputs too (a teacher does) is asked for more than what scores are taken of.
        with_inputs = getattr(self.loss_function, "with_inputs", None)
        own = self.loss_function
        value = with_inputs(self.inputs, outputs, targets) if with_inputs else own(outputs, targets)
        penalty = getattr(self.loss_function, "penalty", None)
        return value + penalty(self.network) if penalty else value

    def step(self) -> None:
        """Moves the weights along their gradients; removed weights neither move nor count."""
        level(self.network.model, self.optimizer, self.share)
        self.scaler.unscale_(self.optimizer)
        weights = self.network.prunable() if len(self.network.masks) else {}
        parameters = [parameter for parameter in self.network.model.parameters() if parameter.grad is not None]
        if self.optimization.grad_noise:
            self._add_noise(parameters, self.optimization.grad_noise)
        self.network.masks.apply_to_gradients(weights)
        if self.optimization.grad_clip:
            torch.nn.utils.clip_grad_norm_(parameters, self.optimization.grad_clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.schedule.step()
        # With a zero gradient and a cleared memory these rules leave a zero weight zero; a second multiply is spared.
        self._masks_hold = type(self.optimizer) in ZERO_STAYS_ZERO

    @staticmethod
    def _add_noise(parameters: Sequence[nn.Parameter], deviation: float) -> None:
        for parameter in parameters:
            if parameter.grad is not None:
                noise = torch.randn_like(parameter.grad)
                parameter.grad.add_(noise, alpha=deviation)

    def validate(self) -> dict[str, float]:
        """The loss over the whole test data and what it measures, in eval mode: "test_loss", "test_accuracy", ..."""
        batches = self.test_batches
        if world() > 1:
            batches = batches.epoch(0, start=rank(), step=world())
        with self.autocast():
            sums = total_sums(self.network.model, batches, self.loss_function)
        if world() > 1:
            sums = added_sums(sums)
        found = self._values(sums)
        if found["loss"] != found["loss"]:
            raise Diverged(f"The test loss is NaN after epoch {self.epoch}; the last good state is kept.")
        return {f"test_{name}": value for name, value in found.items()}

    def _values(self, sums: Sums | None) -> dict[str, float]:
        """Returns the loss and what it measures from their sums; the measures are known from then on."""
        found = values_of(sums, self.loss_function)
        for name in found:
            if name != "loss":
                self.measures.setdefault(name, kind_of(name, self.loss_function).better)
        return found

    def make_optimizer(self) -> torch.optim.Optimizer:
        """What moves the weights."""
        return self.optimization.make_optimizer(self.network.model.parameters())

    def make_schedule(self) -> LRScheduler:
        """The learning rate, which steps once per batch."""
        return self.optimization.make_schedule(self.optimizer, self.epochs, len(self.train_batches))

    # -- bookkeeping -----------------------------------------------------------------------------------------------

    def at(self, moment: str) -> None:
        """Tells every callback which moment it is; what they do is no training time."""
        for callback in self.callbacks:
            callback(self, moment)
        self._clock = time.perf_counter()

    def record(self, outputs: Any, targets: Any, loss: Tensor) -> None:
        """Adds a batch to the epoch's sums, which stay on the device until the epoch ends."""
        batch = sums_of(loss, outputs, targets, self.loss_function)
        samples = samples_in(targets)
        if world() > 1:
            whole = self.batch_size()
            batch, samples = sums_of_batch(batch, samples, whole), whole
        self._sums = added_up(self._sums, batch)
        self.totals["samples_seen"] += samples
        # Forward once, and backward at twice the price: to the inputs and to the weights.
        self.totals["training_flops"] += 3 * self.flops_per_sample * samples
        if self.device.type == "cpu" or self.batch % FINITE_CHECK_EVERY == 0:
            self._refuse_unless_finite(self._sums["loss"][0])
        self._count_seconds()

    def batch_size(self) -> int:
        """Returns how many samples the present batch has, in all processes together."""
        first, last = self.train_batches.bounds[self.batch]
        return last - first

    def check_finite(self) -> None:
        """Raises `Diverged` if the loss or a weight is no longer a finite number; what is saved must pass this."""
        if self._sums is not None:
            self._refuse_unless_finite(self._sums["loss"][0])
        weights = [weight.detach() for weight in self.network.model.parameters() if weight.numel()]
        # The largest absolute value, since a sum of squares would overflow in half precision.
        largest = torch._foreach_norm(weights, float("inf"))
        self._refuse_unless_finite(torch.stack([value.float() for value in largest]).sum())

    def autocast(self) -> contextlib.AbstractContextManager[None]:
        """Mixed precision where it was asked for."""
        if self.precision is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.precision)

    def rewind(self, state: dict[str, Any]) -> None:
        """Goes back to a state from `rewind_state`: weights, biases, norms, optimizer, learning rate; not the epoch."""
        # Optimizers take over the tensors that they load: without a copy, training on would change the state.
        state = copy.deepcopy(state)
        self.network.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.forget_removed()

    def start_after(self, epoch: int) -> None:
        """Starts as if so many epochs had been trained: data order and learning rate are those that follow."""
        if 0 < self.epochs <= epoch:
            raise UsageError(f"--rewind_from goes back to epoch {epoch}: --epochs {self.epochs} leave nothing to do.")
        self.epoch = min(epoch, self.epochs)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step", UserWarning)
            for _ in range(self.epoch * len(self.train_batches)):
                self.schedule.step()

    def rewind_state(self) -> dict[str, Any]:
        """Returns a copy of everything that `rewind` brings back."""
        state = {
            "model": self.network.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
        }
        return copy.deepcopy(state)

    def forget_removed(self) -> None:
        """Clears removed weights and what the optimizer remembers of them."""
        weights = self.network.prunable()
        self.network.masks.apply_to_weights(weights)
        self.network.masks.apply_to_optimizer(self.optimizer, weights)

    def state_dict(self) -> dict[str, Any]:
        """Everything that training needs to go on exactly from here, but the network itself."""
        return {
            "epoch": self.epoch,
            "batch": self.batch,
            "metrics": dict(self.metrics),
            "measures": dict(self.measures),
            "totals": dict(self.totals),
            "memory": dict(self.memory),
            "sums": self._sums,
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over a state from `state_dict`; the network must be loaded already."""
        self.resumed = True
        self.epoch, self.batch = state["epoch"], state["batch"]
        self.metrics, self.totals = dict(state["metrics"]), dict(state["totals"])
        self.memory = dict(state["memory"])
        # Runs that were stopped by an older version know of accuracy alone.
        self.measures = dict(state.get("measures", {"accuracy": "higher"}))
        self._sums = _sums_from(state["sums"], self.device)
        # A network that was decomposed has other parameters by now than this trainer was made with.
        self.optimizer = self.make_optimizer()
        self.schedule = self.make_schedule()
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.scaler.load_state_dict(state["scaler"])

    def _close_epoch(self) -> None:
        self.check_finite()
        found = self._values(self._sums)
        # Reading the sums waited for the device, which may have been a whole epoch behind.
        self._count_seconds()
        self._sums = None
        self.metrics |= {f"train_{name}": value for name, value in found.items()}

    def _count_seconds(self) -> None:
        now = time.perf_counter()
        self.totals["seconds_training"] += now - self._clock
        self._clock = now

    def _refuse_unless_finite(self, value: Tensor) -> None:
        if not torch.isfinite(value):
            raise Diverged(
                f"The loss is no longer finite in epoch {self.epoch}, batch {self.batch}: training stopped, the last "
                f"good state is kept. A smaller --learning_rate than {self.optimization.learning_rate} may help."
            )


def _sums_from(saved: Any, device: torch.device) -> Sums | None:
    """Returns the sums of an epoch that was stopped; older versions kept [summed loss, right ones, samples]."""
    if saved is None:
        return None
    if isinstance(saved, Tensor):
        loss, right, samples = saved
        saved = {"loss": torch.stack([loss, samples]), "accuracy": torch.stack([right, samples])}
    return {name: sums.to(device) for name, sums in saved.items()}


def _half_precision(device: torch.device) -> torch.dtype:
    lacks_bfloat16 = device.type == "cuda" and not torch.cuda.is_bf16_supported()
    return torch.float16 if lacks_bfloat16 else torch.bfloat16
