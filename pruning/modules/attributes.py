"""Integers that modules keep: what torch's own layers must say once their tensors have other shapes."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from torch import nn

from pruning.errors import UsageError

Attribute = tuple[nn.Module, str, Any]

Shape = tuple[int, ...]


# -- integers that modules of torch keep -------------------------------------------------------------------------------


class _Shapes:
    """Shapes that tensors are about to have, asked for by module and name; parametrised weights by their original."""

    def __init__(self, shapes: dict[int, Shape], grouped: Collection[nn.Module] = ()) -> None:
        self.by_id, self.grouped = shapes, grouped

    def of(self, module: nn.Module, *names: str) -> Shape | None:
        for name in names:
            tensor = module._parameters.get(name, module._buffers.get(name))
            for other in (f"{name}_v", f"{name}_orig"):  # weight_norm and spectral_norm of old
                tensor = module._parameters.get(other) if tensor is None else tensor
            if tensor is None and name in getattr(module, "parametrizations", {}):
                originals: Any = module.get_submodule(f"parametrizations.{name}")
                tensor = getattr(originals, "original", getattr(originals, "original1", None))
            if tensor is not None:
                return self.by_id.get(id(tensor), tuple(tensor.shape))
        return None


def _conv(module: Any, shapes: _Shapes) -> dict[str, Any]:
    shape = shapes.of(module, "weight")
    if shape is None:
        return {}
    groups = module.groups
    if module.transposed:
        if module.in_channels == groups and module not in shapes.grouped:
            groups = shape[0]
        return {"groups": groups, "in_channels": shape[0], "out_channels": shape[1] * groups}
    if module.in_channels == groups > 1 and module not in shapes.grouped:  # depthwise: a channel gone is a group gone
        groups = shape[0] * groups // module.out_channels
    if shape[0] % groups:
        raise UsageError(f"{shape[0]} output channels cannot belong to {groups} groups: whole groups of a convolution "
                         "went, and shapes do not tell which; save extras_of(model) with the state dict.")  # fmt: skip
    return {"groups": groups, "in_channels": shape[1] * groups, "out_channels": shape[0]}


def _widths(**dims: int) -> Any:
    """Returns what reads attributes off the shape of a module's weight, or of its statistics if it has none."""

    def describe(module: Any, shapes: _Shapes) -> dict[str, Any]:
        shape = shapes.of(module, "weight", "running_mean")
        return {name: shape[dim] for name, dim in dims.items()} if shape else {}

    return describe


def _group_norm(module: Any, shapes: _Shapes) -> dict[str, Any]:
    shape = shapes.of(module, "weight")
    single = module.num_groups == module.num_channels
    return {"num_channels": shape[0], **({"num_groups": shape[0]} if single else {})} if shape else {}


def _layer_norm(module: Any, shapes: _Shapes) -> dict[str, Any]:
    shape = shapes.of(module, "weight")
    kind = type(module.normalized_shape)
    return {"normalized_shape": shape if kind is tuple else kind(shape)} if shape else {}


def _attention(module: Any, shapes: _Shapes) -> dict[str, Any]:
    packed, query, key, value, output = (
        shapes.of(module, f"{name}_weight") for name in ("in_proj", "q_proj", "k_proj", "v_proj", "out_proj")
    )
    output = shapes.of(module.out_proj, "weight")
    width = packed[1] if packed else query[1] if query else output[1] if output else module.embed_dim
    found = {"embed_dim": width, "kdim": key[1] if key else width, "vdim": value[1] if value else width}
    return {**found, "head_dim": width // module.num_heads}


def _recurrent(module: Any, shapes: _Shapes) -> dict[str, Any]:
    first, hidden = shapes.of(module, "weight_ih_l0"), shapes.of(module, "weight_hh_l0")
    if not first or not hidden:
        return {}
    gates = {"LSTM": 4, "GRU": 3}.get(module.mode, 1)
    found = {"input_size": first[1], "hidden_size": first[0] // gates}
    return {**found, "proj_size": hidden[1]} if module.proj_size else found


def _recurrent_cell(module: Any, shapes: _Shapes) -> dict[str, Any]:
    first, hidden = shapes.of(module, "weight_ih"), shapes.of(module, "weight_hh")
    return {"input_size": first[1], "hidden_size": hidden[1]} if first and hidden else {}


BY_TYPE: tuple[tuple[type | tuple[type, ...], Any], ...] = (
    (nn.modules.conv._ConvNd, _conv),
    (nn.Linear, _widths(in_features=1, out_features=0)),
    (nn.Bilinear, _widths(out_features=0, in1_features=1, in2_features=2)),
    (nn.modules.batchnorm._NormBase, _widths(num_features=0)),
    (nn.GroupNorm, _group_norm),
    ((nn.LayerNorm, nn.RMSNorm), _layer_norm),
    ((nn.Embedding, nn.EmbeddingBag), _widths(num_embeddings=0, embedding_dim=1)),
    (nn.PReLU, _widths(num_parameters=0)),
    (nn.MultiheadAttention, _attention),
    (nn.RNNBase, _recurrent),
    (nn.modules.rnn.RNNCellBase, _recurrent_cell),
)


def module_integers(model: nn.Module, shapes: dict[int, Shape], grouped: Collection[nn.Module] = ()) -> list[Attribute]:
    """Returns (module, attribute, value) of what torch's own modules must say once tensors have new shapes.

    Args:
        model: the network as it is.
        shapes: id of a parameter or buffer -> the shape it will have; those missing keep theirs.
        grouped: convolutions that keep their number of groups even where each has a single input channel left.
    """
    table, found = _Shapes(shapes, grouped), []
    for module in model.modules():
        for kind, describe in BY_TYPE:
            if isinstance(module, kind):
                wanted = describe(module, table)
                found += [(module, key, value) for key, value in wanted.items() if getattr(module, key, None) != value]
                break
    return found


def set_integers(attributes: Iterable[Attribute]) -> None:
    """Writes integers into modules; recurrent layers are told to pack their weights anew."""
    for module, name, value in attributes:
        object.__setattr__(module, name, value)


def pack_recurrent(model: nn.Module) -> None:
    """Lets recurrent layers lay out their weights in one block again (they keep references to them)."""
    for module in model.modules():
        if isinstance(module, nn.RNNBase):
            module.flatten_parameters()
