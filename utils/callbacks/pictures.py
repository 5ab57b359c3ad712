"""What a run looks like, as PNG files in output/ and in TensorBoard; drawn once, when training has ended."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pruning import PrunableNetwork
from pruning.measure.measures import kind_of, words_of
from pruning.modules.calls import call, inputs_for
from pruning.scores.gradients import scoring

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Rows = Sequence[Mapping[str, float]]

DARK, LIGHT, MARK = "#33669a", "#c9d6e4", "#b5443a"

SAMPLES = 6  # pictures that saliency is shown of

DPI = 100

MANY_CLASSES = 20  # more have no names and numbers in the confusion matrix: they could not be read


def new_figure(width: float, height: float) -> Figure:
    """Returns an empty figure of so many inches."""
    # Imported late, and without pyplot or a window: it takes longer than everything else that a short run needs.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI)
    FigureCanvasAgg(figure)
    return figure


# -- confusion.png -----------------------------------------------------------------------------------------------------


def draw_confusion(report: dict[str, Any], names: Sequence[str] | None = None) -> Figure | None:
    """Draws the confusion matrix, each row as shares of its class, and the calibration.

    Args:
        report: of a `Tally`; of an empty one there is no picture.
        names: of the classes.
    """
    if not report:
        return None
    counts = torch.tensor(report["confusion"], dtype=torch.float32)
    classes = len(counts)
    if names is not None and len(names) >= classes:
        labels = [_shortened(str(name), 30) for name in names[:classes]]
    else:
        labels = [str(number) for number in range(classes)]
    longest = max(map(len, labels)) if classes <= MANY_CLASSES else 3

    # A layout that matplotlib works out by itself would draw everything several times.
    figure = new_figure(11, 5)
    left, right = figure.subplots(1, 2)
    room_for_names = 0.006 * longest
    figure.subplots_adjust(
        left=0.05 + room_for_names, right=0.98, bottom=0.1 + 2 * room_for_names, top=0.96, wspace=0.15
    )
    _draw_matrix(left, counts)
    if classes <= MANY_CLASSES:
        _name_classes(left, labels)
        _write_counts(left, counts)
    _draw_calibration(right, report)
    return figure


def _shares(counts: Tensor) -> Tensor:
    """Returns each row as shares of its sum; of a class without samples all are 0."""
    samples = counts.sum(1, keepdim=True)
    return counts / samples.clamp(min=1)


def _draw_matrix(axes: Axes, counts: Tensor) -> None:
    shares = _shares(counts)
    image = axes.imshow(shares.numpy(), vmin=0, vmax=1, cmap="Blues")
    axes.figure.colorbar(image, ax=axes, label="share of the true class")
    axes.set(xlabel="predicted class", ylabel="true class")


def _name_classes(axes: Axes, labels: Sequence[str]) -> None:
    places = range(len(labels))
    slanted = any(len(label) > 2 for label in labels)
    axes.set_xticks(places, labels=labels, rotation=90 if slanted else 0, fontsize=8)
    axes.set_yticks(places, labels=labels, fontsize=8)


def _write_counts(axes: Axes, counts: Tensor) -> None:
    shares = _shares(counts)
    for row, column in counts.nonzero().tolist():
        colour = "white" if shares[row, column] > 0.5 else "black"
        count = int(counts[row, column])
        axes.text(column, row, str(count), ha="center", va="center", color=colour, fontsize=7)


def _draw_calibration(axes: Axes, report: dict[str, Any]) -> None:
    calibration = report["calibration"]
    filled = [place for place, samples in enumerate(calibration["samples"]) if samples]
    confidence = [calibration["confidence"][place] for place in filled]
    accuracy = [calibration["accuracy"][place] for place in filled]
    error = report["expected_calibration_error"]
    axes.plot([0, 1], [0, 1], ":", color="grey", label="perfectly calibrated")
    axes.plot(confidence, accuracy, marker="o", label=f"error {error:.4f}")
    axes.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1.02))
    axes.legend(loc="upper left")


# -- overview.png ------------------------------------------------------------------------------------------------------


def draw_overview(rows: Rows, events: Sequence[int], curve: Rows, main: str = "accuracy") -> Figure:
    """A measure and sparsity over the epochs with the pruning events, and the scores of the last event in order."""
    figure = new_figure(11, 4)
    left, right = figure.subplots(1, 2)
    own = _draw_epochs(left, rows, main)
    room = 0.2 if own is left else 0.35  # between the two, for a scale of its own on the right
    figure.subplots_adjust(left=0.06, right=0.98, bottom=0.13, top=0.9, wspace=room)
    _mark_events(left, events)
    lines = [*left.get_lines(), *([] if own is left else own.get_lines())]
    named = [line for line in lines if not str(line.get_label()).startswith("_") and line.get_label()]
    own.legend(handles=named, loc="lower right")
    _draw_score_curve(right, curve)
    return figure


def _draw_epochs(axes: Axes, rows: Rows, main: str) -> Axes:
    """Draws the lines and returns the axes of the measure: what is no fraction has a scale of its own, on the right."""
    from matplotlib.ticker import MaxNLocator

    epochs = [row["epoch"] for row in rows]
    marker = "." if len(rows) < 3 else ""  # one point alone makes no line
    is_fraction = kind_of(main).fraction
    own = axes if is_fraction else axes.twinx()
    lines = [(own, f"test_{main}", "-"), (own, f"train_{main}", "--"), (axes, "weight_sparsity", ":")]
    for place, name, style in lines:
        values = [row.get(name, math.nan) for row in rows]
        colour = DARK if place is not axes else None
        place.plot(epochs, values, style, label=words_of(name), marker=marker, color=colour)
    axes.set(xlabel="epoch", ylabel="fraction", ylim=(0, 1.02))
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    if not is_fraction:
        axes.set_ylabel("fraction of weights removed")
        own.set_ylabel(words_of(main))
    return own


def _mark_events(axes: Axes, events: Sequence[int]) -> None:
    label = "pruning"
    for epoch in sorted(set(events)):
        # An event before training is at epoch 0, one during epoch e at its end.
        place = epoch + 1 if epoch > 0 else 0
        axes.axvline(place, color=MARK, linewidth=0.8, alpha=0.6, label=label)
        label = ""  # the legend names the first one only


def _draw_score_curve(axes: Axes, curve: Rows) -> None:
    axes.set(xlabel="share of the units, best first", ylabel="score")
    kept = [row for row in curve if row["kept"]]
    removed = [row for row in curve if not row["kept"]]
    if not curve:
        axes.set_title("no scores: no event ranked anything")
        return
    axes.set_title("scores of the last pruning event")
    if not kept or not removed:
        return
    for part, colour, name in ((kept, DARK, "stays"), (removed, MARK, "goes")):
        shares = [row["share"] for row in part]
        scores = [row["score"] for row in part]
        axes.plot(shares, scores, color=colour, label=name)
    axes.axvline(kept[-1]["share"], color="grey", linewidth=0.8)

    threshold = min(row["score"] for row in kept)
    highest_removed = max(row["score"] for row in removed)
    if threshold >= highest_removed:
        axes.axhline(threshold, color="grey", linestyle="--", linewidth=0.8, label=f"threshold {threshold:.3g}")
    else:
        axes.plot([], [], " ", label="no single threshold: chosen layer by layer, or at random")
    if all(row["score"] >= 0 for row in curve) and kept[0]["score"] > 0:
        # Scores span many powers of ten; zeros stay on the picture, at its lower edge.
        axes.set_yscale("log", nonpositive="clip")
        axes.minorticks_off()  # which take longer to draw than all the rest
    axes.legend(loc="upper right")


# -- layers.png --------------------------------------------------------------------------------------------------------


def draw_layers(network: PrunableNetwork, weights: bool, nodes: bool) -> Figure:
    """Layers from input to output: the weights left of each, and the nodes that it has kept of those at the start."""
    names = list(network.prunable())
    labels = [_short(name) for name in names]
    panels = weights + nodes
    # Inches: the names, each panel, and a line per layer.
    margin = 0.3 + 0.07 * max(map(len, labels))
    width = margin + 4.2 * panels
    height = 1.1 + 0.19 * len(names)
    figure = new_figure(width, height)
    axes = figure.subplots(1, panels, squeeze=False)[0]
    figure.subplots_adjust(left=margin / width, right=0.98, bottom=0.55 / height, top=1 - 0.5 / height, wspace=0.05)
    for place in axes:
        shown = labels if place is axes[0] else [""] * len(names)
        place.set(ylim=(len(names) - 0.4, -0.6))
        place.set_yticks(range(len(names)), labels=shown, fontsize=7)
        place.tick_params(axis="y", length=0)
    if weights:
        _draw_weights(axes[0], network)
    if nodes:
        _draw_nodes(axes[-1], network)
    return figure


def _draw_weights(axes: Axes, network: PrunableNetwork) -> None:
    sparsities = list(network.layer_sparsities().values())
    before = [1.0] * len(sparsities)
    left = [1 - sparsity for sparsity in sparsities]
    texts = [f"{share:.1%} removed" for share in sparsities]
    _bars(axes, before, left, texts, centred=False)
    axes.set(title="weights: before and after", xlabel="fraction left", xticks=[0, 0.25, 0.5, 0.75, 1])


def _draw_nodes(axes: Axes, network: PrunableNetwork) -> None:
    # A node whose weights are all masked is still there, but does nothing.
    left = _outputs_left(network)
    before = [network.start_outputs[name] for name in network.prunable()]
    texts = [f"{now:,} of {then:,}" for now, then in zip(left, before, strict=True)]
    _bars(axes, before, left, texts, centred=True)
    axes.set(title="nodes with weights: before and after", xlabel="outputs of the layer", xticks=[])


def _bars(axes: Axes, before: Sequence[float], after: Sequence[float], texts: list[str], *, centred: bool) -> None:
    places = range(len(texts))
    for values, colour in ((before, LIGHT), (after, DARK)):
        starts = [-value / 2 for value in values] if centred else [0.0] * len(values)
        axes.barh(places, values, left=starts, color=colour, height=0.8)
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
        mask = network.masks.of(name, weight)
        by_output = mask.movedim(network.output_dim(name), 0).flatten(1)
        left.append(int(by_output.any(1).sum()))
    return left


def _short(name: str) -> str:
    name = name.removesuffix(".parametrizations.weight.original1").removesuffix(".weight")
    return _shortened(name, 40)


def _shortened(text: str, most: int) -> str:
    """Returns a text of at most so many letters: its middle goes, since names of layers differ at both ends."""
    if len(text) <= most:
        return text
    start = most // 2 - 2
    end = most - start - 1
    return f"{text[:start]}…{text[-end:]}"


# -- saliency.png ------------------------------------------------------------------------------------------------------


def input_saliency(network: PrunableNetwork, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor] | None:
    """Returns pictures (n, C, H, W) and |dL/dpixel|, largest over the channels, (n, H, W); None for other inputs."""
    inputs, targets = batch
    if not isinstance(inputs, Tensor) or inputs.dim() != 4 or not inputs.is_floating_point():
        return None
    pixels = inputs[:SAMPLES].detach().clone().requires_grad_()
    with scoring(network.model):
        outputs = call(network.model, inputs_for(network.loss, network.model, pixels, targets[:SAMPLES]))
        loss = network.loss(outputs, targets[:SAMPLES])
        (slopes,) = torch.autograd.grad(loss, pixels)
    largest = slopes.abs().amax(1)
    return pixels.detach().float().cpu(), largest.float().cpu()


def draw_saliency(seen: tuple[Tensor, Tensor] | None) -> Figure | None:
    """Pictures above, and below them how much the loss changes with each pixel, each scaled to its own range."""
    if seen is None:
        return None
    pixels, slopes = seen
    figure = new_figure(1.5 * len(pixels), 3.2)
    axes = figure.subplots(2, len(pixels), squeeze=False)
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0.02, top=0.88, wspace=0.05, hspace=0.05)
    for column, (picture, slope) in enumerate(zip(pixels, slopes, strict=True)):
        shown = _as_image(picture)
        axes[0][column].imshow(shown.numpy())
        axes[1][column].imshow(slope.numpy(), cmap="magma", vmin=0)
    for place in axes.flat:
        place.set_axis_off()
    figure.suptitle("test pictures, and |d loss / d pixel| below")
    return figure


def _as_image(picture: Tensor) -> Tensor:
    """Returns (C, H, W) of any range as (H, W, 3) from 0 to 1; of one or two channels the first, in grey."""
    shown = picture[:3] if len(picture) >= 3 else picture[:1].expand(3, -1, -1)
    low, high = shown.amin(), shown.amax()
    spread = (high - low).clamp_min(1e-12)  # a picture of one colour has none
    return ((shown - low) / spread).permute(1, 2, 0)
