"""What the runner of experiments costs per run, and what a second worker brings; all in one session, on this machine.

python benchmarks/sweep.py [--runs 6] [--epochs 20]

alone     the same command lines, each in a process of its own
warm      the same in one process, without the runner: what a run itself takes
1 worker  the runner, its report after every run included
2 workers the same with two processes on half the cores each; compared with one worker on as many threads
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
os.environ["OMP_NUM_THREADS"] = "1"  # two workers then differ from one in their number alone

import main as program  # noqa: E402 - the path and the threads have to be set first
from utils.experiments import experiment  # noqa: E402
from utils.experiments.cells import Cells, run_silently  # noqa: E402

TARGET = 30.0  # seconds of a run of which the overhead is to be a small share


def timed(work: Callable[[], object]) -> float:
    """Returns how many seconds it takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def write_plan(folder: Path, runs: int, epochs: int) -> Path:
    """Writes an experiment of so many runs and returns the file."""
    file = folder / "sweep.yaml"
    seeds = ", ".join(str(seed) for seed in range(runs))
    compare = f"compare: {{prune_criterion: [SNIP], pruning_limit: [0.9], seed: [{seeds}]}}"
    file.write_text(f"base: {{epochs: {epochs}}}\ndense: none\n{compare}\n")
    return file


def with_runner(file: Path, folder: Path, workers: int) -> float:
    """Returns the seconds of the runner from its first run to its last, without the start of the processes."""
    argv = [sys.executable, "main.py", "--experiment", str(file), "--results_dir", str(folder)]
    subprocess.run([*argv, "--workers", str(workers)], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    cells = folder / "sweep" / "cells"
    began = min(path.stat().st_mtime for path in cells.glob("*/calling_command.txt"))
    ended = max(path.stat().st_mtime for path in (cells / ".notes").glob("*.log"))
    return ended - began


def main() -> int:
    """Measures and prints one table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=6)
    parser.add_argument("--epochs", type=int, default=20)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, runs = Path(name), chosen.runs
        file = write_plan(folder, runs, chosen.epochs)
        plan = experiment.read(str(file))
        lines = [Cells(plan, folder / "warm")._command(cell) for cell in plan.cells]
        run_silently(program.main, lines[0])  # so that everything is imported
        apart = [[sys.executable, "main.py", *line] for line in lines]
        alone = timed(lambda: [subprocess.run(argv, cwd=ROOT, stdout=subprocess.DEVNULL) for argv in apart])
        warm = timed(lambda: [run_silently(program.main, line) for line in lines])
        one, two = (with_runner(file, folder / str(workers), workers) for workers in (1, 2))
    print(f"{runs} runs of {chosen.epochs} epochs, seconds a run")
    for what, seconds in (("alone", alone), ("warm", warm), ("1 worker", one), ("2 workers", two)):
        print(f"{what:<10} {seconds / runs:6.2f}   {seconds / warm:5.2f} of warm")
    overhead = (one - warm) / runs
    print(f"overhead of the runner: {overhead:.2f} s a run, {overhead / TARGET:.1%} of {TARGET:g} s")
    print(f"two workers are {one / two:.2f} times as fast as one")
    return 0


if __name__ == "__main__":
    sys.exit(main())
