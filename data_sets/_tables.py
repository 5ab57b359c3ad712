"""Tables: columns of numbers or words as columns of numbers that a network can take."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pruning.errors import UsageError, nearest

DELIMITERS = ",;\t|"
MOST_CLASSES = 20  # a column of more different whole numbers holds numbers, unless the user says classes
NOTHING = {"", "na", "n/a", "nan", "null", "none", "?"}  # what a field that is empty holds
MOST_WORDS = 100  # different ones in a column that is no target; more are names or texts, which no network learns from


# -- numbers ----------------------------------------------------------------------------------------------------------


def standardised(columns: Tensor, training: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns columns (rows, k) with mean 0 and standard deviation 1 over the rows for training, in float32.

    A column that is the same in all of them becomes 0 there.

    Returns:
        The columns, and their mean and standard deviation, float64 (k,).
    """
    known = columns[training].double()
    mean, std = known.mean(0), known.std(0, correction=0)
    std = torch.where(std > 0, std, torch.ones_like(std))
    return ((columns.double() - mean) / std).float(), mean, std


# -- files ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Table:
    """A table as it is in a file.

    Args:
        file: where it is from.
        names: of the columns.
        rows: their fields, as texts without blanks around them.
        lines: in which line of the file each row ends.
    """

    file: Path
    names: list[str]
    rows: list[list[str]]
    lines: list[int]

    def column(self, name: str) -> list[str]:
        """Returns the fields of a column."""
        place = self.names.index(name)
        return [row[place] for row in self.rows]

    def only(self, rows: Sequence[int]) -> Table:
        """Returns some of the rows."""
        return Table(self.file, self.names, [self.rows[row] for row in rows], [self.lines[row] for row in rows])


def read_table(name: str, file: Path) -> Table:
    """Reads a file whose first line names the columns.

    Args:
        name: of the data set, for messages.
        file: fields are parted by commas, semicolons, tabulators or bars, whichever the first line has most of.

    Raises:
        UsageError: in one line, for a file that is no such table.
    """
    try:
        with open(file, encoding="utf-8-sig", newline="") as opened:
            first = opened.readline()
            delimiter = max(DELIMITERS, key=first.count)
            opened.seek(0)
            reader = csv.reader(opened, delimiter=delimiter, strict=True)
            names = [field.strip() for field in next(reader, [])]
            rows, lines = [], []
            for fields in reader:
                if not fields:
                    continue  # an empty line
                if len(fields) != len(names):
                    found = f"{len(fields)} fields, not {len(names)}"
                    raise UsageError(f"{name}: {file}, line {reader.line_num} has {found}.")
                rows.append([field.strip() for field in fields])
                lines.append(reader.line_num)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        why = getattr(error, "strerror", None) or error
        raise UsageError(f"{name}: {file} cannot be read as a table: {why}.") from error
    _check_names(name, file, names)
    if not rows:
        raise UsageError(f"{name}: {file} holds no rows below its first line.")
    return Table(file, names, rows, lines)


def _check_names(name: str, file: Path, names: Sequence[str]) -> None:
    twice = sorted({one for one in names if names.count(one) > 1})
    if twice:
        raise UsageError(f"{name}: {file} names the column {twice[0]!r} twice.")
    if len(names) < 2:
        raise UsageError(f"{name}: {file} has {len(names)} column; a target and one more are needed.")
    if all(number_in(field) is not None for field in names):
        raise UsageError(f"{name}: the first line of {file} must name the columns; it holds numbers.")


def number_in(field: str) -> float | None:
    """Returns the number that a field holds, None where it holds none."""
    try:
        number = float(field)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def check_column(name: str, table: Table, column: str) -> None:
    """Raises UsageError, with the nearest names, for a column that is not there."""
    if not column:
        known = ", ".join(table.names)
        raise UsageError(f"{name} needs --target_column, which names what is to be predicted; there are {known}.")
    if column not in table.names:
        known = ", ".join(table.names[:20])
        hint = nearest(column, table.names)
        raise UsageError(f"{name}: {table.file} has no column {column!r}.{hint} Its columns are {known}.")


# -- columns ----------------------------------------------------------------------------------------------------------


def is_empty(field: str) -> bool:
    """Says whether a field holds nothing, or one of the words that stand for nothing."""
    return field.lower() in NOTHING


def is_number_column(fields: Sequence[str]) -> bool:
    """Says whether a column holds numbers: most of its fields that hold anything do."""
    known = [field for field in fields if not is_empty(field)]
    numbers = [field for field in known if number_in(field) is not None]
    return 2 * len(numbers) > len(known)


