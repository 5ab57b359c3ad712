"""What a report shows, as an experiment file says it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pruning.errors import UsageError, nearest
from pruning.measure.measures import KINDS, words_of

# What may be an axis: field of result.json -> what a person calls it.
AXES = {
    "weight_sparsity": "fraction of weights removed",
    "node_sparsity": "fraction of nodes removed",
    "sparsity_reached": "sparsity reached, in the method's own unit",
    "effective_weight_sparsity": "fraction of weights removed or on no path",
    "weights_left": "weights left",
    "nodes_left": "nodes left",
    "parameter_bytes": "bytes of parameters",
    "flops_per_sample": "FLOPs per sample, masked weights computed",
    "flops_per_sample_nonzero": "FLOPs per sample, without masked weights",
    "training_flops": "FLOPs of training",
    "latency_seconds": "seconds per sample",
    "seconds_training": "seconds of training",
    "samples_per_second": "samples per second in training",
    "peak_memory_bytes": "bytes of memory at most",
}
for _part in ("test", "train"):
    for _name in (*KINDS, "loss"):
        AXES[f"{_part}_{_name}"] = words_of(f"{_part}_{_name}")


def axis_words(name: str) -> str:
    """Returns what a person calls an axis; of a measure that a loss of the user's own has, its name."""
    return AXES.get(name) or words_of(name)


@dataclass
class Wanted:
    """What a report shows, as an experiment file says it.

    Args:
        x: fields of result.json for the horizontal axes.
        y: fields for the vertical ones; none for the main measure of the runs.
        tolerance: losses of the main measure against dense within which the largest sparsity is looked for.
    """

    x: list[str] = field(default_factory=lambda: ["weight_sparsity", "flops_per_sample_nonzero"])
    y: list[str] = field(default_factory=list)
    tolerance: list[float] = field(default_factory=lambda: [0.0, 0.005, 0.01])

    @classmethod
    def read(cls, content: Any, where: Callable[..., str]) -> Wanted:
        """Returns what the block `report` of a file says; raises UsageError with the line for what does not fit."""
        if content is None:
            return cls()
        known = ["x", "y", "reference", "tolerance"]
        if not isinstance(content, dict):
            raise UsageError(f"{where()}: report must hold {', '.join(known)}.")
        found: dict[str, list[Any]] = {}
        for name, value in content.items():
            if name not in known:
                raise UsageError(f"{where(name)}: there is no key {name!r}.{nearest(str(name), known)}")
            if name != "reference":
                found[name] = _listed(name, value, where)
            elif value != "dense":
                raise UsageError(f"{where(name)}: the reference is dense; {value!r} was given.")
        return cls(**found)


def _listed(name: str, value: Any, where: Callable[..., str]) -> list[Any]:
    """Returns one or several values as a list, each of them checked."""
    values = value if isinstance(value, list) else [value]
    if not values:
        raise UsageError(f"{where(name)}: {name} is empty; leave it out for the usual.")
    for number, entry in enumerate(values):
        place = where(name, number)
        if entry in values[:number]:
            raise UsageError(f"{place}: {entry} is there twice.")
        if name == "tolerance":
            _check_tolerance(entry, place)
        elif not _is_axis(str(entry)):
            near = nearest(str(entry), AXES)
            known = ", ".join(AXES)
            raise UsageError(f"{place}: {entry!r} cannot be an axis.{near} There are {known}.")
    return values


def _is_axis(entry: str) -> bool:
    """Says whether a result may hold such a field: one that is known, or a measure that is no slip of a known one."""
    if entry in AXES:
        return True
    is_measure = re.fullmatch(r"(test|train)_\w+", entry) is not None
    return is_measure and not difflib.get_close_matches(entry, AXES, cutoff=0.8)


def _check_tolerance(entry: Any, place: str) -> None:
    is_number = type(entry) in (int, float)  # and no bool
    if not is_number or not 0 <= entry <= 1:  # nor NaN
        raise UsageError(f"{place}: a tolerance is a loss of accuracy, such as 0.005; {entry!r} was given.")
