"""Several processes that prune one network together, each with a copy of its own.

All run the same program on the same batches. The gradients that scores are made of are shared out, a batch each, and
scores and random draws are those of the first process everywhere, so that every process prunes the same units.
Nothing here does anything before `join`: a program of one's own may well use torch.distributed for something else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pruning.errors import UsageError

Item = TypeVar("Item")
_joined = False


def join() -> None:
    """Lets pruning know of the processes of torch.distributed's default group, which must have been made.

    From then on scores, masks and cuts are collective: all processes must ask for them, with the same batches.
    """
    global _joined
    _joined = True


def leave() -> None:
    """Makes this process one that prunes alone again."""
    global _joined
    _joined = False


def rank() -> int:
    """Returns this process's number; 0 is the first, and where there is one only."""
    return dist.get_rank() if _joined else 0


def world() -> int:
    """Returns how many processes there are."""
    return dist.get_world_size() if _joined else 1


def broadcast(tensor: Tensor, source: int = 0) -> Tensor:
    """Returns the tensor that process `source` has, of one shape and type everywhere; others may be overwritten."""
    if world() == 1:
        return tensor
    values = tensor.detach().contiguous()
    dist.broadcast(values.flatten().view(torch.uint8), source)  # as bytes: backends do not know every type
    return values


def broadcast_by_name(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns the first process's tensors, in the order of names that this process has."""
    return {name: broadcast(tensor) for name, tensor in tensors.items()}


@torch.no_grad()
def broadcast_tensors(tensors: Mapping[str, Tensor]) -> None:
    """Gives tensors the first process's values, in place.

    Raises:
        UsageError: in every process, if they have not all the same names and shapes.
    """
    if world() == 1:
        return
    forms = {name: (*tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
    # Processes that wait for other shapes than come would hang, or take wrong values.
    assert_equal_across_ranks(forms)
    broadcast_all(list(tensors.values()))


@torch.no_grad()
def broadcast_all(tensors: Sequence[Tensor]) -> None:
    """Gives tensors, of the same shapes everywhere, the first process's values in place: those of one type at once."""
    kinds: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for tensor in tensors:
        kinds.setdefault((tensor.dtype, tensor.device), []).append(tensor)
    for alike in kinds.values():
        flat = torch.cat([tensor.detach().flatten() for tensor in alike])
        sizes = [tensor.numel() for tensor in alike]
        parts = broadcast(flat).split(sizes)
        for tensor, values in zip(alike, parts, strict=True):
            tensor.copy_(values.view_as(tensor))


def assert_equal_across_ranks(values: Mapping[str, Any]) -> None:
    """Raises UsageError, in every process and with the first name that differs, unless all have the same values."""
    own = {name: repr(value) for name, value in values.items()}
    everyone: list[Any] = [None] * world()
    dist.all_gather_object(everyone, own)
    first = everyone[0]
    for number, theirs in enumerate(everyone):
        for name in {**first, **theirs}:
            if first.get(name) != theirs.get(name):
                raise UsageError(
                    f"The processes of this run are no longer alike: {name} is {first.get(name)} in process 0 and "
                    f"{theirs.get(name)} in process {number}. A plug-in must do the same in all of them."
                )


def checksums(model: nn.Module) -> dict[str, float]:
    """Returns the sum of each parameter's and buffer's absolute values."""
    named: dict[str, Tensor] = {}
    named.update(model.named_parameters())
    named.update(model.named_buffers())
    if not named:
        return {}
    sums = []
    for tensor in named.values():
        values = tensor.detach()
        if values.is_complex():
            values = torch.view_as_real(values)
        sums.append(values.double().abs().sum())
    # All at once: each number that is read makes a GPU wait.
    return dict(zip(named, torch.stack(sums).tolist(), strict=True))


def added(tensor: Tensor) -> Tensor:
    """Returns the sum over all processes, the same everywhere to the last bit."""
    if world() == 1:
        return tensor
    total = tensor.detach().clone()
    dist.all_reduce(total)
    return total


def largest(number: int) -> int:
    """Returns the largest of the processes' numbers."""
    if world() == 1:
        return number
    found = torch.tensor(number)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return int(found)


def round_robin(
    items: Iterable[Item], compute: Callable[[Item], Sequence[Tensor]], like: Sequence[Tensor]
) -> Iterator[Sequence[Tensor]]:
    """Yields `compute(item)` for every item, in order; each is computed by one process and sent to the others.

    So what is added up of it is what one process alone would add up, bit by bit.

    Args:
        items: the same in every process.
        compute: returns tensors of the shapes, types and devices of `like`.
        like: says what to receive.
    """
    if world() == 1:
        yield from map(compute, items)
        return
    left = iter(items)
    while turn := list(islice(left, world())):
        # The last turn may have fewer items than there are processes.
        mine = compute(turn[rank()]) if rank() < len(turn) else []
        for source in range(len(turn)):
            found = mine
            if source != rank():
                found = [torch.empty_like(tensor) for tensor in like]
            yield [broadcast(tensor, source) for tensor in found]
