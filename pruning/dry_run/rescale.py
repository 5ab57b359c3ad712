"""Factors that depend on a width, such as attention's 1 / sqrt(head width), moved into the rows of a weight."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from pruning.dry_run.dry_run import Failure
from pruning.trace.components import Structure
from pruning.trace.labels import Labels, Uses
from pruning.trace.rules.table import Kind, kind_of


class Scale(NamedTuple):
    """Rows of a weight, entries of its bias, and the factor that they have to take up."""

    labels: Labels
    factor: float


def take_up(
    structure: Structure, changed: list[Failure], uses: Mapping[bool, Uses]
) -> tuple[list[Scale], list[Failure]]:
    """Returns what weights can take up of changed numbers, and the changes for which they cannot.

    Args:
        structure: of the network.
        changed: operations whose numbers changed, of all runs.
        uses: of each run, by its mode.
    """
    found: dict[bool, dict[tuple[int, ...], float]] = {training: {} for training in uses}
    owners: list[tuple[Failure, tuple[int, ...]]] = []
    for failure in changed:
        scale = _scale_for(structure, failure, uses[failure.training])
        key = tuple(scale.labels.tolist()) if scale else ()
        owners.append((failure, key))
        if scale:
            # Several factors may lie on the way.
            factors = found[failure.training]
            factors[key] = factors.get(key, 1.0) * scale.factor
    # A weight has one value in both modes, so both must ask the same of it.
    first, *others = found.values()
    agreed: dict[tuple[int, ...], float] = {}
    for key, factor in first.items():
        same = [math.isclose(other.get(key, 0.0), factor) for other in others]
        if all(same):
            agreed[key] = factor
    scales = [Scale(np.array(key), factor) for key, factor in agreed.items()]
    return scales, [failure for failure, key in owners if key not in agreed]


def _scale_for(structure: Structure, failure: Failure, uses: Uses) -> Scale | None:
    """Returns what the weight must take up so that a changed number changes nothing; None where that is impossible."""
    entry, rows = failure.entry, failure.entry.rows
    scales = Kind.SCALES in kind_of(entry.name) or "attention" in entry.name
    if failure.tables is not None or rows is None or not scales or len(entry.numbers) != 1 or len(failure.numbers) != 1:
        return None
    before, after = float(entry.numbers[0]), float(failure.numbers[0])
    mine = rows.labels
    if not before or not after or len(np.unique(structure.owners(mine))) != 1:
        return None
    biases = structure.bias_of[mine]
    biases = np.sort(biases[biases >= 0])
    around = _readers(mine, failure.index, uses) != sorted((*rows.path, failure.index))
    if around or (len(biases) and _readers(biases, failure.index, uses) != [rows.path[0]]):
        return None  # somebody reads these rows without the factor
    factor = after / before if entry.name == "aten.div" else before / after
    return Scale(np.concatenate([mine, biases]), factor)


def _readers(labels: Labels, index: int, uses: Uses) -> list[int]:
    """Returns what reads any of these rows without having passed through operation `index`."""
    found = []
    for rows, place in uses:
        if index in rows.path or not len(rows.labels):
            continue
        # Both are sorted, so most are told apart by their ends.
        overlaps = rows.labels[0] <= labels[-1] and rows.labels[-1] >= labels[0]
        if overlaps and np.isin(labels, rows.labels).any():
            found.append(place)
    return sorted(found)
