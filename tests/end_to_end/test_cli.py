"""What a person types and sees: flags, help, lists, the run folder and its result."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import safetensors.torch
import torch
import yaml

from models.MLP5 import MLP5
from tests.support.running import QUICK, Commands, write_plug_in
from tests.support.tiers import few, thorough
from tests.support.words import lacking
from utils.settings import resolve
from utils.settings.core import Core
from utils.settings.parts import fixed_flags
from utils.settings.registry import KINDS, ROOT, names

# Typed in many scripts and notebooks by now: changing one is a decision, not an accident. Each stands with its part.
OPTIONS = [line.split() for line in Path(__file__).with_name("core_options.txt").read_text().splitlines()]
CORE_OPTIONS = [name for part, name in OPTIONS if part == "core"]

# Section 4 of the architecture page, and what the run ran on.
RESULT_KEYS = set(
    re.findall(
        r"\w+",
        """
        model data_set prune_criterion seed epochs status test_accuracy test_loss train_accuracy train_loss
        weight_sparsity weights_total weights_left parameter_bytes flops_per_sample_dense flops_per_sample
        flops_per_sample_nonzero training_flops training_flops_dense sparsity_asked sparsity_reached target
        seconds_training samples_per_second peak_memory_bytes node_sparsity nodes_total nodes_left
        git_commit versions hardware threads effective_weight_sparsity parameter_bytes_dense
        """,
    )
)


# -- flags -----------------------------------------------------------------------------------------------------------


def test_options_of_every_run_are_frozen():
    # A new option is added to the list on purpose; one that is gone or renamed breaks what people have written.
    assert [field.name for field in fields(Core)] == CORE_OPTIONS
    assert [[flag.group, flag.name] for flag in fixed_flags()] == OPTIONS


def test_the_core_is_what_many_parts_share():
    # Settings that only one kind of part uses are declared by that part; the core must not grow back.
    assert len(CORE_OPTIONS) <= 40


def test_every_option_is_explained_under_its_part(command):
    text = command("--help").out
    others = {"core": {"pruning_rate", "keep_ratio"}}
    for part in dict.fromkeys(part for part, _ in OPTIONS):
        section = text.split(f"\n{part}:\n")[1].split("\n\n")[0]
        entries = re.split(r"\n  (?=--)", "\n" + section)[1:]
        explained = {re.match(r"--(\w+)", entry)[1]: entry for entry in entries}
        wanted = {name for title, name in OPTIONS if title == part}
        assert set(explained) == wanted | others.get(part, set())
        for name, entry in explained.items():
            assert re.search(r"[a-z]{2,} [a-z]", entry.split(None, 2)[2]), f"--{name} has no meaning in --help"


def test_help_groups_the_flags_of_the_chosen_parts(command):
    done = command("--prune_criterion", "IMP", "--model", "LeNet5", "--help")
    assert done.code == 0 and done.err == ""
    headings = re.findall(r"^(\S.*):$", done.out, re.MULTILINE)
    parts = [heading for heading in headings if " " in heading]
    assert parts[:2] + parts[-2:] == ["model LeNet5", "criterion IMP", "loss CrossEntropy", "trainer DefaultTrainer"]
    assert headings[1] == "core"
    assert "--rewind_to INT" in done.out and "the same as --rewind_to" in done.out
    assert "samples per batch. (default: 64)" in done.out, "the preset of DIGITS is what holds"
    assert not command.runs()


def test_help_beats_whatever_else_is_typed(command):
    assert command("--epochs", "3", "-h", "--pruning_limit", "0.5").out.startswith("usage: python main.py")


def test_aliases(command):
    assert command.quick("--pruning_rate", "0.8").result["sparsity_asked"] == 0.8
    assert command.quick("--keep_ratio", "0.3").result["sparsity_asked"] == 0.7
    both = command.quick("--pruning_rate", "0.7", "--pruning_limit", "0.7", "--run_name", "z")
    assert both.result["sparsity_asked"] == 0.7
    rewinding = ["--prune_criterion", "IMP", "--enable_rewinding", "--rewind_epoch", "1", "--prune_delay", "1"]
    done = command.quick(*rewinding, "--snip_steps", "0", "--epochs", "5", "--run_name", "zz")
    assert done.err == ""
    assert yaml.safe_load((done.folder / "settings.yaml").read_text())["rewind_to"] == 1


def test_known_flag_that_no_chosen_part_uses_is_one_warning_line(command):
    done = command.quick("--prune_criterion", "SNIP", "--snip_steps", "3", "--no-enable_rewinding")
    lines = done.err.splitlines()
    assert done.code == 0
    assert len(lines) == 2
    assert re.fullmatch(r"warning: --snip_steps is not used: it belongs to criterion \w+\.", lines[0])
    assert not lacking(lines[1], "warning", "--no-enable_rewinding", "not used", "IMP")


def test_settings_of_nodes_are_one_warning_line_where_weights_go(command):
    argv = ["--round_to", "8", "--ranking", "local", "--recalibrate", "1"]
    done = command.quick("--prune_criterion", "SNIP", *argv)
    idle = "--ranking, --round_to, --recalibrate"
    assert not lacking(done.err, "warning", idle, "changes nothing", "SNIP", "weights")
    assert command.quick("--prune_criterion", "SNAP", *argv, "--run_name", "zz").err == ""


def test_flags_of_libraries_models_are_known(tmp_path):
    """They may stand in a file, though no file of ours has them; importing a library takes seconds, so it is last."""
    config = tmp_path / "mine.yaml"
    config.write_text("model: torchvision/squeezenet1_1\npretrained: true\n")
    assert resolve.parse(["--config", str(config)]).values["pretrained"] is True
    unused = "--pretrained is not used: it belongs to model torchvision/NAME, timm/NAME."
    assert resolve.parse(["--config", str(config), "--model", "MLP5"]).warnings == [unused]
    assert resolve.parse(["--pretrained"]).warnings == [unused]
    assert "pretrained" not in resolve.every_flag(["hidden", "keep_ratio"])


def test_flags_of_testers_without_eval_are_one_warning_line(tmp_path):
    without = "Not used without --eval --checkpoint_name RUN: "
    assert resolve.parse(["--attack", "FGSM"]).warnings == [f"{without}--attack."]
    both = resolve.parse(["--attack", "FGSM", "--attack_samples", "20", "--test_scheme", "AdversarialEvaluation"])
    assert both.warnings == [f"{without}--test_scheme, --attack, --attack_samples."]
    config = tmp_path / "mine.yaml"
    config.write_text("test_scheme: Corruption\n")
    assert resolve.parse(["--config", str(config)]).warnings == [], "it may be the settings of another run"
    assert resolve.parse(["--eval", "--attack", "FGSM"]).warnings == []
    assert resolve.parse([]).warnings == []


def test_what_is_typed_wins_over_config_over_presets_over_defaults(command, tmp_path):
    config = tmp_path / "mine.yaml"
    config.write_text("batch_size: 32\nseed: 5\nprune_criterion: SNIP\nlearning_rate: 1e-3\nrewind_to: 3\n")
    done = command.quick("--config", config, "--seed", "6")
    values = yaml.safe_load((done.folder / "settings.yaml").read_text())
    assert values["batch_size"] == 32, "config over the preset of DIGITS"
    assert values["seed"] == 6, "typed over config"
    assert values["prune_criterion"] == "SNIP" and values["learning_rate"] == 0.001
    assert not lacking(done.err, "warning", "--rewind_to", "not used", "IMP")
    presets = [[], ["--disable_autoconfig"], ["--no-autoconfig"], ["--batch_size", "16"]]
    sizes = []
    for number, argv in enumerate(presets):
        folder = command.quick(*argv, "--run_name", f"z{number}").folder
        sizes.append(yaml.safe_load((folder / "settings.yaml").read_text())["batch_size"])
    assert sizes == [64, 512, 512, 16]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("epochs: 3\nepoch: 4\n", r"mine\.yaml, line 2: there is no setting 'epoch'\. Did you mean epochs"),
        ("epochs: 3\n\n'seed': many\n", r"mine\.yaml, line 3: seed takes a whole number; 'many' was given"),
        ("epochs: [3]\n", r"line 1: epochs takes a whole number"),
        ("epochs: true\n", r"line 1: epochs takes a whole number; True was given"),
        ("tuning: 1\n", r"line 1: tuning takes true or false; 1 was given"),
        ("optimizer: adam\n", r"line 1: optimizer takes one of ADAM, SGD"),
        ("milestones: 3\n", r"line 1: milestones takes whole numbers; 3 was given"),
        ("epochs: 3\nseed: 1: 2\n", r"mine\.yaml, line 2: no valid YAML"),
        ("epochs: 3\nepochs: 4\n", r"line 2: epochs is given twice"),
        ("pruning_limit: 0.5\npruning_rate: 0.6\n", r"line 2: pruning_limit is given twice, as 0\.5 and as 0\.6"),
        ("- epochs\n", r"mine\.yaml must hold `name: value` lines"),
        ("just words", r"mine\.yaml must hold `name: value` lines"),
        ("model: Resnet81\n", r"There is no model 'Resnet81'"),
        ("epochs: -1\n", r"--epochs must be at least 0"),
        (b"\xff\xfe\x00", r"mine\.yaml cannot be read"),
    ],
)
def test_error_in_a_config_file_names_file_and_line(command, tmp_path, text, expected):
    (tmp_path / "mine.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert re.search(expected, command.refused("--config", tmp_path / "mine.yaml"))


def test_config_that_is_not_there_or_empty(command, tmp_path):
    assert "No such file" in command.refused("--config", tmp_path / "mine.yaml")
    (tmp_path / "mine.yaml").write_text("# nothing yet\n")
    assert command.quick("--config", tmp_path / "mine.yaml").code == 0


# -- what is printed ---------------------------------------------------------------------------------------------------


def test_list_has_one_line_for_every_plug_in(command):
    done = command("--list")
    assert done.code == 0 and done.err == ""
    for kind, (setting, _) in KINDS.items():
        section = done.out.split(f"(--{setting})\n")[1].split("\n\n")[0].splitlines()
        listed = [line.split()[0] for line in section]
        assert [name for name in listed if "/" not in name] == names(kind)
        assert all(len(line.split(None, 1)[1].strip()) > 12 for line in section)
    assert re.search(r"SNIP +weights +before +.*arXiv:1810\.02340", done.out)
    assert "losses (--loss)" in done.out
    assert not command.runs()


def test_output_is_plain_lines_when_piped(command):
    done = command.quick("--epochs", "2")
    assert "\x1b" not in done.out and "\r" not in done.out
    epochs = re.findall(r"^epoch (\d)/2  .*test_accuracy 0\.\d+  weight_sparsity 0\.\d+$", done.out, re.MULTILINE)
    assert epochs == ["1", "2"]
    assert done.out.count("results: ") == 1
    for row in ("test accuracy", "sparsity asked", "sparsity reached", "weights left", "FLOPs", "training time"):
        assert re.search(rf"^│ {row}.*│$", done.out, re.MULTILINE), row


def test_quiet_leaves_only_warnings_and_the_result(command, tmp_path):
    done = command.quick("--quiet", "--prune_criterion", "SNIP", "--snip_steps", "3")
    assert done.out.startswith("Result\n")
    assert done.err.startswith("warning: --snip_steps")
    (tmp_path / "mine.yaml").write_text("quiet: true\n")
    assert command.quick("--config", tmp_path / "mine.yaml").out.startswith("Result\n")


@thorough
def test_a_terminal_shows_a_bar_with_time_left(tmp_path):
    """A real terminal, since that is what decides between a bar and plain lines."""
    main_end, other_end = pty.openpty()
    argv = [*QUICK, "--epochs", "3", "--results_dir", str(tmp_path)]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "150", "LINES": "40"}
    process = subprocess.Popen(
        [sys.executable, ROOT / "main.py", *argv], stdout=other_end, stderr=subprocess.PIPE, env=environment
    )
    os.close(other_end)
    shown = b""
    try:
        while chunk := os.read(main_end, 65536):
            shown += chunk
    except OSError:  # Linux's way to say that the other end is closed
        pass
    os.close(main_end)
    text = shown.decode()
    assert process.wait(60) == 0
    assert next(tmp_path.glob("*/output/overview.png")).read_bytes().startswith(b"\x89PNG")
    process.stderr.close()
    assert re.search(r"epoch \d/3", text) and re.search(r"train_loss \d.*test_accuracy \d.*weight_sparsity 0\.9", text)
    assert re.search(r"\d:\d\d:\d\d", text), "time left"
    assert "\x1b[" in text


def test_unexpected_error_is_one_line_with_the_place_and_the_traceback_in_the_log(command, monkeypatch):
    from trainers.DefaultTrainer import DefaultTrainer

    def explode(self, inputs):
        raise ZeroDivisionError("as planned")

    monkeypatch.setattr(DefaultTrainer, "forward", explode)
    done = command.quick()
    assert done.code == 1
    [line] = done.err.splitlines()
    assert line.startswith("error: ZeroDivisionError in ") and "as planned" in line and "log.txt" in line
    assert "Traceback" in (done.runs[-1] / "output" / "log.txt").read_text()
    assert json.loads((done.runs[-1] / "result.json").read_text())["status"] == "failed"


# -- the run folder ----------------------------------------------------------------------------------------------------


def test_run_folder_holds_what_the_architecture_page_says(command):
    done = command.quick("--run_name", "my run/1")
    folder = done.folder
    assert re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d_my-run-1", folder.name)
    expected = {"calling_command.txt", "settings.yaml", "codebase", "summary", "models", "output", "result.json"}
    assert {path.name for path in folder.iterdir()} == expected
    assert {path.name for path in (folder / "models").iterdir()} == {"MLP5_finished", "MLP5_checkpoint"}
    assert "'my run/1'" in (folder / "calling_command.txt").read_text()
    assert "epoch 1/1" in (folder / "output" / "log.txt").read_text()
    for name in ("main.py", "criterions/SNIPit.py", "pruning/network.py", "utils/autoconfig.json", "models/_layers.py"):
        assert (folder / "codebase" / name).read_bytes() == (ROOT / name).read_bytes()
    assert not list((folder / "codebase").rglob("__pycache__"))


def test_result_has_every_key_and_says_what_it_ran_on(command):
    result = command.quick("--epochs", "2").result
    assert set(result) >= RESULT_KEYS
    assert result["status"] == "finished" and result["target"] == "weights"
    assert result["sparsity_asked"] == 0.9
    assert result["sparsity_reached"] == pytest.approx(0.9, abs=1e-3)
    assert result["limit_batches"] == 1, "a run on part of the data says so"
    weights = 64 * 16 + 3 * 16 * 16 + 16 * 10
    assert result["weights_total"] == weights
    assert result["weights_left"] == weights - round(0.9 * weights)
    assert result["flops_per_sample_dense"] == result["flops_per_sample"] == 2 * weights
    assert result["flops_per_sample_nonzero"] == pytest.approx(2 * result["weights_left"])
    assert result["training_flops_dense"] == 3 * 2 * weights * 2 * 64
    model = MLP5(10, (1, 8, 8), hidden=16)
    assert result["parameter_bytes"] == 4 * sum(parameter.numel() for parameter in model.parameters())
    assert result["threads"] == torch.get_num_threads()
    assert result["versions"]["torch"] == torch.__version__ or torch.__version__.startswith(result["versions"]["torch"])
    assert {"device", "cpu", "cpu_count", "gpu"} <= set(result["hardware"])
    assert re.fullmatch(r"[0-9a-f]{40}", result["git_commit"]) if (ROOT / ".git").exists() else True


def test_whole_test_set_is_measured_without_a_limit(command):
    argv = ["--hidden", "16", "--epochs", "1", "--no-tensorboard"]
    result = command(*argv).result
    assert result["limit_batches"] is None
    assert result["test_accuracy"] * 360 == pytest.approx(round(result["test_accuracy"] * 360))


def test_two_runs_of_one_moment_have_folders_of_their_own(command):
    first = command.quick("--run_name", "same").folder
    second = command.quick("--run_name", "same").runs
    assert len(second) == 2 and first in second


def test_settings_file_describes_the_run_completely(command, tmp_path):
    first = command.quick("--prune_criterion", "IMP", "--snip_steps", "0", "--epochs", "4", "--milestones", "1", "2")
    saved = yaml.safe_load((first.folder / "settings.yaml").read_text())
    assert saved["milestones"] == [1, 2]
    # As a --config it gives the same run once more, value by value.
    config = tmp_path / "again.yaml"
    config.write_text(yaml.safe_dump({**saved, "run_name": "zz", "results_dir": str(tmp_path / "again")}))
    again = Commands(command.capsys, tmp_path / "again")
    second = again("--config", config)
    assert second.err == ""
    repeated = yaml.safe_load((second.folder / "settings.yaml").read_text())
    different = {name for name in saved if saved[name] != repeated[name]}
    assert different == {"run_name", "results_dir", "config"}
    timed = ("seconds_training", "samples_per_second", "peak_memory_bytes", "versions", "hardware")
    same = {key: value for key, value in first.result.items() if key not in timed}
    assert same == {key: value for key, value in second.result.items() if key not in timed}


def test_tensorboard_files_hold_what_result_json_names(command):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    argv = ["--hidden", "16", "--epochs", "2", "--limit_batches", "1"]
    done = command(*argv)
    events = EventAccumulator(str(done.folder / "summary"), size_guidance={"tensors": 0, "histograms": 0})
    events.Reload()
    tags = events.Tags()
    written = set(tags["scalars"]) | set(tags["tensors"]) | set(tags["histograms"])
    numbers = {key for key, value in done.result.items() if isinstance(value, float)}
    # Paths are followed once, at the end: that takes a look at the whole network.
    assert numbers - {"effective_weight_sparsity"} <= written
    layers = [name.removeprefix("sparsity_per_layer/") for name in written if name.startswith("sparsity_per_layer/")]
    assert len(layers) == 5
    assert {f"weights/{name}" for name in layers} <= written
    looks = {name for name in written if name.startswith("architecture/")}
    assert {"architecture/before", "architecture/after"} == {name.removesuffix("/text_summary") for name in looks}
    if "test_accuracy" in tags["scalars"]:
        last = events.Scalars("test_accuracy")[-1]
        value = last.value
    else:
        last = events.Tensors("test_accuracy")[-1]
        value = (last.tensor_proto.double_val or last.tensor_proto.float_val)[0]
    assert value == pytest.approx(done.result["test_accuracy"], abs=1e-6)
    assert last.step == 2


# -- checkpoints -----------------------------------------------------------------------------------------------------


def test_finished_model_can_be_evaluated_with_its_masks(command):
    trained = command.quick("--epochs", "3", "--learning_rate", "0.01", "--run_name", "a")
    folder, result = trained.folder, trained.result
    for number, name in enumerate((folder, folder.name)):
        argv = ["--checkpoint_name", name, "--checkpoint_model", "MLP5_finished", "--run_name", f"zz{number}"]
        evaluated = command.quick("--eval", *argv)
        assert evaluated.result["test_accuracy"] == result["test_accuracy"]
        assert evaluated.result["weights_left"] == result["weights_left"]
        assert evaluated.result["checkpoint"] == str(name)
        assert {"git_commit", "versions", "hardware", "threads"} <= set(evaluated.result)


def test_evaluation_takes_network_and_data_from_the_run(command, tmp_path):
    """Nothing of what defines them is typed again, plug-ins and their flags included."""
    source = """
        from models.MLP5 import MLP5


        class Mine(MLP5):
            def __init__(self, num_classes, input_shape, *, width: int = 8):
                super().__init__(num_classes, input_shape, hidden=width)
        """
    plug_ins = write_plug_in(tmp_path / "mine", "models", "Mine", source)
    own = ["--plugin_dir", plug_ins, "--model", "Mine", "--width", "11"]
    trained = command(*own, "--epochs", "1", "--limit_batches", "1", "--no-tensorboard")
    few = ["--limit_batches", "1", "--run_name", "zz"]
    evaluated = command("--eval", "--checkpoint_name", trained.folder.name, *few)
    assert evaluated.result["test_accuracy"] == trained.result["test_accuracy"]
    assert evaluated.result["model"] == "Mine" and evaluated.result["weights_total"] == trained.result["weights_total"]
    more = ["--checkpoint_name", trained.folder, "--prune_criterion", "EmptyCrit", "--epochs", "1", *few]
    assert command(*more).result["model"] == "Mine", "the same when training goes on from there"
    line = command.refused("--eval", "--width", "12", "--checkpoint_name", trained.folder.name)
    assert "(11, 64) there and (12, 64) here" in line, "what is typed wins"


def test_another_model_takes_no_flags_from_the_run(command):
    trained = command.quick().folder
    line = command.refused("--eval", "--model", "LeNet300", "--checkpoint_name", trained)
    assert "than LeNet300" in line and "--model MLP5" in line and "hidden" not in line


def test_training_from_a_checkpoint_keeps_its_masks(command):
    folder = command.quick("--pruning_limit", "0.8", "--run_name", "a").folder
    argv = ["--checkpoint_name", folder, "--prune_criterion", "EmptyCrit", "--pruning_limit", "0", "--epochs", "2"]
    again = command.quick(*argv, "--run_name", "z")
    assert again.result["weight_sparsity"] == pytest.approx(0.8, abs=1e-3)
    before, after = (
        torch.load(run / "models" / "MLP5_finished", weights_only=True)["masks"] for run in (folder, again.folder)
    )
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("form", few(["pt", "safetensors", "bare", "parallel"], ["safetensors"]))
def test_weights_of_ones_own(command, tmp_path, form):
    trained = command.quick("--prune_criterion", "EmptyCrit", "--pruning_limit", "0", "--epochs", "3")
    content = torch.load(trained.folder / "models" / "MLP5_finished", weights_only=True)
    file = tmp_path / f"mine.{'safetensors' if form == 'safetensors' else 'pt'}"
    if form == "safetensors":
        safetensors.torch.save_file(content["state_dict"], file)
    elif form == "parallel":
        torch.save({f"module.{name}": value for name, value in content["state_dict"].items()}, file)
    else:
        torch.save(content["state_dict"] if form == "bare" else content, file)
    evaluated = command.quick("--eval", "--weights", file, "--run_name", "zz")
    assert evaluated.result["test_loss"] == pytest.approx(trained.result["test_loss"], rel=1e-6)


def test_model_of_a_library_gets_file_names_with_a_dash(command):
    argv = ["--model", "torchvision/squeezenet1_1", "--data_set", "DIGITS", "--limit_batches", "1", "--epochs", "1"]
    line = command.refused(*argv)
    assert "torchvision/squeezenet1_1" in line and "1x8x8" in line, "too small a picture is said before training"
