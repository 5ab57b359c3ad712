"""The network as training began with it, for trainers that take a copy of it (distillation)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from pruning import PrunableNetwork, UsageError
from pruning.cut.tensors import replace
from pruning.modules.snapshot import Snapshot
from utils.runs.run_folder import RunFolder
from utils.runs.saving import checkpoint_of, load_start
from utils.settings.core import Core


@contextmanager
def started_from(
    network: PrunableNetwork, core: Core, stopped: RunFolder | None, warn: Callable[[str], None]
) -> Iterator[None]:
    """Loads what training starts from; a stopped run's network is fresh again at the end, to go on from a checkpoint.

    A trainer that is made meanwhile finds the network that the trainer of the undisturbed run found.

    Args:
        network: fresh from its constructor.
        core: says what is loaded.
        stopped: the folder of the run to go on with, if any.
        warn: told if a stopped run started from a file that is gone.
    """
    goes_on = stopped is not None and checkpoint_of(stopped, core.model).exists()
    starts_fresh = not (core.checkpoint_name or core.weights)
    if not goes_on or starts_fresh:
        load_start(network, core)
        yield
        return
    with _fresh_again(network):
        try:
            load_start(network, core)
        except UsageError as error:
            warn(f"What this run started from cannot be read any more, so its trainer finds a fresh network: {error}")
        yield


@contextmanager
def _fresh_again(network: PrunableNetwork) -> Iterator[None]:
    """Puts back what loading a file changes: layers, shapes, values, masks and counts."""
    model, handle, masks = network.model, dict(vars(network)), dict(network.masks.keep)
    snapshot = Snapshot([model])
    values = {tensor: tensor.detach().clone() for tensor in _tensors(model)}

    def put_back() -> None:
        was_cut = [tensor.shape for tensor in _tensors(model)] != [before.shape for before in values.values()]
        snapshot.restore()
        with torch.no_grad():
            for tensor, before in values.items():
                replace(tensor, before)
        vars(network).clear()
        vars(network).update(handle)
        network.masks.keep.clear()
        network.masks.keep.update(masks)
        network.masks.refresh()
        if was_cut:
            network.reshaped()
            # The graph took note of the cut; the checkpoint to come finds one of the whole network again.
            _ = network.graph

    try:
        yield
    finally:
        # Gates hang on the layers that were loaded, and the checkpoint of such a run has their shapes until its end.
        if network.gates is None:
            put_back()


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    return itertools.chain(model.parameters(), model.buffers())
