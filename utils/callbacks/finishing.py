"""Callbacks that change or hand out the network when training has ended: --shrink_dead and --export."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

from pruning import PrunableNetwork, shrink_dead
from pruning.export import SUFFIXES, export
from utils.runs.run_folder import RunFolder
from utils.settings.core import model_folder, model_stem
from utils.trainer import Trainer, TrainingMoment


class DeadNodes:
    """Removes, at the end of training, the nodes that masked weights leave dead, if --shrink_dead asks for it.

    Args:
        network: what was trained, or loaded.
        report: told what went.
        shrink_dead: whether to do anything.
    """

    def __init__(self, *, network: PrunableNetwork, report: Callable[[str], None], shrink_dead: bool) -> None:
        self.network = network
        self.report = report
        self.wanted = shrink_dead

    def __call__(self, trainer: Trainer, moment: TrainingMoment) -> None:
        if moment == "train_end":
            self.shrink([trainer.optimizer])

    def shrink(self, optimizers: Iterable[torch.optim.Optimizer] = ()) -> None:
        """Shrinks the network and says what went."""
        if self.wanted:
            removed = shrink_dead(self.network, optimizers=optimizers)
            self.report(str(removed))


class Export:
    """Writes the finished network into the run's models/, if --export names a format; with hf, into its export/.

    Args:
        network: what was trained, or loaded.
        report: told what was written.
        folder: the run's folder.
        model: the model's name, which names the file (with - for /).
        export: the format, or "none".
    """

    def __init__(
        self, *, network: PrunableNetwork, report: Callable[[str], None], folder: RunFolder, model: str, export: str
    ) -> None:
        self.network = network
        self.report = report
        self.kind = export
        self.model = model
        self.folder = folder
        suffix = SUFFIXES.get(export, "")
        self.path = folder.models / f"{model_stem(model)}{suffix}"

    def __call__(self, trainer: Trainer, moment: TrainingMoment) -> None:
        if moment == "train_end":
            self.write()

    def write(self) -> None:
        """Writes the file and checks it.

        Raises:
            UsageError: if it cannot be written, or computes something else.
        """
        if self.kind == "none":
            return
        if self.kind == "hf":
            self._save_pretrained()
            return
        written = export(self.network.model, self.network.example_inputs, self.path, self.kind)
        self.report(str(written))

    def _save_pretrained(self) -> None:
        from pruning import save_pretrained  # which few need

        saved = save_pretrained(
            self.network.model,
            self.folder.path / "export",
            example_inputs=self.network.example_inputs,
            copy_from=model_folder(self.model) or None,
        )
        self.report(str(saved))
