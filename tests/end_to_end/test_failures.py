"""What goes wrong while a run goes on: one line, the right exit code, and the last good state stays."""

import json
import os
import pickle
import random
import shutil
import signal
from pathlib import Path

import pytest
import torch

import main
from tests.support.tiers import few, thorough
from trainers.DefaultTrainer import DefaultTrainer
from utils.callbacks import attach, tensorboard

TINY = ["--data_set", "DIGITS", "--model", "MLP5", "--hidden", "32", "--batch_size", "256", "--limit_batches", "3"]
TINY += ["--score_batches", "2", "--device", "cpu", "--quiet", "--epochs", "5"]
NOT_COMPARED = {"seconds_training", "samples_per_second", "peak_memory_bytes"}
FULL = Path("/dev/full")
needs_full_disk = pytest.mark.skipif(not FULL.exists(), reason="/dev/full, a disk that is always full, is not here")


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(attach.Pictures, "draw", lambda *args: None)  # a second per run, and nothing to compare
    yield
    torch.set_num_threads(before)


@pytest.fixture
def start(tmp_path):
    """Runs the program with these flags; returns its exit code and the run's folder."""

    def run(*flags: str) -> tuple[int, Path]:
        code = main.main([*TINY, "--results_dir", str(tmp_path / "results"), *flags])
        return code, newest(tmp_path)

    return run


@pytest.fixture
def before_batch(monkeypatch, tmp_path):
    """Does something to the run's folder before the training batch of this number (from 1)."""

    def arrange(number: int, action) -> None:
        train_batch, calls = DefaultTrainer.train_batch, iter(range(1, 10**9))

        def wrapped(self, inputs, targets):
            if next(calls) == number:
                action(newest(tmp_path))
            return train_batch(self, inputs, targets)

        monkeypatch.setattr(DefaultTrainer, "train_batch", wrapped)

    return arrange


@pytest.fixture
def plugin(tmp_path):
    """Writes a loss of one's own; returns the flags that choose it."""

    def write(body: str) -> list[str]:
        folder = tmp_path / "mine" / "losses"
        folder.mkdir(parents=True)
        lines = "\n".join("        " + line for line in body.splitlines())
        (folder / "OwnLoss.py").write_text(LOSS + lines + "\n")
        return ["--plugin_dir", str(tmp_path / "mine"), "--loss", "OwnLoss"]

    return write


LOSS = '''
import math
import os
import signal
from pathlib import Path
import torch
import torch.nn.functional as F

class OwnLoss:
    """Cross-entropy with a trap."""

    def __init__(self):
        self.calls = 0

    def __call__(self, outputs, targets):
        loss = F.cross_entropy(outputs, targets)
        self.calls += torch.is_grad_enabled()
'''


def newest(tmp_path: Path) -> Path:
    runs = (path.parent for path in (tmp_path / "results").glob("*/settings.yaml"))
    return max(runs, key=lambda path: path.stat().st_mtime_ns)


def resume(folder: Path, *flags: str) -> int:
    return main.main(["--resume", str(folder), "--quiet", *flags])


def one_error(capsys) -> str:
    """The one line on standard error."""
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    return lines[0]


