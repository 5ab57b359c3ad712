"""What happens to a whole batch on the device: random crops, flips, normalisation."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Draws(NamedTuple):
    """One epoch's random choices, a value per sample in delivery order: a batch takes its slice without the rest."""

    down: Tensor
    right: Tensor
    flip: Tensor | None

    def part(self, start: int, stop: int) -> Draws:
        flip = None if self.flip is None else self.flip[start:stop]
        return Draws(self.down[start:stop], self.right[start:stop], flip)


def draw(count: int, *, crop: int, flip: bool, rng: torch.Generator, device: torch.device) -> Draws:
    """Draws offsets in 0..2*crop and flips for `count` samples, on the CPU, so that every device sees the same."""
    down = torch.randint(0, 2 * crop + 1, (count,), generator=rng)
    right = torch.randint(0, 2 * crop + 1, (count,), generator=rng)
    turned = None
    if flip:
        turned = torch.randint(0, 2, (count,), generator=rng).bool().to(device)
    return Draws(down.to(device), right.to(device), turned)


def crop_and_flip(images: Tensor, draws: Draws, crop: int) -> Tensor:
    """Moves each picture of (B, C, H, W) by its own offset over `crop` pixels of black border, and mirrors some."""
    if crop:
        height, width = images.shape[-2:]
        # (B, C, 2 crop + 1, 2 crop + 1, H, W), a view
        windows = F.pad(images, (crop,) * 4).unfold(2, height, 1).unfold(3, width, 1)
        sample = torch.arange(len(images), device=images.device)
        images = windows[sample, :, draws.down, draws.right]
    if draws.flip is None:
        return images
    # Both answers are computed: a selection by mask would make the CPU wait for the accelerator.
    return torch.where(draws.flip.view(-1, 1, 1, 1), images.flip(3), images)


class Normaliser:
    """Turns raw inputs into what a network eats; integers other than bytes (tokens) pass unchanged.

    Args:
        mean: per channel (or one for all) of pixels scaled to 0..1; None leaves them in 0..1.
        std: likewise.
        dims: dimensions of one sample; the first is the channel.
        device: where the batches are.
    """

    def __init__(self, mean: Tensor | None, std: Tensor | None, dims: int, device: torch.device) -> None:
        self.plain = mean is None and std is None
        if mean is None:
            mean = torch.zeros(1)
        if std is None:
            std = torch.ones(1)
        # One number per channel, alike at every position.
        shape = (-1,) + (1,) * max(dims - 1, 0)
        self.mean = mean.to(device, torch.float32).view(shape)
        self.std = std.to(device, torch.float32).view(shape)

    def __call__(self, images: Tensor) -> Tensor:
        """Changes `images` in place where it can, so they must belong to the caller."""
        dtype = torch.get_default_dtype()
        if images.dtype == torch.uint8:
            # (x / 255 - mean) / std with one subtraction and one product: this runs for every batch.
            return images.to(dtype).sub_(255 * self.mean).mul_(1 / (255 * self.std))
        if not images.is_floating_point():
            return images
        images = images.to(dtype)
        if self.plain:
            return images
        return images.sub_(self.mean).div_(self.std)
