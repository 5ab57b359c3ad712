"""Every criterion on a part of MNIST, beside the random criterion of its kind and the dense network.

`python -m pytest -m slow tests/slow/test_every_criterion.py -s`; needs MNIST in gitignored/data.
"""

from __future__ import annotations

import math
import statistics
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support.comparison import ROOT, Comparison, accuracies, print_gap, print_table
from utils.settings import registry

pytestmark = pytest.mark.slow

# Of each kind: the experiment, the limit at which criteria are held against random ones, and those that lose there.
# What is pruned once before training falls to bottlenecks (SNIP, CNIP), ranks values that have not learned anything
# (Magnitude, GroupMagnitude) or has few of its epochs left for training (SNIPitDuring, GateDecorators). Random nodes
# with fair shares are hard to beat on digits: SNAP and EfficientConvNets are within half a standard error of them.
UNITS = {
    "weight": ("UnstructuredRandom", 0.99, {"Magnitude", "SNIP", "CNIP", "SNIPitDuring"}),
    "node": ("StructuredRandom", 0.8, {"SNAP", "GroupMagnitude", "GateDecorators", "EfficientConvNets"}),
}


@pytest.fixture(params=UNITS)
def unit(request: pytest.FixtureRequest) -> str:
    if not (ROOT / "gitignored/data/MNIST/raw").is_dir():
        pytest.fail("this test needs the original MNIST in gitignored/data/MNIST/raw")
    return str(request.param)


def comparison_of(unit: str) -> Comparison:
    return Comparison(f"experiments/snipit/every_{unit}_criterion.yaml")


def assert_asked_is_reached(name: str, record: dict[str, Any]) -> None:
    asked, target = record["sparsity_asked"], record["target"]
    if asked is None or math.isnan(asked):  # the sparsity is an outcome of the penalty
        return
    total, left = record[f"{target}_total"], record[f"{target}_left"]
    most = total - round(asked * total) if target == "weights" else int((1 - asked) * total + 1e-6)
    # Nodes and ranks come in whole: a limit that counts weights is met within one of them.
    whole = registry.find("criterions", record["prune_criterion"]).unit != "weights" and target == "weights"
    assert abs(left - most) <= (0.005 if whole else 0.001 if name.startswith("CNIP") else 0) * total, name


def test_asked_sparsity_is_reached_and_beats_random(unit: str) -> None:
    random, limit, losers = UNITS[unit]
    records = comparison_of(unit).run()
    print_table(records)
    for name, runs in records.items():
        for record in runs:
            assert_asked_is_reached(name, record)
        rival = f"{random} {name.rpartition(' ')[2]}"
        if rival in records and rival != name:
            print_gap(records, name, rival)
    means = {name: statistics.mean(values) for name, values in accuracies(records).items()}
    rival = f"{random} {limit:g}"
    held = [name for name in records if name.endswith(f" {limit:g}") and alike(records[name][0], records[rival][0])]
    behind = {name.split()[0] for name in held if means[name] <= means[rival] and name != rival}
    # An outcome of a penalty has another sparsity than the random ones; the table tells.
    outcomes = {name.split()[0] for name in held if math.isnan(records[name][0]["sparsity_asked"] or math.nan)}
    assert behind - outcomes <= losers, f"behind {random} at {limit:g}: {', '.join(sorted(behind))}"
    assert len(held) - len(losers) - len(outcomes) >= 4


def alike(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Says whether two runs removed the same kind of thing, counted in the same way."""
    units = [registry.find("criterions", record["prune_criterion"]).unit for record in (one, other)]
    return units[0] == units[1] and one["target"] == other["target"]


def test_no_criterion_is_left_out() -> None:
    files = [*Path(ROOT / "experiments").glob("*/*.yaml")]
    named = {name for file in files for name in Comparison(str(file.relative_to(ROOT))).criteria}
    listed = subprocess.run(["git", "ls-files", "criterions"], cwd=ROOT, capture_output=True, text=True, check=True)
    # Those of the project: one that a user dropped into the folder needs no comparison.
    ours = {Path(line).stem for line in listed.stdout.splitlines()}
    assert set(registry.names("criterions")) & ours <= named