def figures(folder: Path) -> dict:
    content = json.loads((folder / "result.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    return {name: value for name, value in content.items() if name not in NOT_COMPARED}


def checkpoint(folder: Path) -> dict:
    content = torch.load(folder / "models" / "MLP5_checkpoint", weights_only=True)
    assert all(bool(torch.isfinite(t).all()) for t in content["state_dict"].values())
    return content


def same_weights(one: Path, other: Path) -> bool:
    states = [torch.load(f / "models" / "MLP5_finished", weights_only=True)["state_dict"] for f in (one, other)]
    return all(torch.equal(states[0][name], states[1][name]) for name in states[0])


# -- full disk ------------------------------------------------------------------------------------------------------


PARTS = ["models/.MLP5_checkpoint.part", "models/.MLP5_finished.part", ".result.json.part", "output/.epochs.csv.part"]


@needs_full_disk
@pytest.mark.parametrize("file", few(PARTS, ["models/.MLP5_checkpoint.part"]))
def test_a_full_disk_keeps_the_last_good_checkpoint(file, start, before_batch, capsys, tmp_path):
    _, undisturbed = start("--no-tensorboard", "--prune_criterion", "SNIPit")
    # The temporary file leads to a disk that is full: writing to it fails as on a real one.
    before_batch(8, lambda folder: (folder / file).symlink_to(FULL))
    capsys.readouterr()
    code, folder = start("--no-tensorboard", "--prune_criterion", "SNIPit")
    assert code == 2
    error = one_error(capsys)
    assert "No space left" in error and f"--resume {os.path.relpath(folder)}" in error
    assert checkpoint(folder)["trainer"]["epoch"] >= 2
    assert figures(folder)["status"] == "failed"
    assert resume(folder) == 0
    assert figures(folder) == figures(undisturbed)
    assert same_weights(folder, undisturbed)


@needs_full_disk
def test_a_disk_full_for_everything(start, before_batch, capsys):
    def fill(folder: Path) -> None:
        names = ["models/.MLP5_checkpoint", ".result.json", "output/.epochs.csv", "output/.pruning_events.json"]
        for name in names:
            (folder / f"{name}.part").symlink_to(FULL)

    before_batch(8, fill)
    code, folder = start("--no-tensorboard")
    assert code == 2 and "No space left" in one_error(capsys)
    assert checkpoint(folder)["trainer"]["epoch"] == 2
    assert resume(folder) == 2 and checkpoint(folder)["trainer"]["epoch"] == 2
    for left in folder.rglob(".*.part"):  # space is made
        left.unlink()
    assert resume(folder) == 0 and figures(folder)["status"] == "finished"


@needs_full_disk
def test_tensorboard_meets_a_full_disk(start, before_batch, monkeypatch, capsys):
    boards = []
    make = tensorboard.TensorBoard.__init__

    def remember(self, *args):
        boards.append(self)
        make(self, *args)

    def fill(folder: Path) -> None:
        boards[0].file.file.close()
        boards[0].file.file = boards[0].file.records._writer = open(FULL, "wb")  # noqa: SIM115

    monkeypatch.setattr(tensorboard.TensorBoard, "__init__", remember)
    before_batch(8, fill)
    code, folder = start()
    assert code == 2
    error = one_error(capsys)
    assert "No space left" in error and "summary" in error and "--resume" in error
    assert checkpoint(folder)["trainer"]["epoch"] == 2
    assert resume(folder) == 0 and figures(folder)["status"] == "finished"


@needs_full_disk
def test_a_log_that_cannot_grow_does_not_end_a_run(start, before_batch, capsys):
    def fill(folder: Path) -> None:
        (folder / "output" / "log.txt").unlink()
        (folder / "output" / "log.txt").symlink_to(FULL)

    before_batch(5, fill)
    code, folder = start("--no-tensorboard")
    assert code == 0 and figures(folder)["status"] == "finished"
    assert "the log cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize("with_file", few([False, True], [True]))
def test_the_folder_vanishes_under_the_run(with_file, start, before_batch, capsys, tmp_path):
    def vanish(folder: Path) -> None:
        shutil.rmtree(folder)
        if with_file:
            folder.write_text("in the way")

    start("--prune_criterion", "EmptyCrit", "--pruning_limit", "0", "--epochs", "1")  # stays: newest() finds one
    before_batch(8, vanish)
    capsys.readouterr()
    results = ["--results_dir", str(tmp_path / "results")]
    assert main.main([*TINY, *results, "--run_name", "gone"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:]
    assert "could not be written" in lines[-1] or "cannot be written" in lines[-1]
    assert "Traceback" not in "".join(lines)


# -- numbers that are none ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", few([1, 5, 6], [5]))
def test_a_loss_that_is_not_finite_stops_the_run(number, start, plugin, capsys, tmp_path):
    # The criterion scores with this loss too: count the batches of training only.
    flags = plugin(f"return loss * float('nan') if self.calls == {number} else loss")
    code, folder = start("--prune_criterion", "EmptyCrit", "--pruning_limit", "0", *flags)
    assert code == 2
    error = one_error(capsys)
    assert "no longer finite" in error and "--learning_rate" in error and "--resume" not in error
    assert figures(folder)["status"] == "failed"
    assert checkpoint(folder)["trainer"]["epoch"] == (number - 1) // 3
    # The error names what to start again from.
    asked = error.split("To start from it: ")[1].rstrip(".").split()
    assert main.main([*TINY, "--results_dir", str(tmp_path / "results"), "--eval", *asked]) == 0


def test_weights_that_are_not_finite_are_never_saved(start, plugin, capsys):
    """The loss is a number, its gradient is none, and Ctrl-C asks to save just then."""
    trap = "if self.calls == 5:\n    os.kill(os.getpid(), signal.SIGINT)\n"
    flags = plugin(trap + "    return loss + (outputs - outputs).pow(2).sum().sqrt()\nreturn loss")
    code, folder = start("--prune_criterion", "EmptyCrit", "--pruning_limit", "0", *flags)
    assert code == 2 and "no longer finite" in one_error(capsys)
    assert checkpoint(folder)["trainer"]["epoch"] == 1
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_test_loss_that_is_none(start, plugin, capsys):
    flags = plugin("return loss if torch.is_grad_enabled() or self.calls < 7 else loss * float('nan')")
    code, folder = start("--prune_criterion", "EmptyCrit", "--pruning_limit", "0", *flags)
    assert code == 2 and "test loss is NaN" in one_error(capsys)
    assert figures(folder)["status"] == "failed" and checkpoint(folder)["trainer"]["epoch"] == 2


def test_a_learning_rate_that_diverges(start, capsys):
    code, folder = start("--optimizer", "SGD", "--learning_rate", "1e18", "--grad_clip", "0", "--no-tensorboard")
    assert code == 2 and "1e+18" in one_error(capsys)
    assert figures(folder)["status"] == "failed" and checkpoint(folder)["trainer"]["batch"] == 0


# -- errors in a plug-in --------------------------------------------------------------------------------------------


def test_a_plug_in_that_fails_in_training(start, plugin, capsys, tmp_path):
    marker = tmp_path / "fail"
    marker.touch()
    trap = f"if Path({str(marker)!r}).exists() and self.calls == 8:\n    raise ZeroDivisionError('a bug of mine')\n"
    flags = plugin(trap + "return loss")
    code, folder = start("--prune_criterion", "EmptyCrit", "--pruning_limit", "0", *flags)
    assert code == 1
    error = one_error(capsys)
    assert "ZeroDivisionError" in error and "OwnLoss.py" in error and "a bug of mine" in error
    log = (folder / "output" / "log.txt").read_text()
    assert "Traceback" in log and "OwnLoss.py" in log
    assert figures(folder)["status"] == "failed"
    marker.unlink()
    assert resume(folder) == 0 and figures(folder)["status"] == "finished"


def test_a_plug_in_that_is_gone_when_the_run_goes_on(start, plugin, capsys, tmp_path):
    flags = plugin("if self.calls == 8:\n    os.kill(os.getpid(), signal.SIGINT)\nreturn loss")
    code, folder = start("--prune_criterion", "EmptyCrit", "--pruning_limit", "0", *flags)
    assert code == 130
    saved = (folder / "models" / "MLP5_checkpoint").read_bytes()
    (tmp_path / "mine" / "losses" / "OwnLoss.py").unlink()
    capsys.readouterr()
    assert resume(folder) == 2 and "OwnLoss" in one_error(capsys)
    assert (folder / "models" / "MLP5_checkpoint").read_bytes() == saved


# -- damaged files --------------------------------------------------------------------------------------------------


@pytest.fixture
def stopped(start, before_batch, capsys):
    """The folder of a run that Ctrl-C stopped."""
    before_batch(8, lambda folder: os.kill(os.getpid(), signal.SIGINT))
    code, folder = start("--no-tensorboard")
    assert code == 130
    capsys.readouterr()
    return folder


class Malicious:
    def __reduce__(self):
        return os.system, ("touch executed",)


def without(content: dict, *path: str) -> dict:
    *parents, last = path
    inner = content
    for name in parents:
        inner = inner[name]
    del inner[last]
    return content


DAMAGES = {
    "cut": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "empty": lambda file: file.write_bytes(b""),
    "noise": lambda file: file.write_bytes(random.Random(0).randbytes(5000)),
    "text": lambda file: file.write_text("no checkpoint"),
    "a pickle with code": lambda file: file.write_bytes(pickle.dumps(Malicious())),
    "code in a torch file": lambda file: torch.save({"state_dict": Malicious()}, file),
    "a list": lambda file: torch.save([1, 2], file),
    "another shape": lambda file: reshape(file),
    "a folder": lambda file: (file.unlink(), file.mkdir()),
    "no trainer": lambda file: torch.save(without(torch.load(file), "trainer"), file),
    "half a trainer": lambda file: torch.save(without(torch.load(file), "trainer", "schedule"), file),
    "half an optimizer": lambda file: torch.save(without(torch.load(file), "trainer", "optimizer", "state"), file),
    "half a random state": lambda file: torch.save(without(torch.load(file), "random", "python"), file),
    "a number for a weight": lambda file: replace_weight(file, 3.0),
}


def reshape(file: Path) -> None:
    replace_weight(file, torch.zeros(7, 3))


def replace_weight(file: Path, value) -> None:
    content = torch.load(file, weights_only=True)
    content["state_dict"][next(iter(content["state_dict"]))] = value
    torch.save(content, file)


@pytest.mark.parametrize("damage", few(DAMAGES, ["cut", "a pickle with code", "half an optimizer"]))
def test_a_damaged_checkpoint_is_refused_in_one_line(damage, stopped, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    file = stopped / "models" / "MLP5_checkpoint"
    DAMAGES[damage](file)
    before = file.read_bytes() if file.is_file() else None
    assert resume(stopped) == 2
    assert "MLP5_checkpoint" in one_error(capsys)
    assert not (tmp_path / "executed").exists()
    assert (file.read_bytes() if file.is_file() else None) == before


@thorough
def test_a_flipped_bit_is_noticed(stopped, capsys):
    """Weights with one bit wrong would train on as if nothing were; checksums tell."""
    file = stopped / "models" / "MLP5_checkpoint"
    whole, rng = file.read_bytes(), random.Random(5)
    place = whole.index(torch.load(file, weights_only=True)["state_dict"]["layers.0.bias"].numpy().tobytes())
    for position in [place, *(rng.randrange(len(whole)) for _ in range(12))]:
        damaged = bytearray(whole)
        damaged[position] ^= 1 << rng.randrange(8)
        file.write_bytes(damaged)
        code = resume(stopped, "--max_training_minutes", "1e-9")
        error = capsys.readouterr().err
        # A bit of padding or of a header that nothing reads may pass; one of a weight may not.
        assert code == 2 if position == place else code in (2, 124)
        assert len(error.splitlines()) == 1, error


@pytest.mark.parametrize(
    "content",
    few(
        ["model: [MLP5", "- a\n- list\n", "", "just text", "\x00\x01", "epochs: many\n", "model: NoSuchModel\n"],
        ["model: [MLP5", "epochs: many\n"],
    ),
)
def test_damaged_settings_are_refused_in_one_line(content, stopped, capsys):
    (stopped / "settings.yaml").write_text(content)
    assert resume(stopped) == 2
    one_error(capsys)


@pytest.mark.parametrize("file", few(["result.json", "output/pruning_events.json"], ["result.json"]))
def test_damaged_reports_do_not_keep_a_run_from_going_on(file, stopped):
    (stopped / file).write_text("{ damaged\n1,2")
    assert resume(stopped) == 0
    assert figures(stopped)["status"] == "finished"
