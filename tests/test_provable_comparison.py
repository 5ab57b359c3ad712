"""SiPP, PFP and what they are compared with: accuracy after pruning a trained network, without any retraining.

`python -m pytest -m slow tests/test_provable_comparison.py -s`; needs MNIST and CIFAR-10 in gitignored/data.
"""

from __future__ import annotations

import copy
import json
import statistics
from collections.abc import Iterator
from itertools import islice, product
from typing import Any

import pytest
import yaml

from main import prepare
from pruning import PrunableNetwork
from pruning.evaluate import evaluate
from tests.comparison import PLUGINS, ROOT, Comparison
from utils import registry, settings
from utils.saving import load_start

pytestmark = pytest.mark.slow
NETWORKS = ["sipp/lenet5_mnist", "pfp/resnet20_cifar10"]


class Pruned(Comparison):
    """Prunes the dense networks of a comparison to each ratio by each method; finished cells are kept."""

    def __init__(self, file: str) -> None:
        super().__init__(file)
        plan = yaml.safe_load((ROOT / file).read_text())
        self.kinds = {kind: plan["compare"][kind] for kind in ("weights", "nodes")}
        self.ratios, self.points = plan["compare"]["keep_ratio"], plan["points"]
        self.others = []  # of training there is nothing but the dense run to compare
        self.methods = [{"name": "EmptyCrit", "pruning_limit": 0.0}]
        self.file = self.results / "cells.json"

    def cells(self) -> dict[str, dict[str, float]]:
        """Returns accuracy and kept share by "method ratio seed"; ratio 1 of "dense" is the network before."""
        done: dict[str, dict[str, float]] = json.loads(self.file.read_text()) if self.file.exists() else {}
        names = [name for kind in self.kinds.values() for name in kind]
        for seed in self.seeds:
            wanted = [(n, r) for n, r in product(names, self.ratios) if f"{n} {r:g} {seed}" not in done]
            for name, ratio, cell in self._pruned(seed, wanted) if wanted else ():
                done[f"{name} {ratio:g} {seed}"] = cell
                self.file.write_text(json.dumps(done, indent=1))
        return done

    def _pruned(self, seed: int, wanted: list[tuple[str, float]]) -> Iterator[tuple[str, float, dict[str, float]]]:
        parts, batches = self._trained(seed)
        dense: PrunableNetwork = parts["network"]
        accuracy, _ = evaluate(dense.model, parts["test_batches"], dense.loss)
        yield "dense", 1.0, {"accuracy": accuracy, "kept": 1.0}
        for name, ratio in wanted:
            network = PrunableNetwork(copy.deepcopy(dense.model), dense.example_inputs, loss=dense.loss)
            flags = {flag.name for flag in registry.flags("criterions", name)}
            options = {key: value for key, value in {"points": self.points, "seed": seed}.items() if key in flags}
            network.prune(registry.build("criterions", name, options), batches, keep_ratio=ratio)
            accuracy, _ = evaluate(network.model, parts["test_batches"], network.loss)
            yield name, ratio, {"accuracy": accuracy, "kept": 1 - network.weight_sparsity()}

    def _trained(self, seed: int) -> tuple[dict[str, Any], list[Any]]:
        """Returns the parts of a run that starts from the dense network, and the batches that S comes from."""
        method = self.methods[0]
        self.run_cell(method, seed)
        run = sorted(self.results.glob(f"*_{self.label(method)}_{seed}/result.json"))[-1].parent
        argv = ["--checkpoint_name", run, "--plugin_dir", PLUGINS, "--prune_criterion", "PFP", "--seed", seed]
        argv += ["--batch_size", self.points, "--hold_out", self.base["hold_out"]]
        chosen = settings.parse([str(word) for word in argv])
        assert chosen is not None
        parts = prepare(chosen)
        load_start(parts["network"], chosen.core)
        return parts, list(islice(parts["batches"]("score").epoch(0), 2))


def print_tables(comparison: Pruned, cells: dict[str, dict[str, float]]) -> None:
    """Prints mean and standard deviation of the accuracy per method and ratio."""
    dense = [cells[f"dense 1 {seed}"]["accuracy"] for seed in comparison.seeds]
    print(f"\n\ndense: {_text(dense)}, n = {len(dense)}")
    for kind, names in comparison.kinds.items():
        print(f"\n| {kind} | " + " | ".join(f"{ratio:g}" for ratio in comparison.ratios) + " |")
        print("|---" * (1 + len(comparison.ratios)) + "|")
        for name in names:
            values = [[cells[f"{name} {r:g} {s}"]["accuracy"] for s in comparison.seeds] for r in comparison.ratios]
            print(f"| `{name}` | " + " | ".join(_text(value) for value in values) + " |")


def _text(values: list[float]) -> str:
    return f"{statistics.mean(values):.4f} ± {statistics.stdev(values):.4f}"


@pytest.mark.parametrize("network", NETWORKS)
def test_pruned_networks_before_any_retraining(network: str) -> None:
    if not (ROOT / "gitignored/data").is_dir():
        pytest.fail("this test needs MNIST and CIFAR-10 in gitignored/data")
    comparison = Pruned(f"experiments/{network}.yaml")
    cells = comparison.cells()
    print_tables(comparison, cells)
    for label, cell in cells.items():
        asked = float(label.split()[1])
        assert abs(cell["kept"] - asked) <= 0.01, label  # one filter of LeNet5 has 0.8 % of its weights
        assert cell["accuracy"] > 0.05, label  # a tenth is what guessing gives, and a single class
    means = {
        name: statistics.mean(cells[f"{name} 0.8 {seed}"]["accuracy"] for seed in comparison.seeds)
        for name in ("SiPP", "UniformWeights", "PFP", "UniformFilters")
    }
    assert means["SiPP"] > means["UniformWeights"] and means["PFP"] > means["UniformFilters"]
