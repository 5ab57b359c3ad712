"""Random programs: layers with whatever moves channels about between them. Exact, or refused; never silently wrong."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pruning.errors import UsageError
from pruning.graph.graph import DependencyGraph
from tests.support.zoo.small import with_zeros

Move = Callable[[Tensor], Tensor]
Step = Callable[[Tensor, nn.ModuleList], Tensor]
STARTS = ((2, 3, 4, 4), (2, 5, 6), (2, 6))  # widths are small and often equal, so that mistakes meet lucky shapes


def joins(draw: random.Random, dim: int) -> Callable[[list[Tensor]], Tensor]:
    """Returns a way to make one tensor of parts along a dimension."""
    return draw.choice([
        lambda parts: torch.cat([*parts[1:], parts[0]], dim), lambda parts: torch.cat(list(parts), dim),
        lambda parts: parts[0] * parts[-1].sigmoid(), lambda parts: sum(parts), lambda parts: parts[-1],
        lambda parts: torch.stack(list(parts), dim),
        lambda parts: torch.stack(list(parts), dim + 1).flatten(dim, dim + 1),
    ])  # fmt: skip


def moves(draw: random.Random, x: Tensor) -> list[Move]:
    """Returns ways to move or mix what is in a tensor; many fit only some shapes."""
    rank = x.dim()
    dim, other, times = draw.randrange(1, rank), draw.randrange(1, rank), draw.choice([2, 3])
    size, first, last = x.shape[dim], min(dim, other), max(dim, other)
    cut, join, before = draw.randrange(1, max(size, 2)), joins(draw, dim), (slice(None),) * dim
    order = [0, *draw.sample(range(1, rank), rank - 1)]
    total = math.prod(x.shape[first : last + 1])
    factors = [count for count in range(2, total) if total % count == 0] or [1]
    count = draw.choice(factors)
    groups = draw.choice([(count, -1), (-1, count), (count, total // count), (times, count, -1), (-1, times, count)])
    places = torch.randperm(size).tolist()
    pad = [0, 0] * (rank - 1 - dim) + [draw.choice([-1, 0, 2]), draw.choice([0, 1])]
    return [
        lambda x: x.permute(order), lambda x: x.flatten(first, last), lambda x: x.unflatten(dim, (times, -1)),
        lambda x: x.unflatten(dim, (-1, times)), lambda x: x.reshape(*x.shape[:first], *groups, *x.shape[last + 1 :]),
        lambda x: x.reshape(*x.shape[:dim], times, size // times, *x.shape[dim + 1 :]),
        lambda x: join(x.chunk(times, dim)), lambda x: join(x.split([cut, x.shape[dim] - cut], dim)),
        lambda x: join([x[(*before, slice(0, cut))], x[(*before, slice(cut, None))]]),
        lambda x: join([x[(*before, slice(start, None, times))] for start in range(times)]),
        lambda x: join([x, x.tanh()]), lambda x: torch.cat([x, torch.zeros_like(x)], dim), lambda x: x.select(dim, -1),
        lambda x: x[(*before, places)], lambda x: x.gather(dim, x.argsort(dim)), lambda x: x.roll(1, dim),
        lambda x: x.flip(dim), lambda x: F.pad(x, pad, value=float(cut % 2)), lambda x: x.diff(dim=dim),
        lambda x: F.pixel_shuffle(x, 2), lambda x: F.pixel_unshuffle(x, 2), lambda x: F.channel_shuffle(x, times),
        lambda x: x.unsqueeze(dim).expand(*x.shape[:dim], times, *x.shape[dim:]).flatten(dim, dim + 1),
        lambda x: x.repeat_interleave(2, dim), lambda x: torch.cat([x] * 2, dim), lambda x: x.unsqueeze(dim),
        lambda x: x.squeeze(), lambda x: x.sum(dim), lambda x: F.glu(x, dim), lambda x: F.normalize(x, dim=dim),
        lambda x: F.unfold(x, 3, padding=1), lambda x: F.interpolate(x, scale_factor=2), lambda x: F.max_pool1d(x, 2),
    ]  # fmt: skip


def mixes(draw: random.Random, x: Tensor) -> list[Move]:
    """Returns functions of several channels or of their number, few of which stay exact."""
    dim = draw.randrange(1, x.dim())
    return [
        lambda x: x.mean(dim, keepdim=True) * x, lambda x: x.amax(dim), lambda x: x.softmax(dim),
        lambda x: x.cumsum(dim), lambda x: x @ x.transpose(-1, -2) @ x, lambda x: x / x.shape[dim] ** 0.5,
        lambda x: F.scaled_dot_product_attention(x, x, x), lambda x: x.sum(dim, keepdim=True) / x.shape[dim] + x,
    ]  # fmt: skip


class Program(nn.Module):
    """Layers and moves in a row; in some, what keeps its shape is added to what it was made of."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        draw = random.Random(seed)
        torch.manual_seed(seed)
        self.layers, self.x = nn.ModuleList(), torch.randn(draw.choice(STARTS), dtype=torch.float64)
        self.steps: list[Step] = []
        self.shortcuts = draw.random() < 0.3
        x, wanted = self.x, draw.randrange(3, 10)
        while len(self.steps) < wanted:
            known = len(self.layers)
            try:
                x = self._add(self._layer(draw, x) if not self.steps or draw.random() < 0.4 else self._move(draw, x), x)
            except (RuntimeError, ValueError, IndexError, TypeError, ZeroDivisionError):
                del self.layers[known:]
        self._add(self._take(nn.Linear(x.shape[-1], 3)), x, least=1, most=6000)

    def _add(self, step: Step, x: Tensor, least: int = 8, most: int = 2000) -> Tensor:
        made = self._run(step, x).detach()
        if not (2 <= made.dim() <= 6 and least <= made.numel() <= most and made.isfinite().all()):
            raise ValueError("too large or too small to go on with")
        self.steps.append(step)
        return made

    def _run(self, step: Step, x: Tensor) -> Tensor:
        made = step(x, self.layers)
        return made + x if self.shortcuts and made.shape == x.shape else made

    def _move(self, draw: random.Random, x: Tensor) -> Step:
        kind = draw.random()
        known = [torch.relu, torch.tanh, torch.sigmoid] if kind < 0.2 else (mixes if kind < 0.3 else moves)(draw, x)
        move = draw.choice(known)
        return lambda x, _: move(x)

    def _take(self, layer: nn.Module) -> Step:
        place = len(self.layers)
        self.layers.append(layer.double())
        return lambda x, layers: layers[place](x)

    def _layer(self, draw: random.Random, x: Tensor) -> Step:
        wide, kind, rank = draw.choice([4, 6, 8, 9]), draw.random(), x.dim()
        if kind < 0.2 and len(self.layers):  # again one that is there
            place = draw.randrange(len(self.layers))
            return lambda x, layers: layers[place](x)
        if kind < 0.5 and rank in (3, 4):
            groups = draw.choice([1, 1, 2, x.shape[1]])
            make = [[nn.Conv1d, nn.ConvTranspose1d], [nn.Conv2d, nn.ConvTranspose2d]][rank - 3][draw.random() < 0.3]
            return self._take(make(x.shape[1], wide * groups if wide % groups else wide, 1, groups=groups))
        if kind < 0.65 and rank in (2, 3, 4):
            norm = (nn.BatchNorm2d if rank == 4 else nn.BatchNorm1d)(x.shape[1])
            return self._take(draw.choice([norm, nn.GroupNorm(2, x.shape[1]), nn.LayerNorm(x.shape[-1])]).eval())
        return self._take(nn.Linear(x.shape[-1], wide))

    def forward(self, x: Tensor) -> Tensor:
        for step in self.steps:
            x = self._run(step, x)
        return x


