"""The default data set of segmentation: made up, and there without a network."""

from __future__ import annotations

import torch
from torch import Tensor

SIZE = 24  # pixels along a side
NOISE = 0.15  # standard deviation, where a picture's brightness goes from 0 to 1


class SHAPES:
    """700 made-up pictures of discs and squares in noise, 24 x 24 pixels, every pixel with its class.

    In each lie a disc and a square, of other sizes, places and greys every time; where they meet, the square is in
    front. The classes are 0 for what lies behind, 1 for the disc, 2 for the square. 600 are for training, 100 for
    testing.

    Args:
        data_dir: not used; the pictures are drawn, the same on every machine.
    """

    task = "segmentation"
    wants = {"model": "TinyUNet"}
    input_shape = (1, SIZE, SIZE)
    num_classes = 3
    classes = ("behind", "disc", "square")

    def __init__(self, data_dir: str = "") -> None:
        self.data_dir = data_dir

    def train(self) -> tuple[Tensor, Tensor]:
        """Returns pictures, uint8 (600, 1, 24, 24), and classes, int64 (600, 24, 24)."""
        return _drawn(600, seed=0)

    def test(self) -> tuple[Tensor, Tensor]:
        """Returns pictures, uint8 (100, 1, 24, 24), and classes, int64 (100, 24, 24)."""
        return _drawn(100, seed=1)


def _drawn(count: int, seed: int) -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(seed)

    def between(low: float, high: float) -> Tensor:
        """One number for each picture, (count, 1, 1)."""
        return low + (high - low) * torch.rand(count, 1, 1, generator=draws, dtype=torch.float64)

    places = torch.arange(SIZE, dtype=torch.float64)
    down, right = places.view(1, SIZE, 1), places.view(1, 1, SIZE)
    radius, centre_down, centre_right = between(3, 6), between(4, SIZE - 5), between(4, SIZE - 5)
    disc = (down - centre_down).square() + (right - centre_right).square() <= radius.square()
    half, middle_down, middle_right = between(2, 5), between(4, SIZE - 5), between(4, SIZE - 5)
    square = torch.maximum((down - middle_down).abs(), (right - middle_right).abs()) <= half

    classes = torch.zeros(count, SIZE, SIZE, dtype=torch.long)
    classes[disc] = 1
    classes[square] = 2
    grey = between(0.0, 0.4) * (classes == 0) + between(0.5, 1.0) * (classes == 1) + between(0.5, 1.0) * (classes == 2)
    noise = NOISE * torch.randn(count, SIZE, SIZE, generator=draws, dtype=torch.float64)
    pixels = ((grey + noise).clamp(0, 1) * 255).round().to(torch.uint8)
    return pixels[:, None], classes
