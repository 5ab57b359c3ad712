"""Cuts of one module by hand, for people who want to do themselves what a plan does.

    prune_conv(model.conv1, [2, 6, 9])              # output channels of a convolution
    prune_batchnorm(model.bn1, idxs=[2, 6, 9])      # what follows it
    prune_related_conv(model.conv2, [2, 6, 9])      # input channels of the next one

Every function cuts in place, keeps `Parameter` objects, cuts gradients along, sets the module's integers and returns
the module. Nothing else in the network is touched: that is the graph's work (`DependencyGraph.get_pruning_plan`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from pruning.cut.tensors import Cuts
from pruning.errors import UsageError, whole_numbers
from pruning.modules.attributes import module_integers, pack_recurrent
from pruning.modules.changed import set_attributes
from pruning.modules.kinds import channel_dims

Dims = dict[str, tuple[int, ...]]  # tensor of a module -> the dimensions that run over the channels

_Conv = nn.modules.conv._ConvNd
_BatchNorm = nn.modules.batchnorm._NormBase
_Norm = (_BatchNorm, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, nn.PReLU)
_Table = (nn.Embedding, nn.EmbeddingBag)

_OF_NORM: Dims = {"weight": (0,), "bias": (0,), "running_mean": (0,), "running_var": (0,)}
# Rows of the joint weight and bias are those of queries, keys and values, one after the other.
_OF_ATTENTION: Dims = {
    "in_proj_weight": (0, 1), "q_proj_weight": (0, 1), "k_proj_weight": (0,), "v_proj_weight": (0,),
    "in_proj_bias": (0,), "bias_k": (2,), "bias_v": (2,), "out_proj.weight": (0, 1), "out_proj.bias": (0,),
}  # fmt: skip
_OUT: Dims = {"bias": (0,)}  # beside the weight's own dimension, which `channel_dims` knows

# Kind of module -> what a cut of its outputs takes, and one of its inputs; None where these are no channels.
_TAKEN: tuple[tuple[Any, Dims, Dims | None], ...] = (
    (_Conv, _OUT, {}),
    (nn.Linear, _OUT, {}),
    (nn.Bilinear, _OUT, None),
    (_Table, {}, None),
    (_Norm, _OF_NORM, _OF_NORM),
    (nn.MultiheadAttention, _OF_ATTENTION, _OF_ATTENTION),
)


def _taken(module: nn.Module, side: str) -> Dims:
    """Returns the tensors and dimensions that a cut of a module's outputs or inputs takes."""
    kind = type(module).__name__
    for kinds, outputs, inputs in _TAKEN:
        if not isinstance(module, kinds):
            continue
        dims = outputs if side == "out" else inputs
        if dims is None:
            raise UsageError(f"The inputs of a {kind} are no channels of one tensor; they stay.")
        if isinstance(module, (*_Norm, nn.MultiheadAttention)):
            return dims
        if "weight" not in module._parameters:
            raise UsageError(f"The weight of this {kind} is computed from other parameters; use DependencyGraph.")
        weight_dim = channel_dims(module)[0 if side == "out" else 1]
        return {"weight": (weight_dim,), **dims}
    raise UsageError(f"A {kind} has no channels that could be pruned by hand; use DependencyGraph.")


def _cut(module: Any, idxs: Iterable[int], side: str) -> nn.Module:
    """Removes channels of one side; everything is computed before anything is put in place."""
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    present = {name: dims for name, dims in _taken(module, side).items() if name in tensors}
    size, groups = _channels(module, side, [tensors[name] for name in present])
    keep = _kept(size, idxs, module)
    if isinstance(module, _Conv) and module.groups == module.in_channels > 1:
        return _cut_depthwise(module, keep, side)
    by_group = _even(keep, size, groups, module)

    def smaller(tensor: Tensor, name: str) -> Tensor:
        for dim in present[name]:
            if isinstance(module, _Conv) and dim == 1:
                tensor = _columns_by_group(tensor, by_group)
            elif tensor.dim():  # a statistic that counts batches has no channels
                tensor = _selected(tensor, dim, keep, size)
        return tensor

    cuts = Cuts()
    for name in present:
        tensor = tensors[name]
        gradient = None if tensor.grad is None else smaller(tensor.grad, name)
        cuts.tensors.append((tensor, smaller(tensor.detach(), name), gradient))
    return _put_in_place(module, cuts)


def _channels(module: Any, side: str, tensors: list[Tensor]) -> tuple[int, int]:
    """Returns how many channels a module has on a side, and in how many groups that must stay of one size."""
    if isinstance(module, _Conv):
        return (module.out_channels if side == "out" else module.in_channels), module.groups
    if isinstance(module, nn.MultiheadAttention):
        return module.embed_dim, module.num_heads
    if not isinstance(module, _Norm):
        return tensors[0].shape[channel_dims(module)[0 if side == "out" else 1]], 1
    sized = [tensor for tensor in tensors if tensor.dim()]
    if not sized:
        raise UsageError(f"This {type(module).__name__} has neither weights nor statistics to prune.")
    if isinstance(module, (nn.LayerNorm, nn.RMSNorm)) and sized[0].dim() > 1:
        raise UsageError("Only norms over one dimension can be pruned by hand.")
    channels, groups = len(sized[0]), 1
    # With a group per channel a channel takes its group along.
    if isinstance(module, nn.GroupNorm) and module.num_groups < channels:
        groups = module.num_groups
    return channels, groups


