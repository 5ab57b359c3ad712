"""Layers of low rank: a Linear or Conv2d becomes two smaller real layers, one after the other.

The weight, as a matrix of outputs by (input channel, kernel entry), is cut into `subspaces` blocks of equally many
input channels; each is replaced by a product of rank `rank`. The encoder, a convolution with as many groups as there
are subspaces, has the kernel, stride, padding and dilation; the decoder, 1 x 1, adds the blocks up and has the bias.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Mapping, MutableMapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.nn.utils import skip_init

from pruning.errors import UsageError

Layer = nn.Linear | nn.Conv2d


class Factors(NamedTuple):
    """What a layer is replaced by.

    Args:
        encoder: (subspaces, rank, input channels / subspaces * kernel entries).
        decoder: (outputs, subspaces * rank).
        bias: (outputs,), None for the layer's own.
    """

    encoder: Tensor
    decoder: Tensor
    bias: Tensor | None = None


class LowRank(nn.Module):
    """Two layers in the place of one; the weights are not initialised.

    Args:
        layer: the dense layer whose place they take.
        rank: of each subspace.
        subspaces: how many blocks of input channels have factors of their own.
        bias: whether the decoder has a bias.
    """

    def __init__(self, layer: Layer, rank: int, subspaces: int = 1, *, bias: bool = False) -> None:
        super().__init__()
        width, kind = rank * subspaces, _kind(layer)
        # `skip_init` draws no initial values: the run's random numbers go on as if nothing had been made.
        if isinstance(layer, nn.Conv2d):
            geometry = _geometry(layer)
            inputs, outputs = layer.in_channels, layer.out_channels
            self.encoder = skip_init(nn.Conv2d, inputs, width, groups=subspaces, bias=False, **geometry, **kind)
            self.decoder = skip_init(nn.Conv2d, width, outputs, 1, bias=bias, **kind)
            return
        inputs, outputs = layer.in_features, layer.out_features
        if subspaces == 1:
            self.encoder = skip_init(nn.Linear, inputs, width, bias=False, **kind)
        else:
            self.encoder = skip_init(nn.Conv1d, inputs, width, 1, groups=subspaces, bias=False, **kind)
        self.decoder = skip_init(nn.Linear, width, outputs, bias=bias, **kind)

    def forward(self, inputs: Tensor) -> Tensor:
        if isinstance(self.encoder, nn.Conv1d):  # torch has no Linear with groups: a convolution over one position
            narrow = self.encoder(inputs.reshape(-1, inputs.shape[-1], 1))
            return self.decoder(narrow.reshape(*inputs.shape[:-1], narrow.shape[1]))
        return self.decoder(self.encoder(inputs))

    @property
    def weight(self) -> Tensor:
        """The product of both, for code that reads it beside calling the layer, as torch's fused transformer does."""
        product = self._product(self.encoder.weight, self.decoder.weight)
        kernel = self.encoder.kernel_size if isinstance(self.encoder, nn.Conv2d) else ()
        return product.reshape(len(product), -1, *kernel)

    @property
    def bias(self) -> Tensor | None:
        """The decoder's."""
        return self.decoder.bias

    @property
    def subspaces(self) -> int:
        """How many blocks of input channels have factors of their own."""
        return int(getattr(self.encoder, "groups", 1))

    @property
    def rank(self) -> int:
        """The rank of each subspace."""
        return self.encoder.weight.shape[0] // self.subspaces

    def get_extra_state(self) -> Tensor:
        """The one number that the shapes in a state dict do not say."""
        return torch.tensor(self.subspaces)

    def set_extra_state(self, state: Tensor) -> None:
        if not isinstance(self.encoder, nn.Linear):
            self.encoder.groups = int(state)
            self.encoder.in_channels = self.encoder.weight.shape[1] * int(state)

    @torch.no_grad()
    def merged(self) -> Layer:
        """Returns the dense layer that computes the same; it has the same bias, the parameter itself."""
        encoder, decoder, kind = self.encoder, self.decoder, _kind(self.encoder)
        layer: Layer
        if isinstance(encoder, nn.Conv2d):
            inputs, outputs = encoder.in_channels, decoder.out_channels
            layer = skip_init(nn.Conv2d, inputs, outputs, bias=False, **_geometry(encoder), **kind)
        else:
            inputs = encoder.in_channels if isinstance(encoder, nn.Conv1d) else encoder.in_features
            layer = skip_init(nn.Linear, inputs, decoder.out_features, bias=False, **kind)
        product = self._product(precise(encoder.weight), precise(decoder.weight))
        layer.weight.copy_(product.reshape(layer.weight.shape))
        layer.weight.requires_grad_(encoder.weight.requires_grad)
        layer.bias = decoder.bias
        return layer

    def _product(self, encoder: Tensor, decoder: Tensor) -> Tensor:
        """Returns (outputs, input channels * kernel entries) of the two weights."""
        outputs = len(decoder)
        narrow = encoder.reshape(self.subspaces, self.rank, -1)
        wide = decoder.reshape(outputs, self.subspaces, self.rank).transpose(0, 1)
        blocks = wide @ narrow  # (subspaces, outputs, input channels / subspaces * kernel entries)
        return blocks.transpose(0, 1).flatten(1)


