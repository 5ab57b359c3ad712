"""Experiments on a Ray cluster: what is said before anything runs, what the runner decides, and lost nodes."""

from __future__ import annotations

import pickle
import socket
import sys
import textwrap
import types
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest

from pruning.errors import UsageError
from tests.end_to_end.test_experiments import pretend
from tests.support.running import TINY
from utils.console import Console
from utils.experiments import cluster, experiment
from utils.experiments.cells import Cells
from utils.experiments.cluster import ClusterRunner, attempt
from utils.experiments.demand import Demand

# -- what is said before anything runs ---------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path):
    (tmp_path / "tiny.yaml").write_text(textwrap.dedent(TINY))
    return tmp_path / "tiny.yaml"


def test_without_ray_the_line_says_how_to_get_it(command, file):
    with mock.patch.dict(sys.modules, {"ray": None}):
        assert 'pip install -e ".[ray]"' in command.refused("--experiment", file, "--ray", "auto")
        assert command("--experiment", file, "--ray", "auto", "--status").code == 0
        assert command("--experiment", file, "--ray", "auto", "--dry_run").code == 0


def test_a_flag_that_has_no_meaning_alone_or_two_that_contradict(command, file):
    assert "--ray needs --experiment" in command.refused("--ray", "auto")
    assert "--ray and --workers both" in command.refused("--experiment", file, "--ray", "auto", "--workers", 2)


@pytest.mark.parametrize("address", ["local", "host:port", "http://host:1", "ray://host", "10.0.0.1:99999", ":1"])
def test_what_is_no_address(command, file, address):
    assert "--ray takes auto, HOST:PORT or ray://HOST:PORT" in command.refused("--experiment", file, "--ray", address)


def test_where_nobody_listens_the_answer_comes_at_once(command, file):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}"):
        assert f"--ray {address}: nobody answers" in command.refused("--experiment", file, "--ray", address)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ("{cpu: 2}", "line 5: there is no resource 'cpu'; there are cpus and gpus"),
        ("{cpus: 0}", "line 5: cpus is a number above 0; 0 was given"),
        ("{cpus: .nan}", "line 5: cpus is a number above 0; nan was given"),
        ("{gpus: -1}", "line 5: gpus is a number from 0; -1 was given"),
        ("{gpus: true}", "line 5: gpus is a number from 0; True was given"),
        ("{gpus: 1.5}", "line 5: more than one of gpus is a whole number"),
        ("2", "line 5: resources takes {cpus: ..., gpus: ...}; 2 was given"),
    ],
)
def test_resources_that_do_not_fit_are_named_with_their_line(tmp_path, block, message):
    (tmp_path / "e.yaml").write_text(textwrap.dedent(TINY) + f"resources: {block}\n")
    with pytest.raises(UsageError) as error:
        experiment.read(str(tmp_path / "e.yaml"))
    assert message in str(error.value)


def test_resources_change_no_run(tmp_path):
    keys = []
    for block in ("", "resources: {cpus: 2, gpus: 0.5}\n"):
        (tmp_path / "e.yaml").write_text(textwrap.dedent(TINY) + block)
        plan = experiment.read(str(tmp_path / "e.yaml"))
        keys.append([cell.key for cell in plan.cells])
    assert keys[0] == keys[1]
    assert (plan.demand.cpus, plan.demand.gpus, str(plan.demand)) == (2, 0.5, "2 CPUs and 0.5 GPUs")


def test_how_many_runs_fit_on_a_node():
    assert Demand(2, 0.5).fits({"CPU": 16, "GPU": 2}) == 4
    assert Demand(0.1).fits({"CPU": 1}) == 10
    assert Demand(1, 1).fits({"CPU": 64}) == 0
    assert Demand(0.5, 0).fits({"memory": 1}) == 0


# -- what the runner decides -------------------------------------------------------------------------------------------


class NodeDiedError(Exception):
    pass


