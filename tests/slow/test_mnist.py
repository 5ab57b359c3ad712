"""Every criterion of weights on real MNIST at 98 % sparsity: `python -m pytest -m slow tests/slow/test_mnist.py -s`.

Needs MNIST in gitignored/data. The settings stand in experiments/snipit/mnist_weights.yaml.
"""

import statistics

import pytest

from tests.support.comparison import ROOT, Comparison, accuracies, print_gap, print_table

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    if not (ROOT / "gitignored/data/MNIST/raw").is_dir():
        pytest.fail("this test needs the original MNIST in gitignored/data/MNIST/raw")
    return Comparison("experiments/snipit/mnist_weights.yaml")


def test_asked_sparsity_is_reached_exactly(comparison: Comparison) -> None:
    for name, runs in comparison.run().items():
        asked = 0.0 if name == "EmptyCrit" else 0.98
        for record in runs:
            total = record["weights_total"]
            assert record["weights_left"] == total - round(asked * total), name


def test_every_criterion_trains_and_the_table_is_printed(comparison: Comparison) -> None:
    records = comparison.run()
    print_table(records)
    print_gap(records, "SNIPit 0.98", "SNIP 0.98")
    print_gap(records, "SNIPit 0.98", "UnstructuredRandom 0.98")
    # 98 % of the weights are gone; a network that learns nothing has 0.1.
    assert all(statistics.mean(values) > 0.8 for values in accuracies(records).values())
