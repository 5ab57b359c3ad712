"""Bad input gets one clear line, exit code 2, and nothing is lost."""

from __future__ import annotations

import io
import os
import pickle
import re
import sys
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

import pytest
import torch

from tests.support.running import QUICK, write_plug_in
from tests.support.tiers import few


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_args, **_kwargs):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


# -- names and values ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flag", "wrong", "close"),
    [
        ("model", "Resnet81", "ResNet18"),
        ("data_set", "MINST", "MNIST"),
        ("prune_criterion", "Snippit", "SNIPit"),
        ("loss", "CrossEntrop", "CrossEntropy"),
        ("train_scheme", "DefaultTrain", "DefaultTrainer"),
        ("test_scheme", "accurate", "Accuracy"),
    ],
)
def test_unknown_plug_in_gets_the_closest_names_and_the_full_list(command, flag, wrong, close):
    line = command.refused(f"--{flag}", wrong)
    assert re.search(rf"'{wrong}'.*Did you mean [^?]*{close}.*Known: .*{close}", line)


@pytest.mark.parametrize("name", ["torchvision/resnet81", "nolibrary/resnet18", "a/b/c", "/", "../main"])
def test_unknown_model_of_a_library(command, name):
    assert name.split("/")[-1] in command.refused("--model", name)


def test_a_model_of_another_task_than_the_data(command):
    assert re.search("GPT.*language.*DIGITS.*classification", command.refused("--model", "GPT"))


@pytest.mark.parametrize(
    ("typed", "close"),
    [("--epoch", "--epochs"), ("--prunning_limit", "--pruning_limit"), ("--lerning_rate", "--learning_rate")]
    + [("--rewind_epok", "--rewind_epoch"), ("--batchsize=5", "--batch_size")],
)
def test_unknown_flag_gets_the_nearest_as_it_is_typed(command, typed, close):
    line = command.refused(typed, "3")
    assert f"There is no flag {typed.split('=')[0]}." in line
    assert close in line


def test_flag_like_nothing_is_still_one_line(command):
    assert "There is no flag --qqqqzzzz. See --help." in command.refused("--qqqqzzzz")


@pytest.mark.parametrize(
    ("flag", "value", "expected"),
    [
        ("pruning_limit", "1", "0 to below 1"),
        ("pruning_limit", "-0.1", "0 to below 1"),
        ("pruning_limit", "98", "0 to below 1"),
        ("pruning_limit", "nan", "0 to below 1"),
        ("pruning_limit", "much", "a number"),
        ("epochs", "-1", "at least 0"),
        ("epochs", "2.5", "a whole number"),
        ("epochs", "inf", "a whole number"),
        ("epochs", "", "a whole number"),
        ("batch_size", "0", "at least 1"),
        ("prune_freq", "0", "at least 1"),
        ("prune_delay", "-1", "at least 0"),
        ("score_batches", "0", "at least 1"),
        ("limit_batches", "0", "at least 1"),
        ("workers", "-1", "at least 0"),
        ("eval_freq", "0", "at least 1"),
        ("save_freq", "0", "at least 1"),
        ("keep_epochs", "-1", "0 to --epochs"),
        ("keep_epochs", "99", "0 to --epochs"),
        ("prune_through", "0.95", "rises towards --pruning_limit"),
        ("checkpoint_model", "MLP5_finished", "--checkpoint_name RUN"),
        ("batch_size", "1", "cannot train on a batch of one sample"),
        ("hold_out", "0.9999", "cannot train on a batch of one sample"),
        ("seed", "-1", "at least 0"),
        ("seed", "99999999999999999999", "below"),
        ("max_training_minutes", "0", "positive"),
        ("learning_rate", "-1", "at least 0"),
        ("learning_rate", "nan", "at least 0"),
        ("learning_rate", "inf", "finite"),
        ("milestones", "-1", "from 0"),
        ("momentum", "1", "[0, 1)"),
        ("grad_clip", "-2", "at least 0"),
        ("l1_reg", "-1", "at least 0"),
        ("l1_reg", "nan", "at least 0"),
        ("lp_power", "0", "positive"),
        ("snip_steps", "-1", "at least 0"),
        ("hidden", "0", "hidden"),
        ("dropout", "1", "dropout"),
        ("optimizer", "ADAMM", "one of ADAM, SGD, RMSPROP, ADAMW"),
        ("device", "gpu", "one of auto, cpu, cuda, mps"),
        ("milestones", "x", "whole numbers"),
    ],
)
def test_value_out_of_range_says_what_fits(command, flag, value, expected):
    line = command.refused(*QUICK, f"--{flag}", value)
    assert flag in line or flag == "hold_out"  # what it leaves is said by the batch that it makes
    assert expected in line


