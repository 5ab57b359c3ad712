"""Every rule of the table counts: without it fewer nodes can go, or fewer of them exactly."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pruning.graph.graph import DependencyGraph
from pruning.trace.rules.table import RULES, Rule
from tests.support.tiers import thorough
from tests.support.zoo import NETWORKS

LAYERS = {  # what no small network of the others has between its layers; (2, 5, 8) goes in
    "softmax": lambda x: x.softmax(1),
    "index_select": lambda x: x.index_select(1, torch.arange(3)),
    "cumsum": lambda x: x.cumsum(1),
    "ones_like": lambda x: x * torch.ones_like(x),
    "complex": lambda x: torch.view_as_real(torch.view_as_complex(torch.stack([x, x.tanh()], -1))).sum(-1),
    "as_strided": lambda x: F.adaptive_avg_pool2d(
        x.transpose(1, 2).unsqueeze(2).contiguous(memory_format=torch.channels_last), 1
    ).flatten(1),
    "roll": lambda x: x.roll(1, 1),
    "sort": lambda x: x.sort(1)[0],
    "tril": lambda x: x.transpose(0, 2).tril().transpose(0, 2),
    "index": lambda x: x[:, torch.tensor([1, 0])],
    "experts": lambda x: F.grouped_mm(
        x.flatten(0, 1), x.transpose(1, 2) @ x, offs=torch.tensor([5, 10], dtype=torch.int32)
    ),
    "attention": lambda x: F.scaled_dot_product_attention(x, x, x) if x.sum().item() < 1e9 else x,
}


class Between(nn.Module):
    """A move between two layers."""

    def __init__(self, move: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.one, self.two, self.move = nn.Linear(6, 8), nn.Linear(8, 4), move

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.move(self.one(x)))


def counts(name: str) -> tuple[int, int]:
    """Returns how many nodes can go, and how many exactly; none where the network does not even run."""
    torch.manual_seed(0)
    if name in NETWORKS:
        model, x = NETWORKS[name].build(), NETWORKS[name].inputs()
    else:
        model, x = Between(LAYERS[name]), torch.randn(2, 5, 6, dtype=torch.float64)
    graph = DependencyGraph(model.double(), x)
    return len(graph.nodes), int((~graph.inexact).sum())


@thorough
def test_every_rule_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    used: dict[Rule, list[str]] = defaultdict(list)
    table, found = dict(RULES), {}

    def watched(rule: Rule, name: str) -> Rule:
        def watch(call):
            used[rule].append(name)
            return rule(call)

        return watch

    for name in (*LAYERS, *NETWORKS):
        for key, rule in table.items():
            monkeypatch.setitem(RULES, key, watched(rule, name))
        found[name] = counts(name)
    idle = set()
    for rule in set(table.values()):
        RULES.clear()
        RULES.update({key: other for key, other in table.items() if other is not rule or key == "pointwise"})
        if not any(counts(name) < found[name] for name in dict.fromkeys(used[rule])):
            idle.add(rule.__name__)
    RULES.clear()
    RULES.update(table)
    if not hasattr(F, "grouped_mm"):
        idle -= {"grouped"}
    assert not idle
