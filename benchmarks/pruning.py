"""What structural pruning costs and how much of torchvision it reaches, beside Torch-Pruning in one run.

    pip install -r benchmarks/requirements.txt
    python benchmarks/pruning.py [--turns 5] [--threads 1] [--size 224] [--models resnet50,densenet201] [--cpu_time]
    python benchmarks/pruning.py --coverage [--max_parameters 100]

Times: dependency graph, group-magnitude scores, one global ranking, dry run and cutting; both libraries in turn on
copies of the same network and the same input, removing the same number of output channels.
Coverage: half of every prunable layer removed, then an evaluation, a forward and a backward pass in training mode.
"""

from __future__ import annotations

import argparse
import copy
import gc
import importlib
import os
import resource
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torchvision
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from pruning import DependencyGraph  # noqa: E402 - the path has to be set first
from pruning.modules.calls import RUN_ERRORS, tensors_in  # noqa: E402
from pruning.prune.layout import NodeSelection  # noqa: E402

TIMED = "resnet50,densenet121,vit_b_16,convnext_tiny,mobilenet_v3_large,efficientnet_v2_m,densenet201"
CLASSES = 1000
Clock = Callable[[], float]
SIZES = {"vit_": 224, "maxvit": 224, "inception": 299}  # made for one size of pictures; the others take any


# -- the two ways ------------------------------------------------------------------------------------------------------


def ours(model: nn.Module, example: torch.Tensor, *, keep: int | None = None, local: bool = False) -> None:
    """Removes half of the nodes, or all but `keep`, by the group norm over all slices of a node."""
    graph = DependencyGraph(model, example)
    graph.plan(~chosen(graph, keep, local)).exec()


def chosen(graph: DependencyGraph, keep: int | None, local: bool = False) -> torch.Tensor:
    """Returns a mask over the nodes that stay."""
    squares = {name: weight.detach().square() for name, weight in graph.model.named_parameters()}
    scores = graph.reduce_to_nodes(squares, role="all").double()
    groups = torch.from_numpy(graph.structure.group_of_node)
    means = torch.bincount(groups, scores) / torch.bincount(groups)
    layout = NodeSelection(graph.structure.group_of_node, local=local)
    return layout.keep(scores / means[groups], len(scores) - len(scores) // 2 if keep is None else keep)


def theirs(model: nn.Module, example: torch.Tensor, *, local: bool = False) -> None:
    """Removes half of the channels by Torch-Pruning's group magnitude; it has to be told heads and outputs."""
    tp = torch_pruning()
    heads = {module: module.num_heads for module in model.modules() if isinstance(module, nn.MultiheadAttention)}
    pruner = tp.pruner.BasePruner(
        model,
        example,
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        global_pruning=not local,
        pruning_ratio=0.5,
        ignored_layers=[module for module in model.modules() if getattr(module, "weight", None) is not None
                        and isinstance(module, (nn.Linear, nn.Conv2d)) and len(module.weight) == CLASSES],
        num_heads=heads,
    )  # fmt: skip
    pruner.step()


def torch_pruning() -> Any:
    # By name, because only this script needs it and the project's requirements don't list it.
    try:
        return importlib.import_module("torch_pruning")
    except ImportError:
        sys.exit("torch-pruning is missing: pip install -r benchmarks/requirements.txt")


# -- counts ------------------------------------------------------------------------------------------------------------


def channels(model: nn.Module) -> int:
    """Returns the output channels of all layers: the rows of every matrix or kernel."""
    return sum(len(parameter) for parameter in model.parameters() if parameter.dim() > 1)


def parameters(model: nn.Module) -> int:
    """Returns the number of trained values."""
    return sum(parameter.numel() for parameter in model.parameters())


def keep_for(model: nn.Module, example: torch.Tensor, removed: int) -> int:
    """Returns how many nodes must stay so that as nearly as possible `removed` output channels go."""
    graph = DependencyGraph(model, example)
    rows = np.zeros(len(graph.nodes))
    for name, parameter in model.named_parameters():
        along = graph.nodes_along(name, 0) if parameter.dim() > 1 else np.empty(0, np.int64)
        rows += np.bincount(along[along >= 0], minlength=len(rows))
    low, high = 0, len(rows)
    while low < high:
        middle = (low + high) // 2
        gone = float(rows[~chosen(graph, middle).numpy()].sum())
        low, high = (middle + 1, high) if gone > removed else (low, middle)
    return low


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}  # theirs dawdles and warns
    return torchvision.models.get_model(name, weights=None, **options)


