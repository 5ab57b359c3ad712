"""Runs an experiment's cells on a Ray cluster: the runner here decides, Ray finds a place for each cell."""

from __future__ import annotations

import importlib
import os
import pickle
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch

from pruning.errors import UsageError
from utils.experiments.cell import Cell
from utils.experiments.cells import Cells, Run, Stopped
from utils.experiments.demand import Demand
from utils.experiments.runner import Runner, duration
from utils.settings.registry import ROOT

PAUSE = 1.0  # seconds between two looks at the cluster

PATIENCE = 600.0  # seconds to wait for a node that could take a cell, where there was one before

LOSSES = 5  # nodes that a cell may lose before that counts as a failure of its own

ANSWER = 30.0  # seconds in which a cluster must have let a driver in

# Ray tries for minutes and then ends the process that asked, so another one asks first.
PROBE = """
import sys, ray
try:
    ray.init(address=sys.argv[1], log_to_driver=False, logging_level="critical")
except Exception as error:
    sys.exit(" ".join(str(error).split()) or type(error).__name__)
"""


def connect(address: str, demand: Demand) -> Any:
    """Returns the module `ray`, connected to a cluster.

    Args:
        address: "auto" for the cluster that this machine belongs to, HOST:PORT, or ray://HOST:PORT.
        demand: what one cell takes of a node.

    Raises:
        UsageError: if Ray is not installed, the cluster does not answer, or no node of it is large enough.
    """
    if address != "auto":
        _knock(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        ray = importlib.import_module("ray")
    except ImportError as error:
        raise UsageError('--ray needs Ray, which is not installed: pip install -e ".[ray]".') from error
    if not address.startswith("ray://"):  # whose clients give up in time by themselves
        _probe(address)
    try:
        ray.init(address=address, log_to_driver=False, logging_level="critical")
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise UsageError(f"--ray {address}: {' '.join(str(error).split())}") from error
    if not rooms(ray, demand):
        kinds = {_described(node) for node in nodes(ray)}
        there = ", ".join(sorted(kinds)) or "nothing"
        ray.shutdown()
        told = f"a run asks for {demand}; no node of the cluster has that. Its nodes have {there}."
        raise UsageError(f"{demand.where}: {told}")
    return ray


def _described(node: Mapping[str, float]) -> str:
    cpus, gpus = node.get("CPU", 0), node.get("GPU", 0)
    return f"{cpus:g} CPUs, {gpus:g} GPUs"


def _knock(address: str) -> None:
    """Raises UsageError at once where nobody listens."""
    how = "--ray takes auto, HOST:PORT or ray://HOST:PORT"
    try:
        parts = urlsplit(address if "://" in address else f"gcs://{address}")
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise UsageError(f"{how}; {address!r} was given ({error}).") from error
    if parts.scheme not in ("gcs", "ray") or not host or not port:
        raise UsageError(f"{how}; {address!r} was given. On this machine alone, --workers N needs no cluster.")
    try:
        socket.create_connection((host, port), timeout=5).close()
    except OSError as error:
        raise UsageError(f"--ray {address}: nobody answers there ({error.strerror or error}).") from error


def _probe(address: str) -> None:
    argv = [sys.executable, "-c", PROBE, address]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=ANSWER)
    except subprocess.TimeoutExpired as error:
        raise UsageError(f"--ray {address}: no Ray cluster answers within {ANSWER:g} seconds.") from error
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise UsageError(f"--ray {address}: no Ray cluster can be had. {said[-1].split('. ')[0]}.")


