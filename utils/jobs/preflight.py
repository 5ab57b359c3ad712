"""Does a network suit the data? Asked before training, where torch would say no in the middle of the first epoch."""

from __future__ import annotations

import contextlib
import copy
import warnings
from typing import Any

import torch
from torch import Tensor

from data_sets._batches import Batches
from pruning.errors import UsageError
from pruning.measure.measures import measured
from pruning.modules.calls import RUN_ERRORS, call, device_of, inputs_for, mapped, samples_in, scores_of
from pruning.modules.modes import eval_mode, loss_mode, same_random_state, undisturbed
from pruning.network import PrunableNetwork
from utils.jobs.parts import DataSet, task_of
from utils.settings import registry
from utils.settings.signatures import Part

FEW = 16  # samples that the loss is tried on


def check_task(model: Part, data_set: DataSet) -> None:
    """Raises UsageError for a model that says it is made for other tasks than the data set's."""
    tasks = getattr(model, "tasks", ())
    task = task_of(data_set)
    if tasks and task not in tasks:
        name, data = getattr(model, "__name__", model), type(data_set).__name__
        hint = f"--task {task} chooses parts that fit"
        raise UsageError(f"--model {name} is made for {' and '.join(tasks)}, --data_set {data} for {task}; {hint}.")


def check_fit(network: PrunableNetwork, data_set: DataSet, train_batches: Batches, test_batches: Batches) -> None:
    """Raises UsageError if the network cannot train on batches of these sizes, or on so many classes."""
    sizes = [stop - start for start, stop in train_batches.bounds]
    if 1 in sizes:
        _check_lone_sample(network, train_batches.delivery.batch_size)
    for batches in (test_batches, train_batches):
        inputs, targets = next(iter(batches))
        are_classes = isinstance(targets, Tensor) and targets.dim() == 1 and not targets.is_floating_point()
        if are_classes and not hasattr(network.loss, "inputs_for"):
            _check_classes(network, data_set, targets[:1])
        check_loss(network, inputs, targets)


def check_loss(network: PrunableNetwork, inputs: Any, targets: Any) -> None:
    """Raises UsageError if the loss cannot take, or cannot measure, what the network makes of a batch.

    torch would say so in the middle of the first event, or spread one shape over the other and go on.
    """
    size = samples_in(targets)

    def few(tensor: Tensor) -> Tensor:
        is_by_sample = tensor.dim() > 0 and len(tensor) == size
        return tensor[:FEW] if is_by_sample else tensor

    inputs, targets = mapped(inputs, few), mapped(targets, few)
    model, loss = network.model, network.loss
    with eval_mode(model), loss_mode(model, loss), same_random_state(device_of(model)):
        completed = inputs_for(loss, model, inputs, targets)
        with torch.no_grad():
            outputs = call(model, completed)
    refused = _refusal(loss, outputs, targets, inputs)
    if refused:
        others = _fitting(outputs, targets)
        advice = f" What fits: --loss {', '.join(others)}." if others else ""
        raise UsageError(f"{refused}{advice}")


def _refusal(loss: Any, outputs: Any, targets: Any, inputs: Any = None) -> str:
    """Returns why a loss does not fit, "" if it does."""
    name = getattr(loss, "__name__", type(loss).__name__)
    loss = copy.copy(loss)  # one that counts its calls starts training at none
    try:
        with warnings.catch_warnings():
            # torch spreads (N, 1) against (N,) to (N, N) and only warns of it.
            warnings.filterwarnings("error", "Using a (target|input) size", UserWarning)
            value = loss(outputs, targets)
        if value.numel() != 1:
            return f"The loss {name} must give one number; it gives the shape {tuple(value.shape)}."
        measured(loss, outputs, targets)
        with_inputs = getattr(loss, "with_inputs", None)
        if with_inputs and inputs is not None:
            with_inputs(inputs, outputs, targets)
        check = getattr(loss, "check", None)
        if check:
            check(outputs, targets)
    except UsageError as error:
        return str(error)
    except (*RUN_ERRORS, UserWarning) as error:
        shapes = f"outputs {_shape_of(outputs)} and targets {_shape_of(targets)}"
        why = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
        return f"The loss {name} cannot take {shapes}: {why}."
    return ""


def _shape_of(value: Any) -> str:
    tensor = scores_of(value)
    return str(tuple(tensor.shape)) if isinstance(tensor, Tensor) else f"a {type(value).__name__}"


def _fitting(outputs: Any, targets: Any) -> list[str]:
    """Returns the losses that fit, of those that say what they measure."""
    found = []
    for name in registry.names("losses"):
        with contextlib.suppress(UsageError):
            if hasattr(registry.find("losses", name), "measures"):
                loss = registry.build("losses", name, {})
                if not _refusal(loss, outputs, targets):
                    found.append(name)
    return found


def _check_lone_sample(network: PrunableNetwork, batch_size: int) -> None:
    """Batch norm cannot train where it sees one value per channel."""
    trial = copy.deepcopy(network.model).train()
    try:
        with torch.random.fork_rng(), torch.no_grad():
            call(trial, network.example_inputs)
    except ValueError as error:
        why = f"{type(network.model).__name__} cannot train on a batch of one sample ({error})"
        raise UsageError(f"{why}; --batch_size {batch_size} makes one: more samples at a time are needed.") from error


def _check_classes(network: PrunableNetwork, data_set: DataSet, target: Tensor) -> None:
    """Outputs that are no scores of every class must be what the loss takes all the same."""
    classes = int(data_set.num_classes)
    with undisturbed(network.model):
        outputs = call(network.model, network.example_inputs)
    if isinstance(outputs, Tensor) and outputs.dim() > 1 and outputs.shape[1] >= classes:
        return
    last_class = torch.full_like(target.cpu(), classes - 1)
    try:
        # On the CPU, since on CUDA a class that is not there ends all further work.
        network.loss(mapped(outputs, Tensor.cpu), last_class)
    except RUN_ERRORS as error:
        given = type(outputs).__name__
        if isinstance(outputs, Tensor):
            given = f"outputs of shape {tuple(outputs.shape)}"
        what = f"{type(network.model).__name__} returns {given} for one sample"
        raise UsageError(f"{what}, which the loss cannot take for {classes} classes: {error}.") from error
