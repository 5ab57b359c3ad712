"""The callback that fills output/ with numbers: those of each epoch, pruning events, scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pruning import PrunableNetwork
from utils.files import as_csv, read_rows, write_atomic
from utils.runs import checkpoints
from utils.runs.result import Result
from utils.runs.run_folder import RunFolder

SAMPLE, POINTS = 200_000, 400  # of the scores: how many are sorted, and how many make the curve


class Recorder:
    """Writes epochs.csv and pruning_events.json as the run goes on, scores.pt and score_curve.csv of the last event."""

    def __init__(self, folder: RunFolder, result: Result) -> None:
        self.folder, self.result = folder, result
        self.rows: list[dict[str, float]] = []
        self.events = 0  # that are written

    def __call__(self, trainer: Any, moment: str) -> None:
        if moment == "train_start":
            self.rows = read_rows(self.folder.output / "epochs.csv", before=trainer.epoch)
            self._write_events(trainer)
        elif moment == "epoch_end":
            self.rows.append({"epoch": trainer.epoch, **self.result.numbers(trainer)})
            write_atomic(self.folder.output / "epochs.csv", as_csv(self.rows))
            self._write_events(trainer)
        elif moment == "train_end":
            self._write_events(trainer)

    def _write_events(self, trainer: Any) -> None:
        scores, history = trainer.network.last_scores, self.result.pruning.history
        if len(history) > self.events or scores:
            self.folder.write_output("pruning_events.json", history)
            self.events = len(history)
        if scores:
            checkpoints.save(self.folder.output / "scores.pt", scores)
            write_atomic(self.folder.output / "score_curve.csv", as_csv(score_curve(trainer.network, scores)))
            trainer.network.last_scores = {}


def score_curve(network: PrunableNetwork, scores: Mapping[str, Tensor]) -> list[dict[str, float]]:
    """Returns scores in order, those that stayed first: `share` of the units up to here, `score`, and `kept`, 0 or 1.

    Of many units, a sample evenly spread over the layers; a line of it stands for as many units as any other.
    """
    flat = torch.cat([score.flatten().cpu() for score in scores.values()])
    if "nodes" in scores:  # the network holds them no more: the lowest went
        kept = torch.zeros(len(flat), dtype=torch.bool)
        kept[flat.argsort(descending=True)[: len(network.graph.nodes)]] = True
    else:
        weights = network.prunable()
        kept = torch.cat([network.masks.of(name, weights[name]).flatten().cpu() for name in scores])
    chosen = slice(None, None, max(1, len(flat) // SAMPLE))
    flat, kept = flat[chosen].double(), kept[chosen]
    ends = [flat[part].sort(descending=True).values for part in (kept, ~kept)]
    line = torch.cat(ends)
    places = torch.linspace(0, len(line) - 1, min(len(line), POINTS)).long().unique().tolist()
    places = sorted({*places, max(len(ends[0]) - 1, 0), min(len(ends[0]), len(line) - 1)})
    return [{"share": (i + 1) / len(line), "score": float(line[i]), "kept": float(i < len(ends[0]))} for i in places]
