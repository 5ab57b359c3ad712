"""95 % intervals of fractions."""

from __future__ import annotations

import math

Z = 1.959963984540054  # 97.5 % of a normal distribution lie below

Interval = tuple[float, float]


def wilson(hits: int, samples: int) -> Interval:
    """Returns Wilson's score interval of hits / samples (1927): it holds near 0 and 1 too, unlike the normal one."""
    if samples == 0:
        return 0.0, 1.0
    share = hits / samples
    spread = Z * Z / samples
    middle = (share + spread / 2) / (1 + spread)
    variance = share * (1 - share) * spread + spread * spread / 4
    half = math.sqrt(variance) / (1 + spread)
    # At the ends the bound is exact; rounding must not push it past the share.
    low = 0.0 if hits == 0 else middle - half
    high = 1.0 if hits == samples else middle + half
    return low, high


def difference(one: float, of_one: Interval, other: float, of_other: Interval) -> Interval:
    """Returns an interval of one - other from the two's own (Newcombe 1998), as if they were independent.

    Both networks meet nearly the same images, so the true interval is narrower, if anything.
    """
    (one_low, one_high), (other_low, other_high) = of_one, of_other
    below = math.hypot(one - one_low, other_high - other)
    above = math.hypot(one_high - one, other - other_low)
    change = one - other
    return change - below, change + above
