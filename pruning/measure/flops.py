"""Counts that every report uses: FLOPs (2 per multiply-add), bytes, and the state a count must not disturb."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from pruning.modules.calls import tensors_in
from pruning.modules.modes import look


def flops_by_module(model: nn.Module, example_inputs: Any) -> dict[str, int]:
    """Returns forward FLOPs per module path ("" for the whole model) for the example as it is, all samples in it.

    Convolutions and matrix products count, 2 FLOPs per multiply-add; norms, activations and poolings do not.
    """
    counter = FlopCounterMode(display=False)
    with counter:
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
            that share a weight, and attention that reads the weight of a layer it never calls, are counted too.
        owners: name -> module path, for weights that are computed from the one named (weight norm).
    """
    counter, reads = FlopCounterMode(display=False), _Reads(weights)
    # The counter goes on top, so that it has decomposed operations before `reads` sees them.
    with reads, counter:
        look(model, example_inputs)
    by_path = _by_path(model, counter)
    found = {name: reads.flops[name] or by_path.get(owners[name], 0) for name in weights}
    return by_path[""], found


class _Reads(TorchDispatchMode):
    """Adds up the FLOPs of operations per weight that they read."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        # Views (a transposed weight) share the storage.
        self.names = {weight.untyped_storage()._cdata: name for name, weight in weights.items()}
        self.flops: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = flop_registry.get(getattr(func, "_overloadpacket", None))
        if formula is not None:
            storages = {tensor.untyped_storage()._cdata for tensor in tensors_in(args)}
            for name in {self.names[storage] for storage in storages if storage in self.names}:
                self.flops[name] += formula(*args, **(kwargs or {}), out_val=out)
        return out


def _by_path(model: nn.Module, counter: FlopCounterMode) -> dict[str, int]:
    root = type(model).__name__
    counts = {"": counter.get_total_flops()}
    for path, by_operation in counter.get_flop_counts().items():
        if path.startswith(root + "."):
            counts[path[len(root) + 1 :]] = sum(by_operation.values())
    return counts


def parameter_bytes(model: nn.Module) -> int:
    """Returns the bytes of all parameters as stored, masked weights included."""
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
