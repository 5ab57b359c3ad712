"""Experiments from a file to a report: what is run, in which order, how often, and what is left after a disaster."""

from __future__ import annotations

import csv
import json
import os
import random
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import pytest
import yaml

import main
from tests.support.running import TINY, Commands
from utils.console import Console
from utils.experiments.cells import Cells, Stopped, run_silently
from utils.experiments.report.gather import gather
from utils.experiments.runner import LocalRunner, places
from utils.settings.registry import ROOT


def option(argv: Sequence[str], name: str) -> str:
    return next(word.split("=", 1)[1] for word in argv if word.startswith(f"--{name}="))


def pretend(argv: Sequence[str], status: str = "finished") -> int:
    """Leaves what a run leaves, without training."""
    if argv[0] == "--resume":
        folder = Path(argv[1])
    else:
        folder = Path(option(argv, "results_dir")) / f"{time.time_ns()}_{option(argv, 'run_name')}"
        folder.mkdir()
        (folder / "settings.yaml").write_text(yaml.safe_dump({"command": list(argv)}))
    record = {"status": status, "test_accuracy": 0.5, "weight_sparsity": 0.5, "seconds_training": 1.0}
    (folder / "result.json").write_text(json.dumps(record))
    return 0 if status == "finished" else 1


def states(cells: Cells) -> list[str]:
    return [cells.state(cell) for cell in cells.experiment.cells]


def nothing(*told: object) -> None:
    pass


# -- one worker --------------------------------------------------------------------------------------------------------


def test_cells_are_ordinary_runs_with_the_numbers_of_a_run_alone(cells, capsys, tmp_path):
    grid = cells()
    with mock.patch("utils.callbacks.attach.Pictures.draw"):
        grid.work(main.main, nothing)
    assert states(grid) == ["finished"] * 5
    cell = grid.experiment.cells[2]
    alone = Commands(capsys, tmp_path / "alone")(
        *("--prune_criterion", "SNIP", "--pruning_limit", 0.9, "--seed", 1, "--hidden", 16),
        *("--epochs", 2, "--limit_batches", 1, "--no-tensorboard"),
    )
    numbers = ("test_accuracy", "test_loss", "train_loss", "weights_left", "sparsity_reached")
    assert [grid.record(cell)[name] for name in numbers] == [alone.result[name] for name in numbers]
    assert (grid.run_of(cell).path / "codebase").is_dir()


def test_finished_cells_are_skipped_and_new_seeds_added(cells):
    grid, ran = cells(), []
    grid.work(pretend, lambda what, cell: ran.append((what, cell.title)))
    assert len(ran) == 10
    more, again = cells(TINY.replace("seed: [1]", "seed: [1, 2]")), []
    more.work(pretend, lambda what, cell: again.append(cell.seed))
    assert again == [2] * 10


def test_a_cascade_passes_networks_on_with_what_was_pruned(cells):
    grid = cells("""
        base: {hidden: 16, epochs: 2, limit_batches: 1}
        retrain: {epochs: 1}
        mode: cascade
        compare: {prune_criterion: [Magnitude, SNAP], seed: [1]}
        spacing: {linear: {from: 0.2, to: 0.8, n: 4}, retrain_every: 2}
    """)
    with mock.patch("utils.callbacks.attach.Pictures.draw"):
        grid.work(main.main, nothing)
    dense, low, high, *nodes = grid.experiment.cells
    assert [round(grid.record(cell)["sparsity_reached"], 2) for cell in (dense, low, high)] == [0, 0.4, 0.8]
    events = [json.loads((grid.run_of(c).output / "pruning_events.json").read_text()) for c in (low, high)]
    assert [[event["asked"] for event in run] for run in events] == [[0.2, 0.4], [0.6, 0.8]]
    assert [grid.record(cell)["nodes_left"] for cell in nodes] == [38, 12]  # of 64, rounded down
    assert grid.run_of(high).settings()["checkpoint_name"] == str(grid.run_of(low).path)