def _kept(size: int, idxs: Iterable[int], module: nn.Module) -> Tensor:
    """Returns the positions that stay, after checking those that go."""
    gone = whole_numbers(idxs)
    kind = type(module).__name__
    if not gone or gone[0] < 0 or gone[-1] >= size:
        raise UsageError(f"{kind} has channels 0 to {size - 1} there, not {gone}.")
    if len(gone) == size:
        raise UsageError(f"Removing all {size} channels would leave nothing of this {kind}.")
    stays = torch.ones(size, dtype=torch.bool)
    stays[gone] = False
    return stays.nonzero().flatten()


def _even(keep: Tensor, size: int, groups: int, module: nn.Module) -> list[Tensor]:
    """Splits kept positions by group; every group must keep equally many."""
    width = size // groups
    parts = [keep[keep // width == group] % width for group in range(groups)]
    counts = {len(part) for part in parts}
    if len(counts) > 1 or counts == {0}:
        kind = type(module).__name__
        raise UsageError(f"Each of the {groups} groups of this {kind} must lose equally many channels.")
    return parts


def _selected(tensor: Tensor, dim: int, keep: Tensor, size: int) -> Tensor:
    """Keeps the same positions in each of the parts of `size` that lie one after the other."""
    parts = [keep + start for start in range(0, tensor.shape[dim], size)]
    return tensor.index_select(dim, torch.cat(parts).to(tensor.device))


def _columns_by_group(weight: Tensor, parts: list[Tensor]) -> Tensor:
    """Keeps other columns in the rows of each group."""
    blocks = weight.chunk(len(parts), 0)
    kept = [block.index_select(1, part.to(block.device)) for block, part in zip(blocks, parts, strict=True)]
    return torch.cat(kept)


def _cut_depthwise(module: Any, keep: Tensor, side: str) -> nn.Module:
    """Removes input channels of a depthwise convolution together with the outputs they make."""
    times = module.out_channels // module.groups
    inputs = keep
    if side == "out":
        counts = torch.bincount(keep // times, minlength=module.groups)
        if not ((counts == 0) | (counts == times)).all():
            raise UsageError(f"A depthwise convolution loses all {times} outputs of an input channel, or none.")
        inputs = counts.nonzero().flatten()
    outputs = (inputs[:, None] * times + torch.arange(times)).flatten()
    cuts = Cuts()
    cuts.add_tensor(module.weight, {0: inputs if module.transposed else outputs})
    if module.bias is not None:
        cuts.add_tensor(module.bias, {0: outputs})
    return _put_in_place(module, cuts)


def _put_in_place(module: nn.Module, cuts: Cuts) -> nn.Module:
    shapes = {id(tensor): tuple(smaller.shape) for tensor, smaller, _ in cuts.tensors}
    integers = module_integers(module, shapes)
    cuts.apply()
    set_attributes(module, integers)
    pack_recurrent(module)
    return module


def prune_out_channels(module: nn.Module, idxs: Iterable[int]) -> nn.Module:
    """Removes output channels of a linear, convolution, normalisation, embedding or attention module.

    Args:
        module: the module; a depthwise convolution loses the input channels along with their outputs.
        idxs: positions of the channels that go.

    Raises:
        UsageError: for a module that cannot be cut, positions that do not exist, or all of them; nothing changes then.
    """
    return _cut(module, idxs, "out")


def prune_in_channels(module: nn.Module, idxs: Iterable[int]) -> nn.Module:
    """Removes input channels; as `prune_out_channels` for modules that hand every channel on by itself.

    Args:
        module: the module.
        idxs: positions of the input channels that go.

    Raises:
        UsageError: as `prune_out_channels`.
    """
    return _cut(module, idxs, "in")


def _of_kind(module: nn.Module, kind: type, function: str) -> nn.Module:
    if not isinstance(module, kind):
        name = type(module).__name__
        raise UsageError(f"{function} does not fit a {name}; prune_out_channels and prune_in_channels fit any.")
    return module


def prune_conv(module: nn.Module, idxs: Iterable[int]) -> nn.Module:
    """Removes output channels (filters) of a convolution of any kind; see `prune_out_channels`."""
    return _cut(_of_kind(module, _Conv, "prune_conv"), idxs, "out")


def prune_related_conv(module: nn.Module, idxs: Iterable[int]) -> nn.Module:
    """Removes input channels of a convolution of any kind; see `prune_in_channels`."""
    return _cut(_of_kind(module, _Conv, "prune_related_conv"), idxs, "in")


def prune_linear(module: nn.Module, idxs: Iterable[int]) -> nn.Module:
    """Removes output features of a linear layer; see `prune_out_channels`."""
    return _cut(_of_kind(module, nn.Linear, "prune_linear"), idxs, "out")


def prune_related_linear(module: nn.Module, idxs: Iterable[int]) -> nn.Module:
    """Removes input features of a linear layer; see `prune_in_channels`."""
    return _cut(_of_kind(module, nn.Linear, "prune_related_linear"), idxs, "in")


def prune_batchnorm(module: nn.Module, idxs: Iterable[int]) -> nn.Module:
    """Removes channels of a batch or instance norm: affine values and running statistics."""
    return _cut(_of_kind(module, _BatchNorm, "prune_batchnorm"), idxs, "out")


# Which side a cut works on: `graph.get_pruning_plan(module, prune_related_conv, idxs)` reads it.
for _function in (prune_in_channels, prune_related_conv, prune_related_linear):
    _function.side = "in"  # type: ignore[attr-defined]
