"""What callbacks are promised of a trainer is what the trainers have."""

import typing

import main
from trainers.DefaultTrainer import DefaultTrainer
from utils.trainer import PruningCallback, Trainer, TrainingMoment


def members(protocol):
    return {name for name in typing.get_type_hints(protocol) | vars(protocol) if not name.startswith("_")}


def test_the_default_trainer_and_its_moments_are_those_of_the_protocols(tmp_path, monkeypatch):
    seen = []
    at = DefaultTrainer.at

    def watched(trainer, moment):
        seen.append((trainer, moment))
        at(trainer, moment)

    monkeypatch.setattr(DefaultTrainer, "at", watched)
    quick = ["--hidden", "16", "--epochs", "1", "--limit_batches", "1", "--no-tensorboard", "--no-pictures", "--quiet"]
    assert main.main([*quick, "--prune_criterion", "SNIP", "--results_dir", str(tmp_path)]) == 0

    trainer = seen[0][0]
    lacking = {name for name in members(Trainer) if not hasattr(trainer, name)}
    assert lacking == set()
    assert {moment for _, moment in seen} == set(typing.get_args(TrainingMoment))
    pruning = trainer.callbacks[0]
    assert {name for name in members(PruningCallback) if not hasattr(pruning, name)} == set()
    assert list(tmp_path.rglob("*.png")) == [], "--no-pictures draws none"
