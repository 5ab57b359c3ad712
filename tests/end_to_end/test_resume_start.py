"""A trainer that copies its network in its constructor finds the same one after --resume as it did at first."""

import json
import signal
from pathlib import Path

import pytest
import torch

import main
from tests.end_to_end.test_resume import assert_same, at_call, newest, outcome, resume, send
from tests.support.tiers import few, thorough
from trainers.DefaultTrainer import DefaultTrainer
from utils.callbacks import attach

DISTIL = '''
import copy
import torch.nn.functional as F
from trainers.DefaultTrainer import DefaultTrainer


class Distil(DefaultTrainer):
    """Learns from the network that it began with."""

    def __init__(self, **given) -> None:
        super().__init__(**given)
        self.teacher = copy.deepcopy(self.network.model).eval().requires_grad_(False)

    def forward(self, inputs):
        self.told = self.teacher(inputs)
        return super().forward(inputs)

    def loss(self, outputs, targets):
        return super().loss(outputs, targets) + F.mse_loss(outputs, self.told)
'''

TINY = ["--data_set", "DIGITS", "--model", "MLP5", "--hidden", "24", "--batch_size", "256", "--limit_batches", "2"]
TINY += ["--score_batches", "1", "--device", "cpu", "--quiet", "--no-tensorboard"]

# What the run begins with: whole, with fewer channels, and with layers of lower rank.
STARTS = {
    "dense": ["--prune_criterion", "EmptyCrit", "--pruning_limit", "0"],
    "fewer nodes": ["--prune_criterion", "SNAPit", "--snip_steps", "1", "--pruning_limit", "0.3"],
    "masked": ["--prune_criterion", "SNIP", "--pruning_limit", "0.5"],
    "low rank": ["--prune_criterion", "SVD", "--pruning_limit", "0.3"],
}


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attach.Pictures, "draw", lambda *args: None)


@pytest.mark.parametrize("start", few(STARTS, ["fewer nodes"]))
def test_the_teacher_is_the_same_after_resume(start: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own" / "trainers").mkdir(parents=True)
    (tmp_path / "own" / "trainers" / "Distil.py").write_text(DISTIL)
    assert main.main([*TINY, "--epochs", "2", "--results_dir", str(tmp_path / "start"), *STARTS[start]]) == 0
    flags = [*TINY, "--plugin_dir", str(tmp_path / "own"), "--checkpoint_name", str(newest(tmp_path / "start"))]
    flags += ["--train_scheme", "Distil", "--epochs", "5"]
    if start != "low rank":
        flags += ["--prune_criterion", "SNAPitDuring", "--snip_steps", "1", "--pruning_limit", "0.6"]

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums come out the same for the same number of threads
    try:
        assert main.main([*flags, "--results_dir", str(tmp_path / "whole")]) == 0
        train_batch = DefaultTrainer.train_batch
        monkeypatch.setattr(DefaultTrainer, "train_batch", at_call(6, train_batch, send(signal.SIGINT)))
        assert main.main([*flags, "--results_dir", str(tmp_path / "stopped")]) == 130
        monkeypatch.setattr(DefaultTrainer, "train_batch", train_batch)
        folder = newest(tmp_path / "stopped")
        assert resume(folder) == 0
    finally:
        torch.set_num_threads(threads)
    assert_same(folder, outcome(newest(tmp_path / "whole")))


@thorough
def test_a_start_that_is_gone_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main([*TINY, "--epochs", "1", "--results_dir", str(tmp_path / "start"), *STARTS["dense"]]) == 0
    start = newest(tmp_path / "start")
    train_batch = DefaultTrainer.train_batch
    monkeypatch.setattr(DefaultTrainer, "train_batch", at_call(2, train_batch, send(signal.SIGINT)))
    flags = [*TINY, "--epochs", "2", "--checkpoint_name", str(start), "--results_dir", str(tmp_path / "stopped")]
    assert main.main(flags) == 130
    monkeypatch.setattr(DefaultTrainer, "train_batch", train_batch)
    start.rename(tmp_path / "elsewhere")
    folder = newest(tmp_path / "stopped")
    assert resume(folder) == 0
    assert json.loads((folder / "result.json").read_text())["status"] == "finished"
    assert "cannot be read any more" in (folder / "output" / "log.txt").read_text() + capsys.readouterr().err
