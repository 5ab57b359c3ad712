"""Integers that modules keep: what torch's own layers must say once their tensors have other shapes."""

from __future__ import annotations

from collections.abc import Callable, Collection
from enum import Enum
from typing import Any

from torch import Tensor, nn

from pruning.modules.attention import ByHeads

Attribute = tuple[Any, str, Any]  # (module, or plain object that a module holds; name; value)

Shape = tuple[int, ...]


class Missing(Enum):
    """Stands for the value of an attribute that is not there."""

    MISSING = "missing"


# -- integers that modules of torch keep -------------------------------------------------------------------------------


class _Shapes:
    """Shapes that tensors are about to have, asked for by module and name; parametrised weights by their original."""

    def __init__(
        self, shapes: dict[int, Shape], grouped: Collection[nn.Module] = (), *, by_heads: bool = False
    ) -> None:
        self.by_id, self.grouped, self.by_heads = shapes, grouped, by_heads

    def of(self, module: nn.Module, *names: str) -> Shape | None:
        """Returns the shape of the first tensor of these names that the module has."""
        for name in names:
            tensor = _tensor_behind(module, name)
            if tensor is not None:
                return self.by_id.get(id(tensor), tuple(tensor.shape))
        return None


def _tensor_behind(module: nn.Module, name: str) -> Tensor | None:
    """Returns a parameter or buffer, or what a reparametrised one is computed from."""
    # weight_norm and spectral_norm of old keep the original beside it, as weight_v and weight_orig.
    for own in (name, f"{name}_v", f"{name}_orig"):
        tensor: Tensor | None = module._parameters.get(own)
        if tensor is None and own == name:
            tensor = module._buffers.get(own)
        if tensor is not None:
            return tensor
    if name in getattr(module, "parametrizations", {}):
        originals: Any = module.get_submodule(f"parametrizations.{name}")
        # weight_norm has two originals, of which the second holds the directions.
        return getattr(originals, "original", getattr(originals, "original1", None))
    return None


Values = dict[str, Any]  # attribute -> what it must say


def _conv(module: Any, shapes: _Shapes) -> Values:
    shape = shapes.of(module, "weight")
    if shape is None:
        return {}
    groups = module.groups
    each_channel_is_a_group = module.in_channels == groups and module not in shapes.grouped
    if module.transposed:
        if each_channel_is_a_group:
            groups = shape[0]
        return {"groups": groups, "in_channels": shape[0], "out_channels": shape[1] * groups}
    if each_channel_is_a_group and groups > 1:
        # Depthwise: a channel gone is a group gone.
        groups = shape[0] * groups // module.out_channels
    return {"groups": groups, "in_channels": shape[1] * groups, "out_channels": shape[0]}


def _widths(**dims: int) -> Describe:
    """Returns what reads attributes off the shape of a module's weight, or of its statistics if it has none."""

    def describe(module: Any, shapes: _Shapes) -> Values:
        shape = shapes.of(module, "weight", "running_mean")
        if shape is None:
            return {}
        return {name: shape[dim] for name, dim in dims.items()}

    return describe


def _group_norm(module: Any, shapes: _Shapes) -> Values:
    shape = shapes.of(module, "weight")
    if shape is None:
        return {}
    found = {"num_channels": shape[0]}
    if module.num_groups == module.num_channels:
        found["num_groups"] = shape[0]
    return found


def _layer_norm(module: Any, shapes: _Shapes) -> Values:
    shape = shapes.of(module, "weight")
    if shape is None:
        return {}
    # Users' own subclasses keep a list or a torch.Size there; its type stays.
    return {"normalized_shape": type(module.normalized_shape)(shape)}


