"""The callback that fills output/ with numbers: those of each epoch, pruning events, scores."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pruning import PrunableNetwork
from utils.files import as_csv, read_rows, write_atomic
from utils.runs import checkpoints
from utils.runs.result import Result
from utils.runs.run_folder import RunFolder
from utils.trainer import Trainer, TrainingMoment

SAMPLE, POINTS = 200_000, 400  # of the scores: how many are sorted, and how many make the curve


class Recorder:
    """Writes epochs.csv and pruning_events.json as the run goes on, scores.pt and score_curve.csv of the last event."""

    def __init__(self, folder: RunFolder, result: Result) -> None:
        self.folder = folder
        self.result = result
        self.rows: list[dict[str, float]] = []
        self.events_written = 0

    def __call__(self, trainer: Trainer, moment: TrainingMoment) -> None:
        epochs_file = self.folder.output / "epochs.csv"
        if moment == "train_start":
            # A stopped run repeats what came after its checkpoint.
            self.rows = read_rows(epochs_file, before=trainer.epoch)
            self._write_events(trainer)
        elif moment == "epoch_end":
            numbers = self.result.numbers(trainer)
            self.rows.append({"epoch": trainer.epoch, **numbers})
            write_atomic(epochs_file, as_csv(self.rows))
            self._write_events(trainer)
        elif moment == "train_end":
            self._write_events(trainer)

    def _write_events(self, trainer: Trainer) -> None:
        scores = trainer.network.last_scores
        history = self.result.pruning.history
        if len(history) > self.events_written or scores:
            self.folder.write_output("pruning_events.json", history)
            self.events_written = len(history)
        if scores:
            curve = score_curve(trainer.network, scores)
            checkpoints.save(self.folder.output / "scores.pt", scores)
            write_atomic(self.folder.output / "score_curve.csv", as_csv(curve))
            trainer.network.last_scores = {}


def score_curve(network: PrunableNetwork, scores: Mapping[str, Tensor]) -> list[dict[str, float]]:
    """Returns scores in order, those that stayed first: `share` of the units up to here, `score`, and `kept`, 0 or 1.

    Of many units, a sample evenly spread over the layers; a line of it stands for as many units as any other.

    Args:
        network: what was pruned by these scores, after the event.
        scores: "nodes" -> one score per node, or name -> scores of that parameter's shape.
    """
    flat = torch.cat([score.flatten().cpu() for score in scores.values()])
    kept = _kept(network, scores, flat)
    every = max(1, len(flat) // SAMPLE)
    flat, kept = flat[::every].double(), kept[::every]
    stayed = flat[kept].sort(descending=True).values
    went = flat[~kept].sort(descending=True).values
    line = torch.cat([stayed, went])

    # Evenly spread places, and the two on either side of the cut.
    places = set(torch.linspace(0, len(line) - 1, min(len(line), POINTS)).long().tolist())
    last_kept, first_gone = len(stayed) - 1, len(stayed)
    places |= {max(last_kept, 0), min(first_gone, len(line) - 1)}
    rows = []
    for place in sorted(places):
        share = (place + 1) / len(line)
        rows.append({"share": share, "score": float(line[place]), "kept": float(place < len(stayed))})
    return rows


def _kept(network: PrunableNetwork, scores: Mapping[str, Tensor], flat: Tensor) -> Tensor:
    """Returns which units stayed, bool (units,), in the order of the scores."""
    if "nodes" not in scores:
        weights = network.prunable()
        masks = [network.masks.of(name, weights[name]) for name in scores]
        return torch.cat([mask.flatten().cpu() for mask in masks])
    # The network holds the nodes that went no more: they are those with the lowest scores.
    kept = torch.zeros(len(flat), dtype=torch.bool)
    highest = flat.argsort(descending=True)[: len(network.graph.nodes)]
    kept[highest] = True
    return kept
