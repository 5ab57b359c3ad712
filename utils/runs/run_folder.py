"""The folder of one run: the command, the settings, the code, the models and what came out."""

from __future__ import annotations

import io
import json
import math
import shlex
import shutil
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from pruning.errors import UsageError
from utils import processes
from utils.files import write_atomic
from utils.settings import resolve
from utils.settings.command_line import CommandLine
from utils.settings.core import Core, model_stem
from utils.settings.earlier_runs import find_run, read_settings
from utils.settings.registry import KINDS, ROOT
from utils.settings.resolve import Settings

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# What may be typed beside --resume: it cannot change what comes out.
RESUMABLE = ["resume", "results_dir", "quiet", "max_training_minutes", "device", "workers", "rank_timeout"]

# What is copied into codebase/.
CODE = ["main.py", "requirements.txt", "pyproject.toml", "pruning", "utils", *KINDS]

# Settings that came later: of a run that was made before them, this is what it did.
ADDED_LATER = {"pictures": True, "task": None}


class RunFolder:
    """Paths and files of one run, under the results folder or wherever `path` points."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.models = path / "models"
        self.output = path / "output"
        self.summary = path / "summary"
        self.settings_file = path / "settings.yaml"
        self.result_file = path / "result.json"

    @classmethod
    def create(cls, chosen: Settings, argv: Sequence[str]) -> RunFolder:
        """Makes a new folder `<date>_<run_name>`; two runs of one moment never share one."""
        core = chosen.core
        results = Path(core.results_dir)
        name = _folder_name(core)
        try:
            results.mkdir(parents=True, exist_ok=True)
            folder = cls(_make_unique(results, name))
            for directory in (folder.models, folder.output, folder.summary):
                directory.mkdir()
            _copy_code(folder.path / "codebase", core.plugin_dir)
        except OSError as error:
            raise UsageError(f"No run folder can be made in {results}: {error.strerror or error}.") from error
        command = f"{processes.command()} {shlex.join(argv)}\n"
        settings = {name: _plain_value(value) for name, value in chosen.values.items()}
        write_atomic(folder.path / "calling_command.txt", command)
        write_atomic(folder.settings_file, yaml.safe_dump(settings, sort_keys=False))
        return folder

    @classmethod
    def open(cls, name: str, results_dir: str) -> RunFolder:
        """Finds a run by path or by its name under the results folder; the error lists the runs there are."""
        return cls(find_run(name, results_dir))

    def settings(self) -> dict[str, Any]:
        """Returns the saved settings."""
        return ADDED_LATER | read_settings(self.settings_file)

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

    def write_picture(self, name: str, figure: Figure) -> bytes:
        """Writes a matplotlib figure into output/, as PNG, and returns what the file holds."""
        buffer = io.BytesIO()
        # As it is: a tight bounding box would draw everything twice, and packing it harder takes as long again.
        figure.savefig(buffer, format="png", pil_kwargs={"compress_level": 1})
        png = buffer.getvalue()
        write_atomic(self.output / name, png)
        return png


def resumed(typed: CommandLine) -> tuple[RunFolder, Settings] | None:
    """Returns a stopped run's folder and settings if --resume was typed.

    Only what cannot change the run's outcome may be typed beside it.
    """
    if "resume" not in typed.names or typed.wants_help:
        return None
    given, others = resolve.read_fixed(typed)
    if "resume" not in given:
        return None
    wrong = [f"--{name}" for name in given if name not in RESUMABLE] + others
    if wrong:
        beside = RESUMABLE[1:]
        allowed = ", ".join(f"--{flag}" for flag in beside)
        raise UsageError(f"--resume takes all settings from the run; {wrong[0]} cannot be given ({allowed} can).")
    folder = RunFolder.open(given["resume"], given.get("results_dir", Core().results_dir))
    chosen = resolve.load(folder.settings(), given, folder.settings_file)
    if chosen.core.eval:
        raise UsageError(f"--resume {given['resume']}: this was an evaluation; only training can be taken up again.")
    return folder, chosen


def _folder_name(core: Core) -> str:
    """Returns `<date>_<run_name>`, in letters that every file system takes."""
    stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    what = "eval" if core.eval else core.prune_criterion
    name = core.run_name or f"{what}_{model_stem(core.model)}_{core.data_set}"
    return "".join(letter if letter.isalnum() or letter in "._-+" else "-" for letter in f"{stamp}_{name}")


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
    if not plugin_dir:
        return
    for kind in KINDS:
        room = Path(plugin_dir).expanduser() / kind
        if room.is_dir():
            shutil.copytree(room, target / "plugin_dir" / kind, ignore=ignore)


def _plain_value(value: Any) -> Any:
    """Returns a value as YAML's safe reader takes it."""
    if isinstance(value, (list, tuple)):
        return [_plain_value(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _finite(value: Any) -> Any:
    """Returns plain values with null for numbers that are not finite, which JSON has no word for."""
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
