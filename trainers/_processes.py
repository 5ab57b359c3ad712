"""One run in several processes: each takes its part of every batch, and all of them make the same steps."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pruning.distributed import added, checksums, must_be_alike, rank, spread, world


@contextmanager
def replicated(trainer: Any) -> Iterator[None]:
    """Gives a trainer a model that averages gradients over the processes during backward passes.

    It must not be there when tensors change their shapes, so each epoch has one of its own.
    """
    if world() == 1:
        yield
        return
    # A trainer or a model that does not do the same everywhere is found out before its values are made the same.
    must_be_alike(checksums(trainer.network.model))
    alone, device = trainer.model, trainer.device
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`broadcast_buffers`")  # its new name is unknown to older releases
        trainer.model = DistributedDataParallel(
            alone,
            device_ids=[device.index] if device.type == "cuda" else None,
            broadcast_buffers=False,  # they travel after a batch, so that they are alike whenever somebody looks
            find_unused_parameters=True,  # what is used may change with every cut
        )
    try:
        yield
    finally:
        trainer.model = alone
        gc.collect()  # what the replica keeps of the gradients' shapes must be gone before a cut


def level(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Makes alike, after a backward pass, what a replica leaves to each process: running statistics, other gradients.

    Args:
        model: its buffers become those of the first process.
        optimizer: what it moves beside the model's own parameters gets averaged gradients, too.
    """
    if world() == 1:
        return
    spread(list(model.buffers()))
    own = {id(parameter) for parameter in model.parameters()}
    for parameter in (parameter for group in optimizer.param_groups for parameter in group["params"]):
        if id(parameter) not in own and parameter.grad is not None:
            parameter.grad.copy_(added(parameter.grad) / world())


def weight_of_share(samples: int, whole: int) -> float:
    """Returns what a process's samples count in a batch of `whole`: those that were not shared out count once."""
    return samples / whole if samples < whole else 1 / world()


def sums_of_batch(sums: Tensor, samples: int, whole: int) -> Tensor:
    """Returns [summed loss, right ones, samples] of a whole batch of `whole` samples.

    Args:
        sums: those of this process's share, whose loss was weighted by `weight_of_share` times the processes.
        samples: in this process's share.
        whole: samples in the batch.
    """
    times = weight_of_share(samples, whole) * whole / samples
    return added(sums * sums.new_tensor([whole / (samples * world()), times, times]))


def added_sums(sums: Tensor | None, device: torch.device) -> Tensor:
    """Returns [summed loss, right ones, samples] of all processes; some may have had no batch."""
    return added(torch.zeros(3, dtype=torch.float64, device=device) if sums is None else sums)


@contextmanager
def own_draws(*numbers: int) -> Iterator[None]:
    """Lets the processes draw different random numbers (dropout, gates), and go on with the same ones afterwards."""
    if world() == 1:
        yield
        return
    with torch.random.fork_rng():
        torch.manual_seed(hash((torch.initial_seed(), rank(), *numbers)) % 2**63)
        yield
