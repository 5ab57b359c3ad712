"""One run in two processes: the same network as in one, and the same in both, whatever happens to one of them."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from functools import cached_property
from pathlib import Path

import pytest
import torch

from data_sets._batches import _part
from main import main
from pruning import UsageError
from tests.support.several_processes import run_all
from tests.support.tiers import few
from utils.processes import local_gpu
from utils.settings.registry import ROOT

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
TINY = ["--data_set", "DIGITS", "--device", "cpu", "--no-tensorboard", "--quiet", "--no-confusion"]
SGD = ["--optimizer", "SGD", "--learning_rate", "0.05", "--epochs", "2"]
# Neither batch statistics nor dropout: the same as in one process. 100 leaves a last batch of an odd size.
EQUAL = {
    "weights before training": ["--model", "LeNet300", "--prune_criterion", "SNIPit", *SGD],
    "nodes before training": [
        "--model",
        "LeNet5",
        "--dropout",
        "0",
        "--prune_criterion",
        "SNAPit",
        "--batch_size",
        "100",
        *SGD,
    ],
    "second derivatives": ["--model", "LeNet300", "--prune_criterion", "GRASP", *SGD],
    "an odd network and a penalty": [
        *("--model", "Odd", "--prune_criterion", "HoyerSquare", "--hoyer_reg", "1e-3"),
        *("--plugin_dir", "tests/support/plugins"),
        *(*SGD, "--epochs", "4", "--limit_batches", "3"),
    ],
    "a trainer's own batches": [
        *("--model", "LeNet300", "--prune_criterion", "SNIP", "--batch_size", "101", "--limit_batches", "4", *SGD),
        *("--train_scheme", "OwnBatches", "--plugin_dir", "tests/support/plugins"),
    ],
    "a short last batch": ["--model", "LeNet300", "--prune_criterion", "SNIP", "--batch_size", "718", *SGD],
}
ALIKE = {
    "batch statistics and dropout": ["--model", "MLP5", "--epochs", "2", "--grad_noise", "0.01"],
    "batch statistics in a trainer's own batches": [
        *("--model", "MLP5", "--epochs", "2", "--grad_noise", "0.01", "--batch_size", "101", "--limit_batches", "4"),
        *("--train_scheme", "OwnBatches", "--plugin_dir", "tests/support/plugins"),
    ],
    "weights drawn": ["--model", "MLP5", "--prune_criterion", "SiPPRand", "--epochs", "1"],
    "nodes during training": [
        *("--model", "LeNet5", "--prune_criterion", "SNAPitDuring", "--snip_steps", "1", "--epochs", "5"),
        *("--batch_size", "128", "--limit_batches", "2"),
    ],
    "rewinding": [
        *("--model", "MLP5", "--prune_criterion", "IMP", "--enable_rewinding", "--rewind_to", "0", "--epochs", "9"),
        *("--limit_batches", "1", "--batch_size", "64"),
    ],
    "growing": ["--model", "MLP5", "--prune_criterion", "RigL", "--delta_t", "2", "--epochs", "3"],
    "ranks": ["--model", "LeNet5", "--prune_criterion", "ALDS", "--pruning_limit", "0.5", "--epochs", "1"],
    "gates": ["--model", "MLP5", "--l0", "--l0_reg", "1", "--epochs", "2"],
    "gates on norms": [
        *("--model", "ResNet20", "--prune_criterion", "GateDecorators", "--pruning_limit", "0.5", "--epochs", "4"),
        *("--limit_batches", "2", "--batch_size", "32"),
    ],
}
LINES = {**EQUAL, **ALIKE}
QUICK = ["a short last batch", "batch statistics and dropout"]


def started(command: list[str], **changes: str) -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | changes
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def ended(process: subprocess.Popen) -> str:
    """Returns what was printed until it ended."""
    try:
        return process.communicate(timeout=300)[0]
    finally:
        process.kill()


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Returns what (name, process) came to: two processes that run all lines of a tier, those of EQUAL also alone."""
    tiers = [
        Tier(tmp_path_factory.mktemp("quick"), QUICK),
        Tier(tmp_path_factory.mktemp("rest"), [name for name in LINES if name not in QUICK]),
    ]

    def found(name: str, process: str) -> dict:
        (tier,) = (tier for tier in tiers if name in tier.names)
        return tier.found(name, process)

    found.tiers = tiers
    return found


