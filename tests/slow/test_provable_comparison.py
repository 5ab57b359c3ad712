"""SiPP, PFP and what they are compared with: accuracy after pruning a trained network, without any retraining.

`python -m pytest -m slow tests/slow/test_provable_comparison.py -s`; needs MNIST and CIFAR-10 in gitignored/data.
"""

from __future__ import annotations

import statistics

import pytest

from tests.support.comparison import ROOT, Comparison, accuracies, print_table

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("network", ["sipp/lenet5_mnist", "pfp/resnet20_cifar10"])
def test_pruned_networks_before_any_retraining(network: str) -> None:
    if not (ROOT / "gitignored/data").is_dir():
        pytest.fail("this test needs MNIST and CIFAR-10 in gitignored/data")
    records = Comparison(f"experiments/{network}.yaml").run()
    print_table(records)
    for name, runs in records.items():
        for record in runs:
            asked = 0.0 if name == "EmptyCrit" else float(name.split()[1])
            assert abs(record["weight_sparsity"] - asked) <= 0.01, name  # one filter of LeNet5 has 0.8 % of its weights
            assert record["test_accuracy"] > 0.05, name  # a tenth is what guessing gives, and a single class
    means = {name: statistics.mean(values) for name, values in accuracies(records).items()}
    assert means["SiPP 0.2"] > means["UniformWeights 0.2"]
    assert means["PFP 0.2"] > means["UniformFilters 0.2"]
