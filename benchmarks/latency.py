"""What node sparsity buys in time: measured latency beside FLOPs, dense and pruned in turn, on this device.

    python benchmarks/latency.py [--batch_size 1] [--models VGG16,ResNet18,ResNet56] [--sparsities 0.5,0.75,0.9,0.93]

The same share of every layer goes, so that shapes don't hang on weights. The last columns say where time stays behind
FLOPs: what each kind of work takes above the time that it would take if it had shrunk as the FLOPs did.

    products  convolutions and matrix products, which is what FLOPs count
    memory    norms, activations, sums, poolings
    calls     what is left where there is nothing to compute: the same network with one channel in every layer
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from criterions.StructuredRandom import StructuredRandom  # noqa: E402 - the path has to be set first
from pruning import DependencyGraph, PrunableNetwork  # noqa: E402
from utils.settings import registry  # noqa: E402

SHAPE = (3, 32, 32)  # CIFAR-10's
PRODUCTS = ("conv", "mm", "linear", "matmul")
KINDS = ("products", "memory", "calls")
WHY = {
    "products": "products: {pruned:.1f} GFLOP/s instead of {dense:.1f}, since few channels don't fill a kernel",
    "memory": "norms, activations, sums: bound by memory, they shrink with the width and not with its square",
    "calls": "calls: Python and the start of an operation cost the same however small a layer is",
}


def seconds(model: nn.Module, inputs: torch.Tensor) -> float:
    """Returns how long one forward pass takes, the device's work included."""
    start = time.perf_counter()
    model(inputs)
    if inputs.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


@torch.no_grad()
def side_by_side(dense: nn.Module, pruned: nn.Module, inputs: torch.Tensor, turns: int) -> tuple[float, float]:
    """Returns median seconds of a forward pass of both, taken in turn after a warm-up."""
    pairs = [(seconds(dense, inputs), seconds(pruned, inputs)) for _ in range(turns + 3)][3:]
    first, second = (statistics.median(column) for column in zip(*pairs, strict=True))
    return first, second


class Stopwatch(TorchDispatchMode):
    """Adds up the time inside of operations, products apart from the others."""

    def __init__(self) -> None:
        super().__init__()
        self.spent = dict.fromkeys(KINDS[:2], 0.0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        start = time.perf_counter()
        out = func(*args, **(kwargs or {}))
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        kind = "products" if any(word in str(func) for word in PRODUCTS) else "memory"
        self.spent[kind] += time.perf_counter() - start
        return out


@torch.no_grad()
def inside(model: nn.Module, inputs: torch.Tensor, turns: int) -> dict[str, float]:
    """Returns the least seconds inside of products and of other operations, starting them included."""
    taken = []
    for _ in range(turns):
        with Stopwatch() as watch:
            model(inputs)
        taken.append(watch.spent)
    return {kind: min(spent[kind] for spent in taken) for kind in taken[0]}


@torch.no_grad()
def split(model: nn.Module, floor: nn.Module, inputs: torch.Tensor, turns: int) -> dict[str, float]:
    """Returns how a forward pass is made up of products, memory and calls, in seconds.

    A clock around every operation slows all of them by the same; the difference to the floor is free of that. Least
    times, not medians: differences of small numbers don't bear what else goes on in the machine.
    """
    latency, calls = (min(seconds(network, inputs) for _ in range(turns)) for network in (model, floor))
    whole, least = inside(model, inputs, turns), inside(floor, inputs, turns)
    above = {kind: max(0.0, whole[kind] - least[kind]) for kind in whole}
    calls, total = min(calls, latency), sum(above.values()) or 1.0
    return {**{kind: (latency - calls) * value / total for kind, value in above.items()}, "calls": calls}


def one_channel_each(dense: nn.Module, inputs: torch.Tensor) -> nn.Module:
    """Returns a copy with one channel left in every layer that can be pruned."""
    model = copy.deepcopy(dense)
    graph = DependencyGraph(model, inputs)
    nodes = np.arange(len(graph.nodes))
    graph.plan(np.setdiff1d(nodes, graph.one_per_group(nodes))).exec()
    return model


def behind(dense: dict[str, float], pruned: dict[str, float], ratio: float) -> dict[str, float]:
    """Returns the share of each kind of work in the time above what FLOPs promise; all 0 where there is none."""
    extra = {kind: max(0.0, pruned[kind] - ratio * dense[kind]) for kind in KINDS}
    total = sum(extra.values())
    return {kind: value / total if total else 0.0 for kind, value in extra.items()}


def compare(name: str, options: argparse.Namespace, device: torch.device) -> None:
    """Prunes one network further and further and prints a line for every sparsity."""
    torch.manual_seed(0)
    dense = registry.find("models", name)(num_classes=10, input_shape=SHAPE).to(device).eval()
    inputs = torch.randn(options.batch_size, *SHAPE, device=device)
    floor = one_channel_each(dense, inputs)
    network, turns = PrunableNetwork(copy.deepcopy(dense), inputs), options.turns
    for sparsity in options.sparsities:
        network.prune_to(StructuredRandom(), sparsity)
        latencies = side_by_side(dense, network.model, inputs, turns)
        flops = [network.start_flops() * options.batch_size, network.flops() * options.batch_size]
        parts = [split(model, floor, inputs, turns) for model in (dense, network.model)]
        faster, fewer = latencies[0] / latencies[1], flops[0] / flops[1]
        shares = behind(*parts, 1 / fewer)
        rates = [count / part["products"] / 1e9 if part["products"] else 0.0
                 for count, part in zip(flops, parts, strict=True)]  # fmt: skip
        times = "".join(f"{latency * 1e3:>10.2f}" for latency in latencies)
        causes = "".join(f"{shares[kind]:>10.0%}" for kind in KINDS)
        print(f"{name:<10}{sparsity:>8.2f}{times}{faster:>9.1f}x{fewer:>9.1f}x{faster / fewer:>8.2f}{causes}")
        if any(shares.values()):
            main_cause = WHY[max(KINDS, key=shares.__getitem__)]
            print("          mostly " + main_cause.format(dense=rates[0], pruned=rates[1]), flush=True)


def fractions(text: str) -> list[float]:
    """Reads sparsities, smallest first, since one network is pruned further and further."""
    found = sorted(float(part) for part in text.split(","))
    if not all(0 < value < 1 for value in found):
        raise argparse.ArgumentTypeError("sparsities are fractions above 0 and below 1")
    return found


def main(given: Any = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="VGG16,ResNet18,ResNet56", help="with commas between")
    parser.add_argument("--sparsities", type=fractions, default=fractions("0.5,0.75,0.9,0.93"), help="of the nodes")
    parser.add_argument("--batch_size", type=int, default=1)
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="", help="default: the CPU and, where there is one, the GPU")
    options = parser.parse_args(given)
    torch.set_num_threads(options.threads)
    devices = [options.device] if options.device else ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    for device in map(torch.device, devices):
        title = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {options.threads} threads"
        print(f"{title}, batch {options.batch_size}, medians of {options.turns} turns, torch {torch.__version__}")
        print("             nodes     dense    pruned               fewer faster/         time behind FLOPs, by")
        print("              gone        ms        ms    faster     FLOPs   fewer  products    memory     calls")
        for name in options.models.split(","):
            compare(name, options, device)


if __name__ == "__main__":
    main()
