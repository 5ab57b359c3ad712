"""Other tasks than classes, from the command line: what is trained, measured, remembered, shown and refused."""

import json

import pytest
import yaml

from tests.support.running import write_plug_in
from tests.support.tiers import few

DATA_SET = """
    import torch

    class {name}:
        '''{name}, made up.'''
        task, input_shape, num_classes = "{task}", {shape}, {outputs}

        def make(self, count, seed):
            draws = torch.Generator().manual_seed(seed)
            x = {inputs}
            return x, {targets}

        def train(self):
            return self.make(64, 0)

        def test(self):
            return self.make(24, 1)
"""
NARROW = ["--hidden", "16"]
NUMBERS = "torch.randn(count, 6, generator=draws)"
TOKENS = "torch.randint(0, 7, (count, 7), generator=draws)"  # windows as long as the vocabulary
PICTURES = "torch.randn(count, 1, 8, 8, generator=draws)"
# name -> task, shape of an input, outputs, inputs, targets, and the flags that fit
DATA = {
    "Counts": ("regression", (6,), 1, NUMBERS, "x[:, :1].relu().round()", ["--loss", "MSE", *NARROW]),
    "Labels": ("classification", (6,), 3, NUMBERS, "(x[:, :3] > 0).float()", ["--loss", "BinaryCrossEntropy", *NARROW]),
    "Words": (
        "language",
        (7,),
        7,
        TOKENS,
        "x",
        ["--loss", "NextToken", "--model", "GPT", "--width", "16", "--layers", "1"],
    ),
    "Pixels": ("segmentation", (1, 8, 8), 3, PICTURES, "(x[:, 0] > 0).long()", ["--model", "TinyUNet"]),
}
SHORT = [
    "--epochs",
    "2",
    "--batch_size",
    "20",
    "--no-tensorboard",
    "--prune_criterion",
    "SNIPit",
    "--pruning_limit",
    "0.5",
]


