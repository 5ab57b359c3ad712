"""What of torchvision's networks can be pruned: the record beside this file, and how it is made.

    python -m tests.slow.torchvision_sweep [name ...]     measures and writes these rows anew; without names, all

Coverage is the share of hidden channels (rows of weights and entries of biases that no output holds) that can go.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torchvision import models

from pruning.graph.graph import DependencyGraph
from pruning.modules.calls import RUN_ERRORS
from pruning.trace.labels import PRODUCER

RECORD = Path(__file__).with_name("torchvision_coverage.md")
KINDS = {"classification": models, "segmentation": models.segmentation, "video": models.video,
         "optical_flow": models.optical_flow, "detection": models.detection}  # fmt: skip
SIDES = {"vit_": 224, "maxvit": 224, "swin_": 224, "inception": 299, "mvit": 224, "raft": 128, "ssd300": 300,
         "s3d": 224}  # fmt: skip
_OUTPUT = "is the network's output"
_HEAD = """# Torchvision: how much of it can be pruned

Share of hidden channels that can go, and what holds the others. Of detectors, the backbone. Written by
`python -m tests.slow.torchvision_sweep`; a test fails where a share falls below what stands here.

| model | kind | share | what pins the rest |
| --- | --- | --- | --- |
"""


class Row(NamedTuple):
    """A line of the record."""

    kind: str
    share: float
    pins: str


def names() -> dict[str, str]:
    """Returns every model and its kind."""
    return {name: kind for kind, module in KINDS.items() for name in models.list_models(module=module)}


def build(name: str) -> tuple[nn.Module, Any]:
    """Returns a model with random weights, and inputs for it."""
    kind = names()[name]
    more: dict[str, Any] = {"weights_backbone": None} if kind in ("segmentation", "detection") else {}
    more |= {"init_weights": False} if name in ("googlenet", "inception_v3") else {}  # theirs takes a minute
    torch.manual_seed(0)
    model = models.get_model(name, weights=None, **more)
    side = next((side for start, side in SIDES.items() if name.startswith(start)), 64)
    if kind == "video":
        return model, torch.randn(2, 3, 8 if side == 64 or name.startswith("swin") else 16, side, side)
    x = torch.randn(2, 3, side, side)
    return (model.backbone, x) if kind == "detection" else (model, (x, x) if kind == "optical_flow" else x)


def coverage(graph: DependencyGraph) -> tuple[float, Counter[str]]:
    """Returns the share of produced channels that can go, and how many each reason pins; outputs do not count."""
    structure, reasons, free = graph.structure, Counter[str](), 0
    for dimension in structure.dimensions:
        labels = structure.labels_of(dimension)
        made = labels[structure.roles[labels] & PRODUCER > 0]
        free += int((structure.node_of_label[made] >= 0).sum())
        for fact in structure.pinned_by[structure.component[made]]:
            if fact >= 0 and structure.facts.pins[fact][2] != _OUTPUT:
                _, place, why = structure.facts.pins[fact]
                operation, module = structure.facts.places[place]
                reasons[f"{why} ({operation} in {module or 'the network'})"] += 1
    return free / max(free + reasons.total(), 1), reasons


def measure(name: str) -> Row:
    """Builds the graph of a model and says what it covers."""
    kind = names()[name]
    try:
        share, reasons = coverage(DependencyGraph(*build(name)))
    except RUN_ERRORS as error:
        return Row(kind, 0.0, f"does not trace: {(str(error).splitlines() or [''])[0]}")
    told = [f"{count} {why}" for why, count in reasons.most_common(3)]
    more = [f"and {len(reasons) - 3} more reasons"] if len(reasons) > 3 else []
    return Row(kind, share, "; ".join(told + more).replace("|", "/"))


def record() -> dict[str, Row]:
    """Reads what was last recorded."""
    lines = [line.strip("| \n").split(" | ") for line in RECORD.read_text().splitlines() if line.count(" | ") == 3]
    return {cells[0]: Row(cells[1], float(cells[2]), cells[3]) for cells in lines if cells[0] not in ("model", "---")}


def main(chosen: list[str]) -> None:
    rows = record() if RECORD.exists() else {}
    for name in chosen or names():
        rows[name] = measure(name)
        print(name, *rows[name], flush=True)
        ordered = [(name, rows[name]) for name in names() if name in rows]
        lines = [f"| {name} | {row.kind} | {row.share:.4f} | {row.pins or '-'} |\n" for name, row in ordered]
        RECORD.write_text(_HEAD + "".join(lines))


if __name__ == "__main__":
    main(sys.argv[1:])
