"""einsum as a product of matrices that is the same operations whatever the sizes.

torch's own takes a dimension of size 1 for none and goes another way then, so a network with one head left would not
run the operations that it was seen to run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def einsum(equation: Any, *operands: Any) -> Tensor:
    """Returns what `torch.einsum` does; of two operands by steps of its own, of all else by torch's."""
    letters = _letters(equation, operands)
    if letters is None:
        return torch.einsum(equation, *operands)
    one, other, out = letters
    left, right = operands
    left, one = _summed(left, one, other + out)
    right, other = _summed(right, other, one + out)
    if all(letter in out for letter in one if letter in other):
        return _aligned(left, one, out) * _aligned(right, other, out)
    return _product(left, right, one, other, out)


def _letters(equation: Any, operands: Sequence[Any]) -> tuple[str, str, str] | None:
    """Returns the letters of two operands and of the result; None for what torch's own must do."""
    if len(operands) != 2 or not isinstance(equation, str) or "." in equation:
        return None
    inputs, arrow, out = equation.replace(" ", "").partition("->")
    if inputs.count(",") != 1:
        return None
    one, other = inputs.split(",")
    if not arrow:  # then all letters that stand once, in the order of the alphabet
        out = "".join(sorted(letter for letter in set(one + other) if (one + other).count(letter) == 1))
    sizes: dict[str, int] = {}
    for letters, tensor in ((one, operands[0]), (other, operands[1])):
        if not isinstance(tensor, Tensor) or len(letters) != tensor.dim() or len(set(letters)) != len(letters):
            return None
        for letter, size in zip(letters, tensor.shape, strict=True):
            if sizes.setdefault(letter, size) != size:
                return None  # a size of 1 that is broadcast, or an error that torch words
    known = len(set(out)) == len(out) and set(out) <= set(sizes)
    return (one, other, out) if known else None


def _summed(tensor: Tensor, own: str, elsewhere: str) -> tuple[Tensor, str]:
    """Sums over dimensions that nothing else has; returns what is left, and its letters."""
    alone = [place for place, letter in enumerate(own) if letter not in elsewhere]
    if not alone:
        return tensor, own
    return tensor.sum(alone), "".join(letter for letter in own if letter in elsewhere)


def _aligned(tensor: Tensor, own: str, out: str) -> Tensor:
    """Puts dimensions in the order of the result, with one of size 1 for each that is missing."""
    order = [own.index(letter) for letter in out if letter in own]
    tensor = tensor.permute(order)
    for place, letter in enumerate(out):
        if letter not in own:
            tensor = tensor.unsqueeze(place)
    return tensor


def _product(left: Tensor, right: Tensor, one: str, other: str, out: str) -> Tensor:
    """Multiplies matrices (rows, summed) and (summed, columns), one per index of what both have and what stays."""
    batch = [letter for letter in one if letter in other and letter in out]
    summed = [letter for letter in one if letter in other and letter not in out]
    rows = [letter for letter in one if letter not in other]
    columns = [letter for letter in other if letter not in one]
    sizes = {**dict(zip(one, left.shape, strict=True)), **dict(zip(other, right.shape, strict=True))}

    def as_matrices(tensor: Tensor, own: str, *parts: list[str]) -> Tensor:
        order = [own.index(letter) for part in parts for letter in part]
        return tensor.permute(order).reshape([math.prod(sizes[letter] for letter in part) for part in parts])

    product = torch.bmm(as_matrices(left, one, batch, rows, summed), as_matrices(right, other, batch, summed, columns))
    made = batch + rows + columns
    return product.reshape([sizes[letter] for letter in made]).permute([made.index(letter) for letter in out])