def holds_classes(fields: Sequence[str]) -> bool:
    """Says whether a target is one of some classes: words, or few different whole numbers."""
    if not is_number_column(fields):
        return True
    numbers = {number_in(field) for field in fields if not is_empty(field)}
    return len(numbers) <= MOST_CLASSES and all(number is not None and number.is_integer() for number in numbers)


def numbers_of(name: str, table: Table, column: str, *, may_be_empty: bool) -> Tensor:
    """Returns a column of numbers, float64 (rows,), nan for an empty field.

    Raises:
        UsageError: a field holds something else, or nothing where that may not be; it names the line.
    """
    values = []
    for field, line in zip(table.column(column), table.lines, strict=True):
        number = number_in(field)
        if number is None and not (may_be_empty and is_empty(field)):
            has = repr(field) if field else "nothing"
            raise UsageError(f"{name}: {table.file}, line {line}: column {column!r} must hold a number; it has {has}.")
        values.append(math.nan if number is None else number)
    return torch.tensor(values, dtype=torch.float64)


def classes_in(fields: Sequence[str]) -> list[str]:
    """Returns the classes of a column, by value where they are numbers, else by the alphabet."""
    known = [field for field in fields if not is_empty(field)]
    return sorted({_as_class(field) for field in known}, key=_by_value)


def class_numbers(name: str, table: Table, column: str, classes: Sequence[str]) -> Tensor:
    """Returns the class of each row, int64 (rows,); a `UsageError` names the line where there is none of them."""
    number_of = {one: number for number, one in enumerate(classes)}
    found = []
    for field, line in zip(table.column(column), table.lines, strict=True):
        if is_empty(field) or _as_class(field) not in number_of:
            has = "is empty" if is_empty(field) else f"has {field!r}, which the training part does not"
            raise UsageError(f"{name}: {table.file}, line {line}: the target {column!r} {has}.")
        found.append(number_of[_as_class(field)])
    return torch.tensor(found)


def _as_class(field: str) -> str:
    """1 and 1.0 are one class."""
    number = number_in(field)
    return field if number is None or not number.is_integer() else str(int(number))


def _by_value(one: str) -> tuple[float, str]:
    number = number_in(one)
    return (math.inf if number is None else number, one)


def encoded(name: str, training: Table, test: Table, columns: Sequence[str]) -> tuple[Tensor, Tensor, list[str]]:
    """Returns columns as what a network takes: numbers standardised, of words one column for each.

    All that is known of a column is known from the training part: an empty field counts as the mean there, and a word
    that is not there has zeros everywhere.

    Returns:
        Inputs of the training and of the test part, float32 (rows, inputs), and lines on what was left out or filled.
    """
    parts: tuple[list[Tensor], list[Tensor]] = ([], [])
    notes: list[str] = []
    for column in columns:
        fields = training.column(column)
        if is_number_column(fields):
            known = [numbers_of(name, table, column, may_be_empty=True) for table in (training, test)]
            empty = sum(int(values.isnan().sum()) for values in known)
            if empty:
                notes.append(f"{name}: column {column!r} is empty in {empty} rows, which count as its mean")
            made = _filled_and_standardised(*known)
        else:
            words = sorted(set(fields))
            if len(words) > MOST_WORDS or len(words) == 1:
                notes.append(f"{name}: column {column!r} is left out: it has {len(words)} different words")
                continue
            made = [_one_hot(table.column(column), words) for table in (training, test)]
        for part, values in zip(parts, made, strict=True):
            part.append(values)
    if not parts[0]:
        raise UsageError(f"{name}: {training.file} has no column that a network can learn from: {'; '.join(notes)}.")
    return torch.cat(parts[0], 1), torch.cat(parts[1], 1), notes


def _filled_and_standardised(training: Tensor, test: Tensor) -> list[Tensor]:
    mean = training.nanmean()
    filled = torch.cat([training, test]).nan_to_num(float(mean)).view(-1, 1)
    # The mean stands for what is not known, so it does not change by it; the deviation gets smaller.
    columns, _, _ = standardised(filled, torch.arange(len(training)))
    return [columns[: len(training)], columns[len(training) :]]


def _one_hot(fields: Sequence[str], words: Sequence[str]) -> Tensor:
    place = {word: number for number, word in enumerate(words)}
    hot = torch.zeros(len(fields), len(words))
    for row, field in enumerate(fields):
        if field in place:
            hot[row, place[field]] = 1
    return hot
