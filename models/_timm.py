"""`--model timm/<any>`: the networks of timm, which is optional, for any class count and picture."""

from __future__ import annotations

from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from types import ModuleType
from typing import Any

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
from pruning.errors import UsageError


def names() -> list[str]:
    """Returns the names of all networks in timm, with and without the tag that tells their weights apart."""
    timm = _timm()
    return sorted({*timm.list_models(), *timm.list_pretrained()})


def resolve(name: str) -> Callable[..., nn.Module]:
    """Returns what builds the network called `name` by timm; a `UsageError` if there is none, or no timm."""
    check_name(name, "timm", names())

    def build(num_classes: int, input_shape: Shape, *, pretrained: bool = False) -> nn.Module:
        check_settings(num_classes, input_shape)
        model = _build(name, num_classes, input_shape, pretrained=pretrained)
        check_output(model, f"timm/{name}", num_classes, input_shape)
        return model

    build.__name__ = build.__qualname__ = name
    build.__doc__ = f"""timm's {name}; its first layer fits the picture's channels, its last one the classes.

    Args:
        pretrained: start from the weights that timm names, downloaded once; the first layer is adapted to the
            number of channels, the last one is drawn anew unless the number of classes is theirs.
    """
    return build


def _timm() -> ModuleType:
    try:
        import timm
    except ImportError as error:
        raise UsageError("Models named timm/... need timm, which is not installed: pip install timm") from error
    return timm


def _build(name: str, num_classes: int, input_shape: Shape, *, pretrained: bool) -> nn.Module:
    timm = _timm()
    config = timm.get_pretrained_cfg(name)
    # A network bound to one size (position embeddings, windows) must be told the picture's; others lack the option.
    options: dict[str, Any] = {"img_size": input_shape[1:]} if config and config.fixed_input_size else {}
    if pretrained:
        options |= _weights_at_hand(name, config)
    try:
        model = timm.create_model(
            name, pretrained=pretrained, num_classes=num_classes, in_chans=input_shape[0], **options
        )
    except (OSError, HTTPException) as error:
        file, url = _weights_file(name, config), _weights_url(config)
        raise missing_weights(f"timm/{name}", file, url, error) from error
    except MISFITS as error:
        raise misfit(f"timm/{name}", input_shape, error) from error
    # What it was loaded from must not stay in memory with it.
    model.pretrained_cfg.pop("state_dict", None)
    return model


def _weights_at_hand(name: str, config: Any) -> dict[str, Any]:
    """Returns the option that hands over a file which the user put in place, or none: then timm downloads."""
    if config is None or not config.has_weights:
        raise UsageError(f"timm has no pretrained weights for {name!r}; leave --pretrained out.")
    file = _weights_file(name, config)
    if file.suffix != ".safetensors" or not file.exists():
        return {}
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        weights: dict[str, Tensor] = load_file(file)
    except (SafetensorError, OSError) as error:
        raise unreadable_weights(f"timm/{name}", file, error) from error
    return {"pretrained_cfg_overlay": {"state_dict": weights}}


def _weights_file(name: str, config: Any) -> Path:
    # The hub's files are all called model.safetensors; torch's own downloads keep the name they have in the address.
    if config.hf_hub_id:
        return checkpoint_folder() / f"{name.split('.')[0]}.{config.tag}.safetensors"
    return checkpoint_folder() / Path(config.url).name


def _weights_url(config: Any) -> str:
    if config.hf_hub_id:
        return f"https://huggingface.co/{config.hf_hub_id}/resolve/main/model.safetensors"
    return config.url
