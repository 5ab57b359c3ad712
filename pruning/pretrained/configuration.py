"""The configuration that a pruned network would have been built from, if there is one."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

# ("tensor", name, dimension) or ("number", path of a module, name, place in a tuple)
Key = tuple[Any, ...]
Sizes = dict[Key, int]

PASSES = 4  # over all settings: one may only fit once another does


def fitting_configs(model: Any) -> tuple[list[Any], str]:
    """Returns the configurations whose networks have a pruned one's sizes, and what differs if there is none.

    Settings are found by trying: what was a size of the dense network, and of what, is code that only runs. A network
    without values is built for each candidate, and compared in every size of a tensor and in every whole number of a
    module that the cut has changed. The other numbers may be used or not, so there may be several that fit.

    Args:
        model: a network of transformers; it is left as it is.

    Returns:
        The configurations, and "" or a line that names a size which none of them explains.
    """
    search = _Search(model)
    best = copy.deepcopy(model.config)
    cost = search.cost(best)
    for _ in range(PASSES):
        before = cost
        for field, value in search.steps(best):
            trial = search.trial(best, field, value)
            if trial is not None and search.cost(trial) < cost:
                best, cost = trial, search.cost(trial)
        if cost == before:
            break
    if cost[:2] != (0, 0):
        return [], search.describe(best)
    fitting = [best]
    for field, value in search.steps(best):
        trial = search.trial(best, field, value)
        if trial is not None and search.cost(trial)[:2] == (0, 0):
            fitting.append(trial)
    return fitting, ""


class _Search:
    """Networks that configurations make, beside the one that is wanted.

    Args:
        model: the pruned network.
    """

    def __init__(self, model: Any) -> None:
        self.kind = type(model)
        self.wanted = sizes_of(model)
        dense = self._sizes_with(model.config)
        # A number that the cut left as it was may be one that nothing is computed with.
        self.unsure = {key for key in self.wanted if key[0] == "number" and dense.get(key) == self.wanted[key]}
        self._known: dict[str, Sizes] = {}

    def trial(self, config: Any, field: str, value: int) -> Any:
        """Returns a configuration with one setting changed, None if no network can be built with it."""
        changed = copy.deepcopy(config)
        try:
            setattr(changed, field, value)
            self.sizes_with(changed)
        except Exception:  # noqa: BLE001 - whatever a network raises that cannot be built
            return None
        return changed

    def cost(self, config: Any) -> tuple[int, int, int]:
        """Returns how many changed numbers, sizes of tensors and other numbers are not as wanted, the gravest first."""
        differing = self.differing(config)
        tensors = sum(key[0] == "tensor" for key in differing)
        unsure = sum(key in self.unsure for key in differing)
        return len(differing) - tensors - unsure, tensors, unsure

    def differing(self, config: Any) -> dict[Key, tuple[int, int]]:
        """Returns key -> (size of the network that a configuration makes, size wanted), where they differ."""
        made = self.sizes_with(config)
        pairs = {key: (made.get(key, 0), self.wanted.get(key, 0)) for key in made.keys() | self.wanted.keys()}
        return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}

    def steps(self, config: Any) -> Iterator[tuple[str, int]]:
        """Yields settings with a value that may be theirs now."""
        pairs = set(self.differing(config).values())
        for field, value in config.to_dict().items():
            is_size = type(value) is int or value is None
            if is_size and not field.endswith(("_token_id", "_index", "dtype")):
                for candidate in sorted(_candidates(value, pairs), reverse=True):
                    yield field, candidate

    def sizes_with(self, config: Any) -> Sizes:
        """Returns the sizes of the network that a configuration makes; each is built once."""
        key = config.to_json_string(use_diff=False)
        if key not in self._known:
            self._known[key] = self._sizes_with(config)
        return self._known[key]

    def describe(self, config: Any) -> str:
        """Returns a line that names one size which a configuration does not explain."""
        differing = {key: pair for key, pair in self.differing(config).items() if key not in self.unsure}
        kind, name, part, *_ = key = min(differing, key=lambda one: (one[0] != "tensor", one))
        made, wanted = differing[key]
        what = f"dimension {part} of {name}" if kind == "tensor" else f"{part} of {name}"
        return f"no configuration says that {what} is {wanted}, not {made}"

    def _sizes_with(self, config: Any) -> Sizes:
        with torch.device("meta"):
            return sizes_of(self.kind(copy.deepcopy(config)))


def sizes_of(model: nn.Module) -> Sizes:
    """Returns every size by the name of its tensor and its dimension, and every whole number by module and name.

    What a layer with tensors of its own keeps says the same as their sizes.
    """
    sizes: Sizes = {}
    for name, tensor in model.state_dict().items():
        for dim, size in enumerate(tensor.shape):
            sizes["tensor", name, dim] = size
    for path, module in model.named_modules():
        if any(True for _ in module.parameters(recurse=False)):
            continue
        for name, value in vars(module).items():
            if name.startswith("_"):
                continue
            values = value if isinstance(value, tuple) else (value,)
            for place, number in enumerate(values):
                if type(number) is int:  # True is one too
                    sizes["number", path, name, place] = number
    return sizes


def _candidates(value: int | None, pairs: set[tuple[int, int]]) -> set[int]:
    """Returns what a setting may be now.

    Args:
        value: what it is; None where it follows from others until it is given.
        pairs: (size made with it, size wanted).
    """
    found = set()
    for made, wanted in pairs:
        if value is None or made == value:
            found.add(wanted)
        elif value > 0 and made and wanted:
            # Heads of a width: sixteen channels of four heads that became eight are of two.
            if made % value == 0 and wanted * value % made == 0:
                found.add(wanted * value // made)
            # Width of a head: the more of one, the less of the other.
            if made * value % wanted == 0:
                found.add(made * value // wanted)
    return {one for one in found if one >= 1 and one != value}
