"""CPU seconds per image of S that sensitivities cost, ours beside a straight loop over filters.

    python benchmarks/sensitivity.py [--models ResNet20,ResNet56] [--images 8] [--turns 3]

Both on one thread, in turn, on the same network and images: the weights' by mean over positions (SiPP), the weights' by
largest (SiPPRand), and the channels' (PFP). The loop builds, for each filter, the shares of all its entries at all
positions. Ours makes no tensor of more than `pruning.scores.layer.BLOCK` entries beside an image's unfolded inputs.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from pruning import PrunableNetwork  # noqa: E402 - the path has to be set first
from pruning.scores.activations import TINY, channel_sensitivities, weight_sensitivities  # noqa: E402
from pruning.scores.layer import BLOCK  # noqa: E402

Scores = dict[str, Tensor]


def ours(network: PrunableNetwork, images: Tensor) -> dict[str, Callable[[], Scores]]:
    """Returns the three ways by name."""
    batches = [(images, torch.zeros(len(images)))]
    return {
        "weights, mean": lambda: weight_sensitivities(network, batches, "mean"),
        "weights, largest": lambda: weight_sensitivities(network, batches, "max"),
        "channels": lambda: channel_sensitivities(network, batches),
    }


def loops(model: nn.Module, images: Tensor) -> dict[str, Callable[[], Scores]]:
    """Returns the same by loops over filters."""
    return {
        "weights, mean": lambda: loop(model, images, lambda shares: shares.mean(2)),
        "weights, largest": lambda: loop(model, images, lambda shares: shares.amax(2)),
        "channels": lambda: _largest_of_channels(model, loop(model, images, lambda shares: shares.amax(2))),
    }


@torch.no_grad()
def loop(model: nn.Module, images: Tensor, reduce: Callable[[Tensor], Tensor]) -> Scores:
    """Returns sensitivities like the weights, filter by filter; `reduce` takes (points, entries, positions) shares."""
    layers = {module: f"{name}.weight" for name, module in model.named_modules() if hasattr(module, "weight")}
    layers = {module: name for module, name in layers.items() if isinstance(module, (nn.Conv2d, nn.Linear))}
    found = {name: torch.zeros_like(module.weight) for module, name in layers.items()}

    def take(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        a, weight, best = inputs[0], module.weight, found[layers[module]]
        points = torch.cat([a.clamp_min(0), (-a).clamp_min(0)]) if bool((a < 0).any()) else a
        if isinstance(module, nn.Conv2d):
            entries = F.unfold(points, module.kernel_size, module.dilation, module.padding, module.stride)
        else:
            entries = points[:, :, None]
        for row, filter_ in zip(best.view(len(best), -1), weight.flatten(1), strict=True):
            for half in (filter_.clamp_min(0), (-filter_).clamp_min(0)):
                parts = half[None, :, None] * entries  # (points, entries, positions)
                sums = parts.sum(1, keepdim=True)
                shares = torch.where(sums > TINY, parts / sums, 0)
                torch.maximum(row, reduce(shares).amax(0), out=row)

    hooks = [module.register_forward_hook(take) for module in layers]
    for image in images.split(1):
        model(image)
    for hook in hooks:
        hook.remove()
    return found


def _largest_of_channels(model: nn.Module, shares: Scores) -> Scores:
    return {
        name: share.flatten(2).amax(2).amax(0) if share.dim() > 2 else share.amax(0) for name, share in shares.items()
    }


def seconds(action: Callable[[], Scores], count: int) -> tuple[float, Scores]:
    """Returns CPU seconds per image, and what came out."""
    start = time.process_time()
    found = action()
    return (time.process_time() - start) / count, found


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="ResNet20,ResNet56")
    parser.add_argument("--images", type=int, default=8, help="images of S, 3 x 32 x 32")
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args(given)
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, 1 thread, {options.images} images, median of {options.turns} turns;")
    print(f"no tensor of more than {BLOCK['cpu']:,} entries ({BLOCK['cpu'] * 4 / 2**20:g} MiB) is made on the way\n")
    print("| network | sensitivities of | ours, s/image | loop, s/image | ratio |\n|---|---|---|---|---|")
    for name in options.models.split(","):
        compare(name, torch.rand(options.images, 3, 32, 32), options.turns)


def compare(name: str, images: Tensor, turns: int) -> None:
    """Prints a line per kind of sensitivity; both ways must agree."""
    torch.manual_seed(0)
    model = getattr(import_module(f"models.{name}"), name)(num_classes=10, input_shape=(3, 32, 32)).eval()
    network = PrunableNetwork(model, images[:1])
    fast, slow = ours(network, images), loops(model, images)
    for way in (fast, slow):
        way["channels"]()  # the first time is not measured
    for kind in fast:
        times: list[tuple[float, float]] = []
        for _ in range(turns):
            (a, mine), (b, straight) = seconds(fast[kind], len(images)), seconds(slow[kind], len(images))
            times.append((a, b))
            for weight, found in mine.items():
                torch.testing.assert_close(found.view_as(straight[weight]), straight[weight], rtol=1e-3, atol=1e-5)
        a, b = (statistics.median(column) for column in zip(*times, strict=True))
        print(f"| {name} | {kind} | {a:.3f} | {b:.3f} | {b / a:.1f} |", flush=True)


if __name__ == "__main__":
    main()
