"""The callback that saves, and how a stopped run is taken up again."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from torch import nn

from pruning import PrunableNetwork, UsageError
from pruning.errors import nearest
from pruning.modules.calls import device_of
from utils.runs import checkpoints
from utils.runs.run_folder import RunFolder
from utils.settings import registry
from utils.settings.core import Core, model_stem
from utils.settings.earlier_runs import is_pretrained_folder, known_runs, taken_over
from utils.settings.resolve import Settings
from utils.trainer import PruningCallback, Trainer, TrainingMoment

# What a checkpoint of a run holds at least; one of a network alone holds the first two.
PARTS = {"state_dict", "masks", "trainer", "pruning", "random"}


class Saving:
    """Writes a checkpoint before training, every `save_freq` epochs, and the finished model at the end.

    Args:
        folder: the run's folder.
        network: what is trained.
        pruning: the pruning callback, whose events belong to the state.
        model: the model's name, which names the files (with - for /).
        save_freq: epochs between checkpoints.
        keep_epochs: numbers of epochs after which the network is also kept as models/<Model>_epoch_<number>; 0 keeps
            that of the start.
    """

    def __init__(
        self,
        *,
        folder: RunFolder,
        network: PrunableNetwork,
        pruning: PruningCallback,
        model: str,
        save_freq: Annotated[int, {"at_least": 1}] = 1,
        keep_epochs: tuple[int, ...] = (),
    ) -> None:
        self.folder = folder
        self.stem = model_stem(model)
        self.checkpoint = checkpoint_of(folder, model)
        self.finished = folder.models / f"{self.stem}_finished"
        self.network = network
        self.pruning = pruning
        self.save_freq = save_freq
        self.keep_epochs = keep_epochs

    def __call__(self, trainer: Trainer, moment: TrainingMoment) -> None:
        between_epochs = moment in ("train_start", "epoch_end") and trainer.batch == 0
        if between_epochs and trainer.epoch in self.keep_epochs:
            state = checkpoints.network_state(self.network) | {"epoch": trainer.epoch}
            checkpoints.save(self.folder.models / f"{self.stem}_epoch_{trainer.epoch}", state)
        is_due = moment == "epoch_end" and trainer.epoch % self.save_freq == 0
        if is_due or moment in ("train_start", "train_end"):
            self.save(trainer)
        if moment == "train_end":
            checkpoints.save(self.finished, checkpoints.network_state(self.network))

    def save(self, trainer: Trainer) -> None:
        """Writes everything that the run needs to go on exactly from here.

        Raises:
            UsageError: if it cannot be written or is not finite; the last good checkpoint stays.
        """
        trainer.check_finite()
        state = {
            **checkpoints.network_state(self.network),
            "trainer": trainer.state_dict(),
            "pruning": self.pruning.state_dict(),
            "random": checkpoints.random_state(),
        }
        checkpoints.save(self.checkpoint, state)

    def restore(self, trainer: Trainer) -> bool:
        """Goes back to the checkpoint, if there is one; says whether there was."""
        if not self.checkpoint.exists():
            return False
        state = checkpoints.read(self.checkpoint, written_here=True)
        if not isinstance(state, dict) or not set(state) >= PARTS:
            raise UsageError(f"{self.checkpoint} is no checkpoint of a run.")
        checkpoints.load_network(self.network, state, self.checkpoint)
        try:
            trainer.load_state_dict(state["trainer"])
            self.pruning.load_state_dict(state["pruning"])
            checkpoints.set_random_state(state["random"])
        except (KeyError, IndexError, AttributeError, TypeError, ValueError, RuntimeError) as error:
            raise UsageError(f"{self.checkpoint} does not fit this run: {type(error).__name__} {error}.") from error
        return True


def checkpoint_of(folder: RunFolder, model: str) -> Path:
    """Returns the file that a run of this model goes on from."""
    return folder.models / f"{model_stem(model)}_checkpoint"


def load_start(network: PrunableNetwork, core: Core) -> None:
    """Loads what training or evaluation starts from: --checkpoint_name, or --weights, or nothing."""
    if core.checkpoint_name and core.weights:
        raise UsageError("--checkpoint_name and --weights both say what to start from; give one.")
    if core.checkpoint_name:
        path = checkpoint_path(core)
    elif core.weights:
        path = Path(core.weights).expanduser()
    elif core.eval:
        raise UsageError(f"--eval needs --checkpoint_name RUN (or --weights FILE). {known_runs(core.results_dir)}")
    else:
        return
    try:
        checkpoints.load_network(network, checkpoints.read(path), path)
    except UsageError as error:
        raise UsageError(f"{error}{_made_with(core)}") from error


def early_network(path: str, model: nn.Module, like: PrunableNetwork) -> tuple[nn.Module, int]:
    """Returns a fresh dense model with the weights that --keep_epochs kept in a file, and after how many epochs."""
    content = checkpoints.read(Path(path).expanduser())
    early = PrunableNetwork(model, like.example_inputs)
    checkpoints.load_network(early, content, Path(path))
    return model, int(content.get("epoch", 0))


def other_run(name: str, chosen: Settings, like: PrunableNetwork, shapes: Mapping[str, Any]) -> PrunableNetwork:
    """Returns the finished network of another run, which may be of another model.

    Args:
        name: the run.
        chosen: settings of this run, whose data set the other network is for.
        like: this run's network; the other one goes where it is.
        shapes: what models are built for: num_classes, input_shape and task.
    """
    core = replace(chosen.core, checkpoint_name=name, checkpoint_model="", weights="")
    folder = RunFolder.open(name, core.results_dir)
    # The network is the other run's, the data are this one's.
    own = {"plugin_dir": core.plugin_dir, "data_set": core.data_set}
    values = chosen.values | taken_over(folder.path, own)
    model = registry.build("models", values["model"], values, shapes)
    network = PrunableNetwork(model.to(device_of(like.model)), like.example_inputs)
    load_start(network, core)
    return network


def teacher(name: str, chosen: Settings, like: PrunableNetwork, shapes: Mapping[str, Any]) -> nn.Module:
    """Returns the finished network of another run of the same task, or that of a folder, for a network to learn from.

    Args:
        name: the run, or a folder in transformers' form.
        chosen, like, shapes: as for `other_run`.
    """
    if is_pretrained_folder(name):
        model: nn.Module = registry.build("models", f"hf/{name}", {"pretrained": True}, shapes)
        return model.to(device_of(like.model))
    folder = RunFolder.open(name, chosen.core.results_dir)
    data_set = str(folder.settings().get("data_set"))
    task: Any = shapes["task"]
    with contextlib.suppress(UsageError):  # of data that are not here any more, nothing is known
        task = getattr(registry.find("data_sets", data_set), "task", "classification")
    # A data set may know its task only once it has read its files; the shapes will tell then.
    if isinstance(task, str) and task != shapes["task"]:
        what = f"was trained for {task} (--data_set {data_set}); this run is for {shapes['task']}"
        raise UsageError(f"--teacher {folder.path.name} {what}.")
    return other_run(name, chosen, like, shapes).model


def _made_with(core: Core) -> str:
    """Returns a hint where the run that a checkpoint is of had another model."""
    if not core.checkpoint_name:
        return ""
    saved = RunFolder.open(core.checkpoint_name, core.results_dir).settings()
    model = saved.get("model", core.model)
    return "" if model == core.model else f" That run was made with --model {model}."


def checkpoint_path(core: Core) -> Path:
    """Returns the file that --checkpoint_name and --checkpoint_model name; the finished model by default."""
    folder = RunFolder.open(core.checkpoint_name, core.results_dir)
    there = sorted(path.name for path in folder.models.iterdir() if not path.name.startswith("."))
    finished = [name for name in there if name.endswith("_finished")]
    wanted = core.checkpoint_model or next(iter(finished), "")
    if wanted not in there:
        known = f"It holds {', '.join(there)}." if there else "It holds none."
        asked = wanted or "..._finished"
        raise UsageError(f"{folder.models} has no model {asked!r}.{nearest(wanted, there)} {known}")
    return folder.models / wanted
