"""SNAP-it against random nodes and the dense network, on parts of CIFAR-10 and MNIST that a CPU can train on.

`python -m pytest -m slow tests/slow/test_structured_comparison.py -s`; needs both data sets in gitignored/data.
"""

import statistics
from itertools import product

import pytest

from tests.support.comparison import ROOT, Comparison, accuracies, print_gap, print_table

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("network", ["lenet5", "conv6"])
def test_node_criteria_reach_their_limit_and_train(network: str) -> None:
    if not (ROOT / "gitignored/data").is_dir():
        pytest.fail("this test needs MNIST and CIFAR-10 in gitignored/data")
    comparison = Comparison(f"experiments/snipit/{network}_nodes.yaml")
    records = comparison.run()
    print_table(records)
    for limit in (0.5, 0.8):
        print_gap(records, f"SNAPit {limit:g}", f"StructuredRandom {limit:g}")
        print_gap(records, f"SNAPit {limit:g}", "EmptyCrit")
    for name, runs in records.items():
        for record in runs:
            asked, total = (0.0 if name == "EmptyCrit" else record["sparsity_asked"]), record["nodes_total"]
            assert record["nodes_left"] == int((1 - asked) * total + 1e-6), name
    # Ten classes: a network that learns nothing has 0.1.
    assert all(statistics.mean(values) > 0.2 for values in accuracies(records).values())


def test_snapit_against_random_when_nine_of_ten_nodes_go() -> None:
    records = Comparison("experiments/snipit/conv6_at_90_nodes.yaml").run()
    print_table(records)
    for data, epochs in product(("MNISTPART", "CIFAR10PART"), (2, 20)):
        for other in ("StructuredRandom", "SNAP"):
            print_gap(records, f"SNAPit 0.9 {data} {epochs}", f"{other} 0.9 {data} {epochs}")
    assert {record["nodes_left"] for runs in records.values() for record in runs} == {140}
