"""Every criterion of weights on real MNIST at 98 % sparsity: `python -m pytest -m slow tests/test_mnist.py -s`.

Needs MNIST in gitignored/data. Finished cells are kept in gitignored/results/mnist_weights, so a stopped test goes on.
"""

import json
import math
import statistics
from pathlib import Path

import pytest
import yaml

import main

ROOT = Path(__file__).resolve().parent.parent
PLAN = yaml.safe_load((ROOT / "experiments/snipit/mnist_weights.yaml").read_text())
RESULTS = ROOT / "gitignored/results/mnist_weights"
METHODS = [{"name": m} if isinstance(m, str) else m for m in PLAN["compare"]["prune_criterion"]]
SEEDS = PLAN["compare"]["seed"]

pytestmark = pytest.mark.slow


def label(method: dict) -> str:
    return method["name"] + (" with rewinding" if method.get("enable_rewinding") else "")


def run_cell(method: dict, seed: int) -> dict:
    """Returns result.json of one run, which is made unless it is there."""
    name = f"{label(method)}_{seed}".replace(" ", "-")
    for file in RESULTS.glob(f"*_{name}/result.json"):
        record = json.loads(file.read_text())
        if record["status"] == "finished":
            return record
    settings = PLAN["base"] | {k: v for k, v in method.items() if k != "name"}
    argv = [
        part
        for key, value in settings.items()
        for part in ([f"--{key}"] if value is True else [f"--{key}", str(value)])
    ]
    argv += [
        "--prune_criterion",
        method["name"],
        "--seed",
        str(seed),
        "--run_name",
        name,
        "--results_dir",
        str(RESULTS),
    ]
    assert main.main([*argv, "--quiet", "--no-tensorboard", "--save_freq", "100"]) == 0
    return json.loads(next(RESULTS.glob(f"*_{name}/result.json")).read_text())


@pytest.fixture(scope="module")
def records() -> dict[str, list[dict]]:
    if not (ROOT / "gitignored/data/MNIST/raw").is_dir():
        pytest.fail("this test needs the original MNIST in gitignored/data/MNIST/raw")
    return {label(method): [run_cell(method, seed) for seed in SEEDS] for method in METHODS}


def test_asked_sparsity_is_reached_exactly(records: dict[str, list[dict]]) -> None:
    for name, runs in records.items():
        asked = 0.0 if name == "EmptyCrit" else PLAN["base"]["pruning_limit"]
        for record in runs:
            total = record["weights_total"]
            assert record["weights_left"] == total - round(asked * total), name


def test_every_criterion_trains_and_the_table_is_printed(records: dict[str, list[dict]]) -> None:
    rows = {name: [record["test_accuracy"] for record in runs] for name, runs in records.items()}
    print("\n\n| criterion | epochs | test accuracy, mean ± std | n |\n|---|---|---|---|")
    for name, values in rows.items():
        epochs = records[name][0]["epochs"]
        print(f"| {name} | {epochs} | {statistics.mean(values):.4f} ± {statistics.stdev(values):.4f} | {len(values)} |")
    for better, worse in (("SNIPit", "SNIP"), ("SNIPit", "UnstructuredRandom")):
        a, b = rows[better], rows[worse]
        error = math.sqrt(statistics.variance(a) / len(a) + statistics.variance(b) / len(b))
        gap = statistics.mean(a) - statistics.mean(b)
        print(f"{better} - {worse}: {gap:+.4f}, {gap / error:+.1f} standard errors (aim: at least 2)")
    # 98 % of the weights are gone; a network that learns nothing has 0.1.
    assert all(statistics.mean(values) > 0.8 for values in rows.values())
