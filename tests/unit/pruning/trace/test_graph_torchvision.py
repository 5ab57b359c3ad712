"""Torchvision: as much can go as was recorded; of every classifier half goes, it trains on, and the forecast holds."""

from __future__ import annotations

import pytest
import torch

from pruning.dry_run.trials import sample_nodes
from pruning.graph.graph import DependencyGraph
from pruning.modules.calls import tensors_in
from tests.slow.torchvision_sweep import build, coverage, names, record
from tests.support.tiers import thorough

# One with residuals, one depthwise with squeeze-and-excite, one shuffled, one concatenated; then one of each family.
QUICK = ("mobilenet_v3_small", "resnet18", "shufflenet_v2_x0_5", "squeezenet1_1")
THOROUGH = ("alexnet", "densenet121", "efficientnet_b0", "googlenet", "mnasnet0_5", "mobilenet_v2", "regnet_y_400mf",
            "resnext50_32x4d", "lraspp_mobilenet_v3_large")  # fmt: skip
KINDS, RECORD = names(), record()


def parameters(name: str) -> list:
    if name in QUICK:
        return [name]
    return [pytest.param(name, marks=thorough if name in THOROUGH else pytest.mark.slow)]


def test_the_record_is_complete() -> None:
    """Every model stands in it; one of which less than nine tenths can go has a reason beside it."""
    assert list(RECORD) == list(KINDS)
    assert all(row.share >= 0.9 or len(row.pins) > 10 for row in RECORD.values())


@pytest.mark.parametrize("name", [part for name in KINDS for part in parameters(name)])
def test_half_of_it_goes(name: str) -> None:
    if not RECORD[name].share:
        pytest.skip(RECORD[name].pins)
    model, x = build(name)
    graph = DependencyGraph(model, x)
    share, reasons = coverage(graph)
    assert share >= RECORD[name].share - 5e-5, reasons
    before = sum(parameter.numel() for parameter in model.parameters())
    plan = graph.plan(sample_nodes(graph.structure))
    shapes = plan.shapes
    inputs = x if isinstance(x, tuple) else (x,)
    with torch.no_grad():
        wanted = [out.shape for out in tensors_in(model.eval()(*inputs))]
    plan.exec()
    assert before - sum(parameter.numel() for parameter in model.parameters()) == plan.parameters_removed > 0
    state = model.state_dict()
    assert all(tuple(state[key].shape) == shape for key, shape in shapes.items())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    sum(out.sum() for out in tensors_in(model.train()(*inputs)) if out.requires_grad).backward()
    optimizer.step()
    assert [out.shape for out in tensors_in(model.eval()(*inputs))] == wanted