def _kind(layer: nn.Module) -> dict[str, Any]:
    return {"device": layer.weight.device, "dtype": layer.weight.dtype}


def _geometry(layer: nn.Conv2d) -> dict[str, Any]:
    names = ("kernel_size", "stride", "padding", "dilation", "padding_mode")
    return {name: getattr(layer, name) for name in names}


def precise(values: Tensor) -> Tensor:
    """Returns values in double precision, on the CPU where the device has none."""
    values = values.detach()
    if values.device.type == "mps":
        values = values.cpu()
    return values.double()


def dense_of(layer: nn.Module) -> Layer:
    """Returns a layer as one dense layer, merged if it was decomposed before."""
    merged = layer.merged() if isinstance(layer, LowRank) else layer
    assert isinstance(merged, (nn.Linear, nn.Conv2d))
    return merged


def blocks_of(layer: Layer, subspaces: int = 1) -> Tensor:
    """Returns (subspaces, outputs, input channels / subspaces * kernel entries) the weight in double precision."""
    weight = precise(layer.weight)
    return weight.reshape(len(weight), subspaces, -1).transpose(0, 1)


def singular_values(blocks: Tensor) -> Tensor:
    """Returns (subspaces, ranks) the singular values of (subspaces, rows, columns), largest first.

    By the eigenvalues of the smaller square, many times faster: what is under 1e-8 of the largest value is noise.
    """
    _, rows, columns = blocks.shape
    square = blocks @ blocks.mT if rows <= columns else blocks.mT @ blocks
    squares = torch.linalg.eigvalsh(square).flip(1)  # they come smallest first
    return squares.clamp_min(0).sqrt()


def truncated(layer: Layer, rank: int, subspaces: int = 1) -> Factors:
    """Returns the factors nearest to a layer's blocks (Eckart and Young), each with half of the singular values."""
    blocks = blocks_of(layer, subspaces)
    _, rows, columns = blocks.shape
    is_tall = rows > columns
    if is_tall:  # the smaller square is that of the columns
        blocks = blocks.mT
    squares, vectors = torch.linalg.eigh(blocks @ blocks.mT)
    # They come smallest first.
    vectors = vectors.flip(2)[:, :, :rank]
    squares = squares.flip(1)[:, None, :rank]
    # The product is a projection of the blocks, exact whatever becomes of the smallest values here.
    roots = squares.clamp_min(1e-30).sqrt().sqrt()
    left = vectors * roots
    right = (vectors / roots).mT @ blocks
    if is_tall:
        left, right = right.mT, left.mT
    return Factors(encoder=right, decoder=left.transpose(0, 1).flatten(1))


@torch.no_grad()
def factored(layer: Layer, factors: Factors) -> LowRank:
    """Returns two layers with these factors in the place of a dense one, whose bias parameter they take over."""
    subspaces, rank, _ = factors.encoder.shape
    is_trained = layer.weight.requires_grad
    pair = LowRank(layer, rank, subspaces)
    for part, values in ((pair.encoder, factors.encoder), (pair.decoder, factors.decoder)):
        part.weight.copy_(values.reshape(part.weight.shape))
        part.weight.requires_grad_(is_trained)
    pair.decoder.bias = layer.bias
    if factors.bias is not None:
        if layer.bias is None:
            empty = layer.weight.new_empty(len(layer.weight))
            pair.decoder.bias = Parameter(empty, requires_grad=is_trained)
        pair.decoder.bias.copy_(factors.bias)
    return pair.train(layer.training)


# -- in a network ------------------------------------------------------------------------------------------------------


def substitute(model: nn.Module, changes: Mapping[nn.Module, nn.Module]) -> None:
    """Puts modules in the place of others, under every name that they have."""
    for module in list(model.modules()):
        for name, child in module._modules.items():
            if child is not None and child in changes:
                module._modules[name] = changes[child]


