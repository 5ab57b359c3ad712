"""The command line, taken apart and read: by a scanner that must see what argparse sees, and once per run."""

from __future__ import annotations

import argparse

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pruning import UsageError
from utils.settings import resolve
from utils.settings.command_line import CommandLine, Given, InFile
from utils.settings.flags import Flag

FLAGS = [
    Flag("count", int, 1, "how many", "part"),
    Flag("name", str, "", "what it is called", "part"),
    Flag("rates", list[float], (), "how fast", "part"),
    Flag("wide", bool, False, "how wide", "part"),
]

WORDS = ["--count", "--name", "--rates", "--wide", "--no-wide", "--other", "--no-other", "--name=a=b", "--count=3"]
WORDS += ["7", "-4", "-.5", "-0.25", "text", "", "-", "two words", "--two words", "--name=two words", "-x", "--rates=2"]


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([], []),
        (["--epochs", "3"], [("--epochs", ["3"])]),
        (["--epochs=3"], [("--epochs", ["3"])]),
        (["--run_name="], [("--run_name", [""])]),
        (["--run_name=a=b c"], [("--run_name", ["a=b c"])]),
        (["--no-augment", "--eval"], [("--no-augment", []), ("--eval", [])]),
        (["--milestones", "3", "-4", "--seed", "-1"], [("--milestones", ["3", "-4"]), ("--seed", ["-1"])]),
        (["--lr", "-.5", "--lr", "-0.5"], [("--lr", ["-.5"]), ("--lr", ["-0.5"])]),
        (["stray", "--eval"], [("--eval", [])]),
        (["--run_name", "--my name"], [("--run_name", ["--my name"])]),
        (["--run_name", "", "-"], [("--run_name", ["", "-"])]),
        (["--rates", "1", "--", "--eval"], [("--rates", ["1", "--eval"])]),
        (["-h"], [("-h", [])]),
    ],
)
def test_flags_with_their_words(argv, expected):
    assert CommandLine(argv).given == tuple(Given(typed, tuple(words)) for typed, words in expected)


@given(st.lists(st.sampled_from(WORDS), max_size=6))
def test_what_is_seen_at_first_is_what_is_read(argv):
    """Parts are chosen by the rough look: if it saw something else than the reading, wrong flags would hold."""
    typed = CommandLine(argv)
    try:
        read, leftover = typed.read(FLAGS, {})
    except UsageError:
        return  # a value is missing or of the wrong type, which the reading says
    rough = typed.rough(FLAGS)
    single = {"count", "name", "wide"}
    assert {name: str(value) for name, value in rough.items() if name in single} == {
        name: str(value) for name, value in read.items() if name in single
    }
    assert {"other"} & set(rough) == {"other"} & {word.removeprefix("--").removeprefix("no-") for word in leftover}


def test_the_last_one_counts_and_its_first_word():
    typed = CommandLine(["--name", "a", "--name", "b", "c", "--wide", "--no-wide"])
    assert typed.rough(FLAGS) == {"name": "b", "wide": False}
    assert typed.names == {"name", "wide"}


def test_a_flag_without_its_value_is_left_to_the_reading():
    typed = CommandLine(["--name", "--count", "3"])
    assert typed.rough(FLAGS) == {"count": "3"}
    with pytest.raises(UsageError, match="--name expected one argument"):
        typed.read(FLAGS, {})


def test_help_is_asked_for_by_a_flag_not_by_a_value():
    assert CommandLine(["--epochs", "3", "-h"]).wants_help
    assert CommandLine(["--help"]).wants_help
    assert not CommandLine(["--name=--help", "help"]).wants_help


def test_settings_that_are_there_already_stand_in_the_place_of_typed_ones():
    there = InFile({"count": 3, "name": None, "other": True})
    assert there.names == {"count", "other"}, "None stands for the default"
    assert there.read(FLAGS, {}) == ({"count": 3}, ["--other"])
    argv = [
        "--prune_criterion",
        "IMP",
        "--rewind_to",
        "2",
        "--milestones",
        "3",
        "4",
        "--no-augment",
        "--attack",
        "FGSM",
    ]
    values = {"prune_criterion": "IMP", "rewind_to": 2, "milestones": [3, 4], "augment": False, "attack": "FGSM"}
    assert resolve.settle(values) == resolve.parse(argv)
    with pytest.raises(UsageError, match="There is no flag --epoch. Did you mean --epochs"):
        resolve.settle({"epoch": 3})
    with pytest.raises(UsageError, match="--epochs must be at least 0"):
        resolve.settle({"epochs": -1})


# -- once per run -----------------------------------------------------------------------------------------------------


@pytest.fixture
def readings(monkeypatch):
    """Counts how often argparse reads a command line."""
    counted = []
    original = argparse.ArgumentParser.parse_known_args

    def counting(self, args=None, namespace=None):
        counted.append(args)
        return original(self, args, namespace)

    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", counting)

    def since() -> int:
        number = len(counted)
        counted.clear()
        return number

    return since


def test_a_command_line_is_read_once(command, readings, tmp_path):
    file = tmp_path / "tiny.yaml"
    file.write_text("base: {hidden: 16, epochs: 1}\ncompare: {prune_criterion: [SNIP, GMP], seed: [1, 2]}\n")
    config = tmp_path / "mine.yaml"
    config.write_text("l0: false\nbatch_size: 32\n")
    run = command.quick("--config", config, "--no-pictures").folder
    assert readings() == 1
    assert command("--resume", run).code == 0
    assert readings() == 1
    assert command.quick("--eval", "--checkpoint_name", run).code == 0
    assert readings() == 1
    assert command("--experiment", file, "--dry_run").code == 0
    assert readings() == 1
    assert command("--list").code == 0
    assert readings() == 1
    assert command("--help").code == 0
    assert readings() == 0, "what is only shown needs no value"