@pytest.fixture(scope="module")
def plug_ins(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plug_ins")
    for name, (task, shape, outputs, inputs, targets, _) in DATA.items():
        source = DATA_SET.format(name=name, task=task, shape=shape, outputs=outputs, inputs=inputs, targets=targets)
        write_plug_in(folder, "data_sets", name, source)
    return folder


def flags_of(name, plug_ins):
    return ["--plugin_dir", plug_ins, "--data_set", name, *DATA[name][-1]]


MEASURES = {
    "Counts": {"r2": "higher", "mse": "lower", "mae": "lower"},
    "Labels": {"mean_average_precision": "higher", "exact_match": "higher"},
    "Words": {"perplexity": "lower", "next_token_accuracy": "higher"},
    "Pixels": {"pixel_accuracy": "higher", "mean_iou": "higher"},
}
WORDS = {"r2": "R^2", "mean_average_precision": "mean average precision", "pixel_accuracy": "pixel accuracy"}


@pytest.mark.parametrize("name", few(DATA, {"Counts", "Words"}))
def test_a_run_shows_what_its_loss_measures_and_so_does_its_evaluation(command, plug_ins, name):
    trained = command(*flags_of(name, plug_ins), *SHORT)
    result, measures = trained.result, MEASURES[name]
    main = next(iter(measures))
    assert result["measures"] == measures and list(result["measures"])[0] == main
    assert "test_accuracy" not in result and "train_accuracy" not in result
    told = trained.out.replace("_accuracy", "").replace("pixel accuracy", "").replace("token accuracy", "")
    assert "accuracy" not in told
    assert f"test {WORDS.get(main, main)}" in trained.out and f"test_{main} " in trained.out
    columns = (trained.folder / "output" / "epochs.csv").read_text().splitlines()[0].split(",")
    assert {f"{part}_{measure}" for part in ("test", "train") for measure in measures} < set(columns)

    evaluated = command("--eval", "--checkpoint_name", trained.folder)
    assert f"test {WORDS.get(main, main)}" in evaluated.out
    for measure in (*measures, "loss"):
        assert evaluated.result[f"test_{measure}"] == pytest.approx(result[f"test_{measure}"], rel=1e-6)
    output = [path.name for path in (evaluated.folder / "output").iterdir()]
    assert not {"accuracy.json", "confusion.png"} & set(output), "there are no classes to confuse"


def test_going_on_from_a_run_minimises_its_loss_unless_another_is_typed(command, plug_ins):
    first = command(*flags_of("Counts", plug_ins), *SHORT).folder
    more = ["--checkpoint_name", first, "--prune_criterion", "Magnitude", "--pruning_limit", "0.8", "--epochs", "1"]
    assert command(*more, "--no-tensorboard").result["loss"] == "MSE"
    assert command(*more, "--no-tensorboard", "--loss", "L1").result["loss"] == "L1"


def test_a_loss_that_prepared_a_network_is_not_gone_on_with(command):
    first = command.quick("--loss", "HoyerSquare", "--prune_criterion", "EmptyCrit", "--pruning_limit", "0").folder
    done = command.quick("--checkpoint_name", first, "--prune_criterion", "SNIP")
    assert done.result["loss"] == "CrossEntropy"


def test_a_stopped_run_goes_on_with_its_loss_and_its_measures(command, plug_ins):
    done = command(*flags_of("Counts", plug_ins), *SHORT, "--max_training_minutes", "1e-9")
    (folder,) = done.runs
    assert json.loads((folder / "result.json").read_text())["status"] == "interrupted"
    resumed = command("--resume", folder, "--max_training_minutes", "5")
    whole = command(*flags_of("Counts", plug_ins), *SHORT)
    assert resumed.code == whole.code == 0
    found = json.loads((folder / "result.json").read_text())
    assert found["test_r2"] == whole.result["test_r2"] and found["measures"] == whole.result["measures"]


@pytest.mark.parametrize(
    ("name", "flags", "words"),
    [
        ("Counts", ["--loss", "CrossEntropy"], ["CrossEntropy", "(16, 1)", "MSE"]),
        ("Labels", ["--loss", "NextToken"], ["NextToken", "(16, 3)", "BinaryCrossEntropy"]),
        ("Words", ["--loss", "MSE"], ["MSE", "(16, 7, 7)", "(16, 7)", "NextToken"]),
        ("Pixels", ["--loss", "MSE"], ["MSE", "(16, 3, 8, 8)", "(16, 8, 8)", "CrossEntropy"]),
    ],
)
def test_a_loss_that_does_not_fit_is_said_before_anything_with_both_shapes_and_what_fits(
    command, plug_ins, name, flags, words
):
    line = command.refused(*flags_of(name, plug_ins), *flags, *SHORT)
    assert all(word in line for word in words), line


def test_a_loss_of_torch_that_spreads_shapes_is_refused(command, plug_ins, tmp_path):
    source = """
        from torch.nn.functional import mse_loss

        class Spread:
            '''Takes (N, 1) and (N,) for (N, N).'''

            def __call__(self, outputs, targets):
                return mse_loss(outputs, targets)
    """
    write_plug_in(plug_ins, "losses", "Spread", source)
    data = DATA_SET.format(
        name="Flat", task="regression", shape=(6,), outputs=1, inputs=NUMBERS, targets="x[:, 0].relu()"
    )
    write_plug_in(plug_ins, "data_sets", "Flat", data)
    start = ["--plugin_dir", plug_ins, "--data_set", "Flat", *SHORT]
    line = command.refused(*start, "--loss", "Spread")
    assert "Spread" in line and "(16, 1)" in line and "(16,)" in line and "MSE" in line
    # The loss of this project takes a column for a row.
    assert command(*start, "--loss", "MSE").result["measures"]["r2"] == "higher"


def test_testers_of_classes_refuse_numbers_before_they_compute(command, plug_ins):
    trained = command(*flags_of("Counts", plug_ins), *SHORT).folder
    for tester in ("Corruption", "AdversarialEvaluation"):
        line = command.refused("--eval", "--checkpoint_name", trained, "--test_scheme", tester)
        assert tester in line and "class" in line


def test_a_task_stands_for_parts_and_what_is_typed_wins(command):
    done = command(
        "--task", "classification", "--hidden", "16", "--epochs", "1", "--limit_batches", "1", "--no-tensorboard"
    )
    settings = yaml.safe_load((done.folder / "settings.yaml").read_text())
    assert (settings["task"], settings["data_set"], settings["loss"]) == ("classification", "DIGITS", "CrossEntropy")
    line = command.refused("--task", "classification", "--loss", "NextToken", "--model", "LeNet300")
    assert "NextToken" in line and "CrossEntropy" in line
    assert "autoconfig" in command.refused("--task", "language", "--disable_autoconfig")
    assert "Did you mean language?" in command.refused("--task", "languag")
