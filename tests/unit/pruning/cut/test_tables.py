"""Tables outside the state dict, kept as plain attributes or made in forward: cut along, and carried by extras."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pruning import DependencyGraph, PrunableNetwork, UsageError, extras_of, load_pruned

SHARED = torch.rand(5, 8, dtype=torch.float64)


class WithTable(nn.Module):
    """Adds a table that is no buffer to its residual stream."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.first, self.last, self.dim = kind, nn.Linear(6, 8), nn.Linear(8, 3), 8
        sizes = {"plain": (1, 5, 8), "vector": (8,), "larger": (1, 9, 20), "scalar-like": (5, 1)}
        if kind in sizes:
            self.table = torch.rand(sizes[kind])
        if kind == "shared":
            self.table = SHARED
        if kind == "list":
            self.tables = [torch.rand(5, 8), "of two", torch.rand(8)]
        if kind == "dict":
            self.tables = {"rows": torch.rand(5, 8)}
        if kind == "complex":
            self.table = torch.polar(torch.ones(5, 4), torch.rand(5, 4))

    def own(self, x: Tensor) -> Tensor:
        if self.kind == "larger":
            return self.table[:, : x.shape[1], : self.dim].clone()
        if self.kind == "list":
            return self.tables[0] + self.tables[2]
        return self.tables["rows"] if self.kind == "dict" else self.table

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if self.kind == "complex":
            pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
            return self.last(torch.view_as_real(pairs * self.table).flatten(2).relu())
        return self.last((x + self.own(x).to(x)).relu())


def built(kind: str) -> nn.Module:
    torch.manual_seed(0)
    return WithTable(kind).double().eval()


def zeroed(model: nn.Module, keeps: dict[str, dict[int, Tensor]]) -> nn.Module:
    """The whole network with zeros in the place of everything that is not kept, tables included."""
    model = copy.deepcopy(model)
    for name, keep in keeps.items():
        path, _, own = name.rpartition(".")
        attribute, _, place = own.removesuffix("]").partition("[")
        tensor: Any = getattr(model.get_submodule(path), attribute)
        if place:
            tensor = tensor[int(place) if place.isdecimal() else place]
        for dim, kept in keep.items():
            gone = sorted(set(range(tensor.shape[dim])) - set(kept.tolist()))
            tensor.detach().index_fill_(dim, torch.tensor(gone), 0)
    return model


