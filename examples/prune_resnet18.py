"""Trains a ResNet-18 on CIFAR-10, then prunes and fine-tunes it in rounds, with the engine in pruning/ alone.

    python examples/prune_resnet18.py --mode train
    python examples/prune_resnet18.py --mode prune --round 1 --total_epochs 30 --step_size 20
    python examples/prune_resnet18.py --mode prune --round 2 --total_epochs 30 --step_size 20

Round N starts from the file of round N - 1. Each round takes the same share of every layer, of the size that brings
the parameters to the published number of that round. Files hold state dicts: a shrunken network is a fresh dense one
and `load_pruned`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from data_sets._batches import Batches, make_batches  # noqa: E402 - the path has to be set first
from data_sets.CIFAR10 import CIFAR10  # noqa: E402
from models.ResNet18 import ResNet18  # noqa: E402
from pruning import DependencyGraph, UsageError, load_pruned  # noqa: E402
from pruning.measure.evaluate import evaluate  # noqa: E402

# Millions of parameters and test accuracy after training and after each round, as Torch-Pruning published them for
# this network and filters chosen by their L1 norm.
PUBLISHED = [(11.1, 0.9248), (4.5, 0.9229), (1.9, 0.9207), (0.8, 0.9176), (0.4, 0.9102), (0.2, 0.9011)]


def resnet18() -> nn.Module:
    """Returns the network for small pictures: 3x3 stem, no max pool, one linear layer as its head."""
    return ResNet18(CIFAR10.num_classes, CIFAR10.input_shape, hidden=0, small_stem=True, dropout=0.0)


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def scores(graph: DependencyGraph, norm: str) -> np.ndarray:
    """Returns what each node is worth: L1 norm of its filters, or norm of all that would go with it."""
    if norm == "l1":
        kernels = {name: weight.abs() for name, weight in graph.model.named_parameters() if weight.dim() > 1}
        return graph.reduce_to_nodes(kernels, role="producer").detach().cpu().numpy()
    squares = {name: weight.square() for name, weight in graph.model.named_parameters()}
    return graph.reduce_to_nodes(squares, role="all").sqrt().detach().cpu().numpy()


def weakest(graph: DependencyGraph, worth: np.ndarray, share: float) -> np.ndarray:
    """Returns the nodes of each group with the smallest scores; every group keeps at least one."""
    gone = []
    for group in graph.groups:
        number = min(round(share * len(group.nodes)), len(group.nodes) - 1)
        gone.append(group.nodes[np.argsort(worth[group.nodes], kind="stable")[:number]])
    return np.concatenate(gone)


def prune(model: nn.Module, share: float, norm: str) -> None:
    """Removes a share of every layer for good."""
    device = next(model.parameters()).device
    graph = DependencyGraph(model, torch.zeros(1, *CIFAR10.input_shape, device=device))
    before, nodes = count(model), len(graph.nodes)
    plan = graph.plan(weakest(graph, scores(graph, norm), share))
    plan.exec()
    left = f"{nodes:,} -> {len(graph.nodes):,} nodes, {before:,} -> {count(model):,} parameters"
    print(f"{share:.3f} of every layer: {left}")


def share_for(model: nn.Module, round_number: int) -> float:
    """Returns the share that leads to the published size: parameters fall with the square of the width."""
    if round_number >= len(PUBLISHED):
        return 0.3
    return max(0.0, 1 - (PUBLISHED[round_number][0] * 1e6 / count(model)) ** 0.5)


def train(model: nn.Module, batches: Batches, test: Batches, options: argparse.Namespace) -> float:
    """Trains with SGD and a step schedule; returns the last epoch's test accuracy."""
    optimizer = torch.optim.SGD(model.parameters(), lr=options.learning_rate, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, options.step_size, gamma=0.1)
    accuracy, _ = evaluate(model, test, F.cross_entropy)
    for epoch in range(options.total_epochs):
        model.train()
        for inputs, targets in batches.epoch(epoch):
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
        schedule.step()
        accuracy, loss = evaluate(model, test, F.cross_entropy)
        print(f"epoch {epoch + 1}/{options.total_epochs}: test accuracy {accuracy:.4f}, loss {loss:.4f}", flush=True)
    return accuracy


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mode", choices=["train", "prune"], required=True)
    parser.add_argument("--round", type=int, default=1, help="of pruning, from 1")
    parser.add_argument("--norm", choices=["l1", "group"], default="l1", help="what a node is worth")
    parser.add_argument("--share", type=float, help="of every layer to remove; default: what the published size takes")
    parser.add_argument("--total_epochs", type=int, default=100)
    parser.add_argument("--step_size", type=int, default=70, help="epochs between divisions of the learning rate by 10")
    parser.add_argument("--learning_rate", type=float, default=0.01)
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--limit_batches", type=int, help="per epoch, for trying it out")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--data_dir", default=str(ROOT / "gitignored" / "data"))
    parser.add_argument("--out_dir", default=str(ROOT / "gitignored" / "results" / "prune_resnet18"))
    options = parser.parse_args(given)
    if options.round < 1 or (options.share is not None and not 0 <= options.share < 1):
        parser.error("--round starts at 1, and --share is a fraction from 0 to below 1")
    return options


def main(given: Sequence[str] | None = None) -> None:
    """Runs one mode; what it prints last stands beside the published numbers."""
    options = arguments(given)
    torch.manual_seed(0)
    number = options.round if options.mode == "prune" else 0
    model, files = resnet18(), Path(options.out_dir)
    if number:
        load_pruned(model, files / f"round{number - 1}.pth")
    model.to(options.device)
    data = CIFAR10(options.data_dir)
    how = {"batch_size": options.batch_size, "device": options.device, "limit": options.limit_batches}
    batches, test = make_batches(data, "train", **how), make_batches(data, "test", **how)
    if number:
        prune(model, share_for(model, number) if options.share is None else options.share, options.norm)
    accuracy = train(model, batches, test, options)
    files.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), files / f"round{number}.pth")
    size = f"{count(model) / 1e6:.1f} M parameters ({count(model):,})"
    print(f"round {number}: {size}, test accuracy {accuracy:.4f} on {test.samples:,} pictures")
    if number < len(PUBLISHED):
        print(f"published: {PUBLISHED[number][0]:.1f} M parameters, test accuracy {PUBLISHED[number][1]:.4f}")


if __name__ == "__main__":
    try:
        main()
    except UsageError as error:
        sys.exit(str(error))
