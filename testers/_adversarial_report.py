"""What attacks found, as numbers with intervals, lines of a table and pictures."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from testers._intervals import difference, wilson
from testers._pixels import show

Example = tuple[Tensor, Tensor, str]  # image, adversarial image, what changed


def curve(norm: str, needed: Tensor, epsilons: list[float], clean: float) -> dict[str, Any]:
    """Returns success rate and robust accuracy per size, with 95 % intervals.

    Args:
        norm: of the perturbations.
        needed: (n,) smallest perturbation found per attacked image, infinite where none was.
        epsilons: sizes to report.
        clean: accuracy without attack; all attacked images are classified correctly without it.
    """
    success, success_interval, robust, robust_interval = [], [], [], []
    for size in epsilons:
        hits = int((needed <= size).sum())
        rate = hits / len(needed)
        # That nothing succeeds at size 0 is no draw.
        low, high = wilson(hits, len(needed)) if size else (0.0, 0.0)
        success.append(rate)
        success_interval.append((low, high))
        robust.append(clean * (1 - rate))
        robust_interval.append((clean * (1 - high), clean * (1 - low)))
    found = needed[needed.isfinite()]
    return {
        "norm": norm,
        "epsilons": epsilons,
        "success": success,
        "success_interval": success_interval,
        "robust": robust,
        "robust_interval": robust_interval,
        "median_perturbation": float(found.median()) if len(found) else None,
    }


def compare(report: dict[str, Any], attack: str) -> None:
    """Adds the difference in robust accuracy between two networks, this one minus the other, to a report."""
    curves = [network["attacks"][attack] for network in report["networks"].values()]
    if len(curves) != 2:
        return
    one, other = curves
    change, interval = [], []
    for place in range(len(one["robust"])):
        robust, within = one["robust"][place], one["robust_interval"][place]
        others, others_within = other["robust"][place], other["robust_interval"][place]
        change.append(robust - others)
        interval.append(difference(robust, within, others, others_within))
    report["differences"][attack] = {"difference": change, "difference_interval": interval}


def worst(found: dict[str, Any]) -> str:
    """One line about a curve."""
    rates = zip(found["epsilons"], found["success"], strict=True)
    texts = [f"{size:g}: {rate:.3f}" for size, rate in rates]
    return f"success by {found['norm']} size {', '.join(texts)}"


def rows(report: dict[str, Any]) -> list[tuple[str, str]]:
    """Returns the lines of the table: one per attack and size, with both networks where there are two."""
    networks = report["networks"]
    found = [("sizes of perturbation", report["epsilons_in"])]
    for name, network in networks.items():
        found.append((name, f"clean accuracy {network['clean_accuracy']:.4f}, {network['attacked']:,} images attacked"))
    first, *others = networks.values()
    compared = " against the other's, and the difference" if others else ""
    found.append(("robust accuracy", f"[95 %]{compared}"))
    if "CarliniWagner" in first["attacks"]:
        found.append(("CarliniWagner", f"9 x {report['carlini_steps']:,} steps (--carlini_steps)"))
    for attack, one in first["attacks"].items():
        for place, size in enumerate(one["epsilons"]):
            text = _at(one, "robust", place)
            for other in others:
                change = _at(report["differences"][attack], "difference", place, sign="+")
                text += f" against {_at(other['attacks'][attack], 'robust', place)}: {change}"
            if not others:
                text += f", success {_at(one, 'success', place)}"
            found.append((f"{attack}, {one['norm']} {size:g}", text))
    return found


def _at(values: dict[str, Any], what: str, place: int, *, sign: str = "") -> str:
    low, high = values[f"{what}_interval"][place]
    return f"{values[what][place]:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"


def draw_curves(folder: Any, report: dict[str, Any]) -> None:
    """Draws robust accuracy over the size of the perturbation, one panel per norm, as adversarial_curves.png."""
    from matplotlib.figure import Figure

    networks = report["networks"]
    attacks = next(iter(networks.values()))["attacks"]
    norms = list(dict.fromkeys(found["norm"] for found in attacks.values()))
    figure = Figure(figsize=(5.5 * len(norms), 4.5), layout="constrained")
    for axes, norm in zip(figure.subplots(1, len(norms), squeeze=False)[0], norms, strict=True):
        smallest = 1.0
        of_norm = [attack for attack, found in attacks.items() if found["norm"] == norm]
        for number, attack in enumerate(of_norm):
            for (name, network), line in zip(networks.items(), ("-", "--"), strict=False):
                found = network["attacks"][attack]
                label = f"{attack}, {name}" if len(networks) > 1 else attack
                sizes = found["epsilons"]
                low, high = zip(*found["robust_interval"], strict=True)
                axes.plot(sizes, found["robust"], line, marker=".", color=f"C{number}", label=label)
                axes.fill_between(sizes, low, high, color=f"C{number}", alpha=0.15)
                smallest = min([smallest, *(size for size in sizes if size)])
        # Sizes lie close together near 0, which itself has no place on a logarithmic axis.
        axes.set_xscale("symlog", linthresh=smallest)
        axes.set(ylabel="robust accuracy", ylim=(0, 1.02))
        axes.set_xlabel(f"{norm} size of the perturbation ({report['epsilons_in']})")
        axes.legend(fontsize=7)
    folder.write_picture("adversarial_curves.png", figure)


def draw_examples(folder: Any, name: str, examples: list[Example]) -> None:
    """Draws a few images, what they became and the change between; nothing where there is none, or no picture."""
    from matplotlib.figure import Figure

    if not examples:
        return
    first, _, _ = examples[0]
    if first.ndim != 3 or len(first) not in (1, 3):
        return
    figure = Figure(figsize=(1.7 * len(examples) + 0.3, 5.2), layout="constrained")
    table = figure.subplots(3, len(examples), squeeze=False)
    for column, (image, changed, title) in zip(table.T, examples, strict=True):
        change = changed - image
        # Grey is no change; the largest one reaches black or white.
        change = change / 2 / change.abs().max() + 0.5
        for axes, picture in zip(column, (image, changed, change), strict=True):
            show(axes, picture)
        column[1].set_title(title, fontsize=8)
        column[2].set_title("change, stretched", fontsize=8)
    folder.write_picture(name, figure)
