"""einsum as a product of matrices that is the same operations whatever the sizes.

torch's own takes a dimension of size 1 for none and goes another way then, so a network with one head left would not
run the operations that it was seen to run.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Letters(NamedTuple):
    """An equation of two operands, such as "bqd,bkd->bqk".

    Args:
        left: letters of the first operand's dimensions.
        right: letters of the second operand's.
        out: letters of the result's.
    """

    left: str
    right: str
    out: str


def einsum(equation: Any, *operands: Any) -> Tensor:
    """Returns what `torch.einsum` does; of two operands by steps of its own, of all else by torch's."""
    letters = _letters(equation, operands)
    if letters is None:
        return torch.einsum(equation, *operands)
    left, right = operands
    left, left_letters = _summed(left, letters.left, letters.right + letters.out)
    right, right_letters = _summed(right, letters.right, left_letters + letters.out)
    letters = Letters(left_letters, right_letters, letters.out)

    shared = set(letters.left) & set(letters.right)
    if shared <= set(letters.out):  # nothing is summed over, so it is a product element by element
        return _aligned(left, letters.left, letters.out) * _aligned(right, letters.right, letters.out)
    return _product(left, right, letters)


def _letters(equation: Any, operands: Sequence[Any]) -> Letters | None:
    """Returns the letters of two operands and of the result; None for what torch's own must do."""
    if len(operands) != 2 or not isinstance(equation, str) or "." in equation:
        return None
    inputs, arrow, out = equation.replace(" ", "").partition("->")
    if inputs.count(",") != 1:
        return None
    left, right = inputs.split(",")
    if not arrow:
        out = _result_of(left + right)

    sizes: dict[str, int] = {}
    for letters, tensor in ((left, operands[0]), (right, operands[1])):
        if not isinstance(tensor, Tensor) or len(letters) != tensor.dim():
            return None
        if _has_twice(letters):  # a diagonal
            return None
        for letter, size in zip(letters, tensor.shape, strict=True):
            known = sizes.setdefault(letter, size)
            if known != size:
                return None  # a size of 1 that is broadcast, or an error that torch words
    is_known = set(out) <= set(sizes) and not _has_twice(out)
    return Letters(left, right, out) if is_known else None


def _result_of(letters: str) -> str:
    """Returns the letters of a result that the equation leaves out: all that stand once, in alphabetical order."""
    counts = Counter(letters)
    once = [letter for letter, count in counts.items() if count == 1]
    return "".join(sorted(once))


def _has_twice(letters: str) -> bool:
    return len(set(letters)) != len(letters)


def _summed(tensor: Tensor, own: str, elsewhere: str) -> tuple[Tensor, str]:
    """Sums over dimensions that nothing else has; returns what is left, and its letters."""
    alone = [place for place, letter in enumerate(own) if letter not in elsewhere]
    if not alone:
        return tensor, own
    left = [letter for letter in own if letter in elsewhere]
    return tensor.sum(alone), "".join(left)


def _aligned(tensor: Tensor, own: str, out: str) -> Tensor:
    """Puts dimensions in the order of the result, with one of size 1 for each that is missing."""
    order = [own.index(letter) for letter in out if letter in own]
    tensor = tensor.permute(order)
    for place, letter in enumerate(out):
        if letter not in own:
            tensor = tensor.unsqueeze(place)
    return tensor


def _product(left: Tensor, right: Tensor, letters: Letters) -> Tensor:
    """Multiplies matrices (rows, summed) and (summed, columns), one per index of what both have and what stays."""
    shared = [letter for letter in letters.left if letter in letters.right]
    batch = [letter for letter in shared if letter in letters.out]
    summed = [letter for letter in shared if letter not in letters.out]
    rows = [letter for letter in letters.left if letter not in letters.right]
    columns = [letter for letter in letters.right if letter not in letters.left]

    sizes = dict(zip(letters.left, left.shape, strict=True))
    sizes.update(zip(letters.right, right.shape, strict=True))

    def as_matrices(tensor: Tensor, own: str, *parts: list[str]) -> Tensor:
        """Brings the dimensions into three: one per part, in the order of the parts."""
        order = [own.index(letter) for part in parts for letter in part]
        shape = []
        for part in parts:
            widths = [sizes[letter] for letter in part]
            shape.append(math.prod(widths))
        return tensor.permute(order).reshape(shape)

    left_matrices = as_matrices(left, letters.left, batch, rows, summed)
    right_matrices = as_matrices(right, letters.right, batch, summed, columns)
    product = torch.bmm(left_matrices, right_matrices)

    made = batch + rows + columns
    product = product.reshape([sizes[letter] for letter in made])
    order = [made.index(letter) for letter in letters.out]
    return product.permute(order)