class Tier:
    """Lines that are run together, once somebody asks for one of them: starting two processes takes longer."""

    def __init__(self, folder: Path, names: list[str]) -> None:
        self.folder, self.names = folder, names

    @cached_property
    def printed(self) -> str:
        """What two processes printed; when it is there, so are the files of all lines."""
        script = "tests/support/several_processes.py"
        process = started([*TORCHRUN, script, str(self._write("two", self.names))], TORCH_CPP_LOG_LEVEL="ERROR")
        printed = ended(process)
        assert process.returncode == 0, printed
        run_all(self._write("one", self._equal()))
        return printed

    def found(self, name: str, process: str) -> dict:
        assert self.printed
        names, folder = (self._equal(), "one") if process == "alone" else (self.names, "two")
        return torch.load(self.folder / folder / f"{names.index(name)}_{process}.pt")

    def _equal(self) -> list[str]:
        return [name for name in self.names if name in EQUAL]

    def _write(self, folder: str, names: list[str]) -> Path:
        file = self.folder / folder / "lines.json"
        file.parent.mkdir()
        content = [[*LINES[name], *TINY, "--results_dir", str(file.parent / "results")] for name in names]
        file.write_text(json.dumps(content), encoding="utf-8")
        return file


@pytest.mark.parametrize("name", few(EQUAL, QUICK))
def test_two_processes_come_to_what_one_comes_to(both, name):
    one, two = both(name, "alone"), both(name, "0")
    assert one["state"].keys() == two["state"].keys()
    for key, value in one["state"].items():
        torch.testing.assert_close(two["state"][key], value, atol=1e-5, rtol=0)
    assert all(torch.equal(two["masks"][key], mask) for key, mask in one["masks"].items())
    assert two["metrics"] == pytest.approx(one["metrics"], abs=1e-5)
    assert {**two["totals"], "seconds_training": 0} == {**one["totals"], "seconds_training": 0}


@pytest.mark.parametrize("name", few(LINES, QUICK))
def test_both_processes_have_the_same_network(both, name):
    first, second = both(name, "0"), both(name, "1")
    for part in ("state", "masks"):
        assert first[part].keys() == second[part].keys()
        assert all(torch.equal(first[part][key], value) for key, value in second[part].items())
    assert first["metrics"] == second["metrics"]


@pytest.mark.parametrize("number", few([0, 1], [0]))
def test_only_one_process_speaks(both, number):
    tier = both.tiers[number]
    assert tier.printed.count("status") == len(tier.names)
    assert "Warning" not in tier.printed


@pytest.mark.parametrize("count", [1, 2, 3, 8])
@pytest.mark.parametrize("size", [1, 2, 5, 16, 37])
def test_shares_are_nearly_equal_and_make_up_the_batch(count, size):
    spans = [_part(10, 10 + size, number, count) for number in range(count)]
    sizes = [last - first for first, last in spans]
    if size < 2 * count:
        assert spans == [(10, 10 + size)] * count
    else:
        assert [first for first, _ in spans] == [10, *(last for _, last in spans[:-1])] and spans[-1][1] == 10 + size
        assert max(sizes) - min(sizes) <= 1 and min(sizes) >= 2


# -- when something goes wrong ----------------------------------------------------------------------------------------


def children(process: subprocess.Popen) -> list[int]:
    """Returns the process ids that torchrun started, in the order of their numbers."""
    return sorted(int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split())


def begun(results: Path, *argv: str) -> subprocess.Popen:
    """Starts a long run in two processes and waits until an epoch is over."""
    line = ["--model", "MLP5", "--epochs", "400", "--results_dir", str(results), *TINY[:-2], "--rank_timeout", "0.15"]
    process = started([*TORCHRUN, "main.py", *line, *argv])
    until = time.monotonic() + 120
    while not list(results.glob("*/output/epochs.csv")) and time.monotonic() < until and process.poll() is None:
        time.sleep(0.2)
    return process


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds processes in /proc")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("which", [0, 1])
def test_a_lost_process_ends_the_run_which_can_be_resumed(tmp_path, how, which):
    process = begun(tmp_path)
    lost = children(process)[which]
    os.kill(lost, how)
    printed = ended(process)
    assert process.returncode != 0
    (folder,) = tmp_path.iterdir()
    if which == 1:  # else the one who speaks is the one that is lost, and torchrun names it
        assert "Another process of this run ended, or did not answer within --rank_timeout. Go on with:" in printed
    epochs = torch.load(next((folder / "models").glob("*_checkpoint")), weights_only=False)["trainer"]["epoch"]
    assert 0 < epochs < 400
    resumed = started([*TORCHRUN, "main.py", "--resume", str(folder), "--max_training_minutes", "0.02"])
    assert f"going on at epoch {epochs}, batch" in ended(resumed)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds processes in /proc")
