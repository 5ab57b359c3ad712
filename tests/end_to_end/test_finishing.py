"""What is done to a finished network: dead nodes removed, exported, timed; by training and by --eval."""

import importlib.util
import json

import pytest
import torch

from models.MLP5 import MLP5
from pruning import UsageError, load_pruned
from tests.support.tiers import thorough
from utils.callbacks import finishing

# Runs of one second are sorted by their names; the later of two must come last.
LATER = ["--run_name", "later"]
SPARSE = ["--prune_criterion", "SNIP", "--pruning_limit", "0.98", "--hidden", "48"]


def load(run):
    path = run.folder / "models" / "MLP5_finished"
    return load_pruned(MLP5(10, (1, 8, 8), hidden=48), path), torch.load(path, weights_only=True)


def test_dead_nodes_go_and_the_network_computes_the_same(command):
    plain = command.quick(*SPARSE)
    dense, _ = load(plain)
    shrunk = command.quick(*SPARSE, "--shrink_dead")
    small, saved = load(shrunk)
    before, after = plain.result, shrunk.result
    assert "dead nodes removed" in shrunk.out
    assert "dead nodes removed" in (shrunk.folder / "output" / "log.txt").read_text()
    assert after["nodes_left"] < before["nodes_left"] == after["nodes_total"] == 4 * 48
    for name in ("flops_per_sample", "parameter_bytes"):
        assert after[name] < before[name]
        assert before[name] == before[f"{name}_dense"] == after[f"{name}_dense"]
    assert after["weight_sparsity"] > before["weight_sparsity"]
    assert after["sparsity_reason"] == "weights of dead nodes went too"
    assert before["effective_weight_sparsity"] == pytest.approx(after["effective_weight_sparsity"])
    assert after["weight_sparsity"] <= after["effective_weight_sparsity"]
    for name in ("test_accuracy", "test_loss", "flops_per_sample_dense"):
        assert after[name] == before[name]
    inputs = torch.rand(5, 1, 8, 8)
    torch.testing.assert_close(small.eval()(inputs), dense.eval()(inputs), rtol=1e-5, atol=1e-6)
    for name, mask in saved["masks"].items():
        assert mask.shape == small.get_parameter(name).shape
        assert not small.get_parameter(name)[~mask].any()


def test_a_shrunken_network_is_evaluated_shrunk_again_and_trained_on(command):
    run = command.quick(*SPARSE, "--shrink_dead")
    first = run.result
    start = ["--hidden", "48", "--checkpoint_name", run.folder.name]
    again = command.quick("--eval", *start, "--shrink_dead").result
    for name in ("nodes_left", "weights_left", "parameter_bytes", "flops_per_sample", "effective_weight_sparsity"):
        assert again[name] == first[name], name
    assert again["test_accuracy"] == pytest.approx(first["test_accuracy"])
    more = command.quick("--prune_criterion", "EmptyCrit", *start, *LATER).result
    assert more["nodes_left"] == first["nodes_left"]
    assert more["nodes_total"] == first["nodes_total"]


def test_evaluation_can_shrink_what_was_only_masked(command):
    run = command.quick(*SPARSE)
    done = command.quick("--eval", "--hidden", "48", "--checkpoint_name", run.folder.name, "--shrink_dead")
    assert done.result["nodes_left"] < run.result["nodes_left"]
    assert done.result["test_accuracy"] == pytest.approx(run.result["test_accuracy"])


def test_effective_sparsity_stands_beside_the_other_one(command):
    done = command.quick(*SPARSE)
    assert done.result["effective_weight_sparsity"] > done.result["weight_sparsity"]
    assert f"{done.result['effective_weight_sparsity']:.4f} with weights on no path" in done.out
    dense = command.quick("--prune_criterion", "EmptyCrit", *LATER).result
    assert dense["effective_weight_sparsity"] == 0


def test_latency_is_measured_dense_and_pruned(command):
    assert "latency_seconds" not in command.quick("--run_name", "A").result
    argv = ["--model", "LeNet5", "--prune_criterion", "SNAP", "--measure_latency", "--width_multiplier", "0.5"]
    run = command("--epochs", 1, "--limit_batches", 1, "--no-tensorboard", *argv)
    assert run.result["latency_seconds"] > 0
    assert run.result["latency_seconds_dense"] > 0
    assert "latency, one sample" in run.out
    assert "times as fast" in run.out
    start = ["--model", "LeNet5", "--width_multiplier", "0.5", "--limit_batches", "1"]
    again = command("--eval", *start, "--checkpoint_name", run.folder.name, "--measure_latency").result
    assert again["latency_seconds_dense"] > 0
    assert again["latency_seconds"] > 0


@thorough
def test_dense_latency_is_measured_before_anything_is_loaded(command, monkeypatch):
    run = command.quick("--prune_criterion", "SNAP", "--hidden", "48")
    measured = []

    def latency(model, inputs):
        measured.append(sum(parameter.numel() for parameter in model.parameters()))
        return float(measured[-1])

    monkeypatch.setattr("pruning.state.latency", latency)
    start = ["--hidden", "48", "--checkpoint_name", run.folder.name]
    result = command.quick("--eval", *start, "--measure_latency").result
    dense = run.result["parameter_bytes_dense"] // 4
    assert (result["latency_seconds_dense"], result["latency_seconds"]) == (dense, run.result["parameter_bytes"] // 4)
    assert measured[0] == dense


@pytest.mark.parametrize("kind, suffix", [
    ("torch_export", "pt2"), pytest.param("onnx", "onnx", marks=pytest.mark.slow),
])  # fmt: skip
def test_the_finished_network_is_exported(command, kind, suffix):
    run = command.quick(*SPARSE, "--shrink_dead", "--export", kind)
    path = run.folder / "models" / f"MLP5.{suffix}"
    assert f"wrote {path.name} for batches of any size" in run.out
    inputs, (model, _) = torch.rand(3, 1, 8, 8), load(run)
    if kind == "torch_export":
        found = torch.export.load(path).module()(inputs)
        torch.testing.assert_close(found, model.eval()(inputs), rtol=1e-5, atol=1e-6)
    start = ["--hidden", "48", "--checkpoint_name", run.folder.name]
    again = command.quick("--eval", *start, "--export", kind)
    assert (again.folder / "models" / path.name).exists()


def test_missing_packages_are_said_before_anything_starts(command, monkeypatch):
    find = importlib.util.find_spec

    def without_onnx(name, *more):
        return None if name.startswith("onnx") else find(name, *more)

    monkeypatch.setattr(importlib.util, "find_spec", without_onnx)
    assert "pip install onnx onnxscript" in command.refused("--export", "onnx")


def test_a_failed_export_fails_the_run_but_not_the_network(command, monkeypatch):
    def broken(*args):
        raise UsageError("What was written computes something else: its outputs differ by 0.5.")

    with monkeypatch.context() as patch:
        patch.setattr(finishing, "export", broken)
        done = command.quick("--export", "torch_export")
        assert done.code == 2
        assert "differ by 0.5. Go on with: python main.py --resume" in done.err
    folder = done.runs[-1]
    assert json.loads((folder / "result.json").read_text())["status"] == "failed"
    assert (folder / "models" / "MLP5_finished").exists()
    again = command("--resume", folder)
    assert again.code == 0
    assert (folder / "models" / "MLP5.pt2").exists()
    assert again.result["status"] == "finished"