def test_without_retraining_networks_are_pruned_and_tested(cells):
    grid = cells(TINY.replace("name: tiny", "name: tiny\n    retrain: {epochs: 0, lr_schedule: onecycle, warmup: 1}"))
    with mock.patch("utils.callbacks.attach.Pictures.draw"):
        grid.work(main.main, nothing)
    dense, low = (grid.record(cell) for cell in grid.experiment.cells[:2])
    assert (low["epochs_trained"], low["training_flops"], low["sparsity_reached"]) == (0, 0, 0.5)
    assert 0 <= low["test_accuracy"] <= 1
    assert low["test_loss"] != dense["test_loss"]


def test_a_rewound_cascade_starts_training_from_the_initial_weights(cells):
    import torch

    grid = cells("""
        base: {hidden: 16, epochs: 1, limit_batches: 1, learning_rate: 0}
        mode: cascade_rewind
        compare: {prune_criterion: [Magnitude], pruning_limit: [0.5], seed: [1]}
    """)
    with mock.patch("utils.callbacks.attach.Pictures.draw"):
        # The dense run learns, the pruned one does not: its weights are then those that it went back to.
        dense, pruned = grid.experiment.cells
        grid.attempt(dense, lambda argv: main.main([*argv, "--learning_rate", "0.1"]), nothing)
        assert grid.attempt(pruned, main.main, nothing)
    models = [grid.run_of(dense).models / "MLP5_epoch_0", grid.run_of(pruned).models / "MLP5_finished"]
    early, last = (torch.load(model, weights_only=True)["state_dict"] for model in models)
    trained = torch.load(models[0].with_name("MLP5_finished"), weights_only=True)["state_dict"]
    weights = [name for name in early if early[name].dim() == 2]
    for name in weights:
        there = last[name] != 0
        assert torch.equal(last[name][there], early[name][there])
        assert not torch.equal(trained[name], early[name])
    kept = sum(int((last[name] != 0).sum()) for name in weights)
    assert kept == sum(early[name].numel() for name in weights) / 2


