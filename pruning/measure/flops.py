"""FLOPs of a forward pass, 2 per multiply-add, and bytes of parameters."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pruning.modules.calls import check_network
from pruning.modules.modes import look
from pruning.modules.products import Product, Products

if TYPE_CHECKING:
    from torch.utils.flop_counter import FlopCounterMode


def flops_by_module(model: nn.Module, example_inputs: Any) -> dict[str, int]:
    """Returns forward FLOPs per module path ("" for the whole model) for the example as it is, all samples in it.

    Convolutions and matrix products count, 2 FLOPs per multiply-add; norms, activations and poolings do not.
    """
    check_network(model)
    counter = _counter()
    with _without_gradients(model), counter:
        look(model, example_inputs)
    return _by_path(model, counter)


def flops_by_weight(
    model: nn.Module, example_inputs: Any, weights: Mapping[str, Tensor], owners: Mapping[str, str]
) -> tuple[int, dict[str, int]]:
    """Returns forward FLOPs of the whole model and those that multiply by each of the weights.

    Args:
        model: what is counted.
        example_inputs: what it is called with; all samples in it count.
        weights: name -> weight. A product belongs to the weight that it reads, wherever it is called from: layers
            that share a weight, attention that reads the weight of a layer it never calls, and weights that are cast,
            gathered or normed on their way are counted too.
        owners: name -> module path, for weights whose way to their products nobody can follow.
    """
    counter = _counter()
    formulas = _formulas()
    by_weight = Counter(dict.fromkeys(weights, 0))

    def take(product: Product) -> None:
        done = product.done
        formula = formulas.get(getattr(done.func, "_overloadpacket", None))
        if formula is not None and product.name in weights:
            flops = formula(*done.args, **done.kwargs, out_val=done.out)
            by_weight[product.name] += flops // product.sharers

    others = {name: parameter for name, parameter in model.named_parameters() if name not in weights}
    products = Products({**weights, **others}, model.buffers(), weights, take)
    # The counter goes on top, so that it has decomposed operations before products are looked for.
    with _without_gradients(model), products, counter:
        look(model, example_inputs)
    by_path = _by_path(model, counter)
    weights_of = Counter(owners[name] for name in weights)
    for name in weights:
        # Such a layer's products are its only weight's own.
        if not by_weight[name] and weights_of[owners[name]] == 1 and owners[name]:
            by_weight[name] = by_path.get(owners[name], 0)
    return by_path[""], dict(by_weight)


def _counter() -> FlopCounterMode:
    # torch's counter brings Triton along, for half a second; who counts nothing does not wait for it.
    from torch.utils.flop_counter import FlopCounterMode

    return FlopCounterMode(display=False, custom_mapping=_further_formulas())


def _formulas() -> Mapping[Any, Callable[..., int]]:
    """FLOPs per operation: torch's own table, and what it lacks."""
    from torch.utils.flop_counter import flop_registry

    formulas: Mapping[Any, Callable[..., int]] = flop_registry
    return {**formulas, **_further_formulas()}


# -- what torch's table lacks ------------------------------------------------------------------------------------------


def _grouped_mm(rows: Any, matrices: Any, *_: Any, out_val: Any = None, **__: Any) -> int:
    """Each row meets the matrix of its group alone; both are given as tensors.

    (rows, k) @ (groups, k, m), (groups, n, k) @ (k, rows), (groups, n, k) @ (groups, k, m): every value that comes out
    is a sum over k. (n, rows) @ (rows, m) -> (groups, n, m): every row is in one group.
    """
    if rows.dim() == matrices.dim() == 2:
        return int(2 * rows.shape[0] * rows.shape[1] * matrices.shape[1])
    return int(2 * out_val.numel() * rows.shape[-1])


def _deformable(picture: Any, weight: Any, *_: Any, out_val: Any = None, **__: Any) -> int:
    """As any convolution: every output sums over a kernel. What it takes to look between pixels is not counted."""
    per_output = weight.shape[1:].numel()
    return int(2 * out_val.numel() * per_output)


def _trilinear(*given: Any, out_val: Any = None, **__: Any) -> int:
    """What a bilinear layer is made of: each weight meets a product of two inputs, sample by sample."""
    sizes: list[int] = []
    for factor, inserted in zip(given[:3], given[3:6], strict=True):
        own = list(factor.shape)
        for dim in sorted(inserted):
            own.insert(dim, 1)
        sizes = own if not sizes else [max(pair) for pair in zip(sizes, own, strict=True)]
    return 2 * math.prod(sizes)


_trilinear._get_raw = True  # type: ignore[attr-defined]
_grouped_mm._get_raw = _deformable._get_raw = True  # type: ignore[attr-defined]  # torch hands on tensors, not shapes

_FURTHER = (
    ("aten", "_grouped_mm", _grouped_mm),
    ("aten", "_trilinear", _trilinear),
    ("transformers", "grouped_mm_fallback", _grouped_mm),
    ("torchvision", "deform_conv2d", _deformable),
)


def _further_formulas() -> dict[Any, Callable[..., int]]:
    """FLOPs of operations that torch has no formula for, of those that are loaded."""
    found: dict[Any, Callable[..., int]] = {}
    for library, name, formula in _FURTHER:
        packet = getattr(getattr(torch.ops, library), name, None)
        if packet is not None:
            found[packet] = formula
    return found


@contextmanager
def _without_gradients(model: nn.Module) -> Iterator[None]:
    """Lets no parameter ask for a gradient, which the counter of modules would hang a hook on.

    It fails where a module is called with a view of a parameter: relative positions of DeBERTa, queries of DETR.
    """
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad and not is_lazy(parameter)]
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)


def _by_path(model: nn.Module, counter: FlopCounterMode) -> dict[str, int]:
    # The counter names modules from the network's class on: "ResNet.layer1.0.conv1".
    prefix = f"{type(model).__name__}."
    counts = {"": counter.get_total_flops()}
    for path, by_operation in counter.get_flop_counts().items():
        if path.startswith(prefix):
            counts[path.removeprefix(prefix)] = sum(by_operation.values())
    return counts


def parameter_bytes(model: nn.Module) -> int:
    """Returns the bytes of all parameters as stored, masked weights included."""
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
