"""The default data set of regression: small, real, and there without a network."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data_sets._split import stratified_split
from data_sets._tables import standardised
from pruning.errors import UsageError

FILES = ("diabetes_data_raw.csv.gz", "diabetes_target.csv.gz")


class DIABETES:
    """442 patients: ten measurements each, and how far their diabetes went in a year (Efron et al. 2004).

    A fixed split: 354 for training, 88 for testing. Inputs and targets are standardised by the mean and the standard
    deviation of the training part, so an error of 1 is one standard deviation; `target_mean` and `target_std` lead
    back.

    Args:
        data_dir: not used; the table comes with scikit-learn.
    """

    task = "regression"
    wants = {"loss": "MSE"}
    input_shape = (10,)
    num_classes = 1  # number of targets

    def __init__(self, data_dir: str = "") -> None:
        self.data_dir = data_dir
        inputs, targets = _table()
        training, testing = stratified_split(None, len(inputs), len(inputs) // 5, seed=0)
        self.inputs, _, _ = standardised(inputs, training)
        self.targets, self.target_mean, self.target_std = standardised(targets, training)
        self.training, self.testing = training, testing

    def train(self) -> tuple[Tensor, Tensor]:
        """Returns inputs, float (354, 10), and targets, float (354, 1)."""
        return self.inputs[self.training], self.targets[self.training]

    def test(self) -> tuple[Tensor, Tensor]:
        """Returns inputs, float (88, 10), and targets, float (88, 1)."""
        return self.inputs[self.testing], self.targets[self.testing]


def _table() -> tuple[Tensor, Tensor]:
    """Inputs (442, 10) and targets (442, 1), from their files, since importing scikit-learn takes a second."""
    spec = importlib.util.find_spec("sklearn")
    if spec is None or not spec.submodule_search_locations:
        raise UsageError("DIABETES: its table comes with scikit-learn, which is missing: pip install scikit-learn")
    folder = Path(spec.submodule_search_locations[0]) / "datasets" / "data"
    if all((folder / file).is_file() for file in FILES):
        inputs, targets = (np.loadtxt(folder / file) for file in FILES)
    else:
        from sklearn.datasets import load_diabetes  # a release that stores them elsewhere still hands them out here

        inputs, targets = load_diabetes(return_X_y=True, scaled=False)
    return torch.from_numpy(inputs), torch.from_numpy(targets).view(-1, 1)
