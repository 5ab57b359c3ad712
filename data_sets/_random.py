"""Random numbers that depend on nothing but the numbers named, so that a resumed run meets the same batches."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def mixed(*numbers: int) -> int:
    """One 63-bit seed of several integers. A hash, because neighbouring seeds of one generator resemble each other."""
    text = ",".join(str(int(number)) for number in numbers)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator(*numbers: int) -> torch.Generator:
    """A generator of its own on the CPU: the same draws for every device."""
    return torch.Generator().manual_seed(mixed(*numbers))


@contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """Runs the body with Python's, NumPy's and torch's CPU generators seeded so; afterwards they are as before."""
    seed = mixed(*numbers)
    states = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    # Not torch.manual_seed: that would seed the accelerators as well.
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.default_generator.set_state(states[2])
