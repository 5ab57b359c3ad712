"""Inputs in the units that a person sees: pixels from 0 to 1, before a data set's normalisation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from pruning import UsageError
from pruning.modules.modes import eval_mode, look

SLACK = 1e-3  # rounding on the way back from normalised inputs


class Pixels:
    """The map between a data set's normalised inputs and numbers in [0, 1].

    Data whose numbers, before normalisation, are no pixels in [0, 1] are mapped by the range they really have: a
    perturbation is then a fraction of that range.

    Args:
        test_batches: yields (inputs, targets); has `normalise` with `mean` and `std`.
    """

    def __init__(self, test_batches: Any) -> None:
        normalise = getattr(test_batches, "normalise", None)
        self.mean = getattr(normalise, "mean", torch.zeros(1))
        self.std = getattr(normalise, "std", torch.ones(1))
        self.low, self.high = 0.0, 1.0
        self._seen: list[Tensor] = []

    def see(self, inputs: Tensor) -> None:
        """Notes the range of a batch of normalised inputs."""
        self._seen.append(torch.stack(torch.aminmax(inputs * self.std + self.mean)))

    def settle(self) -> None:
        """Takes the range of all batches seen, if it is not that of pixels."""
        table = torch.stack(self._seen)
        low, high = float(table[:, 0].min()), float(table[:, 1].max())
        if low < -SLACK or high > 1 + SLACK:
            self.low, self.high = low, high

    def describe(self) -> str:
        """What 1 stands for."""
        if (self.low, self.high) == (0.0, 1.0):
            return "pixels from 0 to 1"
        return f"the data's range, {self.low:.4g} to {self.high:.4g}, taken as 0 to 1"

    def of(self, inputs: Tensor) -> Tensor:
        """Returns normalised inputs (B, ...) as numbers in [0, 1]."""
        raw = inputs * self.std + self.mean
        return ((raw - self.low) / (self.high - self.low)).clamp(0, 1)

    def normalised(self, pixels: Tensor) -> Tensor:
        """Returns numbers in [0, 1] as what the network takes."""
        return (self.low + (self.high - self.low) * pixels - self.mean) / self.std


class OnPixels(nn.Module):
    """A network that takes numbers in [0, 1] and normalises them itself.

    Its scores come in 64 bits: the loss of a network that is sure of itself is flat in 32, and attacks that follow its
    slope would find nothing.
    """

    def __init__(self, model: nn.Module, pixels: Pixels) -> None:
        super().__init__()
        self.model, self.pixels = model, pixels

    def forward(self, pixels: Tensor) -> Tensor:
        outputs = self.model(self.pixels.normalised(pixels.to(self.pixels.mean.dtype)))
        return outputs if outputs.device.type == "mps" else outputs.double()  # mps has no 64 bits


def check_classified(tester: str, test_batches: Any, model: nn.Module) -> tuple[Tensor, Tensor]:
    """Returns the first test batch if it holds real numbers, one class per sample, and the network says which.

    Raises:
        UsageError: if it does not.
    """
    inputs, targets = next(iter(test_batches))
    if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
        kind = str(getattr(inputs, "dtype", type(inputs).__name__)).removeprefix("torch.")
        raise UsageError(f"{tester} needs inputs of real numbers, such as pictures; this data set's are {kind}.")
    if targets.is_floating_point() or targets.ndim != 1:
        raise UsageError(f"{tester} needs one class per sample; targets of a batch have shape {tuple(targets.shape)}.")
    outputs = look(model, inputs[:1])
    if not isinstance(outputs, Tensor) or outputs.ndim != 2:
        shape = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise UsageError(f"{tester} needs a network that scores classes, (samples, classes); this one gives {shape}.")
    return inputs, targets


Track = Callable[..., Iterable[Any]]  # an iterable with a progress bar: track(items, what)


def clean_pass(models: Mapping[str, nn.Module], test_batches: Any, pixels: Pixels, track: Track) -> dict[str, Tensor]:
    """Returns, per network, which test samples it classifies correctly, bool (samples,); settles the pixels' range."""
    right: dict[str, list[Tensor]] = {name: [] for name in models}
    with torch.no_grad(), ExitStack() as modes:
        for model in models.values():
            modes.enter_context(eval_mode(model))
        for inputs, targets in track(test_batches, "clean accuracy"):
            pixels.see(inputs)
            for name, model in models.items():
                right[name].append(model(inputs).argmax(1) == targets)
    pixels.settle()
    return {name: torch.cat(found).cpu() for name, found in right.items()}


def show(axes: Any, picture: Tensor) -> None:
    """Draws a picture (1 or 3, H, W) in [0, 1]."""
    axes.imshow(picture.movedim(0, -1).squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=1)
    axes.set_axis_off()
