"""What `_torchvision.py` and `_timm.py` share: is there such a network, and does it take the user's pictures?"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor, nn

from pruning.errors import UsageError, nearest

Shape = tuple[int, int, int]

# Sides worth proposing to somebody whose pictures are too small.
COMMON_SIDES = (16, 32, 64, 96, 128, 192, 224, 240, 256, 299, 384)
# What networks raise when a picture does not suit them; anything else is a defect and shall be seen.
MISFITS = (RuntimeError, ValueError, AssertionError, TypeError, IndexError, ZeroDivisionError)


def check_name(name: str, library: str, known: Iterable[str]) -> None:
    """Raises a `UsageError` with the nearest of the `known` names if `name` is not one of them."""
    names = list(known)
    if name not in names:
        raise UsageError(f"There is no model {name!r} among the {len(names)} of {library}.{nearest(name, names)}")


def check_output(model: nn.Module, name: str, num_classes: int, input_shape: Shape) -> None:
    """Raises a `UsageError` unless (1, *input_shape) becomes (1, num_classes); `model` is left as it was.

    Args:
        model: the network as built.
        name: what the error calls it.
        num_classes: wanted length of the logits.
        input_shape: (channels, height, width) of one sample.
    """
    try:
        output = _try_out(model, input_shape)
    except MISFITS as error:
        raise misfit(name, input_shape, error, hint=_hint(model, input_shape)) from error
    if not isinstance(output, Tensor) or output.shape != (1, num_classes):
        given = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise UsageError(f"{name} is no classifier of pictures: it returns {given}, not (1, {num_classes}).")


def misfit(name: str, input_shape: Shape, error: BaseException | str, *, hint: str = "") -> UsageError:
    """Returns the one-line error for a picture that a network cannot take."""
    size = "x".join(map(str, input_shape))
    return UsageError(f"{name} cannot take pictures of {size} (channels, height, width): {first_line(error)}.{hint}")


def missing_weights(name: str, file: Path, url: str, error: BaseException | str) -> UsageError:
    """Returns the one-line error for pretrained weights that can neither be found nor downloaded."""
    why = first_line(error)
    return UsageError(f"The weights of {name} could not be had ({why}): put {file.name} from {url} into {file.parent}.")


def unreadable_weights(name: str, file: Path, error: BaseException | str) -> UsageError:
    """Returns the one-line error for a file of pretrained weights that is damaged or of another network."""
    return UsageError(f"{file} does not hold the weights of {name} ({first_line(error)}); delete it to load it anew.")


def checkpoint_folder() -> Path:
    """Returns the folder where torch keeps downloaded weights; it hangs on TORCH_HOME."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def first_line(error: BaseException | str) -> str:
    """Returns the first line of an error's message without its closing stop, or its type where there is none."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(" .:") if lines else f"it stopped with {type(error).__name__}"


def _try_out(model: nn.Module, input_shape: Shape) -> object:
    """Returns what one forward pass in eval mode returns: on meta, or for real where that does not work."""
    try:
        return _meta_twin(model)(torch.zeros(1, *input_shape, device="meta"))
    except (*MISFITS, NotImplementedError):
        # Either the picture does not fit, then so it is for real, or meta lacks an operation or meets a tensor that
        # is no parameter. The real run happens on a shallow twin too, so that nothing it keeps stays in `model`.
        with torch.no_grad():
            return _twin(model, {id(tensor): tensor for tensor in _tensors(model)})(torch.zeros(1, *input_shape))


def _meta_twin(model: nn.Module) -> nn.Module:
    """Returns a copy in eval mode whose parameters and buffers have shapes but no values."""
    memo: dict[int, Tensor] = {}
    for tensor in _tensors(model):
        twin = tensor.detach().to("meta")
        memo[id(tensor)] = nn.Parameter(twin, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else twin
    return _twin(model, memo)


def _twin(model: nn.Module, memo: dict[int, Tensor]) -> nn.Module:
    # A tensor in the memo counts as copied already, so that the copy costs no memory.
    return copy.deepcopy(model, memo).eval()


def _tensors(model: nn.Module) -> Iterable[Tensor]:
    return chain(model.parameters(), model.buffers())


def _hint(model: nn.Module, input_shape: Shape) -> str:
    """Returns a sentence with the smallest common size that would do, or an empty one."""
    channels, height, width = input_shape
    twin = _meta_twin(model)
    for side in COMMON_SIDES:
        if side <= min(height, width):
            continue
        try:
            twin(torch.zeros(1, channels, side, side, device="meta"))
        except (*MISFITS, NotImplementedError):
            continue
        return f" Pictures of {side}x{side} would do."
    return ""
