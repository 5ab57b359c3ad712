"""The matrices of the layers that are known by their type, and the sides of these matrices."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from pruning.errors import UsageError

# Layer type -> (output, input) dimension of its weight; any other layer has its outputs along dimension 0.
_CHANNEL_DIMS: dict[type[nn.Module], tuple[int, int]] = {
    nn.modules.conv._ConvTransposeNd: (1, 0),
    nn.Embedding: (1, 0),
    nn.EmbeddingBag: (1, 0),
}

WEIGHTED = (nn.Linear, nn.modules.conv._ConvNd)

TABLES = (nn.Embedding, nn.EmbeddingBag)

# They multiply too, but every channel by a number of its own.
NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase)


@dataclass(frozen=True)
class Sides:
    """How a matrix multiplies.

    Args:
        outputs: dimensions along which its outputs lie; of experts in one tensor, theirs as well.
        inputs: dimension along which its input channels lie; None where they are several or not known.
    """

    outputs: tuple[int, ...]
    inputs: int | None


ROWS = Sides((0,), 1)


def channel_dims(module: nn.Module) -> tuple[int, int]:
    """Returns the dimensions of a layer's weight along which its output and its input channels lie."""
    if is_transposed_linear(module):
        return (1, 0)
    for kind, dims in _CHANNEL_DIMS.items():
        if isinstance(module, kind):
            return dims
    return (0, 1)


def is_transposed_linear(module: nn.Module) -> bool:
    """Says whether a module is the `Conv1D` of transformers, a linear layer with its weight as (inputs, outputs).

    By its name, since the library that it comes from need not be there.
    """
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def matrices_of(module: nn.Module) -> Iterator[tuple[str, Sides]]:
    """Yields (attribute, sides) of the matrices that a layer of a known type multiplies by, nothing of any other.

    Of modules inside the layer nothing, they are layers of their own.
    """
    if isinstance(module, WEIGHTED) or is_transposed_linear(module):
        outputs, inputs = channel_dims(module)
        yield "weight", Sides((outputs,), inputs)
    elif isinstance(module, nn.Bilinear):
        yield "weight", Sides((0,), None)  # (outputs, first inputs, second inputs)
    elif isinstance(module, nn.RNNBase):
        for names in module._all_weights:
            yield from ((name, ROWS) for name in names if name.startswith("weight"))
    elif isinstance(module, nn.modules.rnn.RNNCellBase):
        yield from (("weight_ih", ROWS), ("weight_hh", ROWS))
    elif isinstance(module, nn.MultiheadAttention):
        for name in ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"):
            if getattr(module, name, None) is not None:
                yield name, ROWS
    elif _is_deformable(module):
        yield "weight", ROWS


def _is_deformable(module: Any) -> bool:
    # torchvision's; a network without it must not import it.
    kind = type(module)
    return kind.__name__ == "DeformConv2d" and kind.__module__.startswith("torchvision.")


# -- what cannot be cut ------------------------------------------------------------------------------------------------

# Where torch keeps its quantised modules; newer releases move them from one place to the other.
_QUANTISED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.nn.quantized", "torchao.")
_IN_TRAINING = ("torch.ao.nn.qat", "torch.ao.nn.intrinsic.qat", "torch.nn.qat")


def check_not_quantised(modules: Mapping[str, nn.Module]) -> None:
    """Raises UsageError for layers that are quantised, or prepared for it: channels have scales and packed values."""
    for path, module in modules.items():
        kind = type(module)
        where = f"{path or 'the network'} ({kind.__name__})"
        if kind.__module__.startswith(_QUANTISED):
            raise UsageError(f"{where} is quantised, so its weights are packed; prune first, and quantise afterwards.")
        observes = getattr(module, "activation_post_process", None) is not None and hasattr(module, "qconfig")
        if kind.__module__.startswith(_IN_TRAINING) or observes:
            raise UsageError(
                f"{where} is prepared for quantisation, which keeps ranges per channel; prune first, and prepare it "
                "afterwards."
            )
