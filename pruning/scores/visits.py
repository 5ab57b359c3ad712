"""A pass over data that hands on every product by a ranked weight, and says which weights it cannot follow."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pruning.errors import UsageError
from pruning.modules.calls import Batches, call, device_of
from pruning.modules.modes import eval_mode, plain_attention, plain_recurrence, same_random_state
from pruning.modules.products import FACTORS, Product, Products
from pruning.modules.sources import Source
from pruning.scores.gradients import on_device
from pruning.scores.layer import Layer, Place
from pruning.state import PrunableState

aten = torch.ops.aten

PRODUCT = "a part of a product or a sum of parameters"

Take = Callable[[str, Layer], None]
Orient = Callable[[Tensor], Tensor]


class Part(NamedTuple):
    """A use of one matrix.

    Args:
        inputs: (points, entries); of a convolution as it is given.
        matrix: (outputs, entries); of a convolution as it multiplies.
        orient: makes the matrix of the product's factor, whatever stands in its entries.
        how: of a convolution, see `Layer`.
    """

    inputs: Tensor
    matrix: Tensor
    orient: Orient
    how: list[Any] | None = None


@torch.no_grad()
def visit_layers(network: PrunableState, batches: Batches, take: Take) -> dict[str, str]:
    """Runs the network over the batches and hands on each product by a ranked weight, in eval mode.

    It watches operations, not modules, so attention that reads a layer's weight without calling it is seen too.

    Returns:
        The weights whose products could not be followed, and why; a criterion that cannot do without enters them in
        `network.unscored`.
    """
    model = network.model
    watch = _Watch(network, take)
    parameters = dict(model.named_parameters())
    products = Products(parameters, model.buffers(), network.names_of_layers(), watch.see)
    with eval_mode(model), same_random_state(device_of(model)), plain_attention(), plain_recurrence(model), _exact():
        for inputs, _ in on_device(batches, model):
            with products:
                call(model, inputs)
    for name in watch.indirect - watch.direct:
        watch.unscored.setdefault(name, PRODUCT)
    return watch.unscored


@contextmanager
def _exact() -> Iterator[None]:
    """Full single precision: tensor cores would round what is only to be copied."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


class _Watch:
    """Hands on the inputs of every product by a ranked weight.

    Args:
        network: its ranked weights are watched.
        take: gets the weight's name and the use.
    """

    def __init__(self, network: PrunableState, take: Take) -> None:
        self.take = take
        self.weights = dict(network.weights())
        self.of_layers = network.names_of_layers()
        self.unscored: dict[str, str] = {}
        self.indirect: set[str] = set()  # weights that met other parameters or constants
        self.direct: set[str] = set()  # weights that were handed on

    def see(self, product: Product) -> None:
        """Takes a product apart into uses of a matrix."""
        name = product.name
        if name not in self.weights:
            return
        if product.meets != "inputs":
            self.indirect.add(name)
            return
        weight = self.weights[name]
        source = product.source
        if source.view is None or not source.zeros_stay:
            if source.zeros_stay or name not in self.of_layers:
                self.unscored[name] = PRODUCT
                return
            # A layer's own weight, standardised: entry by entry it is where it was.
            self._of_same_shape(product, weight)
            return
        found = False
        for part in _parts(product):
            place = None if _is_whole(source, part.orient, weight) else Place(weight, source, part.orient)
            self._hand_on(name, part, place)
            found = True
        if not found:
            self.unscored[name] = f"it multiplies as an input does ({product.operation})"

    def _of_same_shape(self, product: Product, weight: Tensor) -> None:
        for part in _parts(product):
            if part.matrix.shape == weight.shape:
                self._hand_on(product.name, part, None)
            else:
                self.unscored[product.name] = "its entries multiply in other places than they are kept in"

    def _hand_on(self, name: str, part: Part, place: Place | None) -> None:
        if not part.inputs.numel():  # an expert may get no token
            return
        if not bool(torch.isfinite(part.inputs).all()):
            raise UsageError(f"The activations that reach layer {name!r} are not finite (NaN or infinite).")
        self.direct.add(name)
        self.take(name, Layer(part.inputs, part.matrix, part.how, place))


def _is_whole(source: Source, orient: Orient, weight: Tensor) -> bool:
    """Says whether a matrix is the parameter as it stands, entry by entry."""
    if source.view is None or source.steps:
        return False
    shape, strides, offset = source.view
    matrix = orient(torch.empty_strided(shape, strides, device="meta"))
    is_first = int(offset + matrix.storage_offset()) == 0
    return is_first and matrix.shape == weight.shape and matrix.stride() == weight.stride()


