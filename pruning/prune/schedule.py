"""Sequences of targets. A target is the fraction removed of what was there at the start; none passes the limit."""

from __future__ import annotations

from numbers import Real

from pruning.errors import UsageError


def check_limit(limit: float) -> float:
    """Returns the limit, or raises UsageError unless 0 <= limit < 1."""
    if not isinstance(limit, Real) or not 0.0 <= limit < 1.0:
        raise UsageError(f"A sparsity must lie in [0, 1), the fraction removed; {limit!r} was given.")
    return float(limit)


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
    return [limit - (limit - first) * 0.5**i for i in range(steps + 1)] + [limit]


def exponential(limit: float, rounds: int = 100) -> list[float]:
    """Equal shares of the rest (FORCE, SynFlow): what is kept after round i of n is (1 - limit)**(i / n)."""
    if limit <= 0:
        return []
    return [1 - (1 - limit) ** (i / rounds) for i in range(1, rounds)] + [limit]


def cubic(limit: float, steps: int = 10) -> list[float]:
    """Zhu and Gupta's schedule (arXiv:1710.01878): limit * (1 - (1 - t)**3) at t = 1/steps .. 1."""
    if limit <= 0:
        return []
    return [limit * (1 - (1 - i / steps) ** 3) for i in range(1, steps)] + [limit]


def linear(limit: float, steps: int = 10) -> list[float]:
    """Equal steps: limit * i / steps."""
    if limit <= 0:
        return []
    return [limit * i / steps for i in range(1, steps)] + [limit]


def share_of_rest(limit: float, share: float = 0.2) -> list[float]:
    """Lottery tickets (arXiv:1803.03635): each event removes `share` of what is left, up to the limit."""
    if not 0 < share < 1:
        raise UsageError(f"The share of the rest removed per event must lie in (0, 1); {share} was given.")
    targets: list[float] = []
    kept = 1 - share
    while 1 - kept < limit - 1e-12:
        targets.append(1 - kept)
        kept *= 1 - share
    return targets + [limit] if limit > 0 else []