def nodes(ray: Any) -> list[Mapping[str, float]]:
    """Returns what each node that is alive has."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def rooms(ray: Any, demand: Demand) -> int:
    """Returns how many cells the cluster has room for when nothing else runs on it."""
    return sum(demand.fits(node) for node in nodes(ray))


class ClusterRunner(Runner):
    """Hands Ray every cell that can start, and again those whose node was lost.

    Cells that wait for another one's network are not handed over before that is finished: they hold nothing.

    Args:
        ray: the module, connected.
    """

    def __init__(self, cells: Cells, run: Run, *, ray: Any, **told: Any) -> None:
        super().__init__(cells, run, **told)
        self.ray = ray
        self.demand = cells.experiment.demand
        self.task = ray.remote(_carried())
        at_once = min(rooms(ray, self.demand), len(self.by_key))
        self.slots = max(1, at_once)
        self.open = list(cells.experiment.cells)
        self.tasks: dict[Any, Cell] = {}
        self.lost: Counter[str] = Counter()
        self.no_room_since: float | None = None
        gpus = sum(node.get("GPU", 0) for node in nodes(ray))
        if gpus and not self.demand.gpus:
            self.console.warn(f"the cluster has {gpus:g} GPUs; `resources: {{gpus: 1}}` in the file lets runs use them")

    def go(self) -> int:
        """Runs to the end; what Ray itself says of nodes and processes is kept in a file."""
        console = self.console
        console.out.file, console.err.file = sys.stdout, sys.stderr
        with open(self.cells.notes / "ray.log", "a") as log, redirect_stdout(log), redirect_stderr(log):
            return super().go()

    def _work(self) -> None:
        while self._hand_over():
            if not self.tasks:  # all that is left is in other hands
                time.sleep(PAUSE)
                continue
            done, _ = self.ray.wait(list(self.tasks), timeout=PAUSE)
            for task in done:
                self._ended(self.tasks.pop(task), task)
            if not done:
                self._refuse_to_wait_forever()

    def _hand_over(self) -> bool:
        """Starts what can be started; returns whether any cell is not at its end yet."""
        at_work = set(self.tasks.values())
        waiting: set[Cell | None] = set()
        for cell in self.open:  # in which a cell comes after those that it starts from
            if cell in at_work or {cell.start, cell.rewind} & waiting:
                waiting.add(cell)
            elif self.cells.record(cell) is None and not self.cells.error(cell):
                waiting.add(cell)
                if not self.cells.is_taken(cell):
                    self.tasks[self._start(cell)] = cell
        self.open = [cell for cell in self.open if cell in waiting]
        return bool(self.open)

    def _start(self, cell: Cell) -> Any:
        alone = Cells(replace(self.cells.experiment, cells=[cell]), self.cells.folder)
        threads = max(1, int(self.demand.cpus))
        work = partial(attempt, alone, _name_of(self.run), threads)
        environment = {name: os.environ[name] for name in ("OMP_WAIT_POLICY",) if name in os.environ}
        folders = [str(ROOT), os.getcwd(), str(self.cells.notes)]
        # Ray's own retries would not know what counts as a failure.
        shares = {"num_cpus": self.demand.cpus, "num_gpus": self.demand.gpus, "max_retries": 0}
        task = self.task.options(name=cell.run_name, **shares)
        return task.remote(folders, environment, pickle.dumps(work))

    def _ended(self, cell: Cell, task: Any) -> None:
        errors = self.ray.exceptions
        record = None
        try:
            how, record = self.ray.get(task)
        except (errors.NodeDiedError, errors.LocalRayletDiedError):
            how = "lost"
        except errors.TaskCancelledError:
            how = "stopped"
        except (errors.WorkerCrashedError, errors.OutOfMemoryError) as error:
            how = "ended"
            self.cells.note(cell, error=f"its process ended: {str(error).splitlines()[0]}")
        except errors.RayError as error:
            said = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            raise UsageError(f"Ray could not run {cell.title}: {said}") from error
        if how == "misplaced":
            raise UsageError(f"{record}; every node must see code, working directory and results under the same paths.")
        if record:
            self.cells.know(cell, record)
        if how == "ended":
            self._told(cell)
        elif how == "lost":
            self._lost(cell)
        else:  # another runner has it, or somebody stopped it; it is handed over again
            time.sleep(PAUSE)

    def _lost(self, cell: Cell) -> None:
        self.lost[cell.key] += 1
        if self.lost[cell.key] > LOSSES:
            self.cells.note(cell, error=f"its node was lost {self.lost[cell.key]} times")
            self._told(cell)
        else:
            self.console.info(f"{cell.title}: its node was lost; it goes on at another one")

    def _refuse_to_wait_forever(self) -> None:
        """Warns when no node is left that could take a cell, and gives up when none comes in time."""
        now = time.monotonic()
        if not self.tasks or rooms(self.ray, self.demand):
            self.no_room_since = None
        elif self.no_room_since is None:
            self.no_room_since = now
            self.console.warn(f"no node with {self.demand} is left; waiting {duration(PATIENCE)} for one")
        elif now - self.no_room_since > PATIENCE:
            raise UsageError(f"No node with {self.demand} has joined in time; the same command goes on.")

    def _end(self) -> None:
        try:
            for task in self.tasks:
                self.ray.cancel(task)  # Ctrl-C for a run, which saves its state
            if self.tasks:
                self.ray.wait(list(self.tasks), num_returns=len(self.tasks))
        except KeyboardInterrupt:  # asked to stop twice
            for task in self.tasks:
                self.ray.cancel(task, force=True)
        self.ray.shutdown()


def _name_of(run: Run) -> str:
    """Where another process finds a function; the program's own file has its name there."""
    module = run.__module__
    if module == "__main__":
        module = Path(str(sys.modules[module].__file__)).stem
    return f"{module}:{run.__qualname__}"


def _carried() -> Callable[[list[str], dict[str, str], bytes], tuple[str, Any]]:
    """Returns what Ray carries to a node: as code, for whether our files are there must be seen first."""

    def at_node(folders: list[str], environment: dict[str, str], work: bytes) -> tuple[str, Any]:
        import ray

        missing = next((folder for folder in folders if not os.path.isdir(folder)), None)
        if missing:
            return "misplaced", f"Node {socket.gethostname()} has no folder {missing}"
        root, here, _ = folders
        if root not in sys.path:
            sys.path.insert(0, root)
        os.chdir(here)
        os.environ.update(environment)
        if not ray.get_gpu_ids():  # Ray shows all GPUs to those who asked for none
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        return pickle.loads(work)()

    return at_node


def attempt(cells: Cells, run: str, threads: int) -> tuple[str, dict[str, Any] | None]:
    """Runs one cell in a worker process of Ray.

    Args:
        cells: the only cell.
        run: what runs a command line, as "module:function".
        threads: of the processor that are its own.

    Returns:
        "ended", "stopped" or "taken" (it is in other hands, or cannot start yet), and the result if there is one.
    """
    torch.set_num_threads(threads)
    module, _, name = run.partition(":")
    run_command = getattr(importlib.import_module(module), name)
    (cell,) = cells.experiment.cells
    try:
        possible = cells.attempt(cell, run_command, lambda what, cell: None)
    except Stopped:
        return "stopped", None
    return "ended" if possible else "taken", cells.record(cell)