def test_processes_that_torchrun_leaves_behind_stop_and_save(tmp_path):
    process = begun(tmp_path)
    left = children(process)
    process.kill()
    assert "stopped by the end of torchrun; go on with: torchrun --nproc_per_node 2" in ended(process)
    until = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in left) and time.monotonic() < until:
        time.sleep(0.1)
    assert not any(Path(f"/proc/{pid}").exists() for pid in left)


def launch(monkeypatch, **changes: str) -> None:
    """Makes this process one that torchrun seems to have started."""
    seems = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "none"}
    for name, value in (seems | changes).items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(("changes", "times"), [({}, 1), ({"RANK": "1"}, 0), ({"WORLD_SIZE": "two"}, 1)])
def test_help_is_printed_by_the_first_process_alone(monkeypatch, capsys, changes, times):
    launch(monkeypatch, **changes)
    assert main(["--help"]) == 0
    assert capsys.readouterr().out.count("usage: python main.py") == times


def test_processes_that_do_not_meet_say_so_in_one_line(monkeypatch, capsys):
    launch(monkeypatch)
    assert main([*TINY, "--model", "LeNet300"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: Process 0 of 2 did not meet the others at 127.0.0.1:none: ")
    assert error.count("\n") == 1


def test_a_gpu_for_each_process_is_asked_for_by_all(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    launch(monkeypatch, LOCAL_WORLD_SIZE="2")
    with pytest.raises(UsageError, match="--nproc_per_node is greater than the number of GPUs, 1"):
        local_gpu()


@pytest.mark.slow
def test_all_stop_together_and_the_rest_comes_to_the_same_network(tmp_path):
    line = ["--model", "MLP5", "--epochs", "30", "--batch_size", "128", *TINY[:-2]]
    whole = started([*TORCHRUN, "main.py", *line, "--results_dir", str(tmp_path / "whole")])
    assert "finished after 30" in ended(whole)
    part = started(
        [*TORCHRUN, "main.py", *line, "--results_dir", str(tmp_path / "part"), "--max_training_minutes", "0.01"]
    )
    assert "stopped by the end of --max_training_minutes; go on with: torchrun --nproc_per_node 2" in ended(part)
    (folder,) = (tmp_path / "part").iterdir()
    rest = started([*TORCHRUN, "main.py", "--resume", str(folder), "--max_training_minutes", "100"])
    assert "finished after 30" in ended(rest)
    files = [next(tmp_path.glob(f"{name}/*/models/*_finished")) for name in ("whole", "part")]
    expected, found = (torch.load(file)["state_dict"] for file in files)
    assert all(torch.equal(found[key], value) for key, value in expected.items())


@pytest.mark.slow
def test_the_commands_of_the_page_on_training(tmp_path):
    lines = re.findall(r"^torchrun (.*)$", (ROOT / "docs" / "training.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(lines) == 2
    for line in lines:
        options = ["--results_dir", str(tmp_path)]
        if "RUN" not in line:
            options += [*TINY[:-2], "--epochs", "1", "--limit_batches", "1", "--batch_size", "32"]
        words = shlex.split(line.replace("RUN", max((path.name for path in tmp_path.iterdir()), default="")))
        process = started([*TORCHRUN[:3], *words, *options])
        assert "accuracy" in ended(process) and process.returncode == 0


DIVERGING = '''
import os
import torch
from trainers.DefaultTrainer import DefaultTrainer


class Diverging(DefaultTrainer):
    """Adds something of its own in each process."""

    def step(self):
        super().step()
        with torch.no_grad():
            next(self.network.model.parameters()).add_(int(os.environ["RANK"]))
'''


@pytest.mark.slow
@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--train_scheme", "Diverging"], "The processes of this run are no longer alike: layers.0.weight is "),
        (["--train_scheme", "Diverging", "--epochs", "1"], "The processes of this run are no longer alike"),
        (["--target", "latency", "--prune_criterion", "SNAP"], "--target latency is for one process"),
        (["--prune_criterion", "SNIPP"], "SNIPP"),
        (["--experiment", "experiments/quick/digits.yaml"], "--experiment is for one process"),
    ],
)
def test_errors_are_said_once(tmp_path, argv, expected):
    (tmp_path / "trainers").mkdir()
    (tmp_path / "trainers" / "Diverging.py").write_text(DIVERGING)
    own = [] if "--experiment" in argv else ["--plugin_dir", str(tmp_path), "--epochs", "2", *TINY[:-2]]
    process = started([*TORCHRUN, "main.py", *own, *argv, "--results_dir", str(tmp_path / "results")])
    printed = ended(process)
    assert process.returncode != 0
    lines = [line for line in printed.splitlines() if line.startswith("error")]
    assert len(lines) == 1 and expected in lines[0], printed
    assert "Warning:" not in printed