class Timing(NamedTuple):
    """How long something took, and the model it was done to."""

    seconds: float
    model: nn.Module


def seconds(clock: Clock, action: Callable[..., None], model: nn.Module, *given: Any, **how: Any) -> Timing:
    """Returns how long an action takes on a copy of a model, and that copy."""
    model = copy.deepcopy(model)
    gc.collect()
    start = clock()
    action(model, *given, **how)
    return Timing(clock() - start, model)


# -- times -------------------------------------------------------------------------------------------------------------


def times(names: list[str], turns: int, size: int, clock: Clock) -> None:
    """Prints seconds of both and the median of the ratios of each turn."""
    print(f"{'':<20}{'ours':>9}{'theirs':>9}{'ratio':>8}   channels removed    parameters left")
    for name in names:
        model, example = build(name).eval(), torch.randn(1, 3, size, size)
        # The first turn is not counted; it says how many channels have to go so that both do the same work.
        other = seconds(clock, theirs, model, example).model
        keep = keep_for(model, example, channels(model) - channels(other))
        own = seconds(clock, ours, model, example, keep=keep).model
        gone = [channels(model) - channels(pruned) for pruned in (own, other)]
        left = [parameters(pruned) / parameters(model) for pruned in (own, other)]
        pairs = [(seconds(clock, ours, model, example, keep=keep).seconds,
                  seconds(clock, theirs, model, example).seconds) for _ in range(turns)]  # fmt: skip
        a, b = (statistics.median(column) for column in zip(*pairs, strict=True))
        ratio = statistics.median(one / two for one, two in pairs)
        counts = f"{gone[0]:>9,}{gone[1]:>9,}{left[0]:>13.3f}{left[1]:>8.3f}"
        print(f"{name:<20}{a:>8.3f}s{b:>8.3f}s{ratio:>8.3f}{counts}", flush=True)


class Wide(nn.Module):
    """Many channels, few weights: a million indices of dimensions, which is what a graph has to carry."""

    def __init__(self, width: int = 60_000, blocks: int = 3) -> None:
        super().__init__()
        self.enter = nn.Conv2d(3, width, 1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 3, padding=1, groups=width), nn.BatchNorm2d(width), nn.ReLU())
            for _ in range(blocks)
        )
        self.leave = nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.enter(x)
        for block in self.blocks:
            x = x + block(x)
        return self.leave(x.mean((2, 3)))


def million(turns: int, clock: Clock) -> None:
    """Prints what a graph of a million labels takes: few large layers, and nodes by the hundred thousand."""
    stack = [layer for _ in range(10) for layer in (nn.Linear(8, 34_000), nn.ReLU(), nn.Linear(34_000, 8))]
    cases = [("residual, depthwise", Wide(), torch.randn(1, 3, 4, 4)),
             ("ten hidden layers", nn.Sequential(*stack), torch.randn(1, 8))]  # fmt: skip
    for title, model, example in cases:
        graphs = [seconds(clock, DependencyGraph, model, example).seconds for _ in range(turns)]
        whole = [seconds(clock, ours, model, example).seconds for _ in range(turns)]
        graph = DependencyGraph(model, example)
        print(f"{title}, {graph.structure.slice_labels:,} labels, {len(graph.nodes):,} nodes: "
              f"graph {statistics.median(graphs):.2f} s (aim below 1); "
              f"with half of the nodes removed {statistics.median(whole):.2f} s", flush=True)  # fmt: skip


