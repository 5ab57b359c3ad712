"""`--model torchvision/<any classifier>`: torchvision's networks for any class count and picture."""

from __future__ import annotations

import math
import pickle
import re
import sys
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from torch import Tensor, nn

from models._foreign import (
    MISFITS,
    Shape,
    check_name,
    check_output,
    checkpoint_folder,
    misfit,
    missing_weights,
    unreadable_weights,
)
from models._layers import check_settings

Weights = dict[str, Tensor]

# Every network of torchvision is written for pictures with three colours.
COLOURS = 3
# DenseNet's files have the names of an older version: `denselayer1.norm.1.weight` for `denselayer1.norm1.weight`.
OLD_DENSENET_NAME = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\.")
# MaxViT halves the picture five times and cuts each result into windows; the weights are made for windows of 7.
MAXVIT_STRIDE, MAXVIT_WINDOW = 32, 7


def names() -> list[str]:
    """Returns the names of all classifiers in torchvision."""
    from torchvision import models

    return models.list_models(module=models)


def resolve(name: str) -> Callable[..., nn.Module]:
    """Returns what builds the network called `name` by torchvision; a `UsageError` if there is none."""
    check_name(name, "torchvision", names())

    def build(num_classes: int, input_shape: Shape, *, pretrained: bool = False) -> nn.Module:
        check_settings(num_classes, input_shape)
        model = _build(name, num_classes, input_shape, pretrained=pretrained)
        check_output(model, f"torchvision/{name}", num_classes, input_shape)
        return model

    build.__name__ = build.__qualname__ = name
    build.__doc__ = f"""torchvision's {name}; its first layer fits the picture's channels, its last one the classes.

    Args:
        pretrained: start from torchvision's best ImageNet weights, downloaded once; the first layer is adapted to
            the number of channels, the last one is drawn anew unless there are 1000 classes.
    """
    return build


def _build(name: str, num_classes: int, input_shape: Shape, *, pretrained: bool) -> nn.Module:
    # Weights come first: where they are missing, nothing has been built in vain.
    weights, file = _load_weights(name) if pretrained else ({}, Path())
    model = _fresh(name, num_classes, input_shape, pretrained=pretrained)
    first = _fit_first_layer(model, input_shape[0]) if input_shape[0] != COLOURS else ""
    if pretrained:
        try:
            if first:
                weights[first] = fit_channels(weights[first], input_shape[0])
            _load(model, weights, num_classes)
        except (KeyError, RuntimeError, AttributeError, IndexError) as error:
            raise unreadable_weights(f"torchvision/{name}", file, error) from error
    return model


def _fresh(name: str, num_classes: int, input_shape: Shape, *, pretrained: bool) -> nn.Module:
    """Returns the untrained network for three colours, with what its family wants to know beside the classes."""
    from torchvision import models

    channels, height, width = input_shape
    options: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):
        # Auxiliary heads make the output a tuple; the input transform undoes ImageNet's normalisation by colour, as
        # the published weights expect. Initial values cost time, and are overwritten by pretrained ones.
        options = {"aux_logits": False, "init_weights": not pretrained}
        options["transform_input"] = pretrained and channels == COLOURS
    elif name.startswith(("vit_", "maxvit_")):
        if height != width:
            raise misfit(f"torchvision/{name}", input_shape, "its pictures must be square")
        if name == "maxvit_t":
            return _maxvit(num_classes, input_shape, pretrained=pretrained)
        options = {"image_size": height}
    try:
        return models.get_model(name, weights=None, num_classes=num_classes, **options)
    except MISFITS as error:
        raise misfit(f"torchvision/{name}", input_shape, error) from error


