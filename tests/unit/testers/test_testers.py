"""Accuracy in detail, corruptions and latency: held to slow computations and to wrong inputs."""

import json
import math

import pytest
import torch
import torch.nn.functional as F

from testers._corruptions import CORRUPTIONS, blur, corrupted
from tests.support.running import write_plug_in
from tests.support.tiers import thorough

LATER = ["--run_name", "zz"]


def in_output(done, name):
    return json.loads((done.folder / "output" / name).read_text())


# -- accuracy --------------------------------------------------------------------------------------------------------


def test_evaluation_reports_classes_and_calibration(command):
    run = command.quick("--epochs", "3").folder
    done = command.quick("--eval", "--checkpoint_name", run, *LATER)
    found = in_output(done, "accuracy.json")
    confusion = torch.tensor(found["confusion"])
    assert float(confusion.diagonal().sum() / confusion.sum()) == pytest.approx(done.result["test_accuracy"])
    assert done.result["class_accuracy"] == found["class_accuracy"]
    assert "expected calibration error" in done.out and "lowest class accuracies" in done.out
    assert (done.folder / "output" / "confusion.png").stat().st_size > 1000
    plain = command.quick("--eval", "--checkpoint_name", run, "--no-confusion", "--run_name", "zzz")
    assert not (plain.folder / "output" / "confusion.png").exists()


# -- corruptions -----------------------------------------------------------------------------------------------------


def test_blur_by_hand():
    pictures, sigma = torch.rand(2, 3, 5, 6, dtype=torch.float64), 0.8
    reach = math.ceil(3 * sigma)
    found = blur(pictures, sigma)
    weight = [math.exp(-((step / sigma) ** 2) / 2) for step in range(-reach, reach + 1)]
    for row, column in ((0, 0), (2, 3), (4, 5)):
        total = torch.zeros(2, 3, dtype=torch.float64)
        for down in range(-reach, reach + 1):
            for right in range(-reach, reach + 1):
                at = pictures[:, :, min(max(row + down, 0), 4), min(max(column + right, 0), 5)]
                total += at * weight[down + reach] * weight[right + reach]
        torch.testing.assert_close(found[:, :, row, column], total / sum(weight) ** 2)


@pytest.mark.parametrize("shape", [(3, 1, 8, 8), (2, 3, 40, 64)])
def test_corruptions_are_stronger_each_time_and_stay_pictures(shape):
    pictures = torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 0.6 + 0.2
    sizes = {kind: [] for kind in CORRUPTIONS}
    for kind, strength, changed in corrupted(pictures, 0):
        assert changed.shape == shape and changed.min() >= 0 and changed.max() <= 1
        assert len(sizes[kind]) == strength
        sizes[kind].append(float(F.mse_loss(changed, pictures)))
    for kind, found in sizes.items():
        assert len(found) == 5 and found == sorted(found) and 0 < found[0] < found[-1], kind
    first = [changed for _, _, changed in corrupted(pictures, 0)]
    again = [changed for _, _, changed in corrupted(pictures, 0)]
    other = [changed for _, _, changed in corrupted(pictures, 1)]
    assert all(map(torch.equal, first, again)) and not torch.equal(first[0], other[0])


@thorough
def test_corruption_of_two_networks(command):
    start = ["--hidden", "16", "--epochs", "4", "--no-tensorboard"]
    dense = command(*start, "--prune_criterion", "EmptyCrit", "--pruning_limit", "0", "--run_name", "a").folder
    small = command(*start, "--prune_criterion", "SNAP", "--pruning_limit", "0.5", "--run_name", "b")
    argv = ["--eval", "--test_scheme", "Corruption", "--checkpoint_name", small.folder, "--against", dense, *LATER]
    done = command(*argv)
    networks = in_output(done, "corruption.json")["networks"]
    assert list(networks) == ["this network", dense.name]
    for run, found in zip((small.folder, dense), networks.values(), strict=True):
        trained = json.loads((run / "result.json").read_text())
        assert found["clean_accuracy"] == pytest.approx(trained["test_accuracy"])
        every = [share for shares in found["accuracy"].values() for share in shares]
        assert len(every) == 20 and found["corrupted_accuracy"] == pytest.approx(sum(every) / 20)
        assert found["corrupted_accuracy"] < found["clean_accuracy"]
    assert (done.folder / "output" / "corruption.png").stat().st_size > 1000
    assert "noise, strength 1 to 5" in done.out
    assert done.result["corrupted_accuracy"] == networks["this network"]["corrupted_accuracy"]


def test_corruption_needs_pictures(command, tmp_path):
    data = """
        import torch


        class Signals:
            input_shape, num_classes = (2, 1, 7), 3

            def train(self):
                return torch.randn(60, 2, 1, 7), torch.arange(60) % 3

            test = train
        """
    own = ["--plugin_dir", write_plug_in(tmp_path / "mine", "data_sets", "Signals", data), "--data_set", "Signals"]
    run = command.quick(*own).folder
    assert "needs pictures" in command.refused(
        "--eval", "--test_scheme", "Corruption", "--checkpoint_name", run, "--no-tensorboard"
    )
    # What is no picture can be attacked, within the range that they have.
    attack = ["--attack", "FGSM", "--attack_samples", "5", "--epsilons", "0.1"]
    done = command("--eval", "--checkpoint_name", run, *attack, *LATER)
    assert "the data's range" in done.result["epsilons_in"]


# -- latency ---------------------------------------------------------------------------------------------------------


def test_latency_of_this_network_and_of_the_dense_one(command):
    run = command.quick("--prune_criterion", "SNAP", "--pruning_limit", "0.5", "--hidden", "32").folder
    argv = ["--eval", "--test_scheme", "Latency", "--checkpoint_name", run, "--latency_batches", "1", "900"]
    done = command(*argv, "--latency_repeats", "4", *LATER)
    found = in_output(done, "latency.json")
    assert list(found) == ["1", "900"], "more samples than the test data have"
    for entry in found.values():
        for which in ("this", "dense"):
            low, high = entry[which]["quartiles"]
            assert 0 < low <= entry[which]["median"] <= high
        assert entry["times_as_fast"] == pytest.approx(entry["dense"]["median"] / entry["this"]["median"])
    assert "batch of 900" in done.out and "[quartiles]" in done.out
    assert "latency_batches" in command.refused(*argv[:-2], "--latency_batches", "0")
