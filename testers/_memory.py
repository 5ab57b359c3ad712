"""Running out of memory, said in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from pruning import UsageError


@contextmanager
def memory_advice(what: str, flag: str) -> Iterator[None]:
    """Turns running out of memory into a UsageError: what it does not hold, and the flag to make smaller."""
    try:
        yield
    except RuntimeError as error:
        # On the CPU torch has no class of its own for it.
        words = ("not enough memory", "can't allocate memory")
        if not isinstance(error, torch.OutOfMemoryError) and not any(text in str(error) for text in words):
            raise
        raise UsageError(f"The memory does not hold {what}; try a smaller --{flag}.") from error
