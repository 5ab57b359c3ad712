"""Looks at a network that leave its modes, attributes and random state as they were."""

from __future__ import annotations

import gc
import random
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from pruning.modules.calls import call, check_network, device_of, mapped
from pruning.modules.snapshot import Snapshot, values_kept


@contextmanager
def undisturbed(model: nn.Module, inputs: Any = ()) -> Iterator[Snapshot]:
    """Eval mode without gradients, in plain operations; everything but values of tensors comes back at the end.

    Args:
        model: what runs meanwhile; all that it holds comes back, and random states.
        inputs: what it is called with, which may hold objects that a run changes (a cache).
    """
    with ExitStack() as stack:
        snapshot = stack.enter_context(all_kept(model, inputs))
        stack.enter_context(eval_mode(model))
        stack.enter_context(torch.no_grad())
        stack.enter_context(plain_attention())
        stack.enter_context(plain_recurrence(model))
        stack.enter_context(same_random_state(device_of(model)))
        if device_of(model).type == "meta":
            stack.enter_context(_AnyExpert())
        yield snapshot


class _AnyExpert(TorchDispatchMode):
    """Lets experts run without data in any type: torch knows the shape of their product in bfloat16 alone.

    Of (rows, k) by (groups, k, m) any one group's matrix gives the same shape, at the same cost.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if str(func) == "aten._grouped_mm.default" and args[0].dim() == 2 and args[1].dim() == 3:
            return torch.mm(args[0], args[1][0])
        return func(*args, **(kwargs or {}))


@contextmanager
def all_kept(*roots: Any) -> Iterator[Snapshot]:
    """Puts what can be reached from some objects back at the end, and the random states of Python and NumPy.

    Values of tensors are not looked after; see `values_kept`.
    """
    python, default = random.getstate(), torch.get_default_dtype()
    numpy = np.random.get_state()  # noqa: NPY002 - the legacy generator is what users call
    snapshot = Snapshot(roots)
    try:
        yield snapshot
    finally:
        snapshot.restore()
        torch.set_default_dtype(default)
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


def look(model: nn.Module, inputs: Any) -> Any:
    """Calls the model once on its own device, in eval mode, without gradients and without a trace in it."""
    check_network(model)
    device = device_of(model)
    inputs = mapped(inputs, lambda tensor: tensor.to(device))
    with undisturbed(model, inputs) as snapshot, values_kept(snapshot.tensors):
        return call(model, inputs)


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode that leaves every module's own mode as it was."""
    training_before = {module: module.training for module in model.modules()}
    # What was exported refuses to change its mode.
    with suppress(NotImplementedError):
        model.eval()
    try:
        yield
    finally:
        # `model.train()` would put all of them into one mode; users freeze norms on their own.
        for module, training in training_before.items():
            module.training = training


@contextmanager
def readers_of_mode() -> Iterator[set[nn.Module]]:
    """Yields a set that fills with the modules whose code asks for its mode, `self.training`."""
    readers: set[nn.Module] = set()

    def read(module: nn.Module) -> bool:
        if "training" not in vars(module):
            raise AttributeError(f"{type(module).__name__} has no attribute 'training'")
        readers.add(module)
        return bool(vars(module)["training"])

    def write(module: nn.Module, training: bool) -> None:
        vars(module)["training"] = training

    before = vars(nn.Module).get("training")
    # A property of the class comes before what the module itself holds.
    nn.Module.training = property(read, write)  # type: ignore[assignment]
    try:
        yield readers
    finally:
        if before is None:
            del nn.Module.training
        else:
            nn.Module.training = before


# What training mode changes beside the loss: statistics that are updated, numbers that are drawn.
_STAY_IN_EVAL = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd, nn.RNNBase, nn.MultiheadAttention)


@contextmanager
def loss_mode(model: nn.Module, loss: Any) -> Iterator[None]:
    """Lets a model in eval mode give the loss that it gives in training mode only, if `loss` says that it does so."""
    needs_training = getattr(loss, "needs_training", None)
    if not needs_training or not needs_training(model):
        yield
        return
    training_before = {module: module.training for module in model.modules()}
    for module in training_before:
        module.training = not isinstance(module, _STAY_IN_EVAL)
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


@contextmanager
def plain_attention() -> Iterator[None]:
    """Keeps attention in plain matrix products: fused kernels hide their products, and their layers, from view."""
    fast_path_before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path_before)


@contextmanager
def plain_recurrence(model: nn.Module) -> Iterator[None]:
    """Keeps LSTM and GRU in plain matrix products: fused kernels hide them, and cuDNN has no gradient in eval mode."""
    is_recurrent = any(isinstance(module, nn.RNNBase) for module in model.modules())
    with ExitStack() as stack:
        if is_recurrent:
            stack.enter_context(warnings.catch_warnings())
            # Setting oneDNN's flags warns about settings of other vendors' devices.
            warnings.simplefilter("ignore", UserWarning)
            stack.enter_context(torch.backends.mkldnn.flags(enabled=False))
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        yield


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Puts the garbage collector off: it would walk through everything again and again while small objects pile up."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
