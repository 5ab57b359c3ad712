"""Draws the README's picture from two finished runs: a ResNet20 before and after, with what was measured of both.

    python docs/draw_resnet.py DENSE_RUN PRUNED_RUN [--repeats 31]

Accuracy and FLOPs are those of the runs' `result.json`; the channels are counted in their networks; the latency is
measured here, both networks in turn in one process, so that a busy machine slows them alike.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from models.ResNet20 import ResNet20  # noqa: E402 - the path has to be set first
from pruning import load_pruned  # noqa: E402
from pruning.measure.latency import timings  # noqa: E402

SHAPE = (3, 32, 32)
BATCHES = (1, 64)
WIDTH, HEIGHT, LEFT, STEP, MIDDLE = 760, 300, 24, 36, 92
BEFORE, AFTER, INK = "#c9ccd1", "#2f7d4f", "#24292f"


class Network(NamedTuple):
    """What the picture shows of one network."""

    channels: list[int]
    parameters: int
    flops: float
    accuracy: float
    milliseconds: list[float]  # of a batch of each size in BATCHES


def load(run: Path) -> nn.Module:
    """Returns the finished network of a run."""
    return load_pruned(ResNet20(num_classes=10, input_shape=SHAPE), run / "models" / "ResNet20_finished").eval()


def look_at(runs: Sequence[Path], repeats: int) -> list[Network]:
    """Returns both networks' numbers."""
    models = [load(run) for run in runs]
    times = [timings(models, torch.randn(size, *SHAPE), repeats) for size in BATCHES]
    found = []
    for place, (run, model) in enumerate(zip(runs, models, strict=True)):
        result = json.loads((run / "result.json").read_text(encoding="utf-8"))
        found.append(
            Network(
                [layer.out_channels for layer in model.modules() if isinstance(layer, nn.Conv2d)],
                sum(parameter.numel() for parameter in model.parameters()),
                result["flops_per_sample"],
                result["test_accuracy"],
                [1000 * statistics.median(of_size[place]) for of_size in times],
            )
        )
    return found


def drawn(before: Network, after: Network) -> str:
    """Returns the picture: one bar per convolution, as high as it has channels, and four numbers below."""
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    ]
    for place, (wide, narrow) in enumerate(zip(before.channels, after.channels, strict=True)):
        left = LEFT + STEP * place
        for channels, colour in ((wide, BEFORE), (narrow, AFTER)):
            high = 2 * channels
            bar = f'<rect x="{left}" y="{MIDDLE - high / 2:g}" width="24" height="{high}" rx="2" fill="{colour}"/>'
            lines.append(bar)
        lines.append(text(left + 12, MIDDLE + wide + 14, f"{narrow}/{wide}", size=9, middle=True))
    lines.append(text(LEFT, 190, "channels of each convolution, left / before", size=11))
    for place, (title, first, second) in enumerate(numbers(before, after)):
        left = LEFT + 182 * place
        lines.append(text(left, 222, title, size=12))
        lines.append(text(left, 246, f"{first} → {second}", size=17, colour=AFTER))
    faster = before.milliseconds[1] / after.milliseconds[1]
    flops, weights = after.flops / before.flops, after.parameters / before.parameters
    note = f"{1 - weights:.0%} of the parameters and {1 - flops:.0%} of the FLOPs are gone; {faster:.2f} times as fast"
    lines.append(text(LEFT, 280, f"ResNet20 on CIFAR-10: {note}", size=12))
    return "\n".join([*lines, "</svg>\n"])


def numbers(before: Network, after: Network) -> list[tuple[str, str, str]]:
    """Returns title, value before and value after."""
    return [
        ("parameters", f"{before.parameters:,}", f"{after.parameters:,}"),
        ("FLOPs per picture", f"{before.flops / 1e6:.1f} M", f"{after.flops / 1e6:.1f} M"),
        (f"ms for {BATCHES[1]} pictures", f"{before.milliseconds[1]:.0f}", f"{after.milliseconds[1]:.0f}"),
        ("test accuracy", f"{before.accuracy:.4f}", f"{after.accuracy:.4f}"),
    ]


def text(x: float, y: float, words: str, *, size: int, colour: str = INK, middle: bool = False) -> str:
    anchor = ' text-anchor="middle"' if middle else ""
    return f'<text x="{x:g}" y="{y:g}" font-size="{size}" fill="{colour}"{anchor}>{words}</text>'


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs=2, type=Path, help="folders of the dense and of the pruned run")
    parser.add_argument("--repeats", type=int, default=31, help="of each forward pass")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "resnet20.svg")
    options = parser.parse_args(given)
    torch.set_num_threads(1)
    before, after = look_at(options.runs, options.repeats)
    options.out.write_text(drawn(before, after), encoding="utf-8")
    for network in (before, after):
        print(network)
    return 0


if __name__ == "__main__":
    sys.exit(main())
