"""The default data set: small, real, and there without a network."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data_sets._split import stratified_split
from pruning.errors import UsageError


class DIGITS:
    """1,797 real handwritten digits of 8 x 8 pixels that scikit-learn carries (UCI, Alpaydin and Kaynak 1998).

    A fixed stratified split: 1,437 for training, 360 for testing.

    Args:
        data_dir: not used; the pictures come with scikit-learn.
    """

    input_shape = (1, 8, 8)
    num_classes = 10
    mean = (0.3058,)
    std = (0.3762,)

    def __init__(self, data_dir: str = "") -> None:
        self.data_dir = data_dir

    def train(self) -> tuple[Tensor, Tensor]:
        """Returns images, uint8 (1437, 1, 8, 8), and labels, int64 (1437,)."""
        return _part(0)

    def test(self) -> tuple[Tensor, Tensor]:
        """Returns images, uint8 (360, 1, 8, 8), and labels, int64 (360,)."""
        return _part(1)


def _part(which: int) -> tuple[Tensor, Tensor]:
    table = torch.from_numpy(_table())
    labels = table[:, 64].long()
    chosen = stratified_split(labels, len(labels), 360, seed=0)[which]
    pixels = (table[:, :64] * (255 / 16)).round().to(torch.uint8).view(-1, 1, 8, 8)  # stored as 0..16
    return pixels[chosen], labels[chosen]


def _table() -> np.ndarray:
    """The 1,797 rows of 64 pixels and a label. Read from its file, since importing scikit-learn takes a second."""
    spec = importlib.util.find_spec("sklearn")
    if spec is None or not spec.submodule_search_locations:
        raise UsageError("DIGITS: its pictures come with scikit-learn, which is missing: pip install scikit-learn")
    file = Path(spec.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"
    if file.is_file():
        return np.loadtxt(file, delimiter=",")
    from sklearn.datasets import load_digits  # a release that stores them elsewhere still hands them out here

    digits = load_digits()
    return np.column_stack([digits.data, digits.target])
