"""Running command lines inside the tests' own process."""

from __future__ import annotations

import json
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import main

# The smallest run there is: one batch of 64 digits through a network of five narrow layers.
QUICK = ["--hidden", "16", "--epochs", "1", "--limit_batches", "1", "--no-tensorboard"]

# An experiment of four runs and the dense one that they share.
TINY = """
    name: tiny
    base: {hidden: 16, epochs: 2, limit_batches: 1}
    compare: {prune_criterion: [SNIP, UnstructuredRandom], pruning_limit: [0.5, 0.9], seed: [1]}
"""


@dataclass
class Done:
    """What a command line left: its exit code, what it printed, and the run folders there are after it."""

    code: int
    out: str
    err: str
    runs: list[Path]

    @property
    def folder(self) -> Path:
        assert self.code == 0, self.err
        return self.runs[-1]

    @property
    def result(self) -> dict[str, Any]:
        return json.loads((self.folder / "result.json").read_text())


class Commands:
    """Runs command lines whose run folders come to one place."""

    def __init__(self, capsys: Any, results: Path) -> None:
        self.capsys, self.results = capsys, results

    def __call__(self, *argv: object) -> Done:
        """Runs `main.py --results_dir ... argv`."""
        self.capsys.readouterr()
        # Drawing the picture takes longer than the smallest run; tests in a process of their own draw it.
        with mock.patch("utils.callbacks.attach.Pictures.draw"):
            code = main.main(["--results_dir", str(self.results), *map(str, argv)])
        printed = self.capsys.readouterr()
        return Done(code, printed.out, printed.err, self.runs())

    def quick(self, *argv: object) -> Done:
        """Runs the smallest training there is, with `argv` on top."""
        return self(*QUICK, *argv)

    def refused(self, *argv: object) -> str:
        """Asserts that a command line is refused as a user's mistake must be, and returns the line that says so."""
        before = self._everything()
        done = self(*argv)
        lines = done.err.splitlines()
        errors = [line for line in lines if line.startswith("error: ")]
        assert done.code == 2, done.err
        assert len(errors) == 1, done.err
        assert "Traceback" not in done.err + done.out
        assert all(line.startswith(("error: ", "warning: ")) for line in lines), done.err
        assert self._everything() == before, "a refused command must leave the results as they were"
        return errors[0]

    def runs(self) -> list[Path]:
        # By age: two runs of one second are told apart by name only, and names sort by criterion.
        return (
            sorted(
                self.results.iterdir(),
                key=lambda path: (
                    (path / "settings.yaml").stat().st_mtime_ns if (path / "settings.yaml").exists() else 0
                ),
            )
            if self.results.is_dir()
            else []
        )

    def _everything(self) -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in self.results.rglob("*") if path.is_file()}


def write_plug_in(directory: Path, kind: str, name: str, source: str) -> Path:
    """Writes a plug-in file and returns the folder for --plugin_dir."""
    room = directory / kind
    room.mkdir(parents=True, exist_ok=True)
    (room / f"{name}.py").write_text(textwrap.dedent(source).lstrip("\n"))
    return directory
