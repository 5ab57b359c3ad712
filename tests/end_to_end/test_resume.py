"""A run that is stopped or killed anywhere and taken up again ends exactly like one that nothing happened to."""

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import main
from pruning import PrunableNetwork
from tests.support.tiers import few, later, thorough
from trainers.DefaultTrainer import DefaultTrainer
from utils import files
from utils.callbacks import attach
from utils.jobs import prepare

ROOT = Path(main.__file__).parent
TINY = ["--data_set", "DIGITS", "--model", "MLP5", "--hidden", "32", "--batch_size", "256", "--limit_batches", "3"]
TINY += ["--score_batches", "2", "--device", "cpu", "--quiet"]
EPOCHS, BATCHES = 6, 3
# What depends on the clock and the machine, and never on what a run computed.
NOT_COMPARED = {"seconds_training", "samples_per_second", "peak_memory_bytes"}

DURING = ["--snip_steps", "1", "--pruning_limit", "0.8"]  # three events
REWIND = [*DURING, "--enable_rewinding", "--rewind_to", "1", "--prune_delay", "1"]
CASES = {
    "before, dropout, one cycle": ["--prune_criterion", "SNIPit", "--dropout", "0.3", "--lr_schedule", "onecycle"],
    "before, new values": ["--prune_criterion", "SNIPit", "--mask_control", "reinit", "--save_freq", "3"],
    "during, cosine, shuffled": ["--prune_criterion", "SNIPitDuring", *DURING, "--mask_control", "shuffle"]
    + ["--lr_schedule", "cosine", "--warmup", "2", "--optimizer", "SGD"],
    "rewinding, Adam": ["--prune_criterion", "IMP", *REWIND, "--lr_schedule", "onecycle", "--dropout", "0.3"],
    "rewinding, RMSprop": ["--prune_criterion", "IMP", *REWIND, "--optimizer", "RMSPROP", "--save_freq", "3"]
    + ["--lr_schedule", "multistep", "--milestones", "1", "3", "--warmup", "1"],
    "gradual, noise": ["--prune_criterion", "GMP", "--gmp_steps", "4", "--optimizer", "ADAMW", "--grad_noise", "0.01"]
    + ["--eval_freq", "2"],
    "during, controls at random": ["--prune_criterion", "SNIPitDuring", *DURING, "--mask_control", "invert"]
    + ["--optimizer", "SGD", "--momentum", "0", "--grad_clip", "0.5", "--save_freq", "3"],
    "nodes, before": ["--prune_criterion", "SNAPit", "--snip_steps", "1", "--dropout", "0.3", "--save_freq", "3"],
    "nodes, during": ["--prune_criterion", "SNAPitDuring", *DURING, "--lr_schedule", "onecycle"],
    "shares of weights, during": ["--prune_criterion", "SNIPitDuring", *DURING, "--shares", "layers.4=0.3"],
    "shares of nodes, during": ["--prune_criterion", "SNAPitDuring", *DURING, "--shares", "*.0=0.3", "*.4=0.6"]
    + ["--skip", "layers.8", "--pruning_limit", "0.5"],
    "nodes and weights": ["--prune_criterion", "CNIPitDuring", *DURING, "--optimizer", "SGD"],
    "growing": ["--prune_criterion", "RigL", "--delta_t", "2", "--dropout", "0.3", "--optimizer", "SGD"],
    "coming back": ["--prune_criterion", "FORCE", "--force_steps", "5", "--pruning_limit", "0.98"],
    "gates": ["--l0", "--l0_reg", "30", "--gate_rate", "200", "--local_rep", "--ema_decay", "0.5", "--dropout", "0.3"]
    + ["--lr_schedule", "onecycle", "--eval_freq", "2"],
    "low rank, before": ["--prune_criterion", "PCA", "--rank_events", "2", "--dropout", "0.3", "--track_weights"],
    "low rank, during": ["--prune_criterion", "ALDS", "--moment", "during", "--rank_events", "2", "--track_weights"]
    + ["--optimizer", "SGD", "--lr_schedule", "onecycle", "--pruning_limit", "0.6"],
    "low rank, after": ["--prune_criterion", "SVD", "--moment", "after", "--optimizer", "RMSPROP", "--save_freq", "3"],
    "random": ["--prune_criterion", "UnstructuredRandom", "--dropout", "0.5", "--l1_reg", "0.001"],
}
# One before, one during, one with rewinding; the others show that nothing a way to train keeps is forgotten.
QUICK = ["before, dropout, one cycle", "during, cosine, shuffled", "rewinding, Adam"]


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """A fork knows one thread only, and sums come out the same for the same number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(attach.Pictures, "draw", lambda *args: None)  # a second per run, and nothing to compare
    yield
    torch.set_num_threads(before)


@pytest.fixture
def start(tmp_path):
    """Runs the program with these flags; returns its exit code and the run's folder."""

    def run(*flags: str, results: Path = tmp_path / "stopped", board: bool = False) -> tuple[int, Path]:
        board_flags = [] if board else ["--no-tensorboard"]
        code = main.main([*TINY, "--epochs", str(EPOCHS), "--results_dir", str(results), *board_flags, *flags])
        return code, newest(results)

    return run


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Runs the program without any disturbance, once per set of flags; returns what it came to."""
    known = {}

    def run(*flags: str):
        if flags not in known:
            results = tmp_path_factory.mktemp("undisturbed")
            common = ["--epochs", str(EPOCHS), "--results_dir", str(results), "--no-tensorboard"]
            assert main.main([*TINY, *common, *flags]) == 0
            known[flags] = outcome(newest(results))
        return known[flags]

    return run


def newest(results: Path) -> Path:
    return max((path.parent for path in results.glob("*/settings.yaml")), key=lambda path: path.stat().st_mtime_ns)


def resume(folder: Path, *flags: str) -> int:
    return main.main(["--resume", str(folder), "--quiet", *flags])


def outcome(folder: Path) -> tuple[dict, dict]:
    """The figures of result.json, and every tensor of the finished model."""
    figures = json.loads((folder / "result.json").read_text())
    (file,) = (folder / "models").glob("*_finished")
    content = torch.load(file, weights_only=True)
    tensors = {f"{part}.{name}": t for part in ("state_dict", "masks") for name, t in content[part].items()}
    return {name: value for name, value in figures.items() if name not in NOT_COMPARED}, tensors


def assert_same(folder: Path, expected: tuple[dict, dict]) -> None:
    figures, tensors = outcome(folder)
    assert figures == expected[0]
    assert figures["status"] == "finished"
    assert tensors.keys() == expected[1].keys()
    for name, tensor in tensors.items():
        assert torch.equal(tensor, expected[1][name]), name


def epochs_trained(folder: Path) -> int:
    """Epochs that were trained to their end, repeated ones counted again."""
    lines = (folder / "output" / "log.txt").read_text().splitlines()
    return sum(line.startswith("epoch ") for line in lines)


def at_call(number: int, original, action):
    """Wraps a function so that its call of this number (from 1) does something else first."""
    calls = iter(range(1, 10**9))

    def wrapped(*args, **kwargs):
        if next(calls) == number:
            action()
        return original(*args, **kwargs)

    return wrapped


def send(*numbers: int):
    def action():
        for number in numbers:
            os.kill(os.getpid(), number)

    return action


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def killed(action) -> None:
    """Does something in a child process that must die of SIGKILL."""
    child = os.fork()
    if child == 0:
        try:
            action()
        finally:
            os._exit(99)  # survived: the parent's tests must not go on in here
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, status


def saved_every(flags) -> int:
    return int(flags[flags.index("--save_freq") + 1]) if "--save_freq" in flags else 1


# -- one random kill and one Ctrl-C for every way to train ----------------------------------------------------------


@pytest.mark.parametrize("name", few(CASES, QUICK))
def test_a_killed_and_an_interrupted_run_end_like_an_undisturbed_one(name, start, undisturbed, monkeypatch, tmp_path):
    flags, rng = CASES[name], random.Random(name)
    expected = undisturbed(*flags)
    train_batch = DefaultTrainer.train_batch

    monkeypatch.setattr(DefaultTrainer, "train_batch", at_call(rng.randint(2, 9), train_batch, die))
    killed(lambda: start(*flags))
    folder = newest(tmp_path / "stopped")
    assert not list((folder / "models").glob("*_finished"))

    # From the checkpoint there are at least ten batches more: this one falls within an epoch or at its end.
    monkeypatch.setattr(DefaultTrainer, "train_batch", at_call(rng.randint(1, 6), train_batch, send(signal.SIGINT)))
    assert resume(folder) == 130
    monkeypatch.setattr(DefaultTrainer, "train_batch", train_batch)
    assert resume(folder) == 0
    assert_same(folder, expected)
    # Ctrl-C repeats nothing; the kill repeats what came after the last checkpoint.
    assert EPOCHS <= epochs_trained(folder) <= EPOCHS + saved_every(flags)


@pytest.mark.parametrize("event", few([1, 2, 3], [2]))
@pytest.mark.parametrize("name", few(["before, dropout, one cycle", "rewinding, Adam"], ["rewinding, Adam"]))
def test_killed_within_a_pruning_event(event, name, start, undisturbed, monkeypatch, tmp_path):
    expected = undisturbed(*CASES[name])
    # The masks are set and the weights are not yet zeroed: the middle of an event.
    monkeypatch.setattr(PrunableNetwork, "enforce", at_call(event, PrunableNetwork.enforce, die))
    killed(lambda: start(*CASES[name]))
    monkeypatch.undo()
    folder = newest(tmp_path / "stopped")
    assert resume(folder) == 0
    assert_same(folder, expected)
    assert epochs_trained(folder) <= EPOCHS + 1


def half_written(descriptor: int) -> None:
    os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
    die()


def only_for(ending: str, number: int, action, original):
    """Wraps os.replace so that for the file of this ending, at this time, something else happens first."""
    wrapped = at_call(number, original, action)

    def replace(source, target):
        return (wrapped if str(target).endswith(ending) else original)(source, target)

    return replace


@pytest.mark.parametrize(
    ("moment", "ending", "number"),
    [("half", "", 4), ("before", "_checkpoint", 4), ("after", "_checkpoint", 4)]
    + later(("half", "", 14), ("before", "_checkpoint", 1), ("after", "_checkpoint", EPOCHS + 2))
    + later(("before", "_finished", 1), ("after", "_finished", 1), ("before", "result.json", 1)),
)
def test_killed_while_a_file_is_written(moment, ending, number, start, undisturbed, monkeypatch, tmp_path):
    flags = CASES["during, cosine, shuffled"]
    expected = undisturbed(*flags)
    fsync, replace = os.fsync, os.replace
    if moment == "half":
        count = iter(range(1, 10**9))
        monkeypatch.setattr(files.os, "fsync", lambda file: (half_written if next(count) == number else fsync)(file))
    elif moment == "before":
        monkeypatch.setattr(files.os, "replace", only_for(ending, number, die, replace))
    else:

        def replace_and_die(source, target):
            replace(source, target)
            die()

        calls = iter(range(1, 10**9))

        def maybe(source, target):
            chosen = str(target).endswith(ending) and next(calls) == number
            return (replace_and_die if chosen else replace)(source, target)

        monkeypatch.setattr(files.os, "replace", maybe)
    killed(lambda: start(*flags))
    monkeypatch.setattr(files.os, "fsync", fsync)
    monkeypatch.setattr(files.os, "replace", replace)
    folder = newest(tmp_path / "stopped")
    assert resume(folder) == 0
    assert_same(folder, expected)
    assert epochs_trained(folder) <= EPOCHS + 1
    # What the kill left half written was used up, not piled up.
    assert not list(folder.rglob(".*.part"))


@thorough
def test_killed_again_and_again(start, undisturbed, monkeypatch, tmp_path):
    flags = CASES["rewinding, Adam"]
    expected, rng = undisturbed(*flags), random.Random(7)
    train_batch, kills = DefaultTrainer.train_batch, 4
    for number in range(kills):
        monkeypatch.setattr(DefaultTrainer, "train_batch", at_call(rng.randint(1, 8), train_batch, die))
        killed(lambda number=number: resume(newest(tmp_path / "stopped")) if number else start(*flags))
    monkeypatch.setattr(DefaultTrainer, "train_batch", train_batch)
    folder = newest(tmp_path / "stopped")
    assert resume(folder) == 0
    assert_same(folder, expected)
    assert epochs_trained(folder) <= EPOCHS + kills


# -- Ctrl-C and its kin ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", few([1, 2, 3, EPOCHS * BATCHES], [2]))
def test_ctrl_c_finishes_the_batch_saves_and_says_how_to_go_on(batch, start, undisturbed, monkeypatch, capsys):
    flags = CASES["before, dropout, one cycle"]
    expected = undisturbed(*flags)
    train_batch = DefaultTrainer.train_batch
    monkeypatch.setattr(DefaultTrainer, "train_batch", at_call(batch, train_batch, send(signal.SIGINT)))
    code, folder = start(*flags)
    monkeypatch.setattr(DefaultTrainer, "train_batch", train_batch)
    assert code == 130
    assert f"python main.py --resume {os.path.relpath(folder)}" in capsys.readouterr().err
    assert '"status": "interrupted"' in (folder / "result.json").read_text()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    saved = torch.load(folder / "models" / "MLP5_checkpoint", weights_only=True)["trainer"]
    assert saved["epoch"] * BATCHES + saved["batch"] == batch
    assert resume(folder) == 0
    assert_same(folder, expected)
    assert epochs_trained(folder) == EPOCHS


def test_sigterm_saves_too(start, undisturbed, monkeypatch):
    flags = CASES["gradual, noise"]
    expected, train_batch = undisturbed(*flags), DefaultTrainer.train_batch
    monkeypatch.setattr(DefaultTrainer, "train_batch", at_call(8, train_batch, send(signal.SIGTERM)))
    code, folder = start(*flags)
    monkeypatch.setattr(DefaultTrainer, "train_batch", train_batch)
    assert code == 143
    assert resume(folder) == 0
    assert_same(folder, expected)
    assert epochs_trained(folder) == EPOCHS


def test_a_second_ctrl_c_does_not_wait(start, undisturbed, monkeypatch, capsys):
    flags = CASES["before, dropout, one cycle"]
    expected, train_batch = undisturbed(*flags), DefaultTrainer.train_batch
    stop = send(signal.SIGINT, signal.SIGINT)
    monkeypatch.setattr(DefaultTrainer, "train_batch", at_call(8, train_batch, stop))
    code, folder = start(*flags)
    monkeypatch.setattr(DefaultTrainer, "train_batch", train_batch)
    error = capsys.readouterr().err
    assert code == 130 and "--resume" in error and len(error.splitlines()) == 1
    assert torch.load(folder / "models" / "MLP5_checkpoint", weights_only=True)["trainer"]["batch"] == 0
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert resume(folder) == 0
    assert_same(folder, expected)


def test_ctrl_c_between_events_before_training(start, undisturbed, monkeypatch):
    flags = CASES["before, dropout, one cycle"]
    expected, prune_to = undisturbed(*flags), PrunableNetwork.prune_to
    monkeypatch.setattr(PrunableNetwork, "prune_to", at_call(3, prune_to, send(signal.SIGINT)))
    code, folder = start(*flags)
    monkeypatch.setattr(PrunableNetwork, "prune_to", prune_to)
    assert code == 130
    saved = torch.load(folder / "models" / "MLP5_checkpoint", weights_only=True)
    assert len(saved["pruning"]["steps"]) == 3 and saved["trainer"]["totals"]["samples_seen"] == 0
    assert resume(folder) == 0
    assert_same(folder, expected)


def test_ctrl_c_while_parts_are_built(start, monkeypatch, tmp_path, capsys):
    (tmp_path / "stopped").mkdir()
    make_batches = prepare.make_batches
    monkeypatch.setattr(prepare, "make_batches", at_call(1, make_batches, send(signal.SIGINT)))
    command = [*TINY, "--results_dir", str(tmp_path / "stopped")]
    assert main.main(command) == 130
    error = capsys.readouterr().err
    assert error.startswith("error:") and len(error.splitlines()) == 1


def test_ctrl_c_before_the_first_checkpoint(start, undisturbed, monkeypatch, tmp_path):
    """The folder is there and holds no checkpoint yet: resuming starts from the beginning."""
    flags = CASES["before, dropout, one cycle"]
    expected, prune_to = undisturbed(*flags), PrunableNetwork.prune_to
    monkeypatch.setattr(PrunableNetwork, "prune_to", at_call(2, prune_to, send(signal.SIGINT, signal.SIGINT)))
    code, folder = start(*flags)
    monkeypatch.setattr(PrunableNetwork, "prune_to", prune_to)
    assert code == 130 and not list((folder / "models").iterdir())
    assert resume(folder) == 0
    assert_same(folder, expected)


def test_the_time_limit_counts_per_session(start, undisturbed, capsys):
    flags = CASES["during, cosine, shuffled"]
    expected = undisturbed(*flags)
    limit = ["--max_training_minutes", "1e-9"]
    code, folder = start(*flags, *limit)
    assert code == 124 and "--max_training_minutes" in capsys.readouterr().err

    def batches_done() -> int:
        saved = torch.load(folder / "models" / "MLP5_checkpoint", weights_only=True)["trainer"]
        return saved["epoch"] * BATCHES + saved["batch"]

    assert batches_done() == 1
    assert resume(folder) == 124
    assert batches_done() == 2
    assert resume(folder, "--max_training_minutes", "60") == 0
    assert_same(folder, expected)


# -- what may be resumed, and how -----------------------------------------------------------------------------------


def test_a_finished_run_is_only_shown(start, capsys):
    code, folder = start("--prune_criterion", "EmptyCrit", "--pruning_limit", "0")
    assert code == 0
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    capsys.readouterr()
    assert resume(folder) == 0
    assert "finished" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_a_setting_of_the_run_cannot_be_changed(start, monkeypatch, capsys):
    monkeypatch.setattr(DefaultTrainer, "train_batch", at_call(5, DefaultTrainer.train_batch, send(signal.SIGINT)))
    code, folder = start("--prune_criterion", "SNIP")
    assert code == 130
    checkpoint = (folder / "models" / "MLP5_checkpoint").read_bytes()
    capsys.readouterr()
    assert resume(folder, "--epochs", "9") == 2
    error = capsys.readouterr().err
    assert "--epochs" in error and len(error.splitlines()) == 1
    assert (folder / "models" / "MLP5_checkpoint").read_bytes() == checkpoint


PLUGIN = '''
from pruning import WeightCriterion

class OwnIdea(WeightCriterion):
    """Large weights stay."""

    moment = "during"

    def __init__(self, *, power: float = 2.0):
        self.power = power

    def sparsities(self, limit):
        return [limit / 2, limit]

    def weight_scores(self, network, batches):
        return {name: weight.abs() ** self.power for name, weight in network.weights()}
'''


def test_a_run_with_a_plug_in_of_ones_own(start, undisturbed, monkeypatch, tmp_path):
    (tmp_path / "mine" / "criterions").mkdir(parents=True)
    (tmp_path / "mine" / "criterions" / "OwnIdea.py").write_text(PLUGIN)
    flags = ["--plugin_dir", str(tmp_path / "mine"), "--prune_criterion", "OwnIdea", "--power", "0.5"]
    expected, train_batch = undisturbed(*flags), DefaultTrainer.train_batch
    monkeypatch.setattr(DefaultTrainer, "train_batch", at_call(8, train_batch, send(signal.SIGINT)))
    code, folder = start(*flags)
    monkeypatch.setattr(DefaultTrainer, "train_batch", train_batch)
    assert code == 130
    assert resume(folder) == 0
    assert_same(folder, expected)


def test_training_on_does_not_change_what_is_rewound_to(start, monkeypatch):
    """Biases are never masked: after each event they, and what the optimizer knows of them, are the same again."""
    rewind, seen = DefaultTrainer.rewind, []

    def remember(self, state):
        rewind(self, state)
        biases = [parameter for name, parameter in self.model.named_parameters() if name.endswith("bias")]
        known = [value.clone() for bias in biases for value in self.optimizer.state[bias].values()]
        seen.append([*(bias.detach().clone() for bias in biases), *known, torch.tensor(self.schedule.get_last_lr())])

    monkeypatch.setattr(DefaultTrainer, "rewind", remember)
    assert start(*CASES["rewinding, Adam"])[0] == 0
    assert len(seen) == 3
    for again in seen[1:]:
        assert all(torch.equal(one, other) for one, other in zip(seen[0], again, strict=True))


# -- what is written along the way ----------------------------------------------------------------------------------


def read_board(folder: Path) -> dict[str, list[int]]:
    """The steps per tag, as TensorBoard's own reader has them after it dropped what was repeated."""
    from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator

    everything = dict.fromkeys(("scalars", "histograms", "text"), 0)
    events = EventAccumulator(str(folder / "summary"), tensor_size_guidance=everything)
    events.Reload()
    return {tag: [event.step for event in events.Tensors(tag)] for tag in events.Tags()["tensors"]}


