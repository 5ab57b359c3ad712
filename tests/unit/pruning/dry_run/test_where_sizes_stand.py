"""Where a user's code may keep a size: all kinds of places are adapted, or pinned with the code's own words."""

from __future__ import annotations

import argparse
import copy
import functools
import gc
import math
import pickle
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pruning.graph.graph import DependencyGraph
from pruning.modules.kept import holders
from pruning.trace.origins import Origin
from tests.support.tiers import few
from tests.support.zoo.small import with_zeros


class Sizes(NamedTuple):
    heads: int = 4
    width: int = 4


@dataclass(frozen=True)
class Frozen:
    heads: int = 4
    width: int = 4


class Plain:
    """Keeps one size, and works out the other."""

    def __init__(self) -> None:
        self.heads, self.all = 4, 16

    @property
    def width(self) -> int:
        return self.all // self.heads


class Row(list):  # type: ignore[type-arg]
    pass


class Table(dict):  # type: ignore[type-arg]
    pass


def item(settings: Any) -> tuple[int, int]:
    return settings["heads"], settings["width"]


def attribute(settings: Any) -> tuple[int, int]:
    return settings.heads, settings.width


BOTH = {"heads": 4, "width": 4}
PLACES: dict[str, tuple[Any, Callable[[Any], tuple[int, int]]]] = {
    "tuple": ((4, 4), lambda kept: kept),
    "list of lists": ([[4], [4]], lambda kept: (kept[0][0], kept[1][0])),
    "list of a kind": (Row([4, 4]), lambda kept: (kept[0], kept[1])),
    "named tuple": (Sizes(), attribute),
    "dict": (dict(BOTH), item),
    "ordered dict": (OrderedDict(BOTH), item),
    "default dict": (defaultdict(int, BOTH), item),
    "dict of a kind": (Table(BOTH), item),
    "namespace": (SimpleNamespace(**BOTH), attribute),
    "arguments": (argparse.Namespace(**BOTH), attribute),
    "frozen data class": (Frozen(), attribute),
    "property": (Plain(), attribute),
    "object in an object": (SimpleNamespace(inner=Frozen()), lambda kept: attribute(kept.inner)),
    "objects in a list": ([Frozen(), Frozen()], lambda kept: attribute(kept[0])),
    "objects in a dict": ({"one": Plain()}, lambda kept: attribute(kept["one"])),
    "numpy's integers": (np.array([4, 4])[0], lambda kept: (4, kept)),
    "product": (SimpleNamespace(heads=4, half=2), lambda kept: (kept.heads, 2 * kept.half)),
    "quotient": (SimpleNamespace(heads=4, all=16), lambda kept: (kept.heads, divmod(kept.all, kept.heads)[0])),
    "shift": (SimpleNamespace(heads=4, double=8), lambda kept: (kept.heads, kept.double >> 1)),
    "rounded": (SimpleNamespace(heads=4, all=16), lambda kept: (kept.heads, math.ceil(kept.all // kept.heads))),
}  # fmt: skip


class Attention(nn.Module):
    """One layer of attention that learns how many heads there are, and how wide each is, from what it keeps.

    Args:
        kept: where the sizes stand.
        sizes: reads (heads, width of each) there.
    """

    def __init__(self, kept: Any, sizes: Callable[[Any], tuple[int, int]]) -> None:
        super().__init__()
        self.kept, self.sizes = kept, sizes
        self.qkv, self.out = nn.Linear(6, 48), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        heads, width = self.sizes(self.kept)
        return self.attend(x, heads, width)

    def attend(self, x: Tensor, heads: int, width: int) -> Tensor:
        query, key, value = self.qkv(x).view(*x.shape[:2], 3, heads, width).permute(2, 0, 3, 1, 4)
        mixed = (query @ key.transpose(-1, -2)).softmax(-1) @ value
        return self.out(mixed.transpose(1, 2).reshape(*x.shape[:2], heads * width))


class OfItsClass(Attention):
    heads, width = 4, 4

    def forward(self, x: Tensor) -> Tensor:
        return self.attend(x, self.heads, self.width)


class Cached(Attention):
    @functools.cached_property
    def width(self) -> int:
        return self.kept.all // self.kept.heads  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        return self.attend(x, self.kept.heads, self.width)


class Lazy(Attention):
    width: Any = None

    def forward(self, x: Tensor) -> Tensor:
        if self.width is None:
            self.width = self.kept.all // self.kept.heads
        return self.attend(x, self.kept.heads, self.width)


class InAPartial(Attention):
    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.kept(self.qkv(x))
        mixed = (query @ key.transpose(-1, -2)).softmax(-1) @ value
        return self.out(mixed.transpose(1, 2).flatten(2))


def in_heads(x: Tensor, heads: int, width: int) -> Tensor:
    return x.view(*x.shape[:2], 3, heads, width).permute(2, 0, 3, 1, 4)


class Cutter:
    """An object that is called, as layers of other libraries are that hold no tensors."""

    def __init__(self) -> None:
        self.heads, self.width = 4, 4

    def __call__(self, x: Tensor) -> Tensor:
        return in_heads(x, self.heads, self.width)


@functools.lru_cache
def head_width(width: int, heads: int) -> int:
    return width // heads


class Remembering(Attention):
    """What it asks for was computed before, of equal numbers that meant something else."""

    def forward(self, x: Tensor) -> Tensor:
        return self.attend(x, self.kept.heads, head_width(self.kept.all, self.kept.heads))


MODULES: dict[str, Callable[[], nn.Module]] = {
    name: functools.partial(lambda kept, sizes: Attention(copy.deepcopy(kept), sizes), *place)
    for name, place in PLACES.items()
}
MODULES |= {
    "class": lambda: OfItsClass(None, item),
    "cached property": lambda: Cached(Plain(), item),
    "lazy": lambda: Lazy(Plain(), item),
    "partial": lambda: InAPartial(functools.partial(in_heads, heads=4, width=4), item),
    "callable object": lambda: InAPartial(Cutter(), item),
    "remembered": lambda: Remembering(Plain(), item),
}


@pytest.mark.parametrize("called_before", [False, True])
@pytest.mark.parametrize("place", few(MODULES, ["named tuple", "object in an object", "class", "lazy", "remembered"]))
def test_sizes_follow_wherever_they_stand(place: str, called_before: bool) -> None:
    torch.manual_seed(0)
    model, x = MODULES[place]().double(), torch.randn(2, 5, 6, dtype=torch.float64)
    if called_before:
        model(x)
    before = pickle.dumps([vars(holder) for holder in holders(model).values() if not isinstance(holder, nn.Module)])
    graph = DependencyGraph(model, x)
    after = pickle.dumps([vars(holder) for holder in holders(model).values() if not isinstance(holder, nn.Module)])
    assert before == after
    assert len(graph.nodes) == (2 if place == "product" else 4), "\n".join(map(str, graph.pinned))
    plan = graph.plan([1])
    wanted = with_zeros(model, x, plan.keeps)  # calls the network, which may note sizes of before the cut
    torch.testing.assert_close(plan.preview()(x), wanted)
    model(x)
    plan.exec()
    torch.testing.assert_close(model(x), wanted)


def closure(width: int) -> Callable[[Tensor], Tensor]:
    return lambda x: x.view(*x.shape[:-1], -1, width)


WIDTH = 4


class Fixed(nn.Module):
    """Sizes that no copy of a network can hold for itself.

    Args:
        how: where the size stands.
    """

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.cut = how, closure(4)
        self.first, self.last = nn.Linear(6, 16), nn.Linear(16, 3)

    def in_parts(self, x: Tensor, width: int = 4) -> Tensor:
        return x.view(*x.shape[:-1], -1, width)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        if self.how == "closure":
            parts = self.cut(hidden)
        elif self.how == "default":
            parts = self.in_parts(hidden)
        else:
            parts = hidden.view(*x.shape[:-1], -1, WIDTH if self.how == "global" else 4)
        return self.last(parts.tanh().flatten(-2))


@pytest.mark.parametrize("how", ["closure", "default", "global", "literal"])
def test_what_all_copies_share_pins_in_the_words_of_the_code(how: str) -> None:
    graph = DependencyGraph(Fixed(how), torch.randn(2, 5, 6))
    assert not len(graph.nodes)
    assert any("hard-coded width in the network: view to [2, 5, 4, 4]" in str(pin) for pin in graph.pinned)


class InALoop(nn.Module):
    """Equal parts, whose bounds a loop computes."""

    def __init__(self) -> None:
        super().__init__()
        self.parts, self.first, self.last = 4, nn.Linear(6, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        width = hidden.shape[-1] // self.parts
        pieces = [hidden[..., turn * width : (turn + 1) * width] for turn in range(self.parts)]
        return self.last(torch.cat([piece.tanh() * (turn + 1) for turn, piece in enumerate(pieces)], -1))


def test_couplings_are_tried_before_anything_is_pinned() -> None:
    model, x = InALoop().double(), torch.randn(2, 5, 6, dtype=torch.float64)
    graph = DependencyGraph(model, x)
    assert len(graph.nodes) == 4, "\n".join(map(str, graph.pinned))
    plan = graph.plan([0, 3])
    torch.testing.assert_close(plan.preview()(x), with_zeros(model, x, plan.keeps))


def test_sizes_of_a_run_are_forgotten() -> None:
    kept: list[Any] = []

    class Keeps(InALoop):
        def forward(self, x: Tensor) -> Tensor:
            kept.append(self.first(x).shape[-1] // self.parts)
            return super().forward(x)

    head_width.cache_clear()
    graph = DependencyGraph(Keeps(), torch.randn(2, 5, 6))
    DependencyGraph(Remembering(Plain(), item), torch.randn(2, 5, 6))
    assert head_width.cache_info().currsize == 0 and type(graph) is DependencyGraph
    (made, *_) = [value for value in kept if isinstance(value, Origin)]
    assert made == 4 and made.listener is None and type(made + 1) is int
    held = [value for value in gc.get_objects() if type(value) is dict and any(type(key) is Origin for key in value)]
    assert not held


@pytest.mark.parametrize("both", [False, True])
def test_recipes_of_einops(both: bool) -> None:
    einops = pytest.importorskip("einops")

    class Einops(Attention):
        def forward(self, x: Tensor) -> Tensor:
            sizes = {"h": self.kept.heads, "d": self.kept.width} if both else {"h": self.kept.heads}
            query, key, value = [
                einops.rearrange(part, "b n (h d) -> b h n d", **sizes) for part in self.qkv(x).chunk(3, -1)
            ]
            mixed = (query @ key.transpose(-1, -2)).softmax(-1) @ value
            return self.out(einops.rearrange(mixed, "b h n d -> b n (h d)"))

    model, x = Einops(SimpleNamespace(heads=4, width=4), item).double(), torch.randn(2, 5, 6, dtype=torch.float64)
    for _ in range(2):  # the second time in a network whose recipes einops knows already
        graph = DependencyGraph(model, x)
        plan = graph.plan(graph.groups[0].nodes[:1])
        torch.testing.assert_close(plan.preview()(x), with_zeros(model, x, plan.keeps))
        plan.exec()
        model(x)
