"""One run in several processes, as torchrun starts them: the first speaks and writes, the others only compute."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from pruning import distributed
from pruning.errors import UsageError

LONGEST = 60.0 * 24 * 365  # minutes: backends count in milliseconds, and not up to infinity
LOST = ("gloo", "nccl", "pair closure", "connection closed", "connection reset")  # said of a process that is gone


def launched() -> int:
    """Returns how many processes torchrun started for this command; 1 if it did not."""
    numbered = all(os.environ.get(name, "").isdigit() for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"))
    # Schedulers of clusters set some of these too; only a launcher says where the processes meet.
    if not numbered or "MASTER_ADDR" not in os.environ:
        return 1
    return int(os.environ["WORLD_SIZE"])


def number() -> int:
    """Returns which of them this one is; 0 is the first."""
    return int(os.environ["RANK"]) if launched() > 1 else 0


def is_local_first() -> bool:
    """Whether this process's errors are told: those of one machine mostly have the same to say."""
    return launched() == 1 or os.environ["LOCAL_RANK"] == "0"


def command() -> str:
    """Returns how to start main.py with as many processes as now."""
    everywhere = launched()
    if everywhere == 1:
        return "python main.py"
    here = int(os.environ.get("LOCAL_WORLD_SIZE", everywhere))
    machines = f" --nnodes {everywhere // here}" if everywhere > here else ""
    return f"torchrun{machines} --nproc_per_node {here} main.py"


def local_gpu() -> int:
    """Returns the number of this process's GPU.

    Raises:
        UsageError: if this machine has fewer GPUs than processes.
    """
    own, there = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if int(os.environ.get("LOCAL_WORLD_SIZE", own + 1)) > there:  # which all find, also the one that speaks
        raise UsageError(f"--nproc_per_node is greater than the number of GPUs, {there}; --device cpu needs none.")
    return own


@contextmanager
def joined(device: torch.device, minutes: float) -> Iterator[None]:
    """Joins the processes that torchrun started, if it did.

    Args:
        device: where this process computes.
        minutes: how long one that no longer answers is waited for.
    """
    if launched() == 1:
        yield
        return
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    ours = not dist.is_initialized()
    if ours:
        _meet(backend, timedelta(minutes=min(minutes, LONGEST)))
    distributed.join()
    try:
        with losses_told():
            yield
        if ours:
            dist.destroy_process_group()  # after an error the others may not be there any more, and would be waited for
    finally:
        distributed.leave()


def _meet(backend: str, timeout: timedelta) -> None:
    try:
        dist.init_process_group(backend, timeout=timeout)
    except (RuntimeError, ValueError) as error:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ.get('MASTER_PORT', '')}"
        why = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise UsageError(
            f"Process {number()} of {launched()} did not meet the others at {where}: {why}. "
            "MASTER_ADDR and MASTER_PORT, which torchrun sets, say where."
        ) from error


@contextmanager
def first_goes_first() -> Iterator[None]:
    """Lets the first process do what follows (download data, say) before the others find it done."""
    if distributed.rank():
        distributed.largest(0)  # which waits for the first
    yield
    if not distributed.rank():
        distributed.largest(0)


@contextmanager
def losses_told() -> Iterator[None]:
    """Turns what torch says when another process is gone, or silent for too long, into one line."""
    try:
        yield
    except RuntimeError as error:
        said = str(error).lower()
        # Backends raise plain RuntimeErrors too; what they have in common are these words.
        lost = isinstance(error, dist.DistError) or any(word in said for word in LOST)
        if distributed.world() == 1 or not lost:
            raise
        raise UsageError("Another process of this run ended, or did not answer within --rank_timeout.") from error
