"""Couples what the code of a network computes one from the other, and pins what it says in fixed numbers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch import nn

from pruning.dry_run.solve import Count, Failed, Solver, Value
from pruning.modules.attention import ByHeads
from pruning.modules.attributes import Attribute, module_integers
from pruning.modules.kept import replaced_integers
from pruning.trace.components import Mask, Structure
from pruning.trace.labels import Labels
from pruning.trace.origins import Expression, Kept, Step, Width
from pruning.trace.sizes import Equation
from pruning.trace.traced import TracedNetwork

_POINTS = 6  # a quotient by 2 that is whole only by luck passes once in 64 times, and meets the dry run then


def tie_attention(traced: TracedNetwork) -> None:
    """Couples the rows of queries, keys and values to the embedding, in every `nn.MultiheadAttention`.

    It takes its head width from the embedding, so these rows can only go with an index of it; `ByHeads` does not.
    """
    facts = traced.structure.facts
    for module in traced.model.modules():
        loses_heads = isinstance(module, ByHeads) or (traced.by_heads and type(module) is nn.MultiheadAttention)
        if loses_heads or not isinstance(module, nn.MultiheadAttention):
            continue
        weights = (module.in_proj_weight, module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
        names = [traced.names[id(weight)] for weight in weights if weight is not None]
        embedding = traced.labels(names[0], 1)
        if not len(embedding):
            continue
        for name in names:
            # The joint weight has the rows of queries, keys and values one after the other.
            for rows in traced.labels(name, 0).reshape(-1, len(embedding)):
                facts.ties.append((rows, embedding, facts.place("tie", "")))


def solved(traced: TracedNetwork, removed: Mask) -> Solver:
    """Returns the equations of a network solved for what is left once labels are removed."""
    survive = traced.structure.alive & ~removed
    return Solver(traced.equations, lambda labels: (int(survive[labels].sum()),))


def new_integers(traced: TracedNetwork, removed: Mask) -> list[Attribute]:
    """Returns (holder, attribute, value) of every integer that changes once labels are removed."""
    solver = solved(traced, removed)
    shapes = traced.shapes_by_id(removed)
    found = list(traced.derived)
    found += module_integers(traced.model, shapes, traced.grouped, by_heads=traced.by_heads)
    concerned: dict[int, object] = {}  # by identity: config objects need not be hashable
    for kept, _ in solver.because.values():
        new_value = solver.values[kept.key][0]
        if new_value != kept.value:
            concerned[id(kept.holder)] = kept.holder
    for holder in concerned.values():
        altered: set[str] = set()

        def changed(
            name: str, path: tuple[object, ...], value: int, holder: object = holder, altered: set[str] = altered
        ) -> int:
            (new,) = solver.values.get((id(holder), name, path), (value,))
            if new != value:
                altered.add(name)
            return new

        for name, new in replaced_integers(holder, changed):
            if name in altered:
                found.append((holder, name, new))
    for module, name, new in _heads_said(traced, removed):
        if (id(module), name, ()) not in solver.values:  # what the code reads follows from what it does with it
            found.append((module, name, new))
    return found


def _heads_said(traced: TracedNetwork, removed: Mask) -> list[Attribute]:
    """Returns what modules that split heads, or hold such, say of their number, even where no code reads it.

    Such as `num_attention_heads` beside a view to (..., -1, head_dim): whoever looks at it wants the number of now.
    """
    alive = traced.structure.alive
    counts: dict[tuple[str, int], set[int]] = {}  # (path of a module, heads before) -> heads that are left
    for path, labels in traced.heads_made:
        before, left = int(alive[labels].sum()), int((alive & ~removed)[labels].sum())
        for owner in _owners(path):
            counts.setdefault((owner, before), set()).add(left)
    found: list[Attribute] = []
    for (path, before), lefts in counts.items():
        module = traced.model.get_submodule(path)
        if len(lefts) > 1 or before in lefts or isinstance(module, nn.MultiheadAttention):
            continue  # layers inside lost different numbers; or torch's own, which follows from its shapes
        (left,) = lefts
        for name, value in vars(module).items():
            if type(value) is not int:
                continue
            if value == before and name.endswith(("head", "heads")):
                found.append((module, name, left))
            elif value % before == 0 and name == "all_head_size":
                found.append((module, name, value // before * left))
    return found


def _owners(path: str) -> Iterator[str]:
    """Yields the paths of a module and of all those that it is a part of."""
    while path:
        yield path
        path = path.rpartition(".")[0]
    yield ""


def couple_sizes(traced: TracedNetwork) -> None:
    """Adds ties and pins until what the code says of sizes holds for every choice of nodes."""
    structure = traced.structure
    for _ in range(2 * len(traced.equations) + 1):  # each turn couples or pins
        solver = Solver(traced.equations, _at_random(structure))
        coupled = [_couple(structure, solver, failed) for failed in solver.failed]
        if not any(coupled):  # what else does not hold may hold once others are coupled, so it is pinned last
            coupled = [_pin(structure, solver, failed) for failed in solver.failed]
        if not any(coupled):
            return
        structure.assemble()


def _at_random(structure: Structure) -> Count:
    """Returns what counts labels where every free node stands for a random number of channels."""
    random = np.random.default_rng(0)
    numbers = random.integers(1, 2**20, (len(structure.pinned_by), _POINTS))
    numbers[structure.pinned_by >= 0] = 1
    component = structure.component

    def count(labels: Labels) -> Value:
        return tuple(numbers[component[labels]].sum(0).tolist())

    return count


def _couple(structure: Structure, solver: Solver, failed: Failed) -> bool:
    """Couples the dimensions of an equation; returns whether that changed anything."""
    equation = failed.equation
    if failed.dividend is None:
        pairs = _paired(*_sides(solver, equation))
    elif failed.divisor or failed.by is None:
        pairs = _divided_evenly(_sources(solver, failed.dividend, set()), failed.divisor)
    else:
        pairs = _in_blocks(_sources(solver, failed.dividend, set()), _sources(solver, failed.by, set()))
    place = structure.facts.place(f"{equation.what}, a size that the code takes from another", equation.where)
    uncoupled = [pair for pair in pairs if not _are_one(structure, *pair)]
    structure.facts.ties += [(left, right, place) for left, right in uncoupled]
    return bool(uncoupled)


def _pin(structure: Structure, solver: Solver, failed: Failed) -> bool:
    """Pins what could still go of an equation that no coupling helps; returns whether there was anything."""
    equation = failed.equation
    one, other = _sides(solver, equation)
    free = []
    for labels in one + other:
        pins = structure.pinned_by[structure.component[labels]]
        if (pins < 0).any():
            free.append(labels)
    if free:
        where = f"module {equation.where}" if equation.where else "the network"
        structure.pin(free, "the code", equation.where, f"hard-coded width in {where}: {equation.what}")
    return bool(free)


def _sides(solver: Solver, equation: Equation) -> tuple[list[Labels], list[Labels]]:
    """Returns the dimensions behind both sides of an equation."""
    return _sources(solver, equation.one, set()), _sources(solver, equation.other, set())


def _are_one(structure: Structure, one: Labels, other: Labels) -> bool:
    return np.array_equal(structure.component[one], structure.component[other])


def _sources(solver: Solver, expression: Expression, seen: set[object]) -> list[Labels]:
    """Returns the dimensions behind an expression, those of attributes by the equation that gave them their value."""
    if isinstance(expression, Width):
        return [expression.labels]
    if isinstance(expression, Step):
        return _sources(solver, expression.left, seen) + _sources(solver, expression.right, seen)
    if not isinstance(expression, Kept):
        return []
    is_constant = len(set(solver.values.get(expression.key, ()))) == 1  # the same for every choice of nodes
    # An attribute may stand in the equation that gave it its value.
    if is_constant or expression.key not in solver.because or expression.key in seen:
        return []
    seen = seen | {expression.key}
    equation: Equation = solver.because[expression.key][1]
    return _sources(solver, equation.one, seen) + _sources(solver, equation.other, seen)


def _paired(one: list[Labels], other: list[Labels]) -> list[tuple[Labels, Labels]]:
    """Returns rows to couple so that both sides shrink alike; none where no way is known."""
    if not one or not other:
        return []
    if len(one) > 1 or len(other) > 1:
        whole, parts = (one[0], other) if len(one) == 1 else (other[0], one)
        ends = np.cumsum([len(part) for part in parts])
        is_whole_of_parts = min(len(one), len(other)) == 1 and ends[-1] == len(whole)
        if is_whole_of_parts:
            return list(zip(np.split(whole, ends[:-1]), parts, strict=True))
        first, *others = one + other
        all_alike = all(len(part) == len(first) for part in others)
        return [(first, part) for part in others] if all_alike else []
    # One is a multiple of the other: each of its parts shrinks as the other does.
    large, small = sorted((one[0], other[0]), key=len, reverse=True)
    if not len(small) or len(large) % len(small):
        return []
    return [(row, small) for row in large.reshape(-1, len(small))]


def _divided_evenly(rows: list[Labels], divisor: int) -> list[tuple[Labels, Labels]]:
    """Returns rows to couple so that each dimension keeps a multiple of the divisor."""
    pairs = []
    for labels in rows:
        if divisor > 1 and len(labels) % divisor == 0:
            first, *others = labels.reshape(divisor, -1)
            pairs += [(first, other) for other in others]
    return pairs


def _in_blocks(dividend: list[Labels], divisor: list[Labels]) -> list[tuple[Labels, Labels]]:
    """Returns rows to couple so that a quotient of two widths stays: with each index of the divisor goes one block.

    Such as `channels // heads`, the width of a head: with a head go as many channels.
    """
    if len(dividend) != 1 or len(divisor) != 1:
        return []
    (large,), (small,) = dividend, divisor
    if not len(small) or len(large) % len(small):
        return []
    blocks = large.reshape(len(small), -1)
    return [(column, small) for column in blocks.T]
