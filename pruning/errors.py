"""The one exception that is addressed to the person at the keyboard."""

from __future__ import annotations

import difflib
import operator
from collections.abc import Iterable
from typing import Any


class UsageError(ValueError):
    """Something the user gave does not fit. The message is one line: what was given, what fits, the nearest name."""


def nearest(given: str, known: Iterable[str], *, prefix: str = "") -> str:
    """Returns `" Did you mean X or Y?"` for the known names closest to `given`, or an empty string.

    Args:
        given: what was typed.
        known: what there is.
        prefix: put before each name, such as "--".
    """
    by_lower = {name.lower(): name for name in known}
    close = difflib.get_close_matches(given.lower(), by_lower, n=3, cutoff=0.5)
    if not close:
        return ""
    names = " or ".join(prefix + by_lower[key] for key in close)
    return f" Did you mean {names}?"


def whole_numbers(values: Any) -> list[int]:
    """Returns each of some positions once, in order; UsageError for what is none (1.5 is not rounded)."""
    try:
        return sorted({operator.index(value) for value in values})
    except TypeError as error:
        raise UsageError(f"A list of whole numbers is needed, not {values!r}.") from error