def test_a_rewound_cascade_goes_on_from_the_epoch_that_it_went_back_to(cells):
    """A cell that removes nothing repeats what the dense run did after that epoch: same data order, same schedule."""
    grid = cells("""
        base: {hidden: 16, dropout: 0, epochs: 3, limit_batches: 2, optimizer: SGD, momentum: 0, lr_schedule: cosine}
        mode: cascade_rewind
        rewind_epoch: 2
        compare: {prune_criterion: [Magnitude], pruning_limit: [1.0e-6, 0.5], seed: [1]}
    """)
    with mock.patch("utils.callbacks.attach.Pictures.draw"):
        grid.work(main.main, nothing)
    dense, same, half = (grid.record(cell) for cell in grid.experiment.cells)
    assert [same[name] for name in ("test_loss", "train_loss")] == [dense[name] for name in ("test_loss", "train_loss")]
    assert half["test_loss"] != dense["test_loss"]
    lines = (grid.run_of(grid.experiment.cells[2]).output / "epochs.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines[1:]] == ["3"]


def test_a_failing_cell_is_tried_twice_and_the_rest_goes_on(cells):
    grid, tried = cells(), []

    def run(argv: Sequence[str]) -> int:
        if any("UnstructuredRandom" in word for word in argv):
            tried.append(argv)
            print("error: no luck", file=sys.stderr)
            return 2
        return pretend(argv)

    grid.work(run, nothing)
    assert states(grid) == ["finished"] * 3 + ["failed"] * 2
    assert [grid.error(cell) for cell in grid.experiment.cells[3:]] == ["no luck"] * 2
    assert len(tried) == 4
    grid.forget_failures()
    assert states(grid)[3:] == ["left"] * 2


def test_a_broken_run_is_resumed_first_and_begun_anew_if_that_fails(cells):
    grid, commands = cells(TINY.replace("[0.5, 0.9]", "[0.5]").replace(", UnstructuredRandom", "")), []
    dense, cell = grid.experiment.cells
    pretend(grid._command(dense))
    pretend(grid._command(cell), status="interrupted")

    def run(argv: Sequence[str]) -> int:
        commands.append(argv[0])
        return 2 if argv[0] == "--resume" else pretend(argv)

    grid.work(run, nothing)
    assert commands[0] == "--resume"
    assert len(commands) == 2
    assert grid.state(cell) == "finished"


def test_what_starts_from_a_failed_cell_fails_with_it(cells):
    grid = cells(TINY.replace("name: tiny", "name: tiny\n    mode: cascade"))
    grid.work(lambda argv: pretend(argv) if "SNIP" not in str(argv) else 1, nothing)
    low, high = grid.experiment.cells[1:3]
    assert "exit code 1" in grid.error(low)
    assert grid.error(high) == f"{low.title}, from which it starts, failed"
    assert states(grid)[3:] == ["finished"] * 2


def test_a_run_that_was_stopped_stops_the_worker(cells):
    grid = cells()
    with pytest.raises(Stopped):
        grid.work(lambda argv: 143, nothing)
    assert states(grid) == ["left"] * 5


def test_only_errors_are_taken_from_what_a_run_says(capsys):
    def run(argv: Sequence[str]) -> int:
        print("error: on standard output")
        print("warning: hm\nerror: first\nerror: last", file=sys.stderr)
        return 7

    assert run_silently(run, []) == (7, "last")
    assert capsys.readouterr() == ("", "")


# -- several -----------------------------------------------------------------------------------------------------------


def test_two_runners_on_one_folder_do_every_cell_once(cells):
    begun: list[str] = []

    def slowly(argv: Sequence[str]) -> int:
        begun.append(option(argv, "run_name"))
        time.sleep(0.02)
        return pretend(argv)

    both = [cells(TINY.replace("seed: [1]", "seed: [1, 2, 3, 4]")) for _ in range(2)]
    # Threads share their output.
    with mock.patch("utils.experiments.cells.run_silently", lambda run, argv: (run(argv), "")):
        threads = [threading.Thread(target=grid.work, args=(slowly, nothing, 0.01)) for grid in both]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(begun) == len(set(begun)) == 20


def deadly(argv: Sequence[str]) -> int:
    """Kills its own process the first time, as the system does when memory runs out."""
    marker = Path(option(argv, "results_dir")) / "killed"
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return pretend(argv)


def test_workers_that_die_are_replaced_and_lose_nothing(cells):
    grid, reports = cells(), []
    runner = LocalRunner(grid, deadly, workers=1, console=Console(quiet=True), report=reports.append)
    assert runner.go() == 0
    assert states(grid) == ["finished"] * 5
    assert "signal 9" in (grid.notes / f"{grid.experiment.cells[0].key}.log").read_text()
    # One call for each cell that ended, well or badly, and one at the end.
    assert reports == [False] * 6 + [True]


def test_workers_share_the_cores_and_take_gpus_in_turn():
    cores = mock.patch("os.sched_getaffinity", lambda _: {0, 1, 2, 3, 4})
    with cores, mock.patch("torch.cuda.device_count", lambda: 2):
        with mock.patch.dict(os.environ, CUDA_VISIBLE_DEVICES="5,7"):
            shared = places(3)
        assert [(place.cores, place.gpu) for place in shared] == [([0], "5"), ([1], "7"), ([2], "5")]
        assert [place.cores for place in places(2)] == [[0, 1], [2, 3]]
        assert [(place.cores, place.gpu) for place in places(1)] == [([], None)]


def test_no_more_workers_than_cells(cells):
    grid = cells()
    runner = LocalRunner(grid, pretend, workers=1000, console=Console(quiet=True), report=lambda last: None)
    assert len(runner.places) == len(grid.experiment.cells)


# -- the command line --------------------------------------------------------------------------------------------------


def test_plan_and_status_run_nothing(command, cells, tmp_path):
    grid = cells()
    planned = command("--experiment", tmp_path / "tiny.yaml", "--dry_run")
    assert planned.code == 0
    assert re.findall(r"^left +(.*)$", planned.out, re.M) == [cell.title for cell in grid.experiment.cells]
    assert "not known before a cell is finished" in planned.out
    grid.work(lambda argv: 1 if "0.9" in str(argv) else pretend(argv), nothing)
    text = command("--experiment", tmp_path / "tiny.yaml", "--status").out
    assert re.search(r"SNIP +│ 1 finished, 1 failed of 2", text)
    assert re.search(r"all +│ 3 finished, 2 failed of 5", text)
    assert "SNIP 0.9, seed 1" in text


def test_what_no_run_uses_is_said_before_the_first_one(command, tmp_path):
    text = "base: {hidden: 16}\ncompare:\n  prune_criterion: [SNIP, {name: GRASP, l0_reg: 3}]\n"
    (tmp_path / "e.yaml").write_text(text)
    said = command("--experiment", tmp_path / "e.yaml", "--dry_run").err
    assert len(said.splitlines()) == 1
    assert f"{tmp_path / 'e.yaml'}, line 3: --l0_reg is not used: it belongs to loss L0CrossEntropy" in said


def test_stopped_runs_are_called_interrupted(command, cells, tmp_path):
    grid = cells()
    pretend(grid._command(grid.experiment.cells[0]))
    pretend(grid._command(grid.experiment.cells[1]), status="interrupted")
    assert "1 finished, 1 interrupted, 3 left of 5" in command("--experiment", tmp_path / "tiny.yaml", "--status").out
    assert gather(grid).note.startswith("Runs: 1 finished, 1 interrupted, 3 still to come; 1 seed.")


def test_time_left_is_measured_from_finished_cells_of_the_same_method(cells):
    grid = cells()
    for cell, seconds in zip(grid.experiment.cells[:4], (2.0, 10.0, None, 30.0), strict=True):
        if seconds:
            pretend(grid._command(cell))
            grid.note(cell, seconds=seconds)
    assert grid.seconds_left(1) == 10 + 30
    assert grid.seconds_left(2) == 20


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--status"], "--status needs --experiment"),
        (["--experiment", "nowhere.yaml"], "--experiment nowhere.yaml cannot be read"),
        (["--experiment", "FILE", "--hidden", "16"], "--hidden cannot be given with --experiment"),
        (["--experiment", "FILE", "--run_name", "x"], "--run_name cannot be given with --experiment"),
        (["--report", "nothing*"], "no run folder matches"),
    ],
)
def test_what_cannot_be_asked_for(command, cells, tmp_path, argv, message):
    cells()
    assert message in command.refused(*[str(tmp_path / "tiny.yaml") if word == "FILE" else word for word in argv])