def replace_layers(
    model: nn.Module,
    pairs: Mapping[str, LowRank],
    optimizers: Iterable[torch.optim.Optimizer] = (),
    cut_along: Iterable[Any] = (),
) -> None:
    """Puts decomposed layers into a network, and their parameters into the optimizers, in the network's own order.

    Args:
        model: the network.
        pairs: module path -> what takes its place.
        optimizers: go on with the new parameters, of which they remember nothing yet; biases keep their memory.
        cut_along: dicts of tensors by parameter name; what they hold of replaced weights is dropped.
    """
    layers = {path: model.get_submodule(path) for path in pairs}
    if not all(isinstance(companion, MutableMapping) for companion in cut_along):
        raise UsageError("Only dicts of tensors by parameter name can be kept for a network that is decomposed.")
    for path, pair in pairs.items():
        before, after = list(layers[path].parameters()), list(pair.parameters())
        stays = {id(parameter) for parameter in before} & {id(parameter) for parameter in after}  # the bias
        old = [parameter for parameter in before if id(parameter) not in stays]
        new = [parameter for parameter in after if id(parameter) not in stays]
        for optimizer in optimizers:
            _exchange(optimizer, old, new)
        for companion in cut_along:
            replaced = [name for name in companion if name.startswith(f"{path}.")]
            for name in replaced:
                del companion[name]
    substitute(model, {layers[path]: pair for path, pair in pairs.items()})


def _exchange(optimizer: torch.optim.Optimizer, old: list[Parameter], new: list[Parameter]) -> None:
    """Lets an optimizer move other parameters, which take the place of the first of the old ones."""
    for group in optimizer.param_groups:
        ids = [id(parameter) for parameter in group["params"]]
        places = [ids.index(id(parameter)) for parameter in old if id(parameter) in ids]
        if not places:
            continue
        group["params"][places[0] : places[-1] + 1] = new
        has_momentum = any("momentum_buffer" in state for state in optimizer.state.values())
        if has_momentum and isinstance(optimizer, torch.optim.SGD):
            # A fused update wants a memory of every parameter or of none; zeros are what it starts with.
            for parameter in new:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    for parameter in old:
        optimizer.state.pop(parameter, None)


def decompose_like(
    model: nn.Module, state: Mapping[str, Any], kept_indices: Mapping[str, Mapping[int, Tensor]] | None = None
) -> dict[nn.Module, nn.Module]:
    """Gives a dense network the decomposed layers of a state dict; shapes and values are left to the loading.

    Args:
        model: a freshly built network of the same class.
        state: the state dict.
        kept_indices: what the saved network said of cuts made since (`pruning.graph.history`): it knows ranks from
            before them.

    Returns:
        {new module: the one that it replaced}, with which `substitute` undoes it.

    Raises:
        UsageError: if the factors do not fit the layer; nothing is changed then.
    """
    modules = dict(model.named_modules())
    changes: dict[nn.Module, nn.Module] = {}
    for name, encoder in state.items():
        path = name.removesuffix(".encoder.weight")
        layer = modules.get(path) if path != name else None
        subspaces, decoder = state.get(f"{path}._extra_state"), state.get(f"{path}.decoder.weight")
        if not (isinstance(layer, Layer) and isinstance(subspaces, Tensor) and isinstance(decoder, Tensor)):
            continue
        cuts = kept_indices.get(name, {}) if kept_indices else {}
        rows = len(cuts[0]) if 0 in cuts else len(encoder)
        bias, single = f"{path}.decoder.bias" in state, encoder.shape[1] == 1
        changes[layer] = _pair_like(path, layer, rows, int(subspaces), bias, single=single)
    substitute(model, changes)
    return {new: old for old, new in changes.items()}


def _pair_like(path: str, layer: Layer, rows: int, subspaces: int, bias: bool, *, single: bool) -> LowRank:
    """Returns the pair of layers that a state dict speaks of.

    Args:
        path: of the layer.
        layer: the dense one.
        rows: of the encoder, of all subspaces together.
        subspaces: how many.
        bias: whether the decoder has one.
        single: each subspace reads one channel.
    """
    columns = layer.weight.shape[1]
    if subspaces < 1 or rows % subspaces or subspaces > columns:
        raise UsageError(f"{path}: {rows} rows in {subspaces} subspaces do not fit {type(layer).__name__}.")
    if columns % subspaces and single:
        # One channel each: a channel that was removed later took its subspace along.
        return LowRank(layer, rows // subspaces, columns, bias=bias)
    if columns % subspaces:
        # Channels were gone before the layer was decomposed.
        layer = copy.copy(layer)
        width = "in_channels" if isinstance(layer, nn.Conv2d) else "in_features"
        setattr(layer, width, columns // subspaces * subspaces)
    return LowRank(layer, rows // subspaces, subspaces, bias=bias)


def undivided(sizes: Mapping[str, int], dense: Collection[str]) -> dict[str, int]:
    """Returns counts of weights with those of the two parts of a decomposed layer added up.

    Args:
        sizes: counts by name.
        dense: names before anything was decomposed.
    """
    found: dict[str, int] = {}
    for name, size in sizes.items():
        layer_name = name
        for part in (".encoder.weight", ".decoder.weight"):
            whole = f"{name.removesuffix(part)}.weight"
            if name.endswith(part) and whole in dense:
                layer_name = whole
        found[layer_name] = found.get(layer_name, 0) + size
    return found
