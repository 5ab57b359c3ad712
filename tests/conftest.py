"""Set before torch is imported, as main.py does: threads that wait must not spin on a machine that others use too."""

import os
import signal
from collections.abc import Iterator

import pytest

os.environ["OMP_WAIT_POLICY"] = os.environ.get("OMP_WAIT_POLICY", "PASSIVE")


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """Lets Ctrl-C through: whoever runs the tests in a shell's background (`pytest &`) has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
