"""Run folders that were made before the code moved into rooms: they resume, evaluate and report as they did then.

The archive holds, for a criterion of weights and one of nodes, a run that was stopped after 5 of 9 epochs and what the
same run came to undisturbed, both by the code of that time.
"""

import csv
import json
import math
import tarfile
from pathlib import Path

import pytest
import yaml

ARCHIVE = Path(__file__).parents[1] / "support" / "old_runs" / "before_the_rooms.tar.xz"

CRITERIA = ["SNIPitDuring", "SNAPitDuring"]

# What depends on the machine and on the hour.
ELSEWHERE = {"seconds_training", "samples_per_second", "peak_memory_bytes"}
ELSEWHERE |= {"git_commit", "versions", "hardware", "threads", "processes"}


@pytest.fixture
def old_runs(tmp_path):
    """Unpacks the archive; its runs then lie in `<tmp_path>/<criterion>/stopped` and `.../whole`."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    for file in tmp_path.glob("*/*/settings.yaml"):
        settings = yaml.safe_load(file.read_text())
        # Paths of the machine that made them.
        settings |= {"results_dir": str(tmp_path), "data_dir": str(tmp_path)}
        file.write_text(yaml.safe_dump(settings, sort_keys=False))
    return tmp_path


def result_of(run):
    return json.loads((run / "result.json").read_text())


def epochs_of(run):
    with open(run / "output" / "epochs.csv", newline="") as file:
        return list(csv.DictReader(file))


def is_same(now, then):
    """Numbers may differ in their last digits: another release of torch adds up in another order."""
    if isinstance(then, float) and isinstance(now, (int, float)):
        return math.isclose(now, then, rel_tol=1e-4, abs_tol=1e-9) or (math.isnan(now) and math.isnan(then))
    return now == then


@pytest.mark.parametrize("criterion", CRITERIA)
def test_a_stopped_run_comes_to_the_same_end(command, old_runs, criterion):
    stopped, whole = old_runs / criterion / "stopped", old_runs / criterion / "whole"
    assert result_of(stopped)["status"] == "interrupted"
    assert len(epochs_of(stopped)) == 5

    done = command("--resume", stopped)
    assert done.code == 0, done.err
    assert "going on at epoch 5, batch 0" in done.out

    now, then = result_of(stopped), result_of(whole)
    assert then["status"] == "finished" and then["sparsity_reached"] > 0.5
    for name in then.keys() - ELSEWHERE:
        assert is_same(now[name], then[name]), f"{name}: {now[name]} now, {then[name]} then"

    rows = list(zip(epochs_of(stopped), epochs_of(whole), strict=True))
    assert len(rows) == 9
    for now, then in rows:
        for name in then.keys() - ELSEWHERE:
            assert is_same(float(now[name]), float(then[name])), f"{name} after epoch {then['epoch']}"


@pytest.mark.parametrize("criterion", CRITERIA)
def test_a_finished_network_is_evaluated_to_the_same_accuracy(command, old_runs, criterion):
    whole = old_runs / criterion / "whole"
    done = command("--eval", "--checkpoint_name", whole)
    then = result_of(whole)
    assert done.result["test_accuracy"] == pytest.approx(then["test_accuracy"], rel=1e-4)
    assert done.result["test_loss"] == pytest.approx(then["test_loss"], rel=1e-4)
    for name in ("weights_left", "weights_total", "nodes_left", "nodes_total", "flops_per_sample"):
        assert done.result[name] == then[name], name


def test_old_runs_are_reported(command, old_runs):
    done = command("--report", str(old_runs / "*" / "whole"))
    assert done.code == 0, done.err
    (table,) = command.results.rglob("table.md")
    lines = table.read_text().splitlines()
    for criterion in CRITERIA:
        accuracy = result_of(old_runs / criterion / "whole")["test_accuracy"]
        rows = [line for line in lines if line.startswith(f"| {criterion} |")]
        assert any(f"{accuracy:.4f}" in row for row in rows), criterion