def test_too_little_memory_is_one_line(command):
    # More bytes than a processor has addresses for.
    assert "not enough memory" in command.refused(*QUICK, "--model", "MLP5", "--hidden", "1000000000000")


def test_value_without_a_flag(command):
    assert "'0.5'" in command.refused("0.5")
    assert "--no-flag" in command.refused("--tuning", "yes")


def test_flag_without_its_value(command):
    assert "--epochs expected one argument" in command.refused("--epochs", "--seed", "3")


def test_two_spellings_that_say_two_things(command):
    line = command.refused("--pruning_limit", "0.9", "--pruning_rate", "0.8")
    assert "--pruning_rate 0.8" in line and "--pruning_limit 0.9" in line


def test_cuda_asked_for_where_there_is_none(command, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    line = command.refused("--device", "cuda")
    assert "--device cuda" in line and "cpu" in line


@pytest.mark.parametrize(
    ("outputs", "expected"),
    [("x[:, :5]", r"outputs of shape \(1, 5\) .*10 classes"), ("(x, x)", "returns tuple .*10 classes")],
)
def test_network_whose_outputs_the_loss_cannot_take(command, tmp_path, outputs, expected):
    source = f"""
        from torch import nn

        class Misfit(nn.Module):
            def __init__(self, num_classes: int):
                super().__init__()
                self.layer = nn.Linear(64, num_classes)

            def forward(self, x):
                x = self.layer(x.flatten(1))
                return {outputs}
    """
    plug_ins = write_plug_in(tmp_path, "models", "Misfit", source)
    line = command.refused(*QUICK[2:], "--plugin_dir", plug_ins, "--model", "Misfit", "--prune_criterion", "EmptyCrit")
    assert re.search(expected, line)


# -- criteria and their needs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("moment = 'befor'", "moment 'befor'; one of before, during, after"),
        ("sparsities = lambda self, limit: [0.5, 3]", r"sparsities\(0.9\) holds 3"),
    ],
)
def test_criterion_that_says_what_cannot_be(command, tmp_path, body, expected):
    source = f"from criterions.Magnitude import Magnitude\n\n\nclass Odd(Magnitude):\n    {body}\n"
    plug_ins = write_plug_in(tmp_path, "criterions", "Odd", source)
    assert re.search(f"Odd.*{expected}", command.refused(*QUICK, "--plugin_dir", plug_ins, "--prune_criterion", "Odd"))


def test_criterion_without_scores(command, tmp_path):
    for base, method in (("WeightCriterion", "weight_scores"), ("NodeCriterion", "node_scores")):
        source = f"from pruning import {base}\n\n\nclass Hollow(NAME):\n    pass\n".replace("NAME", base)
        plug_ins = write_plug_in(tmp_path, "criterions", "Hollow", source)
        sys.modules.pop("criterions.Hollow", None)
        done = command.quick("--plugin_dir", plug_ins, "--prune_criterion", "Hollow")
        assert done.code == 2 and re.fullmatch(rf"error: Hollow must define {method}\(.*\)\s", done.err)