class FakeRay(types.ModuleType):
    """As much of Ray as the runner uses; a task is done, here, when it is waited for.

    Args:
        fate: called with the number of each task; raises what becomes of it, if that is not its own result.
    """

    def __init__(self, fate: Callable[[int], None] = lambda number: None, resources: dict[str, float] | None = None):
        super().__init__("ray")
        names = ("LocalRayletDiedError", "TaskCancelledError", "WorkerCrashedError", "OutOfMemoryError", "RayError")
        self.exceptions = types.SimpleNamespace(NodeDiedError=NodeDiedError)
        for name in names:
            setattr(self.exceptions, name, type(name, (Exception,), {}))
        self.fate, self.begun, self.asked, self.cancelled = fate, 0, [], []
        self.resources = [resources or {"CPU": 2.0}]

    def remote(self, function: Callable[..., Any]) -> Any:
        def options(**asked: Any) -> Any:
            self.asked.append(asked)
            # The work alone: the environment of this process is to stay as it is.
            return types.SimpleNamespace(remote=lambda folders, environment, work: (len(self.asked), work))

        return types.SimpleNamespace(options=options)

    def wait(self, tasks: list[Any], **how: Any) -> Any:
        return tasks[:1], tasks[1:]

    def get(self, task: Any) -> Any:
        self.begun += 1
        self.fate(self.begun)
        return pickle.loads(task[1])()

    def cancel(self, task: Any, force: bool = False) -> None:
        self.cancelled.append(task)

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": one} for one in self.resources] + [{"Alive": False, "Resources": {}}]

    def shutdown(self) -> None:
        pass


@pytest.fixture
def go(monkeypatch):
    """Runs cells on a stand-in for Ray; returns the exit code and the cells' states."""
    monkeypatch.setattr(cluster, "PAUSE", 0.0)
    monkeypatch.setattr("torch.set_num_threads", lambda threads: None)

    def go(grid: Cells, ray: FakeRay, run: Callable[..., int] = pretend, report: Any = lambda last: None) -> Any:
        code = ClusterRunner(grid, run, ray=ray, console=Console(quiet=True), report=report).go()
        return code, [grid.state(cell) for cell in grid.experiment.cells]

    return go


def test_every_cell_is_handed_over_once_with_its_demand(cells, go):
    ray, reports = FakeRay(resources={"CPU": 4.0, "GPU": 1.0}), []
    grid = cells(TINY + "    resources: {cpus: 2, gpus: 0.25}\n")
    assert go(grid, ray, report=reports.append) == (0, ["finished"] * 5)
    assert [(asked["num_cpus"], asked["num_gpus"], asked["max_retries"]) for asked in ray.asked] == [(2, 0.25, 0)] * 5
    assert [asked["name"] for asked in ray.asked] == [cell.run_name for cell in grid.experiment.cells]
    assert reports == [False] * 5 + [True]
    assert go(cells(), FakeRay()) == (0, ["finished"] * 5)


def test_what_starts_from_another_cell_is_not_handed_over_before_that_is_finished(cells, go):
    ray, orders = FakeRay(), []
    grid = cells(TINY.replace("name: tiny", "name: tiny\n    mode: cascade"))

    def waiting(number: int) -> None:
        orders.append([asked["name"] for asked in ray.asked])

    ray.fate = waiting
    assert go(grid, ray)[1] == ["finished"] * 5
    names = [cell.run_name for cell in grid.experiment.cells]
    assert orders[0] == [names[0]]  # dense alone, then the first step of both methods
    assert orders[1] == [names[0], names[1], names[3]]


def lose(count: int) -> Callable[[int], None]:
    def fate(number: int) -> None:
        if number <= count:
            raise NodeDiedError

    return fate


def test_a_lost_node_is_no_failure_of_the_cell_unless_it_always_is(cells, go):
    grid = cells(TINY.replace("[0.5, 0.9]", "[0.5]").replace(", UnstructuredRandom", "") + "    dense: none\n")
    assert go(grid, FakeRay(lose(cluster.LOSSES))) == (0, ["finished"])
    assert grid._noted(grid.experiment.cells[0], "error") == []
    grid = cells(TINY.replace("[0.5, 0.9]", "[0.7]").replace(", UnstructuredRandom", "") + "    dense: none\n")
    assert go(grid, FakeRay(lose(1000))) == (1, ["failed"])
    assert "its node was lost" in grid.error(grid.experiment.cells[0])


