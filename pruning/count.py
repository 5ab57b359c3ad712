"""Counts that every report uses: FLOPs (2 per multiply-add), bytes, and the state a count must not disturb."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


@contextmanager
def quiet_eval(model: nn.Module) -> Iterator[None]:
    """Eval mode for a look at the model that leaves every module's own mode as it was."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def call(model: nn.Module, inputs: Any) -> Any:
    """Calls the model on a tensor, a tuple of arguments or a dict of keyword arguments."""
    if isinstance(inputs, dict):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, (tuple, list)) else model(inputs)


@contextmanager
def _countable_attention() -> Iterator[None]:
    """Keeps attention in plain matrix products: fused kernels hide their products from the counter."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def flops_by_module(model: nn.Module, example_inputs: Any) -> dict[str, int]:
    """Returns forward FLOPs per module path ("" for the whole model) for the example as it is, all samples in it.

    Convolutions and matrix products count, 2 FLOPs per multiply-add; norms, activations and poolings do not.
    """
    counter = FlopCounterMode(display=False, depth=None)
    with quiet_eval(model), torch.no_grad(), _countable_attention(), counter:
        call(model, example_inputs)
    root = type(model).__name__
    counts = {"": counter.get_total_flops()}
    for path, by_operation in counter.get_flop_counts().items():
        if path.startswith(root + "."):
            counts[path[len(root) + 1 :]] = sum(by_operation.values())
    return counts


def batch_size_of(inputs: Any) -> int:
    """Returns the first dimension of the first tensor found in the example inputs (at least 1)."""
    if isinstance(inputs, Tensor):
        return max(1, inputs.shape[0]) if inputs.dim() else 1
    values = inputs.values() if isinstance(inputs, dict) else inputs
    return next((batch_size_of(value) for value in values if isinstance(value, (Tensor, tuple, list, dict))), 1)


def parameter_bytes(model: nn.Module) -> int:
    """Returns the bytes of all parameters as stored, masked weights included."""
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