def _parts(product: Product) -> Iterator[Part]:
    """Takes a product apart into uses of matrices; none where the factor is the input of a layer."""
    operation = product.operation
    left, right = FACTORS[operation][:2]
    if operation == "convolution":
        yield Part(product.args[0], product.factor, _as_it_is, list(product.args[3:9]))
    elif operation == "_trilinear" and product.place == right:
        yield from _bilinear(product)
    elif operation == "deform_conv2d":
        yield from _deformed(product)
    elif operation in ("_grouped_mm", "grouped_mm_fallback"):
        is_experts = product.place == right and product.factor.dim() == 3
        yield from _grouped(product) if is_experts else ()
    elif operation != "_trilinear":
        yield from _matrices(product)


def _matrices(product: Product) -> Iterator[Part]:
    """Parts of products of matrices and vectors, one by one or in batches."""
    left, right = FACTORS[product.operation]
    is_left = product.place == left
    factor, other = product.factor, product.args[right if is_left else left]
    inputs = other.mT if is_left and other.dim() > 1 else other
    if factor.dim() == 1:
        orient: Orient = _as_row
    elif factor.dim() == 2:
        orient = _as_it_is if is_left else _transposed
    elif factor.stride(0) == 0 or len(factor) == 1:  # the same matrix for each of the batch
        orient = partial(_one_of, number=0, is_transposed=not is_left)
    else:
        for number, own_inputs in enumerate(inputs):
            own = partial(_one_of, number=number, is_transposed=not is_left)
            yield Part(own_inputs, own(factor), own)
        return
    matrix = orient(factor)
    yield Part(inputs.reshape(-1, matrix.shape[1]), matrix, orient)


def _grouped(product: Product) -> Iterator[Part]:
    """Each expert's rows by the expert's matrix (inputs, outputs)."""
    inputs, offsets = product.args[0], product.done.kwargs.get("offs")
    if offsets is None and len(product.args) > 2:
        offsets = product.args[2]
    if offsets is None:
        own_inputs = list(inputs)
    else:
        ends = offsets.tolist()
        own_inputs = [inputs[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    for number, rows in enumerate(own_inputs):
        own = partial(_one_of, number=number, is_transposed=True)
        yield Part(rows, own(product.factor), own)


def _bilinear(product: Product) -> Iterator[Part]:
    """A bilinear layer is a linear one that is given the products of each two inputs."""
    one, _, other = product.args[:3]
    products = one.unsqueeze(-1) * other.unsqueeze(-2)
    matrix = product.factor.flatten(1)
    yield Part(products.reshape(-1, matrix.shape[1]), matrix, _rows)


def _deformed(product: Product) -> Iterator[Part]:
    """A deformable convolution is a linear layer that is given what each tap meets, group by group."""
    x, weight, offset, mask, _, *how = product.args
    groups = how[6]
    entries = weight[0].numel()
    # Taps one by one: a convolution by unit kernels copies, wherever the offsets point to.
    units = torch.eye(entries, dtype=x.dtype, device=x.device).view(entries, *weight.shape[1:])
    no_bias = x.new_zeros(groups * entries)
    met = product.done.func(x, units.repeat(groups, 1, 1, 1), offset, mask, no_bias, *how)
    taps = met.flatten(2).unflatten(1, (groups, entries))  # (samples, groups, entries, positions)
    count = len(weight) // groups
    for group in range(groups):
        own = partial(_rows, first=group * count, count=count)
        inputs = taps[:, group].transpose(1, 2)
        yield Part(inputs.reshape(-1, entries), own(weight), own)


# -- from a factor to a matrix of outputs by entries -----------------------------------------------------------------


def _as_it_is(factor: Tensor) -> Tensor:
    return factor


def _as_row(factor: Tensor) -> Tensor:
    return factor[None]


def _transposed(factor: Tensor) -> Tensor:
    return factor.mT


def _one_of(factor: Tensor, *, number: int, is_transposed: bool) -> Tensor:
    return factor[number].mT if is_transposed else factor[number]


def _rows(factor: Tensor, *, first: int = 0, count: int | None = None) -> Tensor:
    end = None if count is None else first + count
    return factor[first:end].flatten(1)
