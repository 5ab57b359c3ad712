import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pruning import PrunableNetwork
from pruning.measure.latency import timings
from pruning.modules.calls import mapped
from testers._memory import memory_advice


class Latency:
    """Seconds of a forward pass at several batch sizes, of this network and of the same model dense.

    Both take turns on the same test data, after a warm-up, with CUDA synchronised. Weights that are only masked are
    zeros in tensors as large as before: they save no time; nodes that are gone do. Writes latency.json.

    Args:
        latency_batches: samples per forward pass.
        latency_repeats: forward passes to time at each size; the median and the quartiles are reported.
    """

    def __init__(
        self,
        *,
        network: PrunableNetwork,
        fresh_model: Callable[[], nn.Module],
        test_batches: Any,
        latency_batches: tuple[int, ...] = (1, 16, 128),
        latency_repeats: int = 30,
    ) -> None:
        if not latency_batches or min(latency_batches) < 1 or latency_repeats < 2:
            raise ValueError("latency_batches takes sizes of 1 or more, and latency_repeats at least 2")
        self.models = [network.model, fresh_model()]
        self.test_batches, self.sizes, self.repeats = test_batches, latency_batches, latency_repeats

    def evaluate(self, folder: Any, console: Any) -> dict[str, Any]:
        """Returns, per batch size, medians and quartiles in seconds, and how many times as fast as dense it is."""
        inputs = next(iter(self.test_batches))[0]
        found: dict[str, Any] = {}
        for size in console.track(self.sizes, "latency"):
            with memory_advice(f"a batch of {size}", "latency_batches"):
                repeated = mapped(inputs, partial(_repeated, size=size))
                this, dense = (_describe(times) for times in timings(self.models, repeated, self.repeats))
            found[str(size)] = {"this": this, "dense": dense, "times_as_fast": dense["median"] / this["median"]}
        folder.write_output("latency.json", found)
        return {"latency_seconds_by_batch": found}

    def rows(self, found: dict[str, Any]) -> list[tuple[str, str]]:
        """Returns the lines of the table at the end."""
        rows = [("latency", "median [quartiles]")]
        for size, entry in found["latency_seconds_by_batch"].items():
            text = f"{_in_ms(entry['this'])}; dense {_in_ms(entry['dense'])}"
            rows.append((f"batch of {size}", f"{text}: {entry['times_as_fast']:.2f} times as fast"))
        return rows


def _repeated(tensor: Tensor, size: int) -> Tensor:
    """Returns a batch of so many samples, the same ones again and again."""
    return tensor[torch.arange(size, device=tensor.device) % len(tensor)]


def _describe(times: list[float]) -> dict[str, Any]:
    low, median, high = statistics.quantiles(times, n=4)
    return {"median": median, "quartiles": [low, high]}


def _in_ms(found: dict[str, Any]) -> str:
    low, high = found["quartiles"]
    return f"{found['median'] * 1e3:.3g} ms [{low * 1e3:.3g}, {high * 1e3:.3g}]"
