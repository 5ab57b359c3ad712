"""Networks and training states on disk: written whole or not at all, read without executing anything."""

from __future__ import annotations

import io
import pickle
import random
import warnings
import zipfile
import zlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pruning import PrunableNetwork, UsageError, extras_of, resize_like
from pruning.cut.factorize import Layer, LowRank, decompose_like, undivided
from pruning.cut.load import state_dict_in, unwrapped
from pruning.modules.kinds import WEIGHTED
from utils.files import write_atomic


def save(path: Path, content: Mapping[str, Any]) -> None:
    """Writes tensors and plain values; goes through memory, so that a full disk is one clear error."""
    buffer = io.BytesIO()
    torch.save(dict(content), buffer)
    write_atomic(path, buffer.getbuffer())


def read(path: Path, *, written_here: bool = False) -> Any:
    """Reads a file of tensors and plain values without unpickling anything else.

    Args:
        path: a torch or safetensors file.
        written_here: whether `save` wrote it, so that its checksums hold; torch.load itself does not look at them.

    Raises:
        UsageError: if the file is missing, damaged, or holds code.
    """
    if not path.is_file():
        if path.is_dir():
            raise UsageError(f"{path} is a folder; a file is needed.")
        raise UsageError(f"There is no file {path}.")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if written_here:
        _check_sums(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of foreign pickles, which get a line of their own below
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        what = "is damaged, or holds more than tensors and plain values"
        raise UsageError(f"{path} {what}: it was refused, and nothing in it was executed.") from error
    except KeyError as error:  # of a byte that means nothing to an unpickler; nor does its number to a person
        raise UsageError(f"{path} is damaged or no torch file.") from error
    except (RuntimeError, EOFError, OSError, ValueError, TypeError) as error:
        raise UsageError(f"{path} is damaged or no torch file: {_first_line(error)}.") from error


def _check_sums(path: Path) -> None:
    if not zipfile.is_zipfile(path):  # torch.load says what it thinks of it
        return
    try:
        with zipfile.ZipFile(path) as file:
            damaged = file.testzip()
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError, OverflowError) as error:
        raise UsageError(f"{path} is damaged: {_first_line(error)}.") from error
    if damaged:
        raise UsageError(f"{path} is damaged: the checksum of {damaged} does not hold.")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    import safetensors.torch

    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise UsageError(f"{path} is damaged or no safetensors file: {_first_line(error)}.") from error


def network_state(network: PrunableNetwork) -> dict[str, Any]:
    """Returns what rebuilds the network: values, masks, the widths its modules keep, and what it was pruned from."""
    return {
        "state_dict": network.model.state_dict(),
        "masks": dict(network.masks.keep),
        "extras": extras_of(network.model),
        "start_sizes": dict(network.start_sizes),
        "nodes_total": network.nodes_total(),
        "survivors": network.kept_indices(),
    }


def load_network(network: PrunableNetwork, content: Any, source: Path) -> None:
    """Puts saved values and masks into the network. Accepts `network_state` and bare state dicts.

    Raises:
        UsageError: naming the first tensor that is missing, unknown or of another shape.
    """
    if not isinstance(content, dict):
        raise UsageError(f"{source} holds no state dict.")
    is_bare = state_dict_in(content) is content
    state = unwrapped(content, network.model)
    _take_shapes(network, state, content)
    _check_fits(network.model, state, source)
    network.model.load_state_dict(state)
    _take_masks(network, {} if is_bare else content.get("masks", {}), source)
    if is_bare or "masks" not in content:
        network.adopt_zeros()


def _take_shapes(network: PrunableNetwork, state: Mapping[str, Any], content: Mapping[str, Any]) -> None:
    """Gives the network the file's layers and smaller shapes, if the file's network was pruned from this very one."""
    sizes, survivors = content.get("start_sizes"), content.get("survivors")
    sizes = _with_new_kinds(network, sizes, state)
    if not isinstance(sizes, dict) or undivided(sizes, network.start_sizes) != network.start_sizes:
        return
    if set(sizes) != set(network.start_sizes):
        # Layers were replaced by two of lower rank.
        decompose = partial(_decompose, network.model, state, content)
        network.replace_layers(decompose, sizes, content.get("nodes_total"))
    resize_like(network.model, state, content.get("extras"))
    network.reshaped(survivors)


def _with_new_kinds(network: PrunableNetwork, sizes: Any, state: Mapping[str, Any]) -> Any:
    """Adds the sizes of what did not count as a weight yet when a file was written: attention's, recurrent layers'."""
    if not isinstance(sizes, dict):
        return sizes
    owners = network.owners()
    added = {}
    for name, size in network.start_sizes.items():
        is_plain_layer = isinstance(network.model.get_submodule(owners[name]), WEIGHTED)
        if name in state and name not in sizes and not is_plain_layer:
            added[name] = size
    return {**sizes, **added}


def _take_masks(network: PrunableNetwork, saved: Mapping[str, Tensor], source: Path) -> None:
    """Puts saved masks into the network in the place of its own."""
    parameters = network.prunable()
    network.masks.keep.clear()
    masks = {}
    for name, mask in saved.items():
        if name not in parameters:
            continue
        if mask.shape != parameters[name].shape:
            raise UsageError(f"{source} is damaged: the mask of {name!r} is of another shape than the weight.")
        masks[name] = mask.to(parameters[name].device)
    network.masks.set(masks)
    network.enforce()


def _decompose(model: nn.Module, state: Mapping[str, Any], content: Mapping[str, Any]) -> None:
    changes = decompose_like(model, state, content.get("survivors"))
    for new, old in changes.items():
        if not isinstance(new, LowRank) or not isinstance(old, Layer):
            continue
        if new.weight.shape != old.weight.shape:
            # Channels were gone before the layer was decomposed: it runs in the smaller network only.
            resize_like(model, state, content.get("extras"))
            return


def _check_fits(model: nn.Module, state: Mapping[str, Any], source: Path) -> None:
    own = model.state_dict()
    name = type(model).__name__
    for key, tensor in own.items():
        if key not in state:
            raise UsageError(f"{source} is of another network than {name}: it lacks {key!r}.")
        if not isinstance(tensor, Tensor):
            continue  # what modules keep beside tensors is their own business
        if not isinstance(state[key], Tensor):
            raise UsageError(f"{source} is damaged: {key!r} is no tensor.")
        there, here = tuple(state[key].shape), tuple(tensor.shape)
        if there != here:
            raise UsageError(f"{source} is of another shape than {name}: {key!r} is {there} there and {here} here.")
    unknown = next((key for key in state if key not in own), None)
    if unknown is not None:
        raise UsageError(f"{source} is of another network than {name}: {name} has no {unknown!r}.")


def random_state() -> dict[str, Any]:
    """Returns the state of every global random generator."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    version, internal, gauss_next = random.getstate()
    # As tensors and plain values: what is saved must be readable without unpickling anything else.
    numbers = torch.from_numpy(np.asarray(keys, dtype=np.int64))
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [str(kind), numbers, int(position), int(has_gauss), gauss],
        "python": [version, list(internal), gauss_next],
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Puts every global random generator back."""
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    kind, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal), gauss_next))


def seed_everything(seed: int) -> None:
    """Seeds every global random generator."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
