"""Every classifier of torchvision: it traces, half of it goes, it trains on, and the forecast was right."""

from __future__ import annotations

import pytest
import torch
from torchvision import models

from pruning.graph import DependencyGraph
from pruning.trials import some

ALL = models.list_models(module=models)
QUICK = ("alexnet", "densenet121", "efficientnet_b0", "googlenet", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small",
         "regnet_y_400mf", "resnet18", "resnext50_32x4d", "shufflenet_v2_x0_5", "squeezenet1_1")  # fmt: skip
SIDES = {"vit": 224, "maxvit": 224, "swin": 224, "inception": 299}

# Channels that can go, of all that no output holds. ShuffleNet's equal halves, shuffled block by block, couple all
# channels of a stage to each other.
LEAST = {"shufflenet_v2_x0_5": 0.86, "shufflenet_v2_x1_0": 0.79, "shufflenet_v2_x1_5": 0.83, "shufflenet_v2_x2_0": 0.79,
         "swin_v2": 0.97}  # fmt: skip


def parameters(name: str) -> list:
    return [name] if name in QUICK else [pytest.param(name, marks=pytest.mark.slow)]


def build(name: str) -> torch.nn.Module:
    more = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    torch.manual_seed(0)
    return models.get_model(name, weights=None, **more)


def coverage(graph: DependencyGraph) -> float:
    """Returns the share of produced channels that can go; those of outputs (pinned as such) do not count."""
    produced = free = 0
    for name, parameter in graph.model.named_parameters():
        for dim in range(parameter.dim()):
            nodes = graph.nodes_along(name, dim, "producer")
            roles = graph.nodes_along(name, dim)
            labels = graph.seen.labels(name, dim)
            makes = (graph.structure.roles[labels] & 1) > 0 if len(labels) else []
            output = [graph.structure.facts.pins[fact][2] == "is the network's output" if fact >= 0 else False
                      for fact in graph.structure.pinned_by[graph.structure.component[labels]]]  # fmt: skip
            for index, made in enumerate(makes):
                if made and not output[index]:
                    produced += 1
                    free += int(roles[index] >= 0 and nodes[index] >= 0)
    return free / produced


@pytest.mark.parametrize("name", [part for name in ALL for part in parameters(name)])
def test_half_of_it_goes(name: str) -> None:
    side = next((side for start, side in SIDES.items() if name.startswith(start)), 64)
    model, x = build(name), torch.randn(2, 3, side, side)
    graph = DependencyGraph(model, x)
    least = next((share for start, share in LEAST.items() if name.startswith(start)), 0.99)
    assert coverage(graph) >= least, "\n".join(map(str, graph.pinned))
    before = sum(parameter.numel() for parameter in model.parameters())
    plan = graph.plan(some(graph.structure))
    assert not plan.refused
    shapes = plan.shapes
    plan.exec()
    assert before - sum(parameter.numel() for parameter in model.parameters()) == plan.parameters_removed > 0
    state = model.state_dict()
    assert all(tuple(state[key].shape) == shape for key, shape in shapes.items())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    outputs = model.train()(x)
    (outputs if isinstance(outputs, torch.Tensor) else outputs[0]).sum().backward()
    optimizer.step()
    assert model.eval()(x).shape == (2, 1000)