WAYS = ["kill", "kill at the start", "kill at the end", "interrupt", "interrupt before"]


@pytest.mark.parametrize("way", few(WAYS, ["kill", "interrupt"]))
def test_tensorboard_and_tables_hold_each_step_once(way, start, monkeypatch, tmp_path):
    flags = ["--prune_criterion", "SNIPit", "--save_freq", "3"]
    train_batch, replace, prune_to = DefaultTrainer.train_batch, os.replace, PrunableNetwork.prune_to
    if way == "kill":
        monkeypatch.setattr(DefaultTrainer, "train_batch", at_call(17, train_batch, die))
    elif way == "interrupt":
        monkeypatch.setattr(DefaultTrainer, "train_batch", at_call(8, train_batch, send(signal.SIGINT)))
    elif way == "interrupt before":
        monkeypatch.setattr(PrunableNetwork, "prune_to", at_call(2, prune_to, send(signal.SIGINT)))
    else:
        ending = "_checkpoint" if way == "kill at the start" else "_finished"
        monkeypatch.setattr(files.os, "replace", only_for(ending, 1, die, replace))
    if way.startswith("kill"):
        killed(lambda: start(*flags, board=True))
    else:
        assert start(*flags, board=True)[0] == 130
    monkeypatch.setattr(files.os, "replace", replace)
    monkeypatch.setattr(DefaultTrainer, "train_batch", train_batch)
    monkeypatch.setattr(PrunableNetwork, "prune_to", prune_to)
    folder = newest(tmp_path / "stopped")
    assert resume(folder) == 0

    steps = read_board(folder)
    assert steps["test_accuracy"] == steps["weight_sparsity"] == list(range(1, EPOCHS + 1))
    assert len(steps["architecture/before/text_summary"]) == len(steps["architecture/after/text_summary"]) == 1
    for tag in (tag for tag in steps if tag.startswith("weights/")):
        assert steps[tag] == [0, EPOCHS + 1]
    with open(folder / "output" / "epochs.csv", newline="") as file:
        assert [float(row["epoch"]) for row in csv.DictReader(file)] == list(range(1, EPOCHS + 1))


# -- the real thing -------------------------------------------------------------------------------------------------


@thorough
def test_kill_minus_nine_from_outside(tmp_path, undisturbed):
    """The program as a user runs it, killed at a random time by another process and taken up again."""
    flags = ["--prune_criterion", "SNIPitDuring", "--dropout", "0.3", *DURING]
    expected = undisturbed(*flags)
    environment = dict(os.environ, OMP_NUM_THREADS="1")
    program = [sys.executable, str(ROOT / "main.py")]
    common = [*TINY[:-1], "--epochs", str(EPOCHS), "--results_dir", str(tmp_path), "--no-tensorboard"]
    settings = {"text": True, "env": environment, "cwd": ROOT}
    with subprocess.Popen([*program, *common, *flags], stdout=subprocess.PIPE, **settings) as process:
        for line in process.stdout:
            if line.startswith("epoch 2/"):
                time.sleep(random.random() * 0.03)
                process.kill()
    assert process.returncode == -signal.SIGKILL
    done = subprocess.run([*program, "--resume", str(newest(tmp_path))], capture_output=True, **settings)
    assert (done.returncode, done.stderr) == (0, "")
    assert_same(newest(tmp_path), expected)
    assert epochs_trained(newest(tmp_path)) <= EPOCHS + 1
