"""What the decorator of a rule says of its operations, against what the operations do."""

from __future__ import annotations

import pytest
import torch

from pruning.trace.labels import Axis
from pruning.trace.rules.table import _KINDS, RULES, Kind, kind_of

UNARY = [
    name.removeprefix("aten.")
    for name, kind in _KINDS.items()
    if Kind.KEEPS_ZERO in kind and hasattr(torch.nn.functional, name.removeprefix("aten."))
]


@pytest.mark.parametrize("name", sorted(_KINDS))
def test_every_name_is_an_operation_of_torch_and_has_its_rule(name: str) -> None:
    assert hasattr(torch.ops.aten, name.removeprefix("aten."))
    assert name in RULES


def test_an_operation_may_be_of_several_kinds() -> None:
    assert kind_of("aten.clone") == Kind.KEEPS_ZERO | Kind.MOVES | Kind.COPIES
    assert kind_of("aten.expand") == Kind.MOVES | Kind.MAKES
    assert kind_of("aten.sigmoid") == kind_of("mylib.op") == Kind.NOTHING


def test_writing_in_place_is_no_move() -> None:
    for name in [name for name, kind in _KINDS.items() if Kind.MOVES in kind]:
        assert f"{name}_" in RULES  # known, but a table of labels must not be written to
        assert Kind.MOVES not in kind_of(f"{name}_"), name


@pytest.mark.parametrize("name", UNARY)
def test_zeros_stay_zeros(name: str) -> None:
    zeros = torch.zeros(2, 3)
    assert torch.equal(getattr(torch.nn.functional, name)(zeros), zeros)


def test_sums_pass_zeros_by() -> None:
    x = torch.tensor([1.0, 2.0, -3.5])
    padded = torch.cat([x, torch.zeros(2)])
    for name in [name.removeprefix("aten.") for name, kind in _KINDS.items() if Kind.SUMS in kind]:
        reduce = torch.linalg.vector_norm if name == "linalg_vector_norm" else getattr(torch, name)
        assert torch.equal(reduce(x), reduce(padded)), name


def test_copies_of_an_axis() -> None:
    axis = Axis(torch.arange(2).numpy(), zero=False)
    assert axis.tiled(2).labels.tolist() == [0, 1, 0, 1]
    assert axis.repeated(2).labels.tolist() == [0, 0, 1, 1]
    assert not axis.tiled(2).zero