def test_criterion_that_needs_what_the_model_lacks(command, tmp_path):
    plug_ins = write_plug_in(
        tmp_path,
        "models",
        "OnlyBiases",
        """
        import torch
        from torch import nn

        class OnlyBiases(nn.Module):
            def __init__(self, num_classes: int):
                super().__init__()
                self.bias = nn.Parameter(torch.zeros(num_classes))

            def forward(self, x):
                return self.bias.expand(len(x), -1)
        """,
    )
    line = command.refused("--plugin_dir", plug_ins, "--model", "OnlyBiases", "--prune_criterion", "SNIP")
    assert "OnlyBiases" in line and "nothing to prune" in line


def test_too_few_pruning_events_are_said_before_training_with_the_epochs_that_would_do(command):
    wrong = ["--prune_criterion", "SNIPitDuring", "--prune_delay", "4", "--prune_freq", "4"]
    line = command.refused(*QUICK, *wrong, "--epochs", "20")
    needed = int(re.search(r"--epochs (\d+) would do", line)[1])
    assert "7 pruning events" in line
    # The number that the line names is the least one that works.
    command.refused(*QUICK, *wrong, "--epochs", needed - 1)
    done = command.quick(*wrong, "--epochs", needed)
    assert done.code == 0
    assert done.result["pruning_events"] == 7


def test_rewinding_to_an_epoch_after_the_first_event(command):
    wrong = ["--prune_criterion", "IMP", "--enable_rewinding", "--rewind_to", "6"]
    assert "--rewind_to 6" in command.refused(*QUICK, *wrong, "--epochs", "20")


# -- data ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["MNIST", "CIFAR10", "TINYIMAGENET"])
def test_missing_data_without_a_network_names_folder_and_files(command, tmp_path, no_network, name):
    line = command.refused("--data_set", name, "--data_dir", tmp_path / "data")
    assert str(tmp_path / "data") in line
    assert "Put " in line


def test_damaged_data_file_is_named(command, tmp_path, no_network):
    raw = tmp_path / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        (raw / f"{part}-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03 cut short")
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01")
    line = command.refused("--data_set", "MNIST", "--data_dir", tmp_path / "data")
    assert "idx3-ubyte is damaged" in line


def test_folder_of_pictures_that_is_not_there(command, tmp_path):
    line = command.refused("--data_set", "IMAGEFOLDER", "--data_dir", tmp_path / "nothing")
    assert str(tmp_path / "nothing") in line


# -- plug-ins that cannot be used ------------------------------------------------------------------------------------

BROKEN = {
    "syntax": ("class Broken(\n    pass\n", r"Broken\.py, line \d"),
    "indentation": ("class Broken:\npass\n", r"Broken\.py, line 2"),
    "import": ("import torch\nimport no_such_package\n\nclass Broken: ...\n", r"Broken\.py, line 2: .*no_such_package"),
    "crash": ("x = 1\n\ny = 1 / 0\n", r"Broken\.py, line 3: ZeroDivisionError"),
    "exit": ("import sys\nsys.exit(0)\n", r"Broken\.py, line 2: SystemExit"),
    "empty": ("", r"Broken\.py must hold `class Broken`; it defines no class"),
    "other": ("class Brokken:\n    pass\n", r"Broken\.py must hold `class Broken`; it defines Brokken"),
    "function": ("def Broken():\n    pass\n", r"Broken\.py must hold `class Broken`"),
    "foreign": ("class Broken:\n    pass\n", r"Broken\.py: class Broken is no (?!.*Traceback)"),
}


@pytest.mark.parametrize("case", BROKEN)
@pytest.mark.parametrize("setting", few(["prune_criterion", "model"], ["prune_criterion"]))
def test_plug_in_that_cannot_be_used_is_named_with_its_path_and_line(command, tmp_path, case, setting):
    source, expected = BROKEN[case]
    kind = {"prune_criterion": "criterions", "model": "models"}[setting]
    plug_ins = write_plug_in(tmp_path / case, kind, "Broken", source)
    line = command.refused("--plugin_dir", plug_ins, f"--{setting}", "Broken")
    assert str(plug_ins / kind / "Broken.py") in line
    assert re.search(expected, line)


