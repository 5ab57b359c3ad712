"""Looks at a network that leave its modes, attributes and random state as they were."""

from __future__ import annotations

import contextlib
import gc
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from pruning.modules.calls import call, device_of, mapped


@contextmanager
def quiet_eval(model: nn.Module) -> Iterator[None]:
    """Eval mode for a look at the model that leaves every module's own mode as it was."""
    training_before = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in training_before.items():
            module.training = training


@contextmanager
def same_random_state(device: torch.device) -> Iterator[None]:
    """Puts the global random state back at the end: networks that draw numbers must not change what comes after."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield


def look(model: nn.Module, inputs: Any) -> Any:
    """Calls the model once in eval mode on its own device, without gradients and without a trace."""
    device = device_of(model)
    with quiet_eval(model), torch.no_grad(), same_random_state(device), plain_attention(), plain_recurrence(model):
        return call(model, mapped(inputs, lambda tensor: tensor.to(device)))


@contextmanager
def plain_attention() -> Iterator[None]:
    """Keeps attention in plain matrix products: fused kernels hide their products, and their layers, from view."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def plain_recurrence(model: nn.Module) -> Iterator[None]:
    """Keeps LSTM and GRU in plain matrix products: fused kernels hide them, and cuDNN has no gradient in eval mode."""
    with ExitStack() as stack:
        if any(isinstance(module, nn.RNNBase) for module in model.modules()):
            stack.enter_context(warnings.catch_warnings())
            # Setting oneDNN's flags warns about settings of other vendors' devices.
            warnings.simplefilter("ignore", UserWarning)
            stack.enter_context(torch.backends.mkldnn.flags(enabled=False))
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        yield


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Puts the garbage collector off: it would walk through everything again and again while small objects pile up."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextlib.contextmanager
def still(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradients, in plain operations; modes, attributes and random state come back at the end."""
    kept = [(module, dict(vars(module))) for module in model.modules()]
    plain = (plain_attention(), plain_recurrence(model), same_random_state(device_of(model)))
    with contextlib.ExitStack() as stack:
        for context in (quiet_eval(model), torch.no_grad(), *plain):
            stack.enter_context(context)
        try:
            yield
        finally:  # tensors that the network keeps of a run
            for module, attributes in kept:
                vars(module).clear()
                vars(module).update(attributes)
