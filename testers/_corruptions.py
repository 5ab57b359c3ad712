"""Corruptions of pictures in [0, 1], at five strengths each."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from testers._pixels import show

SEED = 20  # constant: every network meets the same noise

Change = Callable[[Tensor, Tensor, float], Tensor]  # pictures (B, C, H, W), standard normal noise, strength


def blur(pictures: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of `sigma` pixels; the border is repeated outwards."""
    channels = pictures.shape[1]
    reach = math.ceil(3 * sigma)
    distances = torch.arange(-reach, reach + 1, device=pictures.device, dtype=pictures.dtype)
    weights = torch.exp(-((distances / sigma) ** 2) / 2)
    weights = weights / weights.sum()

    # A Gaussian in two dimensions is one along each; every channel is blurred by itself.
    along_rows = weights.expand(channels, 1, 1, -1)
    along_columns = along_rows.mT
    padded = F.pad(pictures, (reach, reach, reach, reach), mode="replicate")
    blurred = F.conv2d(padded, along_rows, groups=channels)
    return F.conv2d(blurred, along_columns, groups=channels)


def _blur(pictures: Tensor, _noise: Tensor, strength: float) -> Tensor:
    # In pixels of a picture of 32 x 32; a larger one needs a wider blur to look as blurred.
    longer_side = max(pictures.shape[-2:])
    return blur(pictures, strength * max(1.0, longer_side / 32))


def _add_noise(pictures: Tensor, noise: Tensor, strength: float) -> Tensor:
    return pictures + noise * strength


def _brighten(pictures: Tensor, _noise: Tensor, strength: float) -> Tensor:
    return pictures + strength


def _contrast(pictures: Tensor, _noise: Tensor, strength: float) -> Tensor:
    middle = pictures.mean((1, 2, 3), keepdim=True)
    return middle + (pictures - middle) * strength


# kind -> what is done, and its five strengths: standard deviation, pixels, factor that is left, what is added
CORRUPTIONS: dict[str, tuple[Change, tuple[float, ...]]] = {
    "noise": (_add_noise, (0.04, 0.08, 0.12, 0.18, 0.26)),
    "blur": (_blur, (0.4, 0.6, 0.8, 1.0, 1.2)),
    "contrast": (_contrast, (0.75, 0.5, 0.4, 0.3, 0.15)),
    "brightness": (_brighten, (0.05, 0.1, 0.15, 0.2, 0.3)),
}


def corrupted(pictures: Tensor, batch: int) -> Iterator[tuple[str, int, Tensor]]:
    """Yields (kind, strength 0 to 4, changed pictures (B, C, H, W) in [0, 1]).

    Args:
        pictures: (B, C, H, W) in [0, 1].
        batch: number of the batch, which has noise of its own; drawn on the CPU, so that every device sees the same.
    """
    rng = torch.Generator().manual_seed(SEED + batch)
    noise = torch.randn(pictures.shape, generator=rng).to(pictures)
    for kind, (change, strengths) in CORRUPTIONS.items():
        for place, strength in enumerate(strengths):
            yield kind, place, change(pictures, noise, strength).clamp(0, 1)


def draw_corruptions(folder: Any, picture: Tensor, networks: dict[str, Any]) -> None:
    """Draws accuracy over strength and one picture (1, C, H, W) at every strength, as corruption.png."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.5), layout="constrained")
    left, right = figure.subfigures(1, 2, squeeze=False)[0]
    _draw_accuracies(left.subplots(), networks)
    panels = right.subplots(len(CORRUPTIONS), 5).flat
    for panel, (kind, strength, changed) in zip(panels, corrupted(picture, 0), strict=True):
        show(panel, changed[0].cpu())
        panel.set_title(f"{kind} {strength + 1}", fontsize=7)
    folder.write_picture("corruption.png", figure)


def _draw_accuracies(axes: Any, networks: dict[str, Any]) -> None:
    """Draws one line per corruption and network: a color for each corruption, a stroke for each network."""
    strokes = ("-", "--")  # at most two networks are compared
    for number, kind in enumerate(CORRUPTIONS):
        for (name, found), stroke in zip(networks.items(), strokes, strict=False):
            accuracies = [found["clean_accuracy"], *found["accuracy"][kind]]
            label = f"{kind}, {name}" if len(networks) > 1 else kind
            axes.plot(range(len(accuracies)), accuracies, stroke, marker=".", color=f"C{number}", label=label)
    axes.set(xlabel="strength (0: clean)", ylabel="accuracy", ylim=(0, 1.02))
    axes.legend(fontsize=7)
