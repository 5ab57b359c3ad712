"""Cuts networks by hand, layer by layer, and by the dependency graph, and shows that both leave the same network.

    python examples/pruning_functions.py [--draw_dir FOLDER]

Three networks: a plain one, one with a shortcut, one that concatenates. For each of them the functions of
`pruning.cut.by_hand` are called for everything that has to go along; then the graph does it from a single name. With
--draw_dir a picture of each network is drawn as well.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from pruning import (  # noqa: E402 - the path has to be set first
    DependencyGraph,
    prune_batchnorm,
    prune_conv,
    prune_in_channels,
    prune_linear,
    prune_out_channels,
    prune_related_conv,
    prune_related_linear,
)

GONE = [2, 5]


class Plain(nn.Module):
    """One layer after the other.

        picture -> conv1 -> bn1 -> relu -> conv2 -> bn2 -> relu -> flatten -> linear1 -> relu -> linear2 -> logits
           3        8        8              6        6            6 x 2 x 2     10                 4

    Output channels of conv1 take along bn1 and the input channels of conv2. Those of conv2 reach linear1 through the
    flatten, which makes 2 x 2 = 4 columns of each.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.linear1, self.linear2 = nn.Linear(6 * 2 * 2, 10), nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x)).relu()
        x = self.pool(self.bn2(self.conv2(x)).relu()).flatten(1)
        return self.linear2(self.linear1(x).relu())


def cut_plain(model: Plain) -> None:
    prune_conv(model.conv1, idxs=GONE)
    prune_batchnorm(model.bn1, idxs=GONE)
    prune_related_conv(model.conv2, idxs=GONE)

    prune_conv(model.conv2, idxs=GONE)
    prune_batchnorm(model.bn2, idxs=GONE)
    prune_related_linear(model.linear1, idxs=[4 * channel + place for channel in GONE for place in range(4)])

    prune_linear(model.linear1, idxs=GONE)
    prune_related_linear(model.linear2, idxs=GONE)


class Residual(nn.Module):
    """A shortcut adds what goes into a block to what comes out of it.

                          +-----------------------------------------+
                          |                                         |
        picture -> stem --+-> conv1 -> bn1 -> relu -> conv2 -> bn2 -(+)-> relu -> mean -> head -> logits
           3        8          6        6              8        8                  8       4

    Channel 2 of the sum has two sources: row 2 of the stem and row 2 of conv2, with bn2. Neither can go without the
    other. The channels inside of the block are free.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.conv1, self.bn1 = nn.Conv2d(8, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.conv2, self.bn2 = nn.Conv2d(6, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        inner = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return self.head((x + inner).relu().mean((2, 3)))


def cut_residual(model: Residual) -> None:
    prune_conv(model.stem, idxs=GONE)
    prune_related_conv(model.conv1, idxs=GONE)
    prune_conv(model.conv2, idxs=GONE)
    prune_batchnorm(model.bn2, idxs=GONE)
    prune_related_linear(model.head, idxs=GONE)


class Concatenated(nn.Module):
    """Two branches, one after the other in the channels of what follows.

                   +-> left  (5) --+
        picture ---+               +-> cat (11) -> depthwise (11) -> norm (11) -> relu -> mix -> mean -> head -> logits
                   +-> right (6) --+                                                       7              4

    Channel 2 of the right branch is channel 5 + 2 of everything behind the concatenation. The depthwise convolution has
    one kernel per channel: there, an input and an output are one thing.
    """

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 5, 1), nn.Conv2d(3, 6, 3, padding=1)
        self.depthwise, self.norm = nn.Conv2d(11, 11, 3, padding=1, groups=11), nn.BatchNorm2d(11)
        self.mix, self.head = nn.Conv2d(11, 7, 1), nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.left(x), self.right(x)], 1)
        x = self.mix(self.norm(self.depthwise(x)).relu())
        return self.head(x.mean((2, 3)))


def cut_concatenated(model: Concatenated) -> None:
    behind = [model.left.out_channels + channel for channel in GONE]
    prune_out_channels(model.right, idxs=GONE)
    prune_out_channels(model.depthwise, idxs=behind)
    prune_out_channels(model.norm, idxs=behind)
    prune_in_channels(model.mix, idxs=behind)


# What the graph has to be told for the same: a layer and channels of it, once per kind of node.
CASES: list[tuple[type[nn.Module], Callable[..., None], Sequence[str]]] = [
    (Plain, cut_plain, ("conv1", "conv2", "linear1")),
    (Residual, cut_residual, ("stem",)),
    (Concatenated, cut_concatenated, ("right",)),
]


def randomised(model: nn.Module) -> nn.Module:
    """Gives norms statistics that would show a mistake; fresh ones treat all channels alike."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.bias.data, module.running_mean, module.running_var):
                tensor.copy_(torch.rand_like(tensor) + 0.5)
    return model.eval()


def compare(kind: type[nn.Module], by_hand: Callable[..., None], layers: Sequence[str], draw_dir: Path | None) -> float:
    """Cuts two copies of a network, prints how, and returns the largest difference of their outputs."""
    torch.manual_seed(0)
    one, pictures = randomised(kind()), torch.randn(4, 3, 8, 8)
    other = copy.deepcopy(one)
    by_hand(one)

    graph = DependencyGraph(other, pictures)
    print(graph.tree())
    if draw_dir is not None:
        draw_dir.mkdir(parents=True, exist_ok=True)
        graph.draw(draw_dir / f"{kind.__name__}.svg")
    for layer in layers:
        plan = graph.get_pruning_plan(other.get_submodule(layer), idxs=GONE)
        print(plan)
        plan.exec()

    difference = (one(pictures) - other(pictures)).abs().max().item()
    size = sum(parameter.numel() for parameter in other.parameters())
    print(f"by hand and by the graph: {size} parameters left, outputs differ by {difference:.1e}\n")
    return difference


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draw_dir", type=Path, help="folder for a picture of each network")
    draw_dir = parser.parse_args(given).draw_dir
    differences = [compare(*case, draw_dir) for case in CASES]
    if max(differences) > 1e-5:
        sys.exit("The two ways differ.")


if __name__ == "__main__":
    main()
