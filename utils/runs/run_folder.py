"""The folder of one run: the command, the settings, the code, the models and what came out."""

from __future__ import annotations

import io
import json
import shlex
import shutil
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from pruning.errors import UsageError
from utils import processes
from utils.files import write_atomic
from utils.settings import resolve
from utils.settings.core import Core
from utils.settings.earlier_runs import find_run, read_settings
from utils.settings.registry import KINDS, ROOT
from utils.settings.resolve import Settings

RESUMABLE = ["resume", "results_dir", "quiet", "max_training_minutes", "device", "workers", "rank_timeout"]

CODE = ["main.py", "requirements.txt", "pyproject.toml", "pruning", "utils", *KINDS]


class RunFolder:
    """Paths and files of one run, under the results folder or wherever `path` points."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.models, self.output, self.summary = path / "models", path / "output", path / "summary"
        self.settings_file, self.result_file = path / "settings.yaml", path / "result.json"

    @classmethod
    def create(cls, chosen: Settings, argv: Sequence[str]) -> RunFolder:
        """Makes a new folder `<date>_<run_name>`; two runs of one moment never share one."""
        core = chosen.core
        results = Path(core.results_dir)
        parts = ["eval"] * core.eval + [core.prune_criterion] * (not core.eval) + [core.model, core.data_set]
        stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
        name = f"{stamp}_{core.run_name or '_'.join(parts)}"
        try:
            results.mkdir(parents=True, exist_ok=True)
            folder = cls(_make_unique(results, "".join(c if c.isalnum() or c in "._-+" else "-" for c in name)))
            for directory in (folder.models, folder.output, folder.summary):
                directory.mkdir()
            _copy_code(folder.path / "codebase", core.plugin_dir)
        except OSError as error:
            raise UsageError(f"No run folder can be made in {results}: {error.strerror or error}.") from error
        write_atomic(folder.path / "calling_command.txt", f"{processes.command()} {shlex.join(argv)}\n")
        write_atomic(folder.settings_file, yaml.safe_dump(_plain(chosen.values), sort_keys=False))
        return folder

    @classmethod
    def open(cls, name: str, results_dir: str) -> RunFolder:
        """Finds a run by path or by its name under the results folder; the error lists the runs there are."""
        return cls(find_run(name, results_dir))

    def settings(self) -> dict[str, Any]:
        """Returns the saved settings."""
        return read_settings(self.settings_file)

    def result(self) -> dict[str, Any]:
        """Returns result.json, empty where there is none yet or it is damaged."""
        try:
            found = json.loads(self.result_file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Writes result.json; numbers that are not finite become null, so that every reader can read it."""
        write_atomic(self.result_file, json.dumps(_finite(result), indent=2) + "\n")

    def write_output(self, name: str, content: Any) -> None:
        """Writes a JSON file into output/."""
        write_atomic(self.output / name, json.dumps(_finite(content), indent=1) + "\n")

    def write_picture(self, name: str, figure: Any) -> bytes:
        """Writes a matplotlib figure into output/, as PNG, and returns what the file holds."""
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=120, bbox_inches="tight")
        write_atomic(self.output / name, buffer.getvalue())
        return buffer.getvalue()


def resumed(argv: Sequence[str]) -> tuple[RunFolder, Settings] | None:
    """Returns a stopped run's folder and settings if --resume was typed.

    Only what cannot change the run's outcome may be typed beside it.
    """
    typed, others = resolve.typed(argv)
    if "resume" not in typed or {"-h", "--help"} & set(others):
        return None
    wrong = [f"--{name}" for name in typed if name not in RESUMABLE] + others
    if wrong:
        allowed = ", ".join(f"--{flag}" for flag in RESUMABLE[1:])
        raise UsageError(f"--resume takes all settings from the run; {wrong[0]} cannot be given ({allowed} can).")
    folder = RunFolder.open(typed["resume"], typed.get("results_dir", Core().results_dir))
    chosen = resolve.load(folder.settings(), typed, folder.settings_file)
    if chosen.core.eval:
        raise UsageError(f"--resume {typed['resume']}: this was an evaluation; only training can be taken up again.")
    return folder, chosen


def _make_unique(results: Path, name: str) -> Path:
    for number in range(1, 1000):
        path = results / (name if number == 1 else f"{name}_{number}")
        try:
            path.mkdir()
            return path
        except FileExistsError:
            if not path.is_dir():
                raise
    raise UsageError(f"{results} holds a thousand runs of this second already.")


def _copy_code(target: Path, plugin_dir: str) -> None:
    ignore = shutil.ignore_patterns("__pycache__", "*.pyc")
    target.mkdir()
    for name in CODE:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=ignore)
        elif source.is_file():
            shutil.copy2(source, target / name)
    for kind in KINDS:
        room = Path(plugin_dir).expanduser() / kind
        if plugin_dir and room.is_dir():
            shutil.copytree(room, target / "plugin_dir" / kind, ignore=ignore)


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _plain_value(value) for name, value in values.items()}


def _plain_value(value: Any) -> Any:
    """A value as YAML's safe reader takes it."""
    if isinstance(value, (list, tuple)):
        return [_plain_value(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value