def test_what_cannot_run_is_said_before_the_first_cell(command, tmp_path):
    text = "base: {hidden: 16, epochs: 2}\ncompare:\n  prune_criterion:\n    - SNIP\n    - IMP\n"
    (tmp_path / "e.yaml").write_text(text)
    line = command.refused("--experiment", tmp_path / "e.yaml")
    assert "line 5: IMP 0.9, seed 333: IMP needs 7 pruning events" in line


@pytest.mark.slow
def test_killing_at_random_points_changes_no_number(tmp_path):
    text = textwrap.dedent(TINY).replace("epochs: 2", "epochs: 6").replace("[1]", "[1, 2]")
    (tmp_path / "tiny.yaml").write_text(text)
    tables = [run_to_the_end(tmp_path, "undisturbed", 0), run_to_the_end(tmp_path, "killed", 8)]
    assert tables[0] == tables[1]
    assert len(tables[0]) == 5


def run_to_the_end(tmp_path: Path, results: str, kills: int) -> list[dict[str, str]]:
    argv = [sys.executable, "main.py", "--experiment", str(tmp_path / "tiny.yaml"), "--workers", "2"]
    argv += ["--results_dir", str(tmp_path / results)]
    drawn = random.Random(7)
    for _ in range(kills):
        process = subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(drawn.uniform(5, 14))
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        victims = [process.pid] if drawn.random() < 0.5 else [int(child) for child in children]
        for victim in victims:
            os.kill(victim, signal.SIGKILL)
        process.kill()
        process.wait()
    assert subprocess.run(argv, cwd=ROOT, stdout=subprocess.DEVNULL).returncode == 0
    with open(tmp_path / results / "tiny" / "table.csv", encoding="utf-8") as file:
        return list(csv.DictReader(file))
