"""What came out of a run: result.json and the table at the end."""

from __future__ import annotations

from typing import Any

import torch

from pruning import PrunableNetwork
from pruning.measure.flops import parameter_bytes
from utils.runs.environment import describe, peak_memory_bytes
from utils.settings.resolve import Settings


class Result:
    """Collects the numbers of a run, each measured the same way for every method."""

    def __init__(self, settings: Settings, network: PrunableNetwork, pruning: Any, device: torch.device) -> None:
        self.settings, self.network, self.pruning, self.device = settings, network, pruning, device

    def numbers(self, trainer: Any) -> dict[str, float]:
        """Returns every number that changes while the run goes on."""
        network, totals = self.network, trainer.totals
        seconds = totals["seconds_training"]
        return {
            **{name: trainer.metrics.get(name, float("nan")) for name in METRICS},
            **_sizes(network),
            "training_flops": totals["training_flops"],
            "training_flops_dense": 3 * network.start_flops() * totals["samples_seen"],
            "sparsity_asked": self.pruning.asked,
            "sparsity_reached": network.reached(self.pruning.counted),
            "seconds_training": seconds,
            "samples_per_second": totals["samples_seen"] / seconds if seconds else 0.0,
            "peak_memory_bytes": peak_memory_bytes(self.device),
        }

    def record(self, trainer: Any, status: str) -> dict[str, Any]:
        """Returns the content of result.json."""
        core = self.settings.core
        if status == "finished" and not self.pruning.complete:
            status = "interrupted"
        steps = self.pruning.steps
        return {
            "model": core.model,
            "data_set": core.data_set,
            "prune_criterion": core.prune_criterion,
            "seed": core.seed,
            "epochs": core.epochs,
            "epochs_trained": trainer.epoch,
            "status": status,
            **self.numbers(trainer),
            **_measured(self.network, latency=core.measure_latency, paths=status == "finished"),
            "target": self.pruning.counted,
            "sparsity_reason": (steps[-1].reason if steps else "") or self._surplus(),
            "pruning_events": len(steps),
            **({"layers": steps[-1].layers, "layers_note": steps[-1].note} if steps and steps[-1].layers else {}),
            "limit_batches": core.limit_batches,
            **describe(self.device),
        }

    def _surplus(self) -> str:
        """Why more is gone than was asked for, where no event has a reason."""
        more = self.network.reached(self.pruning.counted) > self.pruning.asked
        return "weights of dead nodes went too" if self.settings.core.shrink_dead and more else ""


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
    """What takes a look at the whole network: once, at the end."""
    times = {"latency_seconds_dense": network.start_latency(), "latency_seconds": network.latency()} if latency else {}
    return {"effective_weight_sparsity": network.effective_sparsity() if paths else None, **times}


METRICS = ["test_accuracy", "test_loss", "train_accuracy", "train_loss"]


def result_rows(record: dict[str, Any]) -> list[tuple[str, str]]:
    """Returns the lines of the table at the end of a run."""
    return [
        ("test accuracy", _share(record["test_accuracy"])),
        ("train accuracy", _share(record["train_accuracy"])),
        (f"sparsity asked ({record['target']})", _asked(record["sparsity_asked"])),
        (f"sparsity reached ({record['target']})", _reached(record)),
        *_size_rows(record),
        ("training FLOPs", f"{record['training_flops']:.3g} of {record['training_flops_dense']:.3g} dense"),
        ("training time", f"{record['seconds_training']:.1f} s, {record['samples_per_second']:,.0f} samples/s"),
        ("status", _status(record)),
    ]


def _size_rows(record: dict[str, Any]) -> list[tuple[str, str]]:
    """What is left of the network, and what that costs."""
    dense, now, nonzero = (record[f"flops_per_sample{which}"] for which in ("_dense", "", "_nonzero"))
    effective, seconds = record.get("effective_weight_sparsity"), record.get("latency_seconds")
    rows = [("weight sparsity", f"{record['weight_sparsity']:.4f} of all prunable weights")]
    if effective is not None:
        rows.append(("effective sparsity", f"{effective:.4f} with weights on no path from input to output"))
    rows += [
        ("nodes left", f"{record['nodes_left']:,} of {record['nodes_total']:,}"),
        ("weights left", f"{record['weights_left']:,} of {record['weights_total']:,}"),
        ("parameter bytes", f"{record['parameter_bytes']:,} of {record['parameter_bytes_dense']:,} dense"),
        ("FLOPs per sample", f"{now:,.0f} of {dense:,.0f} dense; {nonzero:,.0f} without masked weights"),
    ]
    if seconds is not None:
        before = record["latency_seconds_dense"]
        times = f"{seconds * 1e3:.3g} ms of {before * 1e3:.3g} ms dense"
        rows.append(("latency, one sample", f"{times}: {before / seconds:.2f} times as fast"))
    return rows


def _share(value: float | None) -> str:
    return "not measured" if value is None or value != value else f"{value:.4f}"


def _asked(value: float | None) -> str:
    return "none: it is an outcome of the method" if value is None or value != value else f"{value:.4f}"


def _reached(record: dict[str, Any]) -> str:
    reason = f" ({record['sparsity_reason']})" if record["sparsity_reason"] else ""
    return f"{record['sparsity_reached']:.4f}{reason}"


def _status(record: dict[str, Any]) -> str:
    limited = f"; only {record['limit_batches']} batches an epoch" if record["limit_batches"] else ""
    return f"{record['status']} after {record['epochs_trained']} of {record['epochs']} epochs{limited}"


def evaluation_record(
    settings: Settings, network: PrunableNetwork, found: dict[str, Any], device: torch.device
) -> dict[str, Any]:
    """Returns the content of result.json for --eval."""
    core = settings.core
    names = {"model": core.model, "data_set": core.data_set, "test_scheme": core.test_scheme, "seed": core.seed}
    checkpoint = core.checkpoint_name or core.weights
    sizes = {**_sizes(network), **_measured(network, latency=core.measure_latency), "limit_batches": core.limit_batches}
    return {**names, "status": "finished", "checkpoint": checkpoint, **found, **sizes, **describe(device)}


def evaluation_rows(tester: Any, found: dict[str, Any], record: dict[str, Any]) -> list[tuple[str, str]]:
    """Returns the lines of the table after --eval; a tester with a method `rows` says its own."""
    own = getattr(tester, "rows", None)
    rows = own(found) if own else [(name.replace("_", " "), _plain(value)) for name, value in found.items()]
    return [*rows, *_size_rows(record)]


def _plain(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
