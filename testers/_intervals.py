"""95 % intervals of fractions."""

from __future__ import annotations

import math

Z = 1.959963984540054  # 97.5 % of a normal distribution lie below

Interval = tuple[float, float]


def wilson(hits: int, samples: int) -> Interval:
    """Returns Wilson's score interval of hits / samples (1927): it holds near 0 and 1 too, unlike the normal one."""
    if samples == 0:
        return 0.0, 1.0
    share, spread = hits / samples, Z * Z / samples
    middle = (share + spread / 2) / (1 + spread)
    half = math.sqrt(share * (1 - share) * spread + spread * spread / 4) / (1 + spread)
    # At the ends the bound is exact; rounding must not push it past the share.
    return (0.0 if hits == 0 else middle - half), (1.0 if hits == samples else middle + half)


def difference(one: float, of_one: Interval, other: float, of_other: Interval) -> Interval:
    """Returns an interval of one - other from the two's own (Newcombe 1998), as if they were independent.

    Both networks meet nearly the same images, so the true interval is narrower, if anything.
    """
    below = math.hypot(one - of_one[0], of_other[1] - other)
    above = math.hypot(of_one[1] - one, other - of_other[0])
    return one - other - below, one - other + above
