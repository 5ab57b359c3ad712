"""Sequences of sparsities that lead to a limit, one per pruning event.

A sparsity is the fraction removed of what was there at the start; none passes the limit. A criterion says which of
these functions it follows in its attribute `schedule`.
"""

from __future__ import annotations

from collections.abc import Callable
from numbers import Real

from pruning.errors import UsageError

Schedule = Callable[[float], list[float]]  # limit -> sparsities that rise to it


def check_limit(limit: float) -> float:
    """Returns the limit, or raises UsageError unless 0 <= limit < 1."""
    if not isinstance(limit, Real) or not 0.0 <= limit < 1.0:
        raise UsageError(f"A sparsity must lie in [0, 1), the fraction removed; {limit!r} was given.")
    return float(limit)


def no_events(limit: float) -> list[float]:
    """Nothing goes, whatever the limit: []."""
    return []


def one_shot(limit: float) -> list[float]:
    """Everything at once: [limit]."""
    return [limit] if limit > 0 else []


def halving(limit: float, steps: int = 5, start: float = 0.5) -> list[float]:
    """SNIP-it's steps (arXiv:2006.00896): limit - (limit - start) / 2**i for i = 0..steps, then the limit.

    Each event halves the distance to the limit, which makes `steps` + 2 events. A start beyond the limit would
    overshoot, so limits up to `start` begin at half the limit.
    """
    if limit <= 0:
        return []
    first = start if limit > start else limit / 2
    sparsities = []
    for i in range(steps + 1):
        distance = (limit - first) * 0.5**i
        sparsities.append(limit - distance)
    # The halves alone would never arrive.
    return [*sparsities, limit]


def exponential(limit: float, rounds: int = 100) -> list[float]:
    """Equal shares of the rest (FORCE, SynFlow): what is kept after round i of n is (1 - limit)**(i / n)."""
    return _in_steps(limit, rounds, lambda t: 1 - (1 - limit) ** t)


def cubic(limit: float, steps: int = 10) -> list[float]:
    """Zhu and Gupta's schedule (arXiv:1710.01878): limit * (1 - (1 - t)**3) at t = 1/steps .. 1."""
    return _in_steps(limit, steps, lambda t: limit * (1 - (1 - t) ** 3))


def linear(limit: float, steps: int = 10) -> list[float]:
    """Equal steps: limit * i / steps."""
    if limit <= 0:
        return []
    sparsities = [limit * i / steps for i in range(1, steps)]
    return [*sparsities, limit]


def share_of_rest(limit: float, share: float = 0.2) -> list[float]:
    """Lottery tickets (arXiv:1803.03635): each event removes `share` of what is left, up to the limit."""
    if not 0 < share < 1:
        raise UsageError(f"The share of the rest removed per event must lie in (0, 1); {share} was given.")
    if limit <= 0:
        return []
    sparsities: list[float] = []
    kept = 1 - share
    # A last event that differs from the limit by rounding alone would remove nothing.
    while 1 - kept < limit - 1e-12:
        sparsities.append(1 - kept)
        kept *= 1 - share
    return [*sparsities, limit]


def _in_steps(limit: float, steps: int, sparsity_at: Callable[[float], float]) -> list[float]:
    """Returns the sparsities at t = 1/steps, 2/steps, ... and at the end the limit itself, free of rounding."""
    if limit <= 0:
        return []
    sparsities = [sparsity_at(i / steps) for i in range(1, steps)]
    return [*sparsities, limit]