def fail(argv: Any) -> int:
    return 1 if "UnstructuredRandom" in str(argv) else pretend(argv)


def test_a_failing_cell_is_tried_twice_and_the_rest_goes_on(cells, go):
    grid, ray = cells(), FakeRay()
    assert go(grid, ray, fail) == (1, ["finished"] * 3 + ["failed"] * 2)
    assert ray.begun == 3 + 2 * 2


def test_a_process_that_dies_is_a_failure(cells, go):
    ray, grid = FakeRay(), cells()

    def crash(number: int) -> None:
        if number == 1:
            raise ray.exceptions.WorkerCrashedError("killed\nand more")

    ray.fate = crash
    assert go(grid, ray) == (0, ["finished"] * 5)
    assert grid._noted(grid.experiment.cells[0], "error") == ["its process ended: killed"]


def test_what_ray_cannot_run_is_one_line_and_the_other_cells_are_asked_to_stop(cells, go):
    ray = FakeRay()

    def broken(number: int) -> None:
        raise ray.exceptions.RayError("Traceback\n  ...\nModuleNotFoundError: No module named 'rich'")

    ray.fate = broken
    with pytest.raises(UsageError, match="could not run dense, seed 1: ModuleNotFoundError: No module named 'rich'"):
        go(cells(), ray)
    assert len(ray.cancelled) == 4


def test_a_cell_in_other_hands_is_left_to_them(cells, go):
    grid, ray = cells(), FakeRay()
    first = grid.experiment.cells[0]

    def finished_elsewhere(tasks: list[Any], **how: Any) -> Any:
        pretend(grid._command(first))
        held.__exit__(None, None, None)
        ray.wait = lambda tasks, **how: (tasks[:1], tasks[1:])
        return [], tasks

    ray.wait = finished_elsewhere
    held = grid.taken(first.key)
    assert held.__enter__()
    assert go(grid, ray)[1] == ["finished"] * 5
    assert ray.begun == 4


def test_nobody_waits_forever_for_a_node(cells, go, monkeypatch):
    ray, clock = FakeRay(), iter(range(0, 100000, 200))
    ray.wait = lambda tasks, **how: ([], tasks)
    monkeypatch.setattr(cluster.time, "monotonic", lambda: next(clock))
    grid = cells()
    runner = ClusterRunner(grid, pretend, ray=ray, console=Console(quiet=True), report=lambda last: None)
    ray.resources = []
    with pytest.raises(UsageError, match="No node with 1 CPU has joined in time"):
        runner.go()
    assert [grid.state(cell) for cell in grid.experiment.cells] == ["left"] * 5
    assert next(clock) >= cluster.PATIENCE


def test_asked_to_stop_the_runner_cancels_and_waits(cells, go):
    ray, waited = FakeRay(), []

    def interrupted(tasks: list[Any], **how: Any) -> Any:
        waited.append(how)
        if "timeout" in how:
            raise KeyboardInterrupt
        return tasks, []

    ray.wait = interrupted
    code, states = go(cells(), ray)
    assert (code, states, len(ray.cancelled)) == (130, ["left"] * 5, 5)
    assert waited[1] == {"num_returns": 5}


def test_a_demand_that_no_node_can_meet_is_refused(command, file):
    file.write_text(file.read_text() + "resources: {cpus: 8, gpus: 1}\n")
    ray = FakeRay()
    ray.init = lambda **how: None
    with mock.patch.dict(sys.modules, ray=ray), mock.patch("utils.experiments.cluster._probe"):
        line = command.refused("--experiment", file, "--ray", "auto")
    assert f"{file}, line 5: a run asks for 8 CPUs and 1 GPU; no node of the cluster has that." in line
    assert "2 CPUs, 0 GPUs" in line


def test_a_worker_uses_the_threads_it_was_given(cells):
    grid = cells()
    grid.experiment.cells = grid.experiment.cells[:1]
    with mock.patch("torch.set_num_threads") as threads:
        how, record = attempt(grid, f"{pretend.__module__}:pretend", 3)
    assert threads.call_args.args == (3,)
    assert (how, record["status"]) == ("ended", "finished")