@pytest.mark.parametrize(
    ("kind", "setting", "lacks"),
    [
        ("data_sets", "data_set", r"train\(\)"),
        ("losses", "loss", r"__call__\(\)"),
        ("trainers", "train_scheme", r"train\(\)"),
        ("testers", "test_scheme", r"evaluate\(\)"),
        ("models", "model", "Module"),
        ("criterions", "prune_criterion", "Criterion"),
    ],
)
def test_class_that_is_no_plug_in_of_its_kind(command, tmp_path, kind, setting, lacks):
    plug_ins = write_plug_in(tmp_path, kind, "Hollow", "class Hollow:\n    pass\n")
    assert re.search(lacks, command.refused("--plugin_dir", plug_ins, f"--{setting}", "Hollow"))


def test_broken_plug_in_harms_only_those_who_ask_for_it(command, tmp_path):
    plug_ins = write_plug_in(tmp_path, "criterions", "Broken", "class Broken(")
    assert command.quick("--plugin_dir", plug_ins).code == 0
    listed = command("--plugin_dir", plug_ins, "--list")
    assert listed.code == 0
    assert re.search(r"Broken +cannot be used: .*line 1", listed.out)


def test_plugin_dir_that_holds_nothing_of_use(command, tmp_path):
    assert "no such folder" in command.refused("--plugin_dir", tmp_path / "none")
    assert "criterions" in command.refused("--plugin_dir", tmp_path)


# -- checkpoints -----------------------------------------------------------------------------------------------------


