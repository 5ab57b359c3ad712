import json

import pytest

from tests.support.words import lacking
from utils.runs.result import result_rows


def test_the_table_says_what_the_record_says(command):
    record = command.quick().result
    rows = dict(result_rows(record))
    assert rows["test accuracy"] == f"{record['test_accuracy']:.4f}"
    assert rows["sparsity asked (weights)"] == "0.9000"
    assert rows["weights left"] == f"{record['weights_left']:,} of {record['weights_total']:,}"
    assert not lacking(rows["status"], "finished", "1 of 1 epochs", "1 batches")


def test_numbers_that_were_not_measured_are_no_crash(command):
    record = json.loads(json.dumps(command.quick().result))
    rows = dict(result_rows(record | {"test_accuracy": None, "train_accuracy": float("nan")}))
    assert rows["test accuracy"] == rows["train accuracy"] == "not measured"


def test_outer_layers_are_left_out_of_what_is_asked_but_not_of_the_base(command):
    record = command.quick("--no-outer_layer_pruning").result
    inner, outer = 3 * 16 * 16, 64 * 16 + 16 * 10
    removed = round(0.9 * inner)
    assert record["sparsity_reached"] == pytest.approx(removed / inner)
    assert record["weight_sparsity"] == pytest.approx(removed / (inner + outer))


def test_a_limit_that_the_guards_keep_from_being_reached_is_reported_with_the_reason(command):
    record = command.quick("--pruning_limit", "0.9999", "--prune_criterion", "SNIP").result
    assert record["status"] == "finished"
    assert record["weights_left"] == 5, "one weight per layer"
    assert record["sparsity_asked"] == 0.9999 > record["sparsity_reached"]
    assert "no layer is emptied" in record["sparsity_reason"]


def test_training_flops_count_what_was_pruned_for_good_only(command):
    record = command.quick("--pruning_limit", "0.5", "--epochs", "2").result
    # Masked weights are still computed with: three forward passes' worth for each sample seen.
    assert record["training_flops"] == record["training_flops_dense"] == 3 * record["flops_per_sample"] * 2 * 64
    assert record["flops_per_sample_nonzero"] < record["flops_per_sample"]
