"""The callback that fills output/: numbers per epoch, pruning events, scores, and one picture of the run."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from utils import checkpoints
from utils.files import write_atomic
from utils.result import Result
from utils.run_folder import RunFolder


class Recorder:
    """Writes epochs.csv and pruning_events.json as the run goes on, scores.pt of the last event, and overview.png."""

    def __init__(self, folder: RunFolder, result: Result) -> None:
        self.folder, self.result = folder, result
        self.rows: list[dict[str, float]] = []

    def __call__(self, trainer: Any, moment: str) -> None:
        if moment == "train_start":
            self.rows = _read_rows(self.folder.output / "epochs.csv", before=trainer.epoch)
            self._write_events(trainer)
        elif moment == "epoch_end":
            self.rows.append({"epoch": trainer.epoch, **self.result.numbers(trainer)})
            write_atomic(self.folder.output / "epochs.csv", _as_csv(self.rows))
            self._write_events(trainer)
        elif moment == "train_end":
            self._write_events(trainer)
            draw_overview(self.folder.output / "overview.png", self.rows, trainer.network.layer_sparsities())

    def _write_events(self, trainer: Any) -> None:
        scores = trainer.network.last_scores
        if scores:
            self.folder.write_output("pruning_events.json", self.result.pruning.history)
            checkpoints.save(self.folder.output / "scores.pt", scores)
            trainer.network.last_scores = {}


def draw_overview(path: Path, rows: list[dict[str, float]], sparsities: dict[str, float]) -> None:
    """Draws accuracy and sparsity over the epochs, and the sparsity of each layer."""
    # Imported late, and without a window: it takes longer than everything else that a short run needs.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in rows]
    for name, style in (("test_accuracy", "-"), ("train_accuracy", "--"), ("weight_sparsity", ":")):
        left.plot(epochs, [row[name] for row in rows], style, label=name.replace("_", " "))
    left.set(xlabel="epoch", ylabel="fraction", ylim=(0, 1.02))
    left.legend(loc="lower right")
    places = range(len(sparsities))
    right.barh(places, list(sparsities.values()))
    right.set(xlabel="fraction of weights removed", xlim=(0, 1))
    right.set_yticks(places, labels=list(sparsities), fontsize=6 if len(sparsities) > 20 else 8)
    right.invert_yaxis()
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    write_atomic(path, buffer.getvalue())


def _as_csv(rows: list[dict[str, float]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _read_rows(path: Path, before: int) -> list[dict[str, float]]:
    """Returns the rows that a stopped run wrote up to its checkpoint; those after it come again."""
    if not path.exists():
        return []
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
        return [row for row in rows if row["epoch"] <= before]
    except (OSError, ValueError, TypeError, KeyError, csv.Error):
        return []  # a damaged log is begun anew; the run itself does not hang on it
