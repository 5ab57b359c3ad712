"""Seconds of a forward pass."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from pruning.modules.calls import call, device_of
from pruning.modules.modes import eval_mode


def latency(model: nn.Module, inputs: Any, repeats: int = 15) -> float:
    """Returns the median seconds of a forward pass in eval mode on the inputs as they are, after a warm-up."""
    return statistics.median(timings([model], inputs, repeats)[0])


def timings(models: Sequence[nn.Module], inputs: Any, repeats: int) -> list[list[float]]:
    """Returns the seconds of forward passes in eval mode, per model, after a warm-up.

    The models take turns, so that a machine that others use too slows all of them alike.
    """
    times: list[list[float]] = [[] for _ in models]
    with ExitStack() as modes, torch.no_grad():
        for model in models:
            modes.enter_context(eval_mode(model))
        for turn in range(repeats + 3):
            for model, seconds in zip(models, times, strict=True):
                start = time.perf_counter()
                call(model, inputs)
                device = device_of(model)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                if turn >= 3:
                    seconds.append(time.perf_counter() - start)
    return times
