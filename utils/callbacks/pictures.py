"""What a run looks like, as PNG files in output/ and in TensorBoard; drawn once, when training has ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pruning import PrunableNetwork
from pruning.modules.calls import call
from pruning.scores.gradients import scoring

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw_confusion(report: dict[str, Any], names: Sequence[str] | None = None) -> Figure | None:
    """Draws the confusion matrix, each row as shares of its class, and the calibration.

    Args:
        report: of a `Tally`; of an empty one there is no picture.
        names: of the classes.
    """
    # Late: it takes longer than everything else that a short run needs.
    from matplotlib.figure import Figure

    if not report:
        return None
    counts = torch.tensor(report["confusion"], dtype=torch.float32)
    shares = counts / counts.sum(1, keepdim=True).clamp(min=1)
    classes = len(counts)
    figure = Figure(figsize=(11, 5), layout="constrained")
    left, right = figure.subplots(1, 2)
    figure.colorbar(left.imshow(shares.numpy(), vmin=0, vmax=1, cmap="Blues"), ax=left, label="share of the true class")
    left.set(xlabel="predicted class", ylabel="true class")
    if classes <= 20:
        labels = list(names or ())[:classes] if names and len(names) >= classes else range(classes)
        left.set_xticks(range(classes), labels=labels, rotation=90 if names else 0, fontsize=8)
        left.set_yticks(range(classes), labels=labels, fontsize=8)
        for row, column in counts.nonzero().tolist():
            colour = "white" if shares[row, column] > 0.5 else "black"
            left.text(column, row, f"{int(counts[row, column])}", ha="center", va="center", color=colour, fontsize=7)
    calibration = report["calibration"]
    there = [place for place, samples in enumerate(calibration["samples"]) if samples]
    right.plot([0, 1], [0, 1], ":", color="grey", label="perfectly calibrated")
    confidence, accuracy = ([calibration[what][place] for place in there] for what in ("confidence", "accuracy"))
    right.plot(confidence, accuracy, marker="o", label=f"error {report['expected_calibration_error']:.4f}")
    right.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1.02))
    right.legend()
    return figure


Rows = Sequence[Mapping[str, float]]

DARK, LIGHT, MARK = "#33669a", "#c9d6e4", "#b5443a"

SAMPLES = 6  # pictures that saliency is shown of


def new_figure(width: float, height: float) -> Figure:
    """Returns an empty figure of so many inches."""
    # Imported late, and without a window: it takes longer than everything else that a short run needs.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=100)
    FigureCanvasAgg(figure)
    return figure


def draw_overview(rows: Rows, events: Sequence[int], curve: Rows) -> Figure:
    """Accuracy and sparsity over the epochs with the pruning events, and the scores of the last event in order."""
    figure = new_figure(11, 4)
    left, right = figure.subplots(1, 2)
    figure.subplots_adjust(left=0.06, right=0.98, bottom=0.13, top=0.9, wspace=0.2)
    epochs = [row["epoch"] for row in rows]
    for name, style in (("test_accuracy", "-"), ("train_accuracy", "--"), ("weight_sparsity", ":")):
        values, dots = [row[name] for row in rows], "." if len(rows) < 3 else ""
        left.plot(epochs, values, style, label=name.replace("_", " "), marker=dots)
    for number, epoch in enumerate(sorted(set(events))):
        # An event before training is at epoch 0, one during epoch e at its end.
        left.axvline(epoch + (epoch > 0), color=MARK, linewidth=0.8, alpha=0.6, label="" if number else "pruning")
    left.set(xlabel="epoch", ylabel="fraction", ylim=(0, 1.02))
    left.xaxis.get_major_locator().set_params(integer=True)
    left.legend(loc="lower right")
    _score_curve(right, curve)
    return figure


def _score_curve(axes: Axes, curve: Rows) -> None:
    axes.set(xlabel="share of the units, best first", ylabel="score")
    kept = [row for row in curve if row["kept"]]
    if not kept or len(kept) == len(curve):
        axes.set_title("no scores: no event ranked anything" if not curve else "scores of the last pruning event")
        return
    rest = [row for row in curve if not row["kept"]]
    for part, colour, name in ((kept, DARK, "stays"), (rest, MARK, "goes")):
        axes.plot([row["share"] for row in part], [row["score"] for row in part], color=colour, label=name)
    threshold, highest_gone = min(row["score"] for row in kept), max(row["score"] for row in rest)
    axes.axvline(kept[-1]["share"], color="grey", linewidth=0.8)
    if threshold >= highest_gone:
        axes.axhline(threshold, color="grey", linestyle="--", linewidth=0.8, label=f"threshold {threshold:.3g}")
    else:
        axes.plot([], [], " ", label="no single threshold: chosen layer by layer, or at random")
    if all(row["score"] >= 0 for row in curve) and kept[0]["score"] > 0:
        # Scores span many powers of ten; zeros stay on the picture, at its lower edge.
        axes.set_yscale("log", nonpositive="clip")
    axes.set_title("scores of the last pruning event")
    axes.legend(loc="upper right")


def draw_layers(network: PrunableNetwork, weights: bool, nodes: bool) -> Figure:
    """Layers from input to output: the weights left of each, and the nodes that it has kept of those at the start."""
    names = list(network.prunable())
    count, panels = len(names), weights + nodes
    labels = [_short(name) for name in names]
    margin = 0.3 + 0.07 * max(map(len, labels))
    width, height = margin + 4.2 * panels, 1.1 + 0.19 * count
    figure = new_figure(width, height)
    axes = figure.subplots(1, panels, squeeze=False)[0]
    figure.subplots_adjust(left=margin / width, right=0.98, bottom=0.55 / height, top=1 - 0.5 / height, wspace=0.05)
    for place in axes:
        place.set(ylim=(count - 0.4, -0.6))
        place.set_yticks(range(count), labels=labels if place is axes[0] else [""] * count, fontsize=7)
        place.tick_params(axis="y", length=0)
    if weights:
        left = [1 - sparsity for sparsity in network.layer_sparsities().values()]
        _bars(axes[0], [1.0] * count, left, [f"{1 - share:.1%} removed" for share in left], centred=False)
        axes[0].set(title="weights: before and after", xlabel="fraction left", xticks=[0, 0.25, 0.5, 0.75, 1])
    if nodes:
        kept = _outputs_left(network)
        start = [network.start_outputs[name] for name in names]
        texts = [f"{now:,} of {then:,}" for now, then in zip(kept, start, strict=True)]
        _bars(axes[-1], start, kept, texts, centred=True)
        # A node whose weights are all masked is still there, but does nothing.
        axes[-1].set(title="nodes with weights: before and after", xlabel="outputs of the layer", xticks=[])
    return figure


def _bars(axes: Axes, before: Sequence[float], after: Sequence[float], texts: list[str], *, centred: bool) -> None:
    places = range(len(texts))
    for values, colour in ((before, LIGHT), (after, DARK)):
        axes.barh(places, values, left=[-value / 2 if centred else 0 for value in values], color=colour, height=0.8)
    # The texts stand beside the bars, in a column of their own.
    widest = max(before)
    start = widest / 2 if centred else widest
    axes.set_xlim(start - widest, start + 0.42 * widest)
    for place, text in zip(places, texts, strict=True):
        axes.text(start + 0.03 * widest, place, text, va="center", fontsize=7)


def _outputs_left(network: PrunableNetwork) -> list[int]:
    """Returns per prunable weight how many outputs it has with at least one weight."""
    left = []
    for name, weight in network.prunable().items():
        there = network.masks.of(name, weight).movedim(network.output_dim(name), 0)
        left.append(int(there.flatten(1).any(1).sum()))
    return left


def _short(name: str) -> str:
    name = name.removesuffix(".parametrizations.weight.original1").removesuffix(".weight")
    return name if len(name) <= 40 else f"{name[:18]}…{name[-21:]}"


def input_saliency(network: PrunableNetwork, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor] | None:
    """Returns pictures (n, C, H, W) and |dL/dpixel|, largest over the channels, (n, H, W); None for other inputs."""
    inputs, targets = batch
    if not isinstance(inputs, Tensor) or inputs.dim() != 4 or not inputs.is_floating_point():
        return None
    pixels = inputs[:SAMPLES].detach().clone().requires_grad_()
    with scoring(network.model):
        loss = network.loss(call(network.model, pixels), targets[:SAMPLES])
        (slopes,) = torch.autograd.grad(loss, pixels)
    return pixels.detach().float().cpu(), slopes.abs().amax(1).float().cpu()


def draw_saliency(seen: tuple[Tensor, Tensor] | None) -> Figure | None:
    """Pictures above, and below them how much the loss changes with each pixel, each scaled to its own range."""
    if seen is None:
        return None
    pixels, slopes = seen
    figure = new_figure(1.5 * len(pixels), 3.2)
    axes = figure.subplots(2, len(pixels), squeeze=False)
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0.02, top=0.88, wspace=0.05, hspace=0.05)
    for column, (picture, slope) in enumerate(zip(pixels, slopes, strict=True)):
        shown = picture[:3] if len(picture) >= 3 else picture[:1].expand(3, -1, -1)
        low, high = shown.amin(), shown.amax()
        axes[0][column].imshow(((shown - low) / (high - low).clamp_min(1e-12)).permute(1, 2, 0).numpy())
        axes[1][column].imshow(slope.numpy(), cmap="magma", vmin=0)
    for place in axes.flat:
        place.set_axis_off()
    figure.suptitle("test pictures, and |d loss / d pixel| below")
    return figure
