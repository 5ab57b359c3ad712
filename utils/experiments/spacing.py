"""Series of sparsities for experiments, spaced as pruning papers space them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from pruning.errors import UsageError, nearest


def _geometric(most: float, least: float, n: int) -> np.ndarray:
    return np.geomspace(most, least, n)


def _linear(most: float, least: float, n: int) -> np.ndarray:
    return np.linspace(most, least, n)


def _cubic(most: float, least: float, n: int) -> np.ndarray:
    return least + (most - least) * np.linspace(1, 0, n) ** 3


def _harmonic(most: float, least: float, n: int) -> np.ndarray:
    """Falls with a power of the place: most at place 1, least at place n."""
    power = np.log(most / least) / np.log(n) if n > 1 else 0.0
    return most * np.arange(1, n + 1) ** -power


KINDS: dict[str, Callable[[float, float, int], np.ndarray]] = {
    "geometric": _geometric,
    "linear": _linear,
    "cubic": _cubic,
    "harmonic": _harmonic,
}

MOST = 10_000  # sparsities in a series; a slip of the keyboard must not fill the memory


def spaced(pieces: Any, where: Callable[..., str]) -> tuple[list[float], int]:
    """Returns sparsities, ascending, and how many of them share one retraining.

    The steps are steps of what is kept: "geometric" removes the same share of the rest each time.

    Args:
        pieces: {kind: {from: sparsity, to: sparsity, n: how many}}, or a list of such, joined; `retrain_every: R` in
            one of them prunes R times for each retraining.
        where: says where a piece stands.

    Raises:
        UsageError: naming the line.
    """
    limits: list[float] = []
    every = 0
    places: list[tuple[int, ...]] = [()]
    if isinstance(pieces, list):
        places = [(number,) for number in range(len(pieces))]
    else:
        pieces = [pieces]
    for piece, place in zip(pieces, places, strict=True):
        if not isinstance(piece, Mapping):
            raise UsageError(f"{where(*place)}: spacing takes `kind: {{from: ..., to: ..., n: ...}}`.")
        for kind, values in piece.items():
            line = where(*place, kind)
            if kind in KINDS:
                limits += _series(kind, values, line)
            elif kind != "retrain_every":
                raise UsageError(_unknown(str(kind), line))
            elif every:
                raise UsageError(f"{line}: retrain_every is given twice.")
            else:
                every = _whole(values, f"{line}: retrain_every")
    rises = all(later > earlier for earlier, later in zip(limits, limits[1:], strict=False))
    if not limits or not rises:
        raise UsageError(f"{where()}: spacing must give sparsities that rise; it gives {limits}.")
    if every > len(limits):
        raise UsageError(f"{where()}: retrain_every is {every}; there are {len(limits)} sparsities.")
    return limits, every or 1


def _unknown(kind: str, line: str) -> str:
    known = [*KINDS, "retrain_every"]
    return f"{line}: there is no spacing {kind!r}.{nearest(kind, known)} There are {', '.join(known)}."


def _series(kind: str, values: Any, place: str) -> list[float]:
    if not isinstance(values, Mapping) or set(values) != {"from", "to", "n"}:
        raise UsageError(f"{place}: {kind} takes {{from: sparsity, to: sparsity, n: how many}}; {values!r} was given.")
    start, end = values["from"], values["to"]
    ends = [start, end]
    are_numbers = all(type(one) in (int, float) for one in ends)  # and no bools
    if not are_numbers or not all(0 <= one < 1 for one in ends):
        raise UsageError(f"{place}: from and to are fractions removed, 0 to below 1; {ends} was given.")
    count = _whole(values["n"], f"{place}: n")
    if count > MOST or (count == 1) != (start == end):
        raise UsageError(f"{place}: n is 2 to {MOST:,} from one end to the other, 1 where both are the same; {count}.")
    # The steps are steps of what is kept.
    kept = KINDS[kind](1 - start, 1 - end, count)
    return [round(float(1 - share), 6) for share in kept]


def _whole(value: Any, what: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UsageError(f"{what} is a whole number from 1; {value!r} was given.")
    return value
