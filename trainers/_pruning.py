"""The callback that prunes: which event falls when, and what it does to training."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import torch
from torch import Tensor, nn

from pruning import Batches, Criterion, JointCriterion, LowRankCriterion, PrunableNetwork, Step, UsageError
from pruning.distributed import world
from pruning.prune.criterion import Moment
from pruning.prune.reach import implied_limit, limit_by_shares
from pruning.prune.recalibrate import recalibrate
from pruning.prune.regrow import grows
from trainers._growing import Growing

if TYPE_CHECKING:
    from trainers.DefaultTrainer import DefaultTrainer

FRACTIONS = {"at_least": 0, "below": 1, "words": "is a fraction removed, 0 to below 1"}


@dataclass
class Timing:
    """When events fall: at the end of epoch e where e > delay and (e - delay) is a multiple of freq, never the last."""

    epochs: int
    delay: int
    freq: int

    def event_epochs(self) -> list[int]:
        return [e for e in range(self.epochs - 1) if e > self.delay and (e - self.delay) % self.freq == 0]

    def epochs_for(self, events: int) -> int:
        """Returns how many epochs that many events need, the one after the last event included."""
        return self.delay + self.freq * events + 2


class Pruning:
    """Runs a criterion's events before, during or after training.

    Args:
        network: what is pruned.
        criterion: what is worth keeping, and when to act.
        draw_batches: event number (and how many) -> batches to score on.
        fresh_model: makes the network anew with other initial values, for the control "reinit".
        report: told of each event.
        pruning_limit: sparsity to reach, in the criterion's unit.
        prune_through: sparsities that are pruned to on the way to pruning_limit, with scores taken anew at each.
        early_model: makes the network with the early weights to which those that stay go back, and says after how many
            epochs they were; None for no going back.
        epochs: passes over the training data.
        prune_delay: events of criteria that prune during training come after this epoch.
        prune_freq: epochs between such events; one falls at the end of epoch e where e > delay and (e - delay) is a
            multiple of it, never at the end of the last epoch.
        mask_control: control experiment on the mask: shuffle it within each layer, reinit all values, or invert the
            ranking (keep the worst).
        recalibrate: training batches on which norm statistics are measured anew after each cut of nodes.
        seed: of the shuffle and of the other initial values.
    """

    def __init__(
        self,
        *,
        network: PrunableNetwork,
        criterion: Criterion,
        draw_batches: Callable[..., Batches],
        fresh_model: Callable[[], nn.Module],
        report: Callable[[str], None],
        pruning_limit: float,
        epochs: int,
        prune_delay: Annotated[int, {"at_least": 0}] = 0,
        prune_freq: Annotated[int, {"at_least": 1}] = 1,
        mask_control: Literal["none", "shuffle", "reinit", "invert"] = "none",
        recalibrate: Annotated[int, {"at_least": 0}] = 0,
        prune_through: Annotated[tuple[float, ...], FRACTIONS] = (),
        early_model: Callable[[], tuple[nn.Module, int]] | None = None,
        seed: int = 0,
    ) -> None:
        self.network, self.criterion = network, criterion
        self.draw_batches, self.fresh_model, self.report = draw_batches, fresh_model, report
        self.counted = network.counted(criterion)
        self.limit, self.early_model = self._limit(pruning_limit), early_model
        self.sparsities: list[float] = []
        for limit in (*prune_through, self.limit):
            self.sparsities += criterion.sparsities(limit)
        self.timing = Timing(epochs, prune_delay, prune_freq)
        own = criterion.event_epochs
        self.event_epochs = self.timing.event_epochs() if own is None else own
        self.control, self.recalibrate, self.seed = mask_control, recalibrate, seed
        self.steps: list[Step] = []
        self.history: list[dict[str, Any]] = []
        self.rewind_copy: dict[str, Any] | None = None
        self.initial: dict[str, Tensor] | None = None
        self.updates: dict[int, float] = {}
        self.growing: Growing | None = None
        if grows(criterion) and self.sparsities:
            first, invert = len(self.sparsities), mask_control == "invert"
            self.growing = Growing(criterion, draw_batches, report, first=first, invert=invert, seed=seed)
        self._check_feasible()

    def __call__(self, trainer: DefaultTrainer, moment: str) -> None:
        if moment == "train_start":
            self._start(trainer)
        elif moment == "batch_end":
            self._grow(trainer)
        elif moment == "epoch_trained":
            self._end_epoch(trainer)
        elif moment == "train_end" and self.criterion.moment == "after" and not self.complete:
            self._run_all(trainer)
            trainer.metrics |= trainer.validate()

    def _limit(self, asked: float) -> float:
        """Returns the sparsity to reach: what is asked for, or what shares amount to that name every layer."""
        implied = implied_limit(self.network, self.criterion)
        if implied is None:
            return limit_by_shares(self.network, self.criterion, asked)
        if abs(implied - asked) > 1e-9:
            took = f"{implied:.4f} of the {self.counted}"
            self.report(f"--shares name every layer, and take {took}; --pruning_limit {asked:g} is not used")
        return implied

    def _start(self, trainer: DefaultTrainer) -> None:
        self._keep_initial()
        self._plan_updates(trainer)
        line = self.criterion.announcement(self.limit)
        if line and not trainer.resumed:
            self.report(line)
        if self.criterion.moment == "before":
            self._run_all(trainer)

    def _end_epoch(self, trainer: DefaultTrainer) -> None:
        if self.growing:
            self.growing.tell()
        if trainer.epoch == self.criterion.rewind_epoch:
            self.rewind_copy = trainer.rewind_state()
        is_due = self.criterion.moment == "during" and trainer.epoch in self.event_epochs
        if is_due and not self.complete:
            self.event(trainer)

    @property
    def complete(self) -> bool:
        """Whether every scheduled event took place."""
        return len(self.steps) >= len(self.sparsities)

    @property
    def asked(self) -> float:
        """The sparsity that the events lead to, NaN where it is not fixed in advance."""
        if self.criterion.threshold is not None or self.network.learns_nodes:
            return math.nan
        return self.sparsities[-1] if self.sparsities else 0.0

    def event(self, trainer: DefaultTrainer) -> None:
        """One pruning event, with what it means for the optimizer and, where the method rewinds, for the weights."""
        number = len(self.steps)
        batches = self.draw_batches(number) if self.criterion.needs_data else ()
        # Whatever is kept by parameter name must have the shapes of after the cut.
        memory = _memory_by_name(self.rewind_copy, trainer)
        copies: list[dict[str, Any]] = [*memory.values(), *trainer.memory.values()]
        if self.initial is not None:
            copies.append(self.initial)
        if self.rewind_copy is not None:
            copies.append(self.rewind_copy["model"])
        shuffle = None
        if self.control == "shuffle":
            shuffle = torch.Generator().manual_seed(self.seed + number)
        step = self.network.prune_to(
            self.criterion,
            self.sparsities[number],
            batches,
            invert=self.control == "invert",
            optimizers=[trainer.optimizer],
            cut_along=copies,
            shuffle=shuffle,
            limit=self.sparsities[-1],
        )
        changes_shapes = self.criterion.unit != "weights" or isinstance(self.criterion, JointCriterion)
        if self.recalibrate and changes_shapes:
            recalibrate(self.network.model, self.draw_batches(number, self.recalibrate))
        if self.control != "none":  # what is said of each layer is of the criterion's own choice
            step.layers, step.note = [], ""
        self.steps.append(step)
        record = {"epoch": trainer.epoch, **asdict(step), "sparsities": self.network.layer_sparsities()}
        self.history.append(record)
        if step.removed and self.rewind_copy is not None:
            _put_memory_back(memory, self.rewind_copy, trainer)
            trainer.rewind(self.rewind_copy)
        if self.complete:
            self.network.pre_event_values = {}
        if self._settled(trainer):
            self._apply_control(trainer)
        trainer.forget_removed()
        self.report(step.describe(self.counted))

    def state_dict(self) -> dict[str, Any]:
        return {
            "steps": [asdict(step) for step in self.steps],
            "history": self.history,
            "rewind_copy": self.rewind_copy,
            "initial": self.initial,
            "dense": self.network.pre_event_values,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = [Step(**step) for step in state["steps"]]
        self.network.events = len(self.steps)
        self.history = list(state["history"])
        self.rewind_copy, self.initial = state["rewind_copy"], state["initial"]
        weights = self.network.prunable()
        values = state["dense"].items()
        self.network.pre_event_values = {name: value.to(weights[name].device) for name, value in values}

    def _run_all(self, trainer: DefaultTrainer) -> None:
        while not self.complete:
            self.event(trainer)
            trainer.at("event_end")

    def _plan_updates(self, trainer: DefaultTrainer) -> None:
        if not self.growing:
            return
        self.updates = self.growing.steps(trainer)
        if not self.updates and not trainer.resumed:
            name = type(self.criterion).__name__
            steps = len(trainer.train_batches) * trainer.epochs
            self.report(f"{name} grows nothing: no update of the masks falls into {steps} steps of training")

    def _grow(self, trainer: DefaultTrainer) -> None:
        """Moves the masks of a criterion that grows, if it is time."""
        step = _step_of(trainer)
        if not self.growing or step not in self.updates:
            return
        self.growing.update(trainer, step, self.updates[step])
        if self._settled(trainer):
            self._apply_control(trainer)
            trainer.forget_removed()

    def _settled(self, trainer: DefaultTrainer) -> bool:
        """Whether the masks will not change any more."""
        last_update = max(self.updates, default=0)
        return self.complete and _step_of(trainer) >= last_update

    def _keep_initial(self) -> None:
        # Shuffled masks bring weights back, at their initial value; nothing else needs the copy.
        if self.control == "shuffle" and self.initial is None:
            self.initial = {name: weight.detach().clone() for name, weight in self.network.prunable().items()}

    def _apply_control(self, trainer: DefaultTrainer) -> None:
        if self.control == "shuffle" and self.initial is not None:
            generator = torch.Generator().manual_seed(self.seed)
            self.network.shuffle_masks(generator, self.initial)
        elif self.control == "reinit":
            # Values of its own, and the run's random numbers go on as if nothing had been drawn.
            with torch.random.fork_rng():
                torch.manual_seed(self.seed + 1)
                self.network.reinitialise(self.fresh_model())
        if self.early_model is not None:
            model, epoch = self.early_model()
            self.network.reinitialise(model)
            if _step_of(trainer) == 0:
                trainer.start_after(epoch)

    def _check_feasible(self) -> None:
        name = type(self.criterion).__name__
        if self.control != "none" and isinstance(self.criterion, LowRankCriterion):
            raise UsageError(f"--mask_control {self.control} is for masks and nodes; {name} lowers ranks.")
        if self.criterion.moment not in get_args(Moment):
            known = ", ".join(get_args(Moment))
            raise UsageError(f"{name} has the moment {self.criterion.moment!r}; one of {known} is needed.")
        for sparsity in self.sparsities:
            if not 0 <= sparsity < 1:
                message = f"{name}.sparsities({self.limit}) holds {sparsity}; sparsities are fractions, 0 to below 1."
                raise UsageError(message)
        if self.counted == "latency" and world() > 1:
            raise UsageError("--target latency is for one process: several would measure different times.")
        if self.criterion.moment != "during" or not self.sparsities:
            return
        events = self.event_epochs
        if len(events) < len(self.sparsities):
            timing, needed = self.timing, len(self.sparsities)
            raise UsageError(
                f"{name} needs {needed} pruning events; --epochs {timing.epochs} with --prune_delay {timing.delay} and "
                f"--prune_freq {timing.freq} has {len(events)}. --epochs {timing.epochs_for(needed)} would do."
            )
        rewind = self.criterion.rewind_epoch
        if rewind is not None and rewind >= events[0]:
            raise UsageError(
                f"--rewind_to {rewind} must come before the first pruning event, which falls in epoch {events[0]}."
            )


def _step_of(trainer: DefaultTrainer) -> int:
    return trainer.epoch * len(trainer.train_batches) + trainer.batch


def _memory_by_name(rewind_copy: dict[str, Any] | None, trainer: DefaultTrainer) -> dict[str, dict[str, Tensor]]:
    """Returns what a saved optimizer remembers of each parameter, as {"exp_avg": {parameter name: tensor}, ...}.

    So it can be cut along with the network: a rewound optimizer must fit the shapes of today.
    """
    memory: dict[str, dict[str, Tensor]] = {}
    if rewind_copy is None:
        return memory
    for name, kept in zip(_names(trainer), _states(rewind_copy, trainer), strict=True):
        for key, value in kept.items():
            # Numbers, such as an optimizer's step, have no shape to be cut.
            if isinstance(value, Tensor) and value.dim():
                memory.setdefault(key, {})[name] = value
    return memory


def _put_memory_back(
    memory: dict[str, dict[str, Tensor]], rewind_copy: dict[str, Any], trainer: DefaultTrainer
) -> None:
    for name, kept in zip(_names(trainer), _states(rewind_copy, trainer), strict=True):
        for key, by_name in memory.items():
            if name in by_name:
                kept[key] = by_name[name]


def _names(trainer: DefaultTrainer) -> list[str]:
    """Names of the optimizer's parameters in its own order."""
    name_of = {id(parameter): name for name, parameter in trainer.network.model.named_parameters()}
    names = []
    for group in trainer.optimizer.param_groups:
        names += [name_of[id(parameter)] for parameter in group["params"]]
    return names


def _states(rewind_copy: dict[str, Any], trainer: DefaultTrainer) -> list[dict[str, Any]]:
    states = rewind_copy["optimizer"]["state"]
    return [states.get(number, {}) for number in range(len(_names(trainer)))]
