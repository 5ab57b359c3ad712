"""Set before torch is imported, as main.py does: threads that wait must not spin on a machine that others use too."""

import os
import random
import signal
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ["OMP_WAIT_POLICY"] = os.environ.get("OMP_WAIT_POLICY", "PASSIVE")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # each worker has a core, not the machine


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """The whole suite is shared out over the cores; what is named runs right here, where a debugger reaches it."""
    whole = config.args_source == pytest.Config.ArgsSource.TESTPATHS
    if not whole or config.option.collectonly or config.option.capture == "no":
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, 8)


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """Lets Ctrl-C through: whoever runs the tests in a shell's background (`pytest &`) has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """What a test draws depends on the test alone, not on those that ran before it."""
    import numpy as np
    import torch

    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Any:
    """Runs command lines in this process; their run folders come to `tmp_path / "results"`."""
    from tests.support.running import Commands

    return Commands(capsys, tmp_path / "results")


@pytest.fixture
def cells(tmp_path: Path) -> Callable[..., Any]:
    """Writes an experiment's file and returns its cells, whose folder is made."""
    from tests.support.running import TINY
    from utils.experiments import experiment
    from utils.experiments.cells import Cells

    def made(text: str = TINY) -> Cells:
        (tmp_path / "tiny.yaml").write_text(textwrap.dedent(text))
        found = Cells(experiment.read(str(tmp_path / "tiny.yaml")), tmp_path / "results" / "tiny")
        found.make_folders()
        return found

    return made