def check(seed: int) -> int:
    """Compares every node's removal, and that of several at once, with zeros; returns how many were compared."""
    model, compared = Program(seed).eval(), 0
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.dim() == 1 and tensor.is_floating_point():  # norms and biases in which a mistake shows
            tensor.data.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(len(name)))
    graph = DependencyGraph(model, model.x)
    draw = np.random.default_rng(seed)
    free = np.flatnonzero(~graph.inexact)
    parts = [draw.permutation(group.nodes)[: len(group.nodes) // 2] for group in graph.groups]
    several = np.intersect1d(np.concatenate([np.empty(0, np.int64), *parts]), free)
    for nodes in (*draw.permutation(free)[:6, None], several):
        try:
            plan = graph.plan(nodes)
        except UsageError:  # nothing of it can go
            continue
        if not plan.inexact:
            wanted = with_zeros(model, model.x, plan.keeps)
            torch.testing.assert_close(plan.preview()(model.x), wanted, rtol=1e-6, atol=1e-8)
            compared += 1
    return compared


@pytest.mark.parametrize("start", [0, pytest.param(1000, marks=pytest.mark.slow)])
def test_smaller_programs_compute_what_zeros_would(start: int) -> None:
    seeds = range(start, start + (40 if start == 0 else 4000))
    assert sum(check(seed) for seed in seeds) > 2 * len(seeds)
