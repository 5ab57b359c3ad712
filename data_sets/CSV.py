"""A user's own table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from data_sets._split import stratified_split
from data_sets._tables import (
    Table,
    check_column,
    class_numbers,
    classes_in,
    encoded,
    holds_classes,
    is_number_column,
    numbers_of,
    read_table,
    standardised,
)
from pruning.errors import UsageError

ENDINGS = (".csv", ".tsv")
HELD_OUT_NAMES = ("test", "val")
TASKS = ("classification", "regression")


class CSV:
    """Your own table: --data_dir is a file whose first line names the columns, or a folder with train.csv and test.csv.

    Columns of numbers are standardised by the training part; of a column of words there is one input for each. One file
    alone is split: a fixed fifth, with every class in proportion, is for testing.

    The target is one of some classes if it holds words, or at most 20 different whole numbers; other numbers are
    predicted as numbers, standardised too (`target_mean` and `target_std` lead back). --task says it otherwise.

    Args:
        data_dir: the file, or a folder that holds it.
        target_column: what is to be predicted.
        task: "classification" or "regression"; by the target where it is not given.
    """

    def __init__(self, data_dir: str, target_column: str = "", task: str | None = None) -> None:
        tables = [read_table("CSV", file) for file in _files(Path(data_dir).expanduser())]
        for table in tables:
            check_column("CSV", table, target_column)
        self.task = _task(task, tables[0].column(target_column))
        if len(tables) == 1:
            tables = _split(tables[0], target_column if self.task == "classification" else "")
        training, test = tables
        features = [name for name in training.names if name != target_column]
        for name in features:
            check_column("CSV", test, name)
        train_inputs, test_inputs, self.notes = encoded("CSV", training, test, features)
        self.input_shape = (train_inputs.shape[1],)
        self.notes.append(self._encode_targets(training, test, target_column))
        self._train = train_inputs, self.targets[: len(train_inputs)]
        self._test = test_inputs, self.targets[len(train_inputs) :]

    def train(self) -> tuple[Tensor, Tensor]:
        """Returns inputs, float (N, inputs), and class numbers, int64 (N,), or numbers, float (N, 1)."""
        return self._train

    def test(self) -> tuple[Tensor, Tensor]:
        """Returns the like of the test part."""
        return self._test

    def _encode_targets(self, training: Table, test: Table, column: str) -> str:
        """Makes the targets of both parts, one after the other; returns a line that says what they are."""
        if self.task == "classification":
            self.classes = classes_in(training.column(column))
            self.num_classes = len(self.classes)
            known = [class_numbers("CSV", table, column, self.classes) for table in (training, test)]
            self.targets = torch.cat(known)
            note = f"CSV: {column!r} is one of {self.num_classes} classes"
            is_number = is_number_column(training.column(column))
            return f"{note} (--task regression takes it as a number)" if is_number else note
        self.num_classes = 1
        numbers = [numbers_of("CSV", table, column, may_be_empty=False) for table in (training, test)]
        together = torch.cat(numbers).view(-1, 1)
        rows = torch.arange(len(training.rows))
        self.targets, self.target_mean, self.target_std = standardised(together, rows)
        return f"CSV: {column!r} is a number (--task classification takes it as a class)"


def _task(said: str | None, targets: Sequence[str]) -> str:
    task = said or ("classification" if holds_classes(targets) else "regression")
    if task not in TASKS:
        raise UsageError(f"CSV is for {' and '.join(TASKS)}; --task {task} was given.")
    return task


def _files(place: Path) -> list[Path]:
    """Returns the one table there is, or those of training and test."""
    if place.is_file():
        if place.suffix.lower() not in ENDINGS:
            raise UsageError(f"CSV: {place} is none of the tables ({', '.join(ENDINGS)}).")
        return [place]
    if not place.is_dir():
        raise UsageError(f"CSV: there is no {place}; --data_dir names a table, or a folder that holds it.")
    found = sorted(file for file in place.iterdir() if file.suffix.lower() in ENDINGS and file.name[0] != ".")
    by_name = {file.stem.lower(): file for file in found}
    held_out = [by_name[name] for name in HELD_OUT_NAMES if name in by_name]
    if "train" in by_name and held_out:
        return [by_name["train"], held_out[0]]
    if len(found) != 1:
        there = ", ".join(file.name for file in found[:5]) or "no table"
        raise UsageError(f"CSV: {place} must hold train.csv and test.csv, or one table; it holds {there}.")
    return found


def _split(table: Table, target: str) -> list[Table]:
    """Returns the rows for training and a fixed fifth for testing, with every class of a target in proportion."""
    count = len(table.rows)
    if count < 2:
        raise UsageError(f"CSV: {table.file} has {count} row; two are needed at least, one of them for testing.")
    labels = None
    if target:
        labels = class_numbers("CSV", table, target, classes_in(table.column(target)))
    parts = stratified_split(labels, count, max(1, count // 5), seed=0)
    return [table.only(part.tolist()) for part in parts]
