"""Flags that stand for other settings: what they mean, and what contradicts them."""

import json

import pytest
import yaml

from pruning import UsageError
from tests.support.words import lacking
from utils.runs.run_folder import RunFolder
from utils.settings import presets, resolve

TABLE = {
    "fast": {"model": "LogisticRegression", "epochs": 1, "learning_rate": "1e-2", "augment": False},
    "dense": {"prune_criterion": "EmptyCrit", "epochs": 1},
    "long": {"epochs": 9},
    "gmp_steps": {"prune_criterion": "GMP"},
    "tuning": {"eval_freq": 2},
}


@pytest.fixture(autouse=True)
def autoconfig(tmp_path, monkeypatch):
    file = tmp_path / "autoconfig.json"
    monkeypatch.setattr(presets, "AUTOCONFIG", file)

    def write(content):
        file.write_text(json.dumps(content))

    write({"switch": TABLE, "model": {"LogisticRegression": {"epochs": 4, "seed": 5}}})
    return write


@pytest.fixture
def config(tmp_path):
    def write(**content):
        file = tmp_path / "run.yaml"
        file.write_text(yaml.safe_dump(content))
        return ["--config", str(file)]

    return write


def values(*argv, **expected):
    found = resolve.parse(argv).values
    assert {name: found.get(name) for name in expected} == expected
    return found


def refusal(*argv):
    with pytest.raises(UsageError) as error:
        resolve.parse(argv)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_switch_is_short_for_settings_above_presets():
    found = values("--fast", model="LogisticRegression", epochs=1, learning_rate=0.01, augment=False, seed=5)
    assert not {"fast", "dense"} & set(found), "what it stands for is what is saved"
    values("--fast", "--dense", prune_criterion="EmptyCrit", epochs=1)
    values("--fast", "--epochs", "1", "--no-augment", epochs=1)
    values("--fast", "--seed", "7", seed=7)
    values("--no-fast", model="MLP5")
    values(model="MLP5")


def test_what_contradicts_a_switch_is_one_line():
    expected = "--fast stands for --epochs 1; --epochs 3 was given too. Give one of them."
    assert refusal("--epochs", "3", "--fast") == expected
    assert "stands for --no-augment; --augment was given too" in refusal("--fast", "--augment")
    assert "stands for --learning_rate 0.01; --learning_rate 0.1" in refusal("--fast", "--learning_rate", "0.1")
    assert not lacking(refusal("--dense", "--long"), "--dense", "--long", "--epochs 1", "--epochs 9")
    assert refusal("--long", "--fast").startswith("--fast and --long contradict each other: ")


def test_switches_in_a_file_weigh_as_much_as_the_file(config):
    assert resolve.parse(config(fast=True)).warnings == []
    values(*config(fast=True), epochs=1)
    values(*config(fast=False), epochs=80)
    values(*config(fast=True), "--no-fast", epochs=80)
    values(*config(epochs=30), "--fast", epochs=1)
    assert "--epochs 30 was given too" in refusal(*config(epochs=30, fast=True))
    assert "--epochs 3 was given too" in refusal(*config(fast=True), "--epochs", "3")
    assert "contradict each other" in refusal(*config(dense=True), "--long")
    assert "fast takes true or false; 3 was given" in refusal(*config(fast=3))


def test_the_flag_of_a_part_chooses_the_part(config):
    values("--gmp_steps", "4", prune_criterion="GMP", gmp_steps=4)
    values("--gmp_steps=4", prune_criterion="GMP", gmp_steps=4)
    values(*config(gmp_steps=4), prune_criterion="GMP", gmp_steps=4)
    values("--tuning", tuning=True, eval_freq=2)
    chosen = resolve.parse(["--gmp_steps", "4", "--prune_criterion", "SNIP"])
    assert chosen.core.prune_criterion == "SNIP", "what the user chose stays"
    assert chosen.warnings == ["--gmp_steps is not used: it belongs to criterion GMP."]


def test_switches_stay_off_with_the_presets(config):
    line = refusal("--disable_autoconfig", "--fast")
    assert line.startswith("There is no flag --fast.") and "autoconfig.json are off with --disable_autoconfig" in line
    assert "no setting 'fast'" in refusal("--no-autoconfig", *config(fast=True))
    assert "Did you mean --fast" in refusal("--fasd")
    values("--disable_autoconfig", "--gmp_steps", "4", prune_criterion="SNIPit")


def test_switches_are_checked_and_harm_only_those_who_give_them(autoconfig, command):
    broken = {"odd": {"epoch": 3}, "odder": {"epochs": "many"}, "gone": {"loss": "Gone"}}
    autoconfig({"switch": broken})
    assert "switch odd: there is no setting 'epoch'. Did you mean epochs" in refusal("--odd")
    assert "switch odder: epochs takes a whole number; 'many' was given" in refusal("--odder")
    assert "There is no loss 'Gone'" in refusal("--gone")
    values(epochs=80)
    assert "short for --loss Gone" in command("--help").out
    autoconfig({"switch": {"fast": 3}})
    assert "must hold" in refusal()


def test_help_says_what_a_switch_stands_for(command):
    text = " ".join(command("--help").out.split())
    assert "--fast, --no-fast short for --model LogisticRegression --epochs 1 --learning_rate 1e-2" in text
    assert "--gmp_steps INT pruning events; most is removed in the first ones. Chooses --prune_criterion GMP." in text
    assert "criterion SNIPit:" in text and "criterion GMP:" not in text
    assert "criterion SNIPit:" not in command("--help", "--dense").out
    assert "switches:" not in command("--help", "--disable_autoconfig").out


def test_resuming_holds_what_the_switch_stood_for(autoconfig, tmp_path):
    argv = ["--fast", "--gmp_steps", "3", "--results_dir", str(tmp_path)]
    folder = RunFolder.create(resolve.parse(argv), argv)
    autoconfig({})
    again = resolve.load(folder.settings(), {}, folder.settings_file)
    assert (again.core.epochs, again.core.prune_criterion, again.values["gmp_steps"]) == (1, "GMP", 3)
