"""What the model families share: activation, initialisation, heads and the check of their settings."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

# The reference's activation: a small slope keeps units that are off within reach of the gradient.
SLOPE = 0.05


def activation() -> nn.LeakyReLU:
    """Returns a fresh LeakyReLU; one object per place, so that hooks can tell the places apart."""
    return nn.LeakyReLU(SLOPE)


def init_orthogonal(model: nn.Module) -> None:
    """Draws orthogonal weights for every linear and convolutional layer, scaled for `activation()`.

    Biases keep torch's own draw, which is the one wanted: uniform in +-1/sqrt(fan_in).
    """
    gain = nn.init.calculate_gain("leaky_relu", SLOPE)
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            nn.init.orthogonal_(module.weight, gain)


def init_kaiming(model: nn.Module) -> None:
    """Draws normal weights for every linear and convolutional layer, scaled for ReLU (He et al., arXiv:1502.01852)."""
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")


def scaled(width: int, multiplier: float) -> int:
    """Returns `width` times `multiplier`, rounded, at least 1."""
    return max(1, round(width * multiplier))


def dense_stack(sizes: Sequence[int], *, dropout: float, norm: bool = False) -> list[nn.Module]:
    """Returns dropout and a linear layer for each step of `sizes`; an activation (and a norm) after all but one."""
    layers: list[nn.Module] = []
    for inputs, outputs in zip(sizes[:-1], sizes[1:], strict=True):
        # Dropout stands there at rate 0 too (it costs nothing then): the names in a checkpoint don't hang on the rate.
        layers += [nn.Dropout(dropout), nn.Linear(inputs, outputs), *after_linear(outputs, norm=norm)]
    return layers[: -2 if norm else -1]


def after_linear(width: int, *, norm: bool) -> list[nn.Module]:
    """Returns what follows a hidden linear layer: an activation, with batch normalisation before it if wanted."""
    return [nn.BatchNorm1d(width), activation()] if norm else [activation()]


def check_settings(
    num_classes: int,
    input_shape: Sequence[int],
    *,
    axes: Sequence[str] | None = ("channels", "height", "width"),
    dropout: float = 0.0,
    width_multiplier: float = 1.0,
    **widths: int,
) -> None:
    """Raises a `UsageError` for settings that no network can be built from.

    Args:
        num_classes: outputs, at least 1.
        input_shape: of one sample; every size at least 1.
        axes: what the dimensions of a sample must be; None for any number of them.
        dropout: in [0, 1).
        width_multiplier: above 0.
        **widths: layer widths by the name of their parameter, each at least 1.
    """
    fits = len(input_shape) >= 1 and all(size >= 1 for size in input_shape)
    shape = "one or more sizes"
    if axes is not None:
        fits = fits and len(input_shape) == len(axes)
        shape = f"({', '.join(axes)})"
    rules = [
        ("num_classes", num_classes, num_classes >= 1, "at least 1"),
        ("input_shape", tuple(input_shape), fits, f"{shape}, each at least 1"),
        ("dropout", dropout, 0 <= dropout < 1, "at least 0 and below 1"),
        ("width_multiplier", width_multiplier, 0 < width_multiplier < float("inf"), "above 0"),
        *((name, width, width >= 1, "at least 1") for name, width in widths.items()),
    ]
    for name, given, fits, wanted in rules:
        if not fits:
            # Imported here, so that a model on its own needs nothing but torch.
            from pruning.errors import UsageError

            raise UsageError(f"{name} is {given}; it must be {wanted}.")
