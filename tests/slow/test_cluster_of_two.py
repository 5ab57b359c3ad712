"""Experiments on a real Ray cluster of two nodes on this machine: a node lost, a runner stopped, runs that fail."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from utils.settings.registry import ROOT

LONG = """
    name: tiny
    base: {hidden: 16, epochs: 150, limit_batches: 3}
    compare: {prune_criterion: [SNIP, UnstructuredRandom], pruning_limit: [0.5, 0.9], seed: [1]}
"""


@pytest.fixture
def nodes(monkeypatch) -> Iterator[Any]:
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    small = {"num_cpus": 1, "object_store_memory": 80_000_000}
    found = Cluster(initialize_head=True, head_node_args=small | {"include_dashboard": False})
    found.small = small
    found.add_node(**small)
    yield found
    found.shutdown()


def started(tmp_path: Path, *argv: str, text: str = LONG) -> subprocess.Popen[str]:
    (tmp_path / "tiny.yaml").write_text(textwrap.dedent(text))
    argv = (sys.executable, "main.py", "--experiment", str(tmp_path / "tiny.yaml"), *argv)
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(argv, cwd=ROOT, **streams)  # type: ignore[call-overload]


def table(folder: Path) -> list[dict[str, str]]:
    with open(folder / "tiny" / "table.csv", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def wait_until(there: Callable[[], bool], seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < end
        time.sleep(0.02)


def in_the_middle(folder: Path) -> int:
    """How many runs have a checkpoint and no result."""
    runs = [path.parents[1] for path in folder.glob("tiny/cells/*/models/*_checkpoint")]
    return sum(not (run / "result.json").exists() for run in runs)


@pytest.mark.slow
def test_a_node_killed_in_the_middle_changes_no_number(tmp_path, nodes):
    lost, there = tmp_path / "lost", next(iter(nodes.worker_nodes))
    runner = started(tmp_path, "--ray", nodes.address, "--results_dir", str(lost))
    wait_until(lambda: in_the_middle(lost) == 2)
    nodes.remove_node(there, allow_graceful=False)
    said = runner.communicate(timeout=120)[0]
    assert runner.returncode == 0, said
    assert "its node was lost; it goes on at another one" in said
    assert len(said.splitlines()) < 20, "what Ray says of it belongs into its log"
    folders = [path.name for path in (lost / "tiny" / "cells").iterdir() if not path.name.startswith(".")]
    assert len(folders) == 5, "the cell was taken up again, not begun anew"
    alone = started(tmp_path, "--results_dir", str(tmp_path / "alone"))
    assert alone.wait(timeout=120) == 0
    assert table(lost) == table(tmp_path / "alone")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_runner_that_is_stopped_loses_nothing(tmp_path, nodes, number):
    argv = ("--ray", nodes.address, "--results_dir", str(tmp_path))
    runner = started(tmp_path, *argv)
    wait_until(lambda: in_the_middle(tmp_path) == 2)
    os.kill(runner.pid, number)
    said = runner.communicate(timeout=60)[0]
    if number != signal.SIGKILL:
        assert runner.returncode == 130, said
        results = [json.loads(file.read_text()) for file in tmp_path.glob("tiny/cells/*/result.json")]
        states = [result["status"] for result in results]  # one may just have come to its end
        assert len(states) == 2 and "interrupted" in states and set(states) <= {"interrupted", "finished"}
    again = started(tmp_path, *argv)
    said = again.communicate(timeout=120)[0]
    assert again.returncode == 0, said
    assert "5 finished of 5" in said
    assert len(list(tmp_path.glob("tiny/cells/2*"))) == 5


@pytest.mark.slow
def test_a_failing_cell_on_a_cluster(tmp_path, nodes):
    text = LONG.replace("UnstructuredRandom", "{name: SNIP, label: bad, learning_rate: 1.0e+30}").replace("60", "2")
    runner = started(tmp_path, "--ray", nodes.address, "--results_dir", str(tmp_path), text=text)
    said = runner.communicate(timeout=120)[0]
    assert runner.returncode == 1, said
    assert "failed, is tried again" in said
    assert "2 failed of 2" in said
    assert "3 finished, 2 failed of 5" in said
