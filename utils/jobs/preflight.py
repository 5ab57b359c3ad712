"""Does a network suit the data? Asked before training, where torch would say no in the middle of the first epoch."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from data_sets._batches import Batches
from pruning.errors import UsageError
from pruning.modules.calls import RUN_ERRORS, call, mapped
from pruning.modules.modes import undisturbed
from pruning.network import PrunableNetwork
from utils.jobs.parts import DataSet, task_of
from utils.settings.signatures import Part


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
    target = next(iter(test_batches))[1][:1]
    if target.dim() == 1 and not target.is_floating_point():  # what other targets mean is the loss's business
        _check_classes(network, data_set, target)


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
