"""Runs made before: where they lie, and what a command that starts from one takes over from it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pruning.errors import UsageError, nearest
from utils.settings import registry
from utils.settings.core import Core
from utils.settings.presets import checked
from utils.settings.registry import KINDS


def find_run(name: str, results_dir: str) -> Path:
    """Returns a run's folder, given by path or by its name under the results folder; the error lists the runs."""
    by_path = Path(name).expanduser()
    by_name = Path(results_dir).expanduser() / name
    for path in (by_path, by_name):
        # An empty name would be the folder that one stands in.
        if name and (path / "settings.yaml").is_file():
            return path.resolve()
    runs = list_runs(results_dir)
    raise UsageError(f"There is no run {name!r}.{nearest(name, runs)} {known_runs(results_dir)}")


def list_runs(results_dir: str) -> list[str]:
    """Returns the names of the runs in a results folder, oldest first."""
    folder = Path(results_dir).expanduser()
    if not folder.is_dir():
        return []
    # Names begin with the date.
    return sorted(file.parent.name for file in folder.glob("*/settings.yaml"))


def known_runs(results_dir: str) -> str:
    """Returns the end of a message: which runs there are."""
    newest = list_runs(results_dir)[-10:]
    if not newest:
        return f"There are no runs in {results_dir} yet."
    return f"Runs there are: {', '.join(newest)}."


def read_settings(file: Path) -> dict[str, Any]:
    """Returns the settings that a run saved."""
    import yaml  # --help and --list do without

    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"{file} cannot be read: {error}.") from error
    if not isinstance(content, dict):
        raise UsageError(f"{file} is damaged: it holds no settings.")
    return content


def taken_over(run: Path, users: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what defines the network and the data of a run: model, data set, and what their constructors name.

    Its task and its loss too, where that is not the one of classes; what prepared the network for pruning is over.

    Args:
        run: its folder.
        users: the core settings that the user gave. Another model than the run's has flags of its own, which the
            run's are not; so has another data set.
    """
    file = run / "settings.yaml"
    saved = {name: value for name, value in read_settings(file).items() if value is not None}
    saved["pretrained"] = False  # the checkpoint makes pretrained weights needless
    for place in ("plugin_dir", "data_dir"):
        # A run of another machine names folders, or a file of data, that are not here.
        if not saved.get(place) or not Path(str(saved[place])).exists():
            saved.pop(place, None)
    taken: dict[str, Any] = {}
    if "plugin_dir" in saved and not users.get("plugin_dir"):
        taken["plugin_dir"] = saved["plugin_dir"]
        registry.use_plugin_dir(str(saved["plugin_dir"]))
    taken |= _task_and_loss(saved, users, file)
    for kind in ("models", "data_sets"):
        setting = KINDS[kind][0]
        name = saved.get(setting)
        if not isinstance(name, str) or users.get(setting, name) != name:
            continue
        flags = {flag.name: flag for flag in registry.flags(kind, name) if flag.name in saved}
        own = {flag: saved[flag] for flag in flags}
        taken[setting] = name
        taken |= checked(own, flags, lambda *_: str(file))
    return taken


def _task_and_loss(saved: Mapping[str, Any], users: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """Returns a run's task, and the loss with its own settings, unless the user gave another."""
    taken: dict[str, Any] = {}
    if "task" in saved and users.get("task", saved["task"]) == saved["task"]:
        taken["task"] = saved["task"]
    name = _loss_in(saved)
    if not name or users.get("loss", name) != name:
        return taken
    if name != Core.loss:  # the usual one gives way to what a criterion wants
        flags = {flag.name: flag for flag in registry.flags("losses", name) if flag.name in saved}
        own = {flag: saved[flag] for flag in flags}
        taken |= {"loss": name, **checked(own, flags, lambda *_: str(file))}
    return taken


def is_pretrained_folder(name: str) -> bool:
    """Says whether a path is no run, but a network's folder in transformers' form."""
    folder = Path(name).expanduser()
    return (folder / "config.json").is_file() and not (folder / "settings.yaml").is_file()


def loss_of(run: Path) -> str:
    """Returns the loss that a run's network is for, "" if it is not known."""
    return _loss_in(read_settings(run / "settings.yaml"))


def _loss_in(saved: Mapping[str, Any]) -> str:
    # What a run with a teacher minimises beside it is its own loss.
    name = str(saved.get("base_loss") or saved.get("loss") or "")
    # A loss of sparsity says which one goes on without it.
    return str(getattr(registry.find("losses", name), "followed_by", name)) if name else ""
