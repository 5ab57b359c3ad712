"""The callback that writes for TensorBoard: scalars named as in result.json, sparsity per layer, histograms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pruning import UsageError


class TensorBoard:
    """Writes each epoch's scalars; weights and the architecture at the start and at the end."""

    def __init__(self, folder: Path, result: Any) -> None:
        self.folder, self.result = folder, result
        self.writer: Any = None

    def __call__(self, trainer: Any, moment: str) -> None:
        try:
            self._write(trainer, moment)
        except OSError as error:
            raise UsageError(f"{self.folder} cannot be written: {error.strerror or error}.") from error

    def _write(self, trainer: Any, moment: str) -> None:
        if moment == "train_start":
            # Imported late: it takes longer than everything else that a short run needs.
            from torch.utils.tensorboard import SummaryWriter

            # A resumed run repeats the steps after its checkpoint; what was written of them is dropped.
            self.writer = SummaryWriter(str(self.folder), purge_step=trainer.epoch + 1 if trainer.epoch else None)
            self._architecture(trainer, "architecture/before")
            self._histograms(trainer)
        elif moment == "epoch_end":
            self._scalars(trainer)
        elif moment == "train_end":
            self._architecture(trainer, "architecture/after")
            self._histograms(trainer)
            self.close()

    def close(self) -> None:
        """Writes what is still in memory."""
        if self.writer is not None:
            self.writer.close()
            self.writer = None

    def _scalars(self, trainer: Any) -> None:
        for name, value in self.result.numbers(trainer).items():
            self.writer.add_scalar(name, value, trainer.epoch)
        for name, sparsity in trainer.network.layer_sparsities().items():
            self.writer.add_scalar(f"sparsity_per_layer/{name}", sparsity, trainer.epoch)

    def _histograms(self, trainer: Any) -> None:
        for name, weight in trainer.network.prunable().items():
            self.writer.add_histogram(f"weights/{name}", weight.detach().float().cpu(), trainer.epoch)

    def _architecture(self, trainer: Any, tag: str) -> None:
        network = trainer.network
        text = "\n".join("    " + line for line in str(network.model).splitlines())
        rows = ["| weight | shape | left of the start |", "|---|---|---|"]
        for (name, weight), sparsity in zip(
            network.prunable().items(), network.layer_sparsities().values(), strict=True
        ):
            rows.append(f"| {name} | {tuple(weight.shape)} | {1 - sparsity:.4f} |")
        self.writer.add_text(tag, text + "\n\n" + "\n".join(rows), trainer.epoch)