class Malicious:
    """Unpickled, it would make a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("form", ["torch", "legacy", "bare", "inside"])
def test_malicious_pickle_is_refused_and_not_executed(command, tmp_path, form):
    marker, file = tmp_path / "executed", tmp_path / "bad.pt"
    bad = Malicious(marker)
    if form == "bare":
        file.write_bytes(pickle.dumps(bad))
    else:
        content = {"state_dict": {"a": torch.zeros(1)}, "masks": {"a": bad}} if form == "inside" else bad
        torch.save(content, file, _use_new_zipfile_serialization=form != "legacy")
    line = command.refused(*QUICK, "--weights", file)
    assert str(file) in line and "refused" in line and "nothing in it was executed" in line
    assert not marker.exists()
    # That the pickle is a dangerous one is part of what is tested.
    torch.load(file, weights_only=False) if form != "bare" else pickle.loads(file.read_bytes())
    assert marker.exists()


def _truncated() -> bytes:
    buffer = io.BytesIO()
    torch.save({"layer.weight": torch.zeros(1000)}, buffer)
    return buffer.getvalue()[:-700]


def _zip_of_something() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("letter.txt", "hello")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("suffix", "content"),
    [("pt", b""), ("pt", b"not a checkpoint at all\n"), ("pt", b"hi\n"), ("pt", _truncated())]
    + [("pt", _zip_of_something()), ("pt", b"\x80\x02"), ("safetensors", b""), ("safetensors", b"\xff" * 100)],
)
def test_damaged_weights_file_is_named(command, tmp_path, suffix, content):
    file = tmp_path / f"weights.{suffix}"
    file.write_bytes(content)
    line = command.refused(*QUICK, "--weights", file)
    assert str(file) in line and not re.search(r": \d+\.$", line)


@pytest.mark.parametrize("content", [[1, 2], {}, {"layer": 3}, {"state_dict": {"a": "text"}}, torch.zeros(3)])
def test_file_without_a_state_dict_of_this_network(command, tmp_path, content):
    file = tmp_path / "weights.pt"
    torch.save(content, file)
    assert str(file) in command.refused(*QUICK, "--weights", file)


def test_state_dict_with_something_else_in_a_tensors_place(command, tmp_path):
    folder = command.quick().folder
    content = torch.load(folder / "models" / "MLP5_finished", weights_only=True)
    name = next(iter(content["state_dict"]))
    torch.save({**content["state_dict"], name: "text"}, tmp_path / "weights.pt")
    assert f"'{name}' is no tensor" in command.refused(*QUICK, "--weights", tmp_path / "weights.pt")


def test_weights_that_are_not_there(command, tmp_path):
    assert "nowhere.pt" in command.refused(*QUICK, "--weights", tmp_path / "nowhere.pt")
    assert str(tmp_path) in command.refused(*QUICK, "--weights", tmp_path)


def test_checkpoint_of_another_shape_names_the_tensor_and_both_shapes(command):
    folder = command.quick().folder
    line = command.refused(*QUICK, "--hidden", "17", "--checkpoint_name", folder.name, "--eval")
    assert "another shape" in line
    assert "(16, 64)" in line and "(17, 64)" in line


def test_checkpoint_of_another_network(command):
    folder = command.quick().folder
    line = command.refused("--model", "LogisticRegression", "--checkpoint_name", folder.name, "--epochs", "1")
    assert "than LogisticRegression" in line and "--model MLP5" in line


def test_unknown_checkpoint_model_lists_those_there_are(command):
    folder = command.quick().folder
    line = command.refused(*QUICK, "--eval", "--checkpoint_name", folder.name, "--checkpoint_model", "MLP5_finish")
    assert "MLP5_finished" in line


def test_checkpoint_and_weights_together(command, tmp_path):
    folder = command.quick().folder
    line = command.refused(*QUICK, "--checkpoint_name", folder.name, "--weights", tmp_path / "w.pt")
    assert "give one" in line


def test_eval_without_a_checkpoint_lists_the_runs_there_are(command):
    assert "no runs in" in command.refused(*QUICK, "--eval")
    folder = command.quick().folder
    assert folder.name in command.refused(*QUICK, "--eval")


def test_unknown_run_lists_the_runs_there_are(command):
    folder = command.quick().folder
    for flag in ("--resume", "--checkpoint_name"):
        argv = [flag, folder.name[:-2]] if flag == "--resume" else [*QUICK, flag, folder.name[:-2]]
        line = command.refused(*argv)
        assert f"Did you mean {folder.name}" in line


# -- where results go ------------------------------------------------------------------------------------------------


def test_file_in_the_place_of_the_results_folder(command, tmp_path):
    (tmp_path / "results").write_text("mine")
    line = command.refused(*QUICK)
    assert str(tmp_path / "results") in line
    assert (tmp_path / "results").read_text() == "mine"


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a file system that refuses folders")
def test_results_folder_that_nobody_can_write_to(command):
    command.results = Path("/proc/results")
    assert "/proc/results" in command.refused(*QUICK)


def test_unwritable_results_are_said_before_an_evaluation_is_computed(command, tmp_path):
    folder = command.quick().folder
    (tmp_path / "elsewhere").write_text("mine")
    command.results = tmp_path / "elsewhere"
    assert "elsewhere" in command.refused(*QUICK, "--eval", "--checkpoint_name", folder)


# -- what --resume refuses -------------------------------------------------------------------------------------------


WRONG = [["--epochs", "5"], ["--learning_rate", "1"], ["--alpha", "2"], ["--config", "x"]]


@pytest.mark.parametrize("wrong", few(WRONG, [["--epochs", "5"]]))
def test_resume_refuses_what_would_change_the_run(command, wrong):
    folder = command.quick().folder
    line = command.refused("--resume", folder, *wrong)
    assert wrong[0] in line and "--max_training_minutes" in line


def test_resume_of_an_evaluation(command):
    folder = command.quick().folder
    evaluation = command.quick("--eval", "--checkpoint_name", folder).runs
    name = next(run.name for run in evaluation if "_eval_" in run.name)
    assert "evaluation" in command.refused("--resume", name)


def test_resume_of_nothing_is_no_new_run(command):
    assert "no run ''" in command.refused("--resume", "")
