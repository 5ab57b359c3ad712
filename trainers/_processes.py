"""One run in several processes: each takes its part of every batch, and all of them make the same steps."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pruning import PrunableNetwork
from pruning.distributed import added, assert_equal_across_ranks, broadcast_all, checksums, rank, world
from pruning.measure.measures import Sums, added_up


class Shared(Protocol):
    """What is needed of a trainer whose batches several processes share."""

    model: nn.Module
    device: torch.device
    epoch: int
    batch: int
    share: float  # what this process's gradients count in those of the batch

    @property
    def network(self) -> PrunableNetwork: ...


class Replica(DistributedDataParallel):
    """A trainer's network, whose gradients are those of the whole batch after every backward pass.

    Args:
        trainer: its model is what every process has; its `share` is what this process's gradients count.
    """

    def __init__(self, trainer: Shared) -> None:
        device = trainer.device
        device_ids = [device.index] if device.type == "cuda" else None
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="`broadcast_buffers`")  # older releases know no other name
            super().__init__(
                trainer.model,
                device_ids=device_ids,
                init_sync=False,  # it knows not every type
                broadcast_buffers=False,  # they travel after a batch, so that they are alike whenever somebody looks
                find_unused_parameters=True,  # what is used may change with every cut
            )
        self.trainer = trainer
        # Annotations, which are strings here, would be taken for wrong ones.
        self.register_comm_hook(None, lambda _, bucket: self._added(bucket.buffer()))

    def forward(self, *inputs: Any, **named: Any) -> Any:
        trainer = self.trainer
        with own_draws(trainer.device, trainer.epoch, trainer.batch):
            return super().forward(*inputs, **named)

    def _added(self, gradients: Tensor) -> torch.futures.Future[Tensor]:
        # Sums over processes of what each one's samples count are the gradients of the whole batch.
        gradients.mul_(self.trainer.share)
        adding = dist.all_reduce(gradients, async_op=True)

        def result(done: torch.futures.Future[Any]) -> Tensor:
            done.value()  # raises what went wrong meanwhile
            return gradients

        return adding.get_future().then(result)


@contextmanager
def replicated(trainer: Shared) -> Iterator[None]:
    """Gives a trainer a model that adds up the gradients of all processes during backward passes.

    It must not be there when tensors change their shapes, so each epoch has one of its own.
    """
    if world() == 1:
        yield
        return
    # A trainer or a model that does not do the same everywhere is found out before its values are made the same.
    alone, network = trainer.model, trainer.network.model
    assert_equal_across_ranks(checksums(network))
    broadcast_all([*network.parameters(), *network.buffers()])
    trainer.model = Replica(trainer)
    try:
        yield
    finally:
        trainer.model = alone
        gc.collect()  # what the replica keeps of the gradients' shapes must be gone before a cut
    assert_equal_across_ranks(checksums(network))


def expect(model: nn.Module, loss: Tensor) -> None:
    """Tells a replica where a backward pass will come: a penalty reaches more than the outputs hang on."""
    if isinstance(model, Replica):
        model.reducer.prepare_for_backward([loss])


def level(model: nn.Module, optimizer: torch.optim.Optimizer, share: float) -> None:
    """Makes alike, before a step, what a replica leaves to each process: running statistics, other gradients.

    Args:
        model: its buffers become those of the first process.
        optimizer: of what it moves beside the model's own parameters, the gradients of all processes are added up.
        share: what this process's count.
    """
    if world() == 1:
        return
    broadcast_all(list(model.buffers()))
    own = {id(parameter) for parameter in model.parameters()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if id(parameter) not in own and parameter.grad is not None:
                parameter.grad.copy_(added(parameter.grad * share))


def weight_of_share(samples: int, whole: int) -> float:
    """Returns what a process's samples count in a batch of `whole`: those that were not shared out count once."""
    return samples / whole if samples < whole else 1 / world()


def sums_of_batch(sums: Sums, samples: int, whole: int) -> Sums:
    """Returns the sums of a batch of `whole` samples, of which this process had some."""
    # Samples that all processes looked at would be counted as often.
    weight = weight_of_share(samples, whole) * whole / samples
    sizes = [values.numel() for values in sums.values()]
    flat = added(torch.cat(list(sums.values())) * weight)  # all at once: each exchange takes its time
    return dict(zip(sums, flat.split(sizes), strict=True))


def added_sums(sums: Sums | None) -> Sums | None:
    """Returns the sums of all processes; some may have had no batch, and know no names. None if none had."""
    own = None if sums is None else {name: values.tolist() for name, values in sums.items()}
    everyone: list[Any] = [None] * world()
    dist.all_gather_object(everyone, own)
    total: Sums | None = None
    for theirs in everyone:
        if theirs is not None:
            total = added_up(total, {name: torch.tensor(values).double() for name, values in theirs.items()})
    return total


@contextmanager
def own_draws(device: torch.device, *numbers: int) -> Iterator[None]:
    """Lets the processes draw different random numbers (dropout, gates), and go on with the same ones afterwards."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        seed = hash((torch.initial_seed(), rank(), *numbers)) % 2**63
        torch.manual_seed(seed)
        yield