# -- coverage ----------------------------------------------------------------------------------------------------------


class Outcome(NamedTuple):
    """What came of one library on one model: why it failed ("" if it ran), and the share of channels that went."""

    problem: str
    share: float


def coverage(names: list[str], max_parameters: float) -> None:
    """Prints for every classifier what came of it."""
    print(f"{'':<24}{'ours':>6}{'theirs':>8}   (share of output channels removed, or why it does not run)")
    # Theirs wanted more than 23 GB for MaxViT; an error is better than a machine that stands still.
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * 3 // 4
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    found: list[tuple[Outcome, Outcome]] = []
    for name in names:
        size = next(iter(torchvision.models.get_model_weights(name))).meta["num_params"] / 1e6
        if size > max_parameters:
            print(f"{name:<24}left out: {size:.0f} million parameters")
            continue
        found.append((outcome(ours, name), outcome(theirs, name)))
        cells = ["--" if result.problem else f"{result.share:.2f}" for result in found[-1]]
        sides = zip(("ours", "theirs"), found[-1], strict=True)
        why = "; ".join(f"{who}: {result.problem}" for who, result in sides if result.problem)
        print(f"{name:<24}{cells[0]:>6}{cells[1]:>8}   {why}", flush=True)
    own, other = (sum(not pair[side].problem for pair in found) for side in (0, 1))
    print(f"runs after the cut, of {len(found)}: ours {own}, theirs {other}; ratio {own / max(other, 1):.2f}")


def outcome(action: Callable[..., None], name: str) -> Outcome:
    """Removes half of every layer and runs what is left, as far as that goes."""
    model, size = build(name), next((size for start, size in SIZES.items() if name.startswith(start)), 96)
    before = channels(model)
    try:
        action(model.eval(), torch.randn(1, 3, size, size), local=True)
        exercise(model, torch.randn(2, 3, size, size))
    except (*RUN_ERRORS, MemoryError) as error:
        return Outcome(f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:90]}", 0.0)
    share = 1 - channels(model) / before
    return Outcome("" if share > 0 else "nothing was removed", share)


def exercise(model: nn.Module, inputs: torch.Tensor) -> None:
    """Runs a pruned classifier both ways; AssertionError if an output is not what a classifier gives."""
    with torch.no_grad():
        shapes = [tuple(out.shape) for out in tensors_in(model.eval()(inputs))]
    if shapes != [(len(inputs), CLASSES)]:
        raise AssertionError(f"outputs are {shapes}")
    for parameter in model.parameters():
        parameter.grad = None  # the other library's graph leaves some behind
    sum(out.square().mean() for out in tensors_in(model.train()(inputs))).backward()
    if any(p.grad is not None and p.grad.shape != p.shape for p in model.parameters()):
        raise AssertionError("gradients have other shapes than their parameters")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", help=f"classifiers, with commas between; default: {TIMED}; with --coverage all")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--size", type=int, default=224, help="side of the pictures in pixels")
    parser.add_argument("--cpu_time", action="store_true", help="measure processor time, on a machine that others use")
    parser.add_argument("--coverage", action="store_true", help="how many torchvision classifiers run after a cut")
    parser.add_argument("--max_parameters", type=float, default=float("inf"), help="in millions; for --coverage")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore", UserWarning)  # of the other library: parameters that it guesses a dimension for
    torch_pruning()
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "torchvision", "torch-pruning"))
    clock = time.process_time if options.cpu_time else time.perf_counter
    print(f"{versions}, {options.threads} threads, medians of {options.turns} turns, {clock.__name__}")
    if options.coverage:
        everything = torchvision.models.list_models(module=torchvision.models)
        coverage(options.models.split(",") if options.models else everything, options.max_parameters)
        return
    times((options.models or TIMED).split(","), options.turns, options.size, clock)
    million(options.turns, clock)


if __name__ == "__main__":
    main()