def _attention(module: Any, shapes: _Shapes) -> Values:
    packed = shapes.of(module, "in_proj_weight")
    query = shapes.of(module, "q_proj_weight")
    key = shapes.of(module, "k_proj_weight")
    value = shapes.of(module, "v_proj_weight")
    output = shapes.of(module.out_proj, "weight")
    # Queries, keys and values stand in one matrix where they are made of the same input.
    columns = packed or query or output
    width = columns[1] if columns else module.embed_dim
    found: Values = {"embed_dim": width, "kdim": key[1] if key else width, "vdim": value[1] if value else width}

    of_all_heads = output[1] if output else width
    loses_heads = isinstance(module, ByHeads)
    if of_all_heads != width and not loses_heads:
        # torch's own takes the width of a head from the embedding.
        loses_heads = True
        found["__class__"] = ByHeads
    fewer_heads = shapes.by_heads or (loses_heads and not isinstance(module, ByHeads))
    if fewer_heads and of_all_heads % module.head_dim == 0:
        return {**found, "num_heads": of_all_heads // module.head_dim, "head_dim": module.head_dim}
    return {**found, "head_dim": of_all_heads // module.num_heads}


def _encoder(module: Any, shapes: _Shapes) -> Values:
    # Ragged batches are for torch's fused path alone.
    layers = [inner for inner in module.modules() if isinstance(inner, nn.MultiheadAttention)]
    any_loses_heads = any("__class__" in _attention(layer, shapes) for layer in layers)
    return {"use_nested_tensor": False} if any_loses_heads else {}


def _recurrent(module: Any, shapes: _Shapes) -> Values:
    first = shapes.of(module, "weight_ih_l0")
    hidden = shapes.of(module, "weight_hh_l0")
    if not first or not hidden:
        return {}
    gates = {"LSTM": 4, "GRU": 3}.get(module.mode, 1)
    found = {"input_size": first[1], "hidden_size": first[0] // gates}
    if module.proj_size:
        found["proj_size"] = hidden[1]
    return found


def _recurrent_cell(module: Any, shapes: _Shapes) -> Values:
    first = shapes.of(module, "weight_ih")
    hidden = shapes.of(module, "weight_hh")
    if not first or not hidden:
        return {}
    return {"input_size": first[1], "hidden_size": hidden[1]}


Describe = Callable[[Any, _Shapes], Values]

# Kind of module -> what reads its integers off the shapes of its tensors.
BY_TYPE: tuple[tuple[type | tuple[type, ...], Describe], ...] = (
    (nn.modules.conv._ConvNd, _conv),
    (nn.Linear, _widths(in_features=1, out_features=0)),
    (nn.Bilinear, _widths(out_features=0, in1_features=1, in2_features=2)),
    (nn.modules.batchnorm._NormBase, _widths(num_features=0)),
    (nn.GroupNorm, _group_norm),
    ((nn.LayerNorm, nn.RMSNorm), _layer_norm),
    ((nn.Embedding, nn.EmbeddingBag), _widths(num_embeddings=0, embedding_dim=1)),
    (nn.PReLU, _widths(num_parameters=0)),
    (nn.MultiheadAttention, _attention),
    (nn.TransformerEncoder, _encoder),
    (nn.RNNBase, _recurrent),
    (nn.modules.rnn.RNNCellBase, _recurrent_cell),
)


def widths_of(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Returns attribute -> dimensions of the module's weight that it names, for torch's own layers."""
    if isinstance(module, nn.Linear):
        return {"out_features": (0,), "in_features": (1,)}
    if isinstance(module, nn.modules.conv._ConvNd) and module.groups == 1:
        leaves = 1 if module.transposed else 0
        return {"out_channels": (leaves,), "in_channels": (1 - leaves,)}
    if isinstance(module, nn.modules.batchnorm._NormBase):
        return {"num_features": (0,)}
    if isinstance(module, nn.GroupNorm):
        return {"num_channels": (0,)}
    if isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        return {"normalized_shape": tuple(range(len(module.normalized_shape)))}
    if isinstance(module, nn.Embedding):
        return {"num_embeddings": (0,), "embedding_dim": (1,)}
    return {}


def module_integers(
    model: nn.Module, shapes: dict[int, Shape], grouped: Collection[nn.Module] = (), *, by_heads: bool = False
) -> list[Attribute]:
    """Returns (module, attribute, value) of what torch's own modules must say once tensors have new shapes.

    Args:
        model: the network as it is.
        shapes: id of a parameter or buffer -> the shape it will have; those missing keep theirs.
        grouped: convolutions that keep their number of groups even where each has a single input channel left.
        by_heads: attention has lost heads, not width of each.
    """
    table = _Shapes(shapes, grouped, by_heads=by_heads)
    found: list[Attribute] = []
    for module in model.modules():
        describe = next((describe for kind, describe in BY_TYPE if isinstance(module, kind)), None)
        if describe is None:
            continue
        for name, value in describe(module, table).items():
            if getattr(module, name, None) != value:
                found.append((module, name, value))
    return found


def pack_recurrent(model: nn.Module) -> None:
    """Lets recurrent layers lay out their weights in one block again (they keep references to them)."""
    for module in model.modules():
        if isinstance(module, nn.RNNBase):
            module.flatten_parameters()
