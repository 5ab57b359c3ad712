"""Shorter ways to a result's shape give what torch gives: shape, type, and how it lies in memory."""

import itertools

import pytest
import torch

from pruning.trace.meta_shapes import compute

aten = torch.ops.aten

PLAIN = torch.empty(2, 3, 4, 5, device="meta")
LAYOUTS = {
    "plain": PLAIN,
    "heads before tokens": torch.empty(2, 4, 3, 5, device="meta").transpose(1, 2),
    "batch of one": torch.empty(1, 4, 3, 5, device="meta").transpose(1, 2),
    "a part": torch.empty(2, 4, 3, 10, device="meta").transpose(1, 2)[..., :5],
    "channels last": PLAIN.to(memory_format=torch.channels_last),
    "expanded": torch.empty(2, 1, 4, 5, device="meta").expand(2, 3, 4, 5),
    "one value": torch.empty(5, device="meta"),
    "a row each": torch.empty(2, 1, 4, 1, device="meta"),
    "no token": torch.empty(2, 3, 0, 5, device="meta"),
}


def same(func, name, *args):
    """Compares strides where a dimension has more than one index; elsewhere they mean nothing."""
    expected, found = func(*args), compute(func, name, args, {})
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    for size, one, other in zip(expected.shape, expected.stride(), found.stride(), strict=True):
        assert size == 1 or expected.numel() == 0 or one == other


@pytest.mark.parametrize("one, other", list(itertools.product(LAYOUTS, repeat=2)))
def test_two_operands(one, other):
    one, other = LAYOUTS[one], LAYOUTS[other]
    try:
        torch.broadcast_shapes(one.shape, other.shape)
    except RuntimeError:
        with pytest.raises(RuntimeError):
            compute(aten.mul.Tensor, "aten.mul", (one, other), {})
        return
    same(aten.mul.Tensor, "aten.mul", one, other)
    same(aten.add.Tensor, "aten.add", one, other.half())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_operand(layout):
    x = LAYOUTS[layout]
    same(aten.neg.default, "aten.neg", x)
    same(aten.pow.Tensor_Scalar, "aten.pow", x, 2)
    for keepdim in (False, True):
        same(aten.mean.dim, "aten.mean", x, [-1], keepdim)
    same(aten.mean.default, "aten.mean", x)
    same(aten.cat.default, "aten.cat", [x, x], -1)


def test_what_does_not_fit_side_by_side_is_torchs_to_say():
    with pytest.raises(RuntimeError):
        compute(aten.cat.default, "aten.cat", ([PLAIN, torch.empty(2, 3, 4, device="meta")], 0), {})