KINDS = ["plain", "shared", "vector", "larger", "list", "dict", "complex", "scalar-like"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_plain_table_is_cut_along(kind: str) -> None:
    model, x = built(kind), torch.randn(2, 5, 6, dtype=torch.float64)
    graph = DependencyGraph(model, x)
    assert len(graph.nodes) == (4 if kind == "complex" else 8)
    plan = graph.plan(graph.groups[0].nodes[1::2])
    assert not plan.inexact
    wanted, preview = zeroed(model, plan.keeps)(x), plan.preview()
    plan.exec()
    assert torch.allclose(model(x), wanted, atol=1e-12) and torch.equal(preview(x), model(x))
    assert SHARED.shape == (5, 8)  # another network may hold it, too
    if kind != "complex":  # two pairs look the other way round, as pairs of two
        again = DependencyGraph(model, x)
        again.plan(again.groups[0].nodes[:1]).exec()

    content = {"state_dict": model.state_dict(), "extras": extras_of(model)}
    assert torch.equal(load_pruned(built(kind), content)(x), model(x))
    if kind == "scalar-like":
        assert torch.equal(load_pruned(built(kind), model.state_dict(), x)(x), model(x))
    else:
        with pytest.raises(UsageError, match="was cut and is not in the state dict: save extras_of"):
            load_pruned(built(kind), model.state_dict(), x)


def test_a_network_that_runs_along_keeps_its_own_table() -> None:
    model, x = built("plain"), torch.randn(2, 5, 6, dtype=torch.float64)
    average = copy.deepcopy(model)
    average.table = average.table + 1
    whole = average.table
    graph = DependencyGraph(model, x)
    plan = graph.plan(graph.groups[0].nodes[:3])
    kept = plan.keeps["table"][2]
    plan.exec(cut_along=average)
    assert (
        torch.equal(average.table, whole[:, :, kept]) and extras_of(average)[""].keys() == extras_of(model)[""].keys()
    )


def test_what_forward_made_anew_since_is_no_change_of_the_network() -> None:
    class Caching(nn.Module):
        """Keeps a table of positions, made anew for every other length, and the last thing it saw."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)
            self.places, self.seen = torch.rand(5, 1), torch.empty(0)

        def forward(self, x: Tensor) -> Tensor:
            if len(self.places) != x.shape[1]:
                self.places = torch.arange(x.shape[1])[:, None] / 10
            inner = self.first(x).relu()
            self.seen = inner.detach().mean(-1)
            return self.last(inner) * self.places

    model = Caching()
    graph = DependencyGraph(model, torch.randn(2, 5, 6))
    model(torch.randn(3, 7, 6))
    model.places = torch.rand(5, 1)
    graph.plan(graph.groups[0].nodes[:4]).exec()
    assert model.first.out_features == 4 and model(torch.randn(1, 5, 6)).shape == (1, 5, 3)


class MadeInForward(nn.Module):
    """Adds a table that forward computes from an integer that the module keeps."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.first, self.last, self.dim = kind, nn.Linear(6, 16), nn.Linear(16, 3), 16

    def own(self, length: int) -> Tensor:
        places = torch.arange(length, dtype=torch.float64)[:, None]
        if self.kind == "alike everywhere":
            return places + torch.arange(self.dim) * 0
        if self.kind == "frequencies":
            return (places * 100.0 ** -(torch.arange(self.dim) / self.dim)).sin()
        if self.kind == "halves":  # sines, then cosines
            angles = places * torch.exp(torch.arange(self.dim // 2) * (-4.6 / (self.dim // 2)))
            return torch.cat([angles.sin(), angles.cos()], dim=-1)
        if self.kind == "written":
            angles, table = (
                places * torch.exp(torch.arange(0, self.dim, 2) * (-4.6 / self.dim)),
                places.new_zeros(5, 16),
            )
            table = torch.zeros(length, self.dim, dtype=torch.float64)
            table[:, 0::2], table[:, 1::2] = angles.sin(), angles.cos()
            return table
        half = self.dim // 2  # DETR's way: sines and cosines in turn, for two coordinates
        steps = 100.0 ** (2 * torch.div(torch.arange(half), 2, rounding_mode="floor") / half)
        angles = places / steps
        angles = torch.stack((angles[:, 0::2].sin(), angles[:, 1::2].cos()), dim=2).flatten(1)
        return torch.cat((angles, angles), dim=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last((self.first(x) + self.own(x.shape[1])).relu())


@pytest.mark.parametrize("kind", ["alike everywhere", "frequencies", "halves", "written", "in turn"])
def test_a_table_made_in_forward_follows_the_width_and_is_told_where_its_values_change(kind: str) -> None:
    def made() -> nn.Module:
        torch.manual_seed(0)
        return MadeInForward(kind).double().eval()

    model, x = made(), torch.randn(2, 5, 6, dtype=torch.float64)
    graph = DependencyGraph(model, x)
    nodes = graph.groups[0].nodes
    assert len(nodes) == {"alike everywhere": 16, "frequencies": 16, "halves": 8, "written": 8, "in turn": 4}[kind]
    plan = graph.plan(nodes[: len(nodes) // 2])
    is_told = any("a table that the code computes from the width has other values" in why for why in plan.inexact)
    wanted = zeroed(model, plan.keeps)(x)
    plan.exec()
    assert model.dim == 8
    assert is_told == (not torch.allclose(model(x), wanted, atol=1e-9)) == (kind != "alike everywhere")
    assert extras_of(model)[""] == {"dim": 8}
    assert torch.equal(load_pruned(made(), model.state_dict(), x)(x), model(x))


def test_a_table_that_follows_a_width_along_another_side_is_told() -> None:
    class Shifted(nn.Module):
        """Adds to every place a number that depends on the width."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.last, self.dim = nn.Linear(6, 16), nn.Linear(16, 3), 16

        def forward(self, x: Tensor) -> Tensor:
            inner = self.first(x)
            weights = torch.arange(self.dim, dtype=x.dtype).sum() * torch.ones(5, 1, dtype=x.dtype)
            return self.last(inner.view(*x.shape[:2], self.dim).relu()) + weights

    graph = DependencyGraph(Shifted().double(), torch.randn(2, 5, 6, dtype=torch.float64))
    plan = graph.plan(graph.groups[0].nodes[:4])
    assert any("has other values" in why for why in plan.inexact)


@pytest.mark.parametrize("kind", ["plain", "list"])
def test_a_run_that_goes_on_from_a_checkpoint_cuts_tables_as_the_undisturbed_one(kind: str) -> None:
    from criterions.GroupMagnitude import GroupMagnitude
    from utils.runs.checkpoints import load_network, network_state

    x = torch.randn(2, 5, 6, dtype=torch.float64)
    first, second = PrunableNetwork(built(kind), x), PrunableNetwork(built(kind), x)
    first.prune(GroupMagnitude(), sparsity=0.4)
    assert second.nodes_total() == 8
    load_network(second, network_state(first), Path("checkpoint"))
    for sparsity, left in ((0.6, 3), (0.9, 1)):
        for network in (first, second):
            network.prune(GroupMagnitude(), sparsity=sparsity)
        assert first.model.first.out_features == left
        assert torch.equal(first.model(x), second.model(x))
