"""Sizes in the user's code: read where they come from, solved after a cut, or pinned; never guessed."""

from __future__ import annotations

import copy
import functools
import pickle
import random
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pruning.graph.graph import DependencyGraph
from pruning.trace.origins import Kept, Origin, leaves
from tests.support.zoo.small import with_zeros


class Listener:
    """Collects what the code found equal."""

    def __init__(self) -> None:
        self.said: list[tuple[object, object]] = []

    def equal(self, one: object, other: object, what: str) -> None:
        self.said.append((one, other))

    def made(self, origin: Origin) -> None:
        """Keeps no list of them."""


class Holder:
    """Keeps one integer."""

    def __init__(self, width: int) -> None:
        self.width = width


def origin(value: int, listener: Listener) -> Origin:
    return Origin(value, Kept(Holder(value), "width"), listener)


def test_arithmetic_is_that_of_integers_and_keeps_the_leaves() -> None:
    listener = Listener()
    one, other = origin(12, listener), origin(5, listener)
    made = [one + 3, 3 + one, one - other, 20 - one, 2 * one, one * other, one // 5, 40 // other, one % 5, -one, one**2]
    assert made == [15, 15, 7, 8, 24, 60, 2, 8, 2, -12, 144]
    assert all(isinstance(value, Origin) for value in made)
    assert [len(leaves(value.expression)) for value in made] == [1, 1, 2, 1, 1, 2, 1, 1, 1, 1, 1]
    assert type(one / 2) is float and type(one * 0.5) is float and type(int(one)) is int
    assert isinstance(sum([one, other]), Origin) and isinstance(max(one, other), Origin)
    assert isinstance(torch.Size([one, 2])[0], Origin)


def test_copies_are_plain() -> None:
    one = origin(12, Listener())
    assert all(type(made) is int for made in (copy.copy(one), copy.deepcopy(one), pickle.loads(pickle.dumps(one))))
    assert {one: 1}[12] == 1 and f"{one}" == "12" and list(range(origin(3, Listener()))) == [0, 1, 2]


def test_only_comparisons_in_the_code_count() -> None:
    listener = Listener()
    one, other = origin(12, listener), origin(12, listener)
    assert {12: "x"}[one] == "x" and one in [7, 12]  # look-ups compare keys too
    assert not listener.said
    same = one == other
    torch.Size([2, one]) != torch.Size([2, other])  # noqa: B015
    assert same and len(listener.said) == 2
    assert one != 5 and len(listener.said) == 2  # what differs says nothing


class Config:
    """A plain object that modules share."""

    def __init__(self, **values: object) -> None:
        vars(self).update(values)


class Sized(nn.Module):
    """Two layers with one statement about a size between them.

    Args:
        how: which statement.
    """

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.width, self.half, self.sizes = 12, 6, [4, 8]
        self.table = {"width": 12}
        self.config = Config(width=12, parts=(3, 4))
        self.other = nn.Linear(5, 12)
        self.first, self.last = nn.Linear(5, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden, batch = self.first(x), len(x)
        if self.how == "attribute":
            hidden = hidden.view(batch, self.width)
        elif self.how == "twice half":
            hidden = hidden.view(batch, 2 * self.half)
        elif self.how == "list":
            hidden = torch.cat(hidden.split(self.sizes, 1)[::-1], 1)
        elif self.how == "dict":
            hidden = hidden.reshape(batch, self.table["width"])
        elif self.how == "configuration":
            hidden = hidden.reshape(batch, self.config.width)
        elif self.how == "slice":
            hidden = torch.cat([hidden[:, self.sizes[0] :], hidden[:, : self.sizes[0]]], 1)
        elif self.how == "narrow":
            hidden = torch.cat([hidden.narrow(1, 0, self.sizes[0]), hidden.narrow(1, self.sizes[0], self.sizes[1])], 1)
        elif self.how == "zeros":
            hidden = hidden + torch.zeros(batch, self.width, dtype=x.dtype)
        elif self.how == "layer's own":
            hidden = hidden.view(batch, self.last.in_features)
        elif self.how == "assertion":
            assert hidden.shape[-1] == self.width
        elif self.how == "borrowed":
            hidden = hidden + self.other(x).view(batch, hidden.shape[1])
        return self.last(hidden.relu())


WAYS = ("attribute", "twice half", "list", "dict", "configuration", "slice", "narrow", "zeros", "layer's own",
        "assertion", "borrowed")  # fmt: skip


@pytest.mark.parametrize("how", WAYS)
def test_integers_follow(how: str) -> None:
    torch.manual_seed(0)
    model, x = Sized(how).double(), torch.randn(2, 5, dtype=torch.float64)
    before = copy.deepcopy(vars(model.config)), copy.deepcopy(model.sizes), model.width
    graph = DependencyGraph(model, x)
    assert (vars(model.config), model.sizes, model.width) == before and type(model.width) is int
    assert len(graph.nodes) == (6 if how == "twice half" else 12), "\n".join(map(str, graph.pinned))
    plan = graph.plan([0, 1, 5])
    wanted = with_zeros(model, x, plan.keeps)
    plan.exec()
    torch.testing.assert_close(model(x), wanted)
    assert len(DependencyGraph(model, x).nodes) == (3 if how == "twice half" else 9)
    assert type(model.width) is int and type(model.config.width) is int


def test_new_values_of_integers() -> None:
    model = Sized("list").double()
    DependencyGraph(model, torch.randn(2, 5).double()).plan([0, 1, 5]).exec()
    assert model.sizes == [2, 7] and model.width == 12  # `width` is not used, so it stays
    model = Sized("configuration").double()
    DependencyGraph(model, torch.randn(2, 5).double()).plan([0, 1, 5]).exec()
    assert model.config.width == 9 and model.config.parts == (3, 4)


class OneIntegerForTwo(nn.Module):
    """Two parts take their width from one integer, and so lose as many channels."""

    def __init__(self, constant: bool) -> None:
        super().__init__()
        self.constant, self.part = constant, 4
        self.first, self.last = nn.Linear(5, 11), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        part = 4 if self.constant else self.part
        one, rest, other = self.first(x).split([part, 3, part], 1)
        return self.last(one.relu()) + self.last(other.tanh()) + rest


@pytest.mark.parametrize("constant", [False, True])
def test_one_integer_for_two_parts_couples_them_and_a_constant_pins(constant: bool) -> None:
    graph = DependencyGraph(OneIntegerForTwo(constant), torch.randn(2, 5))
    if constant:
        assert not len(graph.nodes)
        assert any("hard-coded width in the network: split into" in str(pin) for pin in graph.pinned)
    else:
        assert len(graph.nodes) == 4


class MakesItsMaskAnew(nn.Module):
    """A buffer that training makes anew when the batch is of another size."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.batch = 12, 1
        self.first, self.last = nn.Linear(5, 12), nn.Linear(12, 3)
        self.register_buffer("mask", torch.ones(7, 12))

    def forward(self, x: Tensor) -> Tensor:
        if self.batch != len(x):
            self.batch = len(x)
            if self.training:
                self.mask = torch.ones(7, self.hidden)
        hidden = self.first(x).relu()
        return self.last(hidden * self.mask[: len(x)] if self.training else hidden)


def test_a_buffer_made_anew_follows_in_training_too() -> None:
    model, x = MakesItsMaskAnew(), torch.randn(4, 5)
    DependencyGraph(model, x).plan(range(8)).exec()
    assert (model.hidden, tuple(model.mask.shape)) == (4, (7, 4))
    model.eval()(x)
    assert model.train()(x).shape == (4, 3) and model(x[:2]).shape == (2, 3)


class Scaled(nn.Module):
    """Attention whose scale is a tensor made of a width, in code that looks at data."""

    def __init__(self, looks: bool) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 3)
        self.looks = looks

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.q(x), self.k(x), self.v(x)
        if self.looks:
            assert not v.isnan().any().item()  # values that parameters made
        scale = torch.sqrt(torch.tensor(q.size(-1), dtype=torch.float64) * 3)
        return self.out(((q / scale) @ k.transpose(-1, -2)).softmax(-1) @ v)


@pytest.mark.parametrize("looks", [False, True])
def test_scales_in_tensors_are_folded(looks: bool) -> None:
    torch.manual_seed(0)
    model, x = Scaled(looks).double(), torch.randn(2, 5, 6, dtype=torch.float64)
    graph = DependencyGraph(model, x)
    assert graph.traced.real == looks
    plan = graph.plan([graph.node_of("q.weight", 0, 3)])
    assert plan.scales and not plan.inexact
    wanted = with_zeros(model, x, plan.keeps)
    torch.testing.assert_close(plan.preview()(x), wanted)


class LooksAtItsInput(nn.Module):
    """Code that looks at the values of a mask, which no parameter made."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Embedding(11, 8), nn.Linear(8, 3)

    def forward(self, words: Tensor, mask: Tensor) -> Tensor:
        x = self.first(words)
        positions = torch.arange(words.shape[1], device=x.device)
        assert positions.max().item() == words.shape[1] - 1
        if not mask.all():
            x = x * mask[..., None]
        return self.last(x)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_inputs_keep_their_values(device: str) -> None:
    with torch.device(device):
        model = LooksAtItsInput()
    mask = torch.tensor([[True, True, False]])
    graph = DependencyGraph(model, {"words": torch.tensor([[1, 2, 3]]), "mask": mask})
    assert not graph.traced.real and not graph.traced.notes and len(graph.nodes) == 8
    operations = [entry.name for entry in graph.traced.runs[False]]
    assert "aten.mul" in operations  # the mask was seen to be false somewhere
    assert graph.plan(range(4)).parameters_removed == 11 * 4 + 3 * 4


# -- random programs ---------------------------------------------------------------------------------------------------


class Pair(NamedTuple):
    """Two integers with names."""

    first: int
    second: int


class Program(nn.Module):
    """Layers with statements about sizes between them, each said in one of many ways."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        draw = random.Random(seed)
        torch.manual_seed(seed)
        self.layers = nn.ModuleList()
        self.kept: dict[str, int] = {}
        self.names = 0
        self.config = Config(inner=Config())
        self.lists: list[list[int]] = []
        self.steps: list[tuple[str, tuple[object, ...]]] = []
        width = 5
        for _ in range(draw.randrange(2, 6)):
            made = draw.choice([4, 6, 8, 12])
            self.layers.append(nn.Linear(width, made))
            self.steps.append(self._step(draw, made, width))
            width = made
        self.last = nn.Linear(width, 3)

    def _keep(self, draw: random.Random, value: int) -> tuple[str, object]:
        """Keeps an integer somewhere, maybe where an equal one is kept already, and returns where."""
        places = ["attribute", "dict", "config", "inner", "list", "pair", "partial", "class", "constant", "again"]
        place = draw.choice(places)
        self.names += 1
        name = f"n{self.names}"
        if place == "again":
            same = [key for key, other in self.kept.items() if other == value]
            if same:
                return "dict", draw.choice(same)
            place = "attribute"
        if place == "attribute":
            setattr(self, name, value)
        elif place == "dict":
            self.kept[name] = value
        elif place == "config":
            setattr(self.config, name, value)
        elif place == "inner":
            setattr(self.config.inner, name, value)  # type: ignore[attr-defined]
        elif place == "list":
            self.lists.append([value])
            return place, len(self.lists) - 1
        elif place == "pair":
            setattr(self, name, Pair(value, value))
        elif place == "partial":
            setattr(self, name, functools.partial(int.__add__, value))
        elif place == "class":
            setattr(type(self), name, value)
        else:
            return place, value
        return place, name

    def _read(self, where: tuple[str, object]) -> int:
        place, name = where
        if place == "constant":
            return name  # type: ignore[return-value]
        if place == "list":
            return self.lists[name][0]  # type: ignore[index]
        if place == "dict":
            return self.kept[name]  # type: ignore[index]
        if place in ("config", "inner"):
            return getattr(self.config if place == "config" else self.config.inner, name)  # type: ignore
        if place == "pair":
            return getattr(self, name).second  # type: ignore
        if place == "partial":
            return getattr(self, name).args[0]  # type: ignore
        return getattr(self, name)  # type: ignore

    def _step(self, draw: random.Random, width: int, before: int) -> tuple[str, tuple[object, ...]]:
        kinds = ["none", "view", "heads", "split", "slice", "product", "borrow", "compare", "times", "free", "loop"]
        kind = draw.choice(kinds)
        heads = draw.choice([heads for heads in (1, 2, 3, 4) if width % heads == 0])
        first = draw.randrange(1, width)
        if kind in ("heads", "product", "times"):
            return kind, (self._keep(draw, heads), self._keep(draw, width // heads))
        if kind in ("split", "slice"):
            return kind, (self._keep(draw, first), self._keep(draw, width - first))
        if kind == "borrow":
            return ("borrow", ()) if width == before else ("none", ())
        if kind == "free":
            return kind, (self._keep(draw, heads), draw.random() < 0.5)
        if kind == "loop":
            return kind, (self._keep(draw, heads),)
        return kind, (self._keep(draw, width),)

    def _between(self, x: Tensor, before: Tensor, kind: str, said: tuple[object, ...]) -> Tensor:
        batch = x.shape[0]
        if kind == "view":
            return x.view(batch, self._read(said[0]))  # type: ignore[arg-type]
        if kind in ("heads", "product", "times"):
            heads, width = self._read(said[0]), self._read(said[1])  # type: ignore[arg-type]
            if kind == "times":
                return x.reshape(batch, heads * width)
            y = x.view(batch, heads, width) if kind == "heads" else x.view(batch, -1, width)
            return (y * y.sum(1, keepdim=True)).flatten(1) if kind == "heads" else y.reshape(batch, heads * width)
        if kind == "split":
            parts = x.split([self._read(where) for where in said], 1)  # type: ignore[arg-type]
            return torch.cat(parts[::-1], 1)
        if kind == "slice":
            place = self._read(said[0])  # type: ignore[arg-type]
            return torch.cat([x[:, place:], x[:, :place]], 1)
        if kind == "borrow":
            return x.view(batch, before.shape[1]).tanh()  # a width of another tensor, equal by chance
        if kind == "loop":
            parts = self._read(said[0])  # type: ignore[arg-type]
            part = divmod(x.shape[1], parts)[0]
            pieces = [x[:, turn * part : (turn + 1) * part] * (turn + 1) for turn in range(parts)]
            return torch.cat(pieces, 1)
        if kind == "compare":
            assert x.shape[-1] == self._read(said[0])  # type: ignore[arg-type]
        if kind == "free":
            heads = self._read(said[0])  # type: ignore[arg-type]
            y = x.view(batch, heads, x.shape[1] // heads)
            return (y.transpose(1, 2).reshape(batch, -1) if said[1] else y.flatten(1)).tanh()
        return x

    def forward(self, x: Tensor) -> Tensor:
        for layer, (kind, said) in zip(self.layers, self.steps, strict=True):
            x = self._between(layer(x).relu(), x, kind, said)
        return self.last(x)


def check(seed: int) -> int:
    """Removes nodes of a program in several ways and compares with zeros; returns how many plans were compared."""
    kind = type("Program", (Program,), {})  # some integers stand in the class
    model, x = kind(seed).double(), torch.randn(2, 5, dtype=torch.float64)
    graph = DependencyGraph(model, x)
    draw = np.random.default_rng(seed)
    compared = 0
    for share in (0.2, 0.5, 0.8):
        parts = [draw.permutation(group.nodes)[: int(len(group.nodes) * share)] for group in graph.groups]
        nodes = np.concatenate([np.empty(0, np.int64), *parts])
        nodes = nodes[~graph.inexact[nodes]]
        if not len(nodes):
            continue
        plan = graph.plan(nodes)  # what was not pinned can go, in any number
        wanted = with_zeros(model, x, plan.keeps)
        torch.testing.assert_close(plan.preview()(x), wanted, rtol=1e-6, atol=1e-9)
        compared += 1
    return compared


@pytest.mark.parametrize(
    ("start", "count"),
    [
        (0, 30),
        pytest.param(100, 60, marks=pytest.mark.thorough),
        pytest.param(1000, 3000, marks=pytest.mark.slow),
    ],
)
def test_random_programs_run_with_their_new_integers_or_are_pinned(start: int, count: int) -> None:
    seeds = range(start, start + count)
    assert sum(check(seed) for seed in seeds) > len(seeds)