def _maxvit(num_classes: int, input_shape: Shape, *, pretrained: bool) -> nn.Module:
    """Returns `maxvit_t` with windows that fit the picture, where torchvision's own are fixed to 7x7."""
    from torchvision.models import maxvit

    side = input_shape[1]
    if side % MAXVIT_STRIDE:
        raise misfit("torchvision/maxvit_t", input_shape, f"its sides must be multiples of {MAXVIT_STRIDE}")
    window = max(size for size in range(1, MAXVIT_WINDOW + 1) if side // MAXVIT_STRIDE % size == 0)
    if pretrained and window != MAXVIT_WINDOW:
        raise misfit("torchvision/maxvit_t", input_shape, "its weights want sides that are multiples of 224")
    return maxvit.MaxVit(
        input_size=(side, side),
        num_classes=num_classes,
        stem_channels=64,
        block_channels=[64, 128, 256, 512],
        block_layers=[2, 2, 5, 2],
        head_dim=32,
        stochastic_depth_prob=0.2,
        partition_size=window,
    )


def _fit_first_layer(model: nn.Module, channels: int) -> str:
    """Turns the first convolution into one for `channels`, drawn anew; returns the name of its weight."""
    name, layer = next((name, m) for name, m in model.named_modules() if isinstance(m, nn.Conv2d))
    outputs, colours, *kernel = layer.weight.shape
    # As spread out as the network's own draw, corrected so that the outputs keep their variance.
    spread = layer.weight.detach().std() * math.sqrt(colours / channels)
    layer.weight = nn.Parameter(torch.randn(outputs, channels, *kernel) * spread)
    layer.in_channels = channels
    return f"{name}.weight"


def fit_channels(weight: Tensor, channels: int) -> Tensor:
    """Turns a convolution's weight for colour pictures into one for `channels` channels.

    One channel gets the sum over the colours: a grey picture then gives what it gave as three equal colours. More
    take the colours in turn, scaled so that the sum over the channels stays about the same.

    Args:
        weight: (outputs, 3, height, width).
        channels: number of channels wanted.
    """
    if channels == 1:
        return weight.sum(1, keepdim=True)
    return weight[:, torch.arange(channels) % COLOURS] * (COLOURS / channels)


def _load_weights(name: str) -> tuple[Weights, Path]:
    """Returns torchvision's best weights and their file, read without pickle's powers."""
    from torchvision import models

    weights = models.get_model_weights(name).DEFAULT
    file = checkpoint_folder() / Path(weights.url).name
    try:
        return weights.get_state_dict(progress=sys.stderr.isatty(), check_hash=True, weights_only=True), file
    except (URLError, HTTPException, TimeoutError, ConnectionError, PermissionError) as error:
        raise missing_weights(f"torchvision/{name}", file, weights.url, error) from error
    except (RuntimeError, EOFError, pickle.UnpicklingError, OSError) as error:
        raise unreadable_weights(f"torchvision/{name}", file, error) from error


def _load(model: nn.Module, weights: Weights, num_classes: int) -> None:
    """Loads pretrained weights for all but the last layer where it has another number of classes."""
    own = model.state_dict()
    # Changed in place: the dictionary carries version marks that old networks are read by.
    for key in [key for key in weights if key not in own]:
        tensor = weights.pop(key)
        renamed = OLD_DENSENET_NAME.sub(r"\1\2.", key)
        if renamed in own:
            weights[renamed] = tensor
        elif not key.lower().startswith("aux"):
            raise KeyError(f"unknown entry {key}")
    if "encoder.pos_embedding" in own:
        weights["encoder.pos_embedding"] = fit_positions(weights["encoder.pos_embedding"], own["encoder.pos_embedding"])
    for key in [key for key, tensor in weights.items() if tensor.shape != own[key].shape]:
        # Only the classifier may differ: its rows are the classes.
        if own[key].shape[0] != num_classes or own[key].shape[1:] != weights[key].shape[1:]:
            raise KeyError(f"{key} has the shape {tuple(weights[key].shape)}, not {tuple(own[key].shape)}")
        weights[key] = own[key]
    model.load_state_dict(weights)


def fit_positions(given: Tensor, wanted: Tensor) -> Tensor:
    """Resamples a vision transformer's position embedding for another picture size.

    Args:
        given: (1, 1 + n * n, width), the class token first.
        wanted: a tensor of the shape to reach, (1, 1 + m * m, width).
    """
    if given.shape == wanted.shape:
        return given
    side, new_side = math.isqrt(given.shape[1] - 1), math.isqrt(wanted.shape[1] - 1)
    token, grid = given[:, :1], given[:, 1:]
    grid = grid.transpose(1, 2).reshape(1, -1, side, side)
    grid = nn.functional.interpolate(grid, size=new_side, mode="bicubic", align_corners=True)
    return torch.cat([token, grid.flatten(2).transpose(1, 2)], dim=1)
