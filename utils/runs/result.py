"""What came out of a run: result.json and the table at the end."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from pruning import PrunableNetwork
from pruning.measure.flops import parameter_bytes
from pruning.measure.measures import Better, number, words_of
from utils.runs.environment import describe, peak_memory_bytes
from utils.settings.resolve import Settings
from utils.trainer import PruningCallback, Trainer

Row = tuple[str, str]  # of the table at the end: what, and how much


class Result:
    """Collects the numbers of a run, each measured the same way for every method."""

    def __init__(
        self, settings: Settings, network: PrunableNetwork, pruning: PruningCallback, device: torch.device
    ) -> None:
        self.settings = settings
        self.network = network
        self.pruning = pruning
        self.device = device

    def numbers(self, trainer: Trainer) -> dict[str, float]:
        """Returns every number that changes while the run goes on."""
        network, totals = self.network, trainer.totals
        samples, seconds = totals["samples_seen"], totals["seconds_training"]
        # Forward once, and backward at twice the price.
        dense_flops = 3 * network.start_flops() * samples
        return {
            **_metrics(trainer),
            **_sizes(network),
            "training_flops": totals["training_flops"],
            "training_flops_dense": dense_flops,
            "sparsity_asked": self.pruning.asked,
            "sparsity_reached": network.reached(self.pruning.counted),
            "seconds_training": seconds,
            "samples_per_second": samples / seconds if seconds else 0.0,
            "peak_memory_bytes": peak_memory_bytes(self.device),
        }

    def record(self, trainer: Trainer, status: str) -> dict[str, Any]:
        """Returns the content of result.json.

        Args:
            trainer: as it is at the end.
            status: "finished", which becomes "interrupted" where a scheduled event has not taken place,
                "interrupted" or "failed".
        """
        core, steps = self.settings.core, self.pruning.steps
        if status == "finished" and not self.pruning.complete:
            status = "interrupted"
        record: dict[str, Any] = {
            "model": core.model,
            "data_set": core.data_set,
            "prune_criterion": core.prune_criterion,
            "seed": core.seed,
            "epochs": core.epochs,
            "epochs_trained": trainer.epoch,
            "status": status,
            "loss": core.loss,
            "measures": dict(trainer.measures),
            **self.numbers(trainer),
            **_measured(self.network, latency=core.measure_latency, paths=status == "finished"),
            "target": self.pruning.counted,
            "sparsity_reason": self._reason(),
            "pruning_events": len(steps),
        }
        if steps and steps[-1].layers:
            record |= {"layers": steps[-1].layers, "layers_note": steps[-1].note}
        return record | {"limit_batches": core.limit_batches} | describe(self.device)

    def _reason(self) -> str:
        """Returns why more or less is gone than was asked for, "" where that is not so or not known."""
        steps = self.pruning.steps
        if steps and steps[-1].reason:
            return steps[-1].reason
        more = self.network.reached(self.pruning.counted) > self.pruning.asked
        return "weights of dead nodes went too" if self.settings.core.shrink_dead and more else ""


def _metrics(trainer: Trainer) -> dict[str, float]:
    """Returns the loss and what it measures, of the test and the training data; NaN for what is not known yet."""
    found = {}
    for part in ("test", "train"):
        for name in (*trainer.measures, "loss"):
            found[f"{part}_{name}"] = trainer.metrics.get(f"{part}_{name}", math.nan)
    return found


def _sizes(network: PrunableNetwork) -> dict[str, float]:
    return {
        "weight_sparsity": network.weight_sparsity(),
        "weights_total": network.weights_total(),
        "weights_left": network.weights_left(),
        "node_sparsity": network.node_sparsity(),
        "nodes_total": network.nodes_total(),
        "nodes_left": network.nodes_left(),
        "parameter_bytes": parameter_bytes(network.model),
        "parameter_bytes_dense": network.start_bytes,
        "flops_per_sample_dense": network.start_flops(),
        "flops_per_sample": network.flops(masked=True),
        "flops_per_sample_nonzero": network.flops(),
    }


def _measured(network: PrunableNetwork, *, latency: bool, paths: bool = True) -> dict[str, float | None]:
    """Returns what takes a look at the whole network: once, at the end."""
    found: dict[str, float | None] = {"effective_weight_sparsity": None}
    if paths:
        found["effective_weight_sparsity"] = network.effective_sparsity()
    if latency:
        found["latency_seconds_dense"] = network.start_latency()
        found["latency_seconds"] = network.latency()
    return found


# -- the table at the end ----------------------------------------------------------------------------------------------


def result_rows(record: dict[str, Any]) -> list[Row]:
    """Returns the lines of the table at the end of a run."""
    unit = record["target"]
    now, dense = record["training_flops"], record["training_flops_dense"]
    seconds, speed = record["seconds_training"], record["samples_per_second"]
    return [
        *measure_rows(record),
        (f"sparsity asked ({unit})", _asked(record["sparsity_asked"])),
        (f"sparsity reached ({unit})", _reached(record)),
        *_size_rows(record),
        ("training FLOPs", f"{now:.3g} of {dense:.3g} dense"),
        ("training time", f"{seconds:.1f} s, {speed:,.0f} samples/s"),
        ("status", _status(record)),
    ]


def measures_in(record: Mapping[str, Any]) -> dict[str, Better | None]:
    """Returns what was measured in a run, the main measure first, and which way is good; older runs knew accuracy."""
    measures = record.get("measures")
    if isinstance(measures, dict):
        return measures
    return {"accuracy": "higher"} if "test_accuracy" in record else {}


def measure_rows(record: Mapping[str, Any]) -> list[Row]:
    """Returns the lines of the measures; the loss where there are none."""
    main, *others = [*measures_in(record)] or ["loss"]
    names = [f"test_{main}", f"train_{main}"]
    names += [f"test_{name}" for name in others]
    return [(words_of(name), _number(record[name])) for name in names if name in record]


def _size_rows(record: dict[str, Any]) -> list[Row]:
    """Returns what is left of the network, and what that costs."""
    weights = f"{record['weights_left']:,} of {record['weights_total']:,}"
    nodes = f"{record['nodes_left']:,} of {record['nodes_total']:,}"
    size = f"{record['parameter_bytes']:,} of {record['parameter_bytes_dense']:,} dense"
    now, dense = record["flops_per_sample"], record["flops_per_sample_dense"]
    nonzero = record["flops_per_sample_nonzero"]

    rows = [("weight sparsity", f"{record['weight_sparsity']:.4f} of all prunable weights")]
    effective = record.get("effective_weight_sparsity")
    if effective is not None:
        rows.append(("effective sparsity", f"{effective:.4f} with weights on no path from input to output"))
    rows.append(("nodes left", nodes))
    rows.append(("weights left", weights))
    rows.append(("parameter bytes", size))
    rows.append(("FLOPs per sample", f"{now:,.0f} of {dense:,.0f} dense; {nonzero:,.0f} without masked weights"))
    seconds = record.get("latency_seconds")
    if seconds is not None:
        rows.append(("latency, one sample", _speed_up(seconds, record["latency_seconds_dense"])))
    return rows


def _speed_up(seconds: float, before: float) -> str:
    now, dense = seconds * 1e3, before * 1e3
    return f"{now:.3g} ms of {dense:.3g} ms dense: {before / seconds:.2f} times as fast"


def _number(value: float | None) -> str:
    return "not measured" if value is None or math.isnan(value) else number(value)


def _asked(value: float | None) -> str:
    return "final sparsity is not fixed in advance" if _is_unknown(value) else f"{value:.4f}"


def _is_unknown(value: float | None) -> bool:
    """Says whether a number is NaN, or None, which stands for NaN in a result.json that was read."""
    return value is None or math.isnan(value)


def _reached(record: dict[str, Any]) -> str:
    reason = record["sparsity_reason"]
    reached = f"{record['sparsity_reached']:.4f}"
    return f"{reached} ({reason})" if reason else reached


def _status(record: dict[str, Any]) -> str:
    status = f"{record['status']} after {record['epochs_trained']} of {record['epochs']} epochs"
    limit = record["limit_batches"]
    return f"{status}; only {limit} batches an epoch" if limit else status


# -- evaluation --------------------------------------------------------------------------------------------------------


def evaluation_record(
    settings: Settings, network: PrunableNetwork, found: dict[str, Any], device: torch.device
) -> dict[str, Any]:
    """Returns the content of result.json for --eval."""
    core = settings.core
    return {
        "model": core.model,
        "data_set": core.data_set,
        "test_scheme": core.test_scheme,
        "seed": core.seed,
        "status": "finished",
        "checkpoint": core.checkpoint_name or core.weights,
        **found,
        **_sizes(network),
        **_measured(network, latency=core.measure_latency),
        "limit_batches": core.limit_batches,
        **describe(device),
    }


def evaluation_rows(tester: object, found: dict[str, Any], record: dict[str, Any]) -> list[Row]:
    """Returns the lines of the table after --eval; a tester with a method `rows` says its own."""
    rows_of = getattr(tester, "rows", _plain_rows)
    return [*rows_of(found), *_size_rows(record)]


def _plain_rows(found: dict[str, Any]) -> list[Row]:
    rows = []
    for name, value in found.items():
        text = number(value) if isinstance(value, float) else str(value)
        rows.append((name.replace("_", " "), text))
    return rows
