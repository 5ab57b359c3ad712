"""Runs on texts, tables and masks from the command line, and what is refused before they start."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

SMALL_GPT = [
    "--layers",
    "1",
    "--heads",
    "2",
    "--width",
    "8",
    "--context",
    "16",
    "--epochs",
    "1",
    "--limit_batches",
    "2",
]
PLAIN = ["--prune_criterion", "Magnitude", "--pruning_limit", "0.5", "--no-tensorboard"]


@pytest.fixture
def text(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text("some words of a text\n" * 50)
    return file


@pytest.fixture
def table(tmp_path):
    file = tmp_path / "table.csv"
    rows = [f"{number},{number % 7},{number / 3}" for number in range(60)]
    file.write_text("\n".join(["size,kind,price", *rows]))
    return file


@pytest.mark.parametrize("data", ["STDLIB", "TEXT"])
def test_a_data_set_of_language_brings_its_model_and_its_loss(command, text, data):
    done = command("--data_set", data, "--data_dir", text, *PLAIN, *SMALL_GPT)
    assert done.result["test_perplexity"] > 1
    assert done.result["weight_sparsity"] == 0.5
    again = command("--eval", "--checkpoint_name", done.folder)
    (evaluated,) = set(again.runs) - set(done.runs)
    assert (evaluated / "result.json").is_file(), again.err
    assert "every byte is a token" in done.out or data == "STDLIB"


@pytest.mark.thorough
def test_a_decoder_loses_whole_heads(command, text):
    data = ["--data_set", "TEXT", "--data_dir", text, "--no-tensorboard", *SMALL_GPT, "--heads", "4"]
    rules = ["--prune_criterion", "GroupMagnitude", "--pruning_limit", "0.25", "--ranking", "local", "--unit", "head"]
    done = command(*data, *rules)
    (file,) = (done.folder / "models").glob("*_finished")
    state = torch.load(file, weights_only=True)["state_dict"]
    assert tuple(state["blocks.0.attention.query.weight"].shape) == (6, 6)  # three heads of two, six of eight channels
    command("--eval", "--checkpoint_name", done.folder)
    assert "no attention head" in command.refused("--model", "MLP5", *rules)


def test_a_table_of_numbers_and_one_of_classes(command, table):
    settings = ["--data_set", "CSV", "--data_dir", table, "--hidden", "8", "--epochs", "1", *PLAIN]
    numbers = command(*settings, "--target_column", "price", "--loss", "MSE")
    assert numbers.result["test_r2"] <= 1
    classes = command(*settings, "--target_column", "kind")
    assert 0 <= classes.result["test_accuracy"] <= 1
    assert "'kind' is one of 7 classes" in classes.out


def test_pictures_with_masks(command, tmp_path):
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
        for number in range(5):
            pixels = np.random.RandomState(number).randint(0, 3, (8, 8)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / kind / f"{number}.png")
    settings = ["--data_set", "SEGMENTATIONFOLDER", "--data_dir", tmp_path, "--image_size", "8", "--width", "4"]
    done = command(*settings, "--epochs", "1", *PLAIN)
    assert 0 <= done.result["test_mean_iou"] <= 1


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["--data_set", "TEXT", "--context", "500"], "fewer than one window of --context 500"),
        (["--data_set", "TEXT", "--heads", "3"], "width 128 is no multiple of heads 3"),
        (["--data_set", "TEXT", "--tokenizer", "none"], "--tokenizer"),
        (["--data_set", "TEXT", "--model", "MLP5"], "MLP5 is made for classification and regression"),
        (["--data_set", "TEXT", "--model", "LeNet5"], "input_shape"),
        (["--data_set", "TEXT", "--loss", "CrossEntropy"], "CrossEntropy takes"),
        (["--data_set", "DIABETES", "--loss", "CrossEntropy"], "CrossEntropy takes"),
        (["--data_set", "CSV"], ".csv, .tsv"),
        (["--data_set", "SEGMENTATIONFOLDER"], "a file"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_runs(command, text, settings, says):
    context = [] if "--context" in settings or "TEXT" not in settings else ["--context", "16"]
    assert says in command.refused("--data_dir", text, *settings, *context)


def test_a_column_that_is_not_there(command, table):
    line = command.refused("--data_set", "CSV", "--data_dir", table, "--target_column", "prise")
    assert "Did you mean price" in line
