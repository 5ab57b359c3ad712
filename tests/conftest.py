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


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """The whole suite is shared out over the cores; what is named runs right here, where a debugger reaches it."""
    option = config.option
    shareable = config.pluginmanager.hasplugin("xdist") and option.numprocesses is None
    whole = config.args_source == pytest.Config.ArgsSource.TESTPATHS
    looked_at = option.usepdb or option.collectonly or option.capture == "no"
    cores = min(len(os.sched_getaffinity(0)), 8) if hasattr(os, "sched_getaffinity") else 2
    is_worker = "PYTEST_XDIST_WORKER" in os.environ  # workers that shared out what they got would never end
    if shareable and whole and not looked_at and cores > 1 and not is_worker:
        option.numprocesses = cores
        option.dist = "loadfile"  # runs that the tests of a file share are made once


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
