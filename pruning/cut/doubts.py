"""Whether shapes alone say how a network runs: that nothing else which a cut may change is read by its code."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from pruning.cut.reads import names_read
from pruning.modules.attributes import Shape
from pruning.modules.kept import holders, replaced_integers

_NORMS = (nn.LayerNorm, nn.RMSNorm)


def first_doubt(model: nn.Module, shapes: Mapping[int, Shape]) -> str:
    """Returns the first thing that a cut may have changed and shapes do not tell, "" if there is none.

    Args:
        model: the dense network.
        shapes: id of a parameter or buffer -> its shape in the file, for those that shrank.
    """
    return next(_doubts(model, shapes), "")


def _doubts(model: nn.Module, shapes: Mapping[int, Shape]) -> Iterator[str]:
    for path, module in model.named_modules():
        why = _doubt_of_layer(module, shapes)
        if why:
            yield f"{path or 'the network'} ({type(module).__name__}) {why}"
    read = names_read(model)
    for path, holder in holders(model).items():
        if type(holder).__module__.startswith("torch.nn."):
            continue  # what torch's own code reads of its modules stood above
        for name in _kept_names(holder):
            if read is None or name in read:
                owner = type(holder).__name__
                yield f"its code may read {owner}.{name} (in {path or 'the network'}), which a cut may change"


def _doubt_of_layer(module: nn.Module, shapes: Mapping[int, Shape]) -> str:
    """Returns what shapes do not tell of one of torch's own layers, "" if they tell everything."""

    def shape_of(tensor: Tensor | None) -> Shape | None:
        return None if tensor is None else shapes.get(id(tensor))

    if isinstance(module, nn.Unflatten):
        return "keeps sizes"
    if isinstance(module, _NORMS) and module.weight is None:
        return "keeps a width and has no weight"
    if isinstance(module, nn.MultiheadAttention):
        changed = shape_of(module.out_proj.weight)
        width = changed[1] if changed else 0
        fewer = [heads for heads in range(1, module.num_heads) if width and width % heads == 0]
        if any(width // heads <= module.head_dim for heads in fewer):
            return f"may have {fewer[-1]} or {module.num_heads} heads"
    changed = shape_of(module._parameters.get("weight"))
    if changed is None:
        return ""
    if isinstance(module, nn.GroupNorm):
        is_whole = module.num_groups == module.num_channels or changed[0] % module.num_groups == 0
        return "" if is_whole else "lost whole groups"
    if isinstance(module, nn.modules.conv._ConvNd) and _may_have_fewer_groups(module, changed):
        return "may have fewer groups than before: whole groups of a convolution went, or channels of each"
    return ""


def _may_have_fewer_groups(module: nn.modules.conv._ConvNd, shape: Shape) -> bool:
    """Says whether whole groups may have gone: after a cut that left a single input channel in each."""
    rows_before, groups = module.out_channels // module.groups, module.groups
    if module.transposed or groups == module.in_channels:
        return False
    if shape[0] % groups:
        return True
    fewer = [count for count in range(1, groups) if shape[0] % count == 0 and shape[0] // count <= rows_before]
    return shape[1] == 1 and bool(fewer)


def _kept_names(holder: Any) -> list[str]:
    """Returns attributes of a module or plain object that a cut may change: integers above 1, tensors of its own."""
    found = set()

    def note(name: str, path: tuple[Any, ...], value: int) -> int:
        if value > 1:  # nothing shrinks below one
            found.add(name)
        return value

    for _ in replaced_integers(holder, note):
        pass
    if isinstance(holder, nn.Module):
        outside = [name for name in holder._non_persistent_buffers_set if holder._buffers.get(name) is not None]
        found.update(name for name in outside if holder._buffers[name].numel() > 1)  # type: ignore[union-attr]
        plain = {name for name, value in vars(holder).items() if isinstance(value, Tensor) and value.numel() > 1}
        found |= plain
    return sorted(found)
