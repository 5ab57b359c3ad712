"""Cuts of one module by hand, for people who want to do themselves what a plan does.

    prune_conv(model.conv1, [2, 6, 9])              # output channels of a convolution
    prune_batchnorm(model.bn1, idxs=[2, 6, 9])      # what follows it
    prune_related_conv(model.conv2, [2, 6, 9])      # input channels of the next one

Every function cuts in place, keeps `Parameter` objects, cuts gradients along, sets the module's integers and returns
the module. Nothing else in the network is touched: that is the graph's work (`DependencyGraph.get_pruning_plan`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from pruning.cut.tensors import Cuts
from pruning.errors import UsageError, whole_numbers
from pruning.modules.attributes import module_integers, pack_recurrent, set_integers

Change = Callable[[Tensor], Tensor]

_Norm = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, nn.PReLU)

_Conv = nn.modules.conv._ConvNd


def _kept(size: int, idxs: Iterable[int], module: nn.Module) -> Tensor:
    """Returns the positions that stay, after checking those that go."""
    gone = whole_numbers(idxs)
    if not gone or gone[0] < 0 or gone[-1] >= size:
        raise UsageError(f"{type(module).__name__} has channels 0 to {size - 1} there, not {gone}.")
    if len(gone) == size:
        raise UsageError(f"Removing all {size} channels would leave nothing of this {type(module).__name__}.")
    return torch.tensor([position for position in range(size) if position not in gone])


def _apply(module: nn.Module, changes: dict[str, Change]) -> nn.Module:
    """Changes tensors of a module and its integers; everything is computed before anything is put in place."""
    made: list[tuple[Tensor, Tensor, Tensor | None]] = []
    for name, change in changes.items():
        tensor = module._parameters.get(name, module._buffers.get(name))
        if tensor is not None:
            grad = None if tensor.grad is None else change(tensor.grad)
            made.append((tensor, change(tensor.detach()), grad))
    integers = module_integers(module, {id(tensor): tuple(new.shape) for tensor, new, _ in made})
    Cuts(made).apply()
    set_integers(integers)
    pack_recurrent(module)
    return module


def _rows(keep: Tensor, dim: int = 0) -> Change:
    return lambda tensor: tensor.index_select(dim, keep.to(tensor.device)) if tensor.dim() else tensor


def _even(keep: Tensor, size: int, groups: int, module: nn.Module) -> list[Tensor]:
    """Splits kept positions by group; every group must keep equally many."""
    width = size // groups
    parts = [keep[(keep >= group * width) & (keep < (group + 1) * width)] - group * width for group in range(groups)]
    if len({len(part) for part in parts}) > 1 or not len(parts[0]):
        raise UsageError(
            f"Each of the {groups} groups of this {type(module).__name__} must lose equally many channels."
        )
    return parts


def _by_group(parts: list[Tensor]) -> Change:
    """Keeps other columns in the rows of each group."""

    def change(weight: Tensor) -> Tensor:
        blocks = weight.chunk(len(parts), 0)
        return torch.cat(
            [block.index_select(1, keep.to(block.device)) for block, keep in zip(blocks, parts, strict=True)]
        )

    return change


def _is_depthwise(module: Any) -> bool:
    return module.groups > 1 and module.in_channels == module.groups


def _depthwise(module: Any, keep_inputs: Tensor) -> nn.Module:
    """Removes input channels of a depthwise convolution together with the outputs they make."""
    times = module.out_channels // module.groups
    outputs = (keep_inputs[:, None] * times + torch.arange(times)).flatten()
    return _apply(module, {"weight": _rows(keep_inputs if module.transposed else outputs), "bias": _rows(outputs)})


def _conv_out(module: Any, idxs: Iterable[int]) -> nn.Module:
    keep = _kept(module.out_channels, idxs, module)
    if _is_depthwise(module):
        times = module.out_channels // module.groups
        counts = torch.bincount(keep // times, minlength=module.groups)
        if not ((counts == 0) | (counts == times)).all():
            raise UsageError(f"A depthwise convolution loses all {times} outputs of an input channel, or none.")
        return _depthwise(module, torch.nonzero(counts).flatten())
    parts = _even(keep, module.out_channels, module.groups, module)
    if not module.transposed:
        return _apply(module, {"weight": _rows(keep), "bias": _rows(keep)})
    return _apply(module, {"weight": _by_group(parts), "bias": _rows(keep)})


def _conv_in(module: Any, idxs: Iterable[int]) -> nn.Module:
    keep = _kept(module.in_channels, idxs, module)
    if _is_depthwise(module):
        return _depthwise(module, keep)
    parts = _even(keep, module.in_channels, module.groups, module)
    return _apply(module, {"weight": _rows(keep) if module.transposed else _by_group(parts)})


def _attention(module: nn.MultiheadAttention, idxs: Iterable[int]) -> nn.Module:
    """Removes entries of the embedding; queries, keys and values lose the rows of the same numbers."""
    keep = _kept(module.embed_dim, idxs, module)
    _even(keep, module.embed_dim, module.num_heads, module)
    thrice = torch.cat([keep + part * module.embed_dim for part in range(3)])
    changes: dict[str, Change] = {"in_proj_bias": _rows(thrice)}
    if module.in_proj_weight is not None:
        changes["in_proj_weight"] = lambda weight: _rows(keep, 1)(_rows(thrice)(weight))
    else:
        changes |= {"q_proj_weight": lambda weight: _rows(keep, 1)(_rows(keep)(weight))}
        changes |= {"k_proj_weight": _rows(keep), "v_proj_weight": _rows(keep)}
    changes |= {"bias_k": _rows(keep, 2), "bias_v": _rows(keep, 2)}
    _apply(module.out_proj, {"weight": lambda weight: _rows(keep, 1)(_rows(keep)(weight)), "bias": _rows(keep)})
    return _apply(module, changes)


def _normalisation(module: Any, idxs: Iterable[int]) -> nn.Module:
    held = {**module._parameters, **module._buffers}
    sized = next((tensor for tensor in held.values() if tensor is not None and tensor.dim()), None)
    if sized is None:
        raise UsageError(f"This {type(module).__name__} has neither weights nor statistics to prune.")
    keep = _kept(sized.shape[0], idxs, module)
    if isinstance(module, nn.GroupNorm) and module.num_groups < module.num_channels:
        _even(keep, module.num_channels, module.num_groups, module)
    if isinstance(module, (nn.LayerNorm, nn.RMSNorm)) and sized.dim() > 1:
        raise UsageError("Only norms over one dimension can be pruned by hand.")
    return _apply(module, {name: _rows(keep) for name in held})


def prune_out_channels(module: nn.Module, idxs: Iterable[int]) -> nn.Module:
    """Removes output channels of a linear, convolution, normalisation, embedding or attention module.

    Args:
        module: the module; a depthwise convolution loses the input channels along with their outputs.
        idxs: positions of the channels that go.

    Raises:
        UsageError: for a module that cannot be cut, positions that do not exist, or all of them; nothing changes then.
    """
    if isinstance(module, _Conv):
        return _conv_out(module, idxs)
    if isinstance(module, (nn.Linear, nn.Bilinear)):
        keep = _kept(module.out_features, idxs, module)
        return _apply(module, {"weight": _rows(keep), "bias": _rows(keep)})
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        return _apply(module, {"weight": _rows(_kept(module.embedding_dim, idxs, module), 1)})
    if isinstance(module, _Norm):
        return _normalisation(module, idxs)
    if isinstance(module, nn.MultiheadAttention):
        return _attention(module, idxs)
    raise UsageError(f"A {type(module).__name__} has no channels that could be pruned by hand; use DependencyGraph.")


def prune_in_channels(module: nn.Module, idxs: Iterable[int]) -> nn.Module:
    """Removes input channels; as `prune_out_channels` for modules that hand every channel on by itself.

    Args:
        module: the module.
        idxs: positions of the input channels that go.

    Raises:
        UsageError: as `prune_out_channels`.
    """
    if isinstance(module, _Conv):
        return _conv_in(module, idxs)
    if isinstance(module, nn.Linear):
        return _apply(module, {"weight": _rows(_kept(module.in_features, idxs, module), 1)})
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag, nn.Bilinear)):
        raise UsageError(f"The inputs of a {type(module).__name__} are no channels of one tensor; they stay.")
    return prune_out_channels(module, idxs)


def _checked(module: nn.Module, kinds: type | tuple[type, ...], name: str) -> None:
    if not isinstance(module, kinds):
        raise UsageError(
            f"{name} does not fit a {type(module).__name__}; prune_out_channels and prune_in_channels fit any."
        )


def prune_conv(module: nn.Module, idxs: Iterable[int]) -> nn.Module:
    """Removes output channels (filters) of a convolution of any kind; see `prune_out_channels`."""
    _checked(module, _Conv, "prune_conv")
    return prune_out_channels(module, idxs)


def prune_related_conv(module: nn.Module, idxs: Iterable[int]) -> nn.Module:
    """Removes input channels of a convolution of any kind; see `prune_in_channels`."""
    _checked(module, _Conv, "prune_related_conv")
    return prune_in_channels(module, idxs)


def prune_linear(module: nn.Module, idxs: Iterable[int]) -> nn.Module:
    """Removes output features of a linear layer; see `prune_out_channels`."""
    _checked(module, nn.Linear, "prune_linear")
    return prune_out_channels(module, idxs)


def prune_related_linear(module: nn.Module, idxs: Iterable[int]) -> nn.Module:
    """Removes input features of a linear layer; see `prune_in_channels`."""
    _checked(module, nn.Linear, "prune_related_linear")
    return prune_in_channels(module, idxs)


def prune_batchnorm(module: nn.Module, idxs: Iterable[int]) -> nn.Module:
    """Removes channels of a batch or instance norm: affine values and running statistics."""
    _checked(module, nn.modules.batchnorm._NormBase, "prune_batchnorm")
    return prune_out_channels(module, idxs)


# Which side a cut works on: `graph.get_pruning_plan(module, prune_related_conv, idxs)` reads it.
for _cut in (prune_in_channels, prune_related_conv, prune_related_linear):
    _cut.side = "in"  # type: ignore[attr-defined]
