"""einsum by products of matrices computes what torch's does."""

from __future__ import annotations

import random

import pytest
import torch

from pruning.modules.einsum import einsum

SIZES = {"a": 1, "b": 2, "c": 3, "d": 4, "e": 2, "f": 1}


def test_random_equations() -> None:
    draw = random.Random(0)
    for _ in range(300):
        one = draw.sample("abcdef", draw.randint(1, 4))
        other = draw.sample("abcdef", draw.randint(1, 4))
        letters = sorted({*one, *other})
        equation = f"{''.join(one)}, {''.join(other)}"
        if draw.random() < 0.8:
            equation += " -> " + "".join(draw.sample(letters, draw.randint(0, len(letters))))
        left = torch.randn([SIZES[letter] for letter in one], dtype=torch.float64)
        right = torch.randn([SIZES[letter] for letter in other], dtype=torch.float64)
        torch.testing.assert_close(einsum(equation, left, right), torch.einsum(equation, left, right), msg=equation)


@pytest.mark.parametrize(
    ("equation", "shapes"),
    [
        ("ii->i", [(3, 3)]),
        ("...ij,...jk->...ik", [(2, 3, 4), (2, 4, 5)]),
        ("ii,ij->j", [(3, 3), (3, 2)]),
        ("ij,jk,kl->il", [(2, 3), (3, 4), (4, 5)]),
        ("ij,ij->ij", [(1, 4), (3, 4)]),
    ],
)
def test_what_is_left_to_torch(equation: str, shapes: list[tuple[int, ...]]) -> None:
    operands = [torch.randn(shape) for shape in shapes]
    torch.testing.assert_close(einsum(equation, *operands), torch.einsum(equation, *operands))
    torch.testing.assert_close(einsum(equation, operands), torch.einsum(equation, operands))


def test_a_wrong_equation_is_told_by_torch() -> None:
    with pytest.raises(RuntimeError, match="does not broadcast|subscript"):
        einsum("ij,jk->ik", torch.randn(2, 3), torch.randn(4, 5))
