"""Files that are either the old ones or the new ones, whatever happens while they are written."""

from __future__ import annotations

import contextlib
import csv
import io
import math
import os
from pathlib import Path

from pruning.errors import UsageError


def write_atomic(path: Path, content: bytes | memoryview | str) -> None:
    """Writes to a temporary name beside the file, then renames. A failure leaves the file as it was.

    Raises:
        UsageError: if the disk is full or the folder cannot be written to.
    """
    data = content.encode() if isinstance(content, str) else content
    # Always the same temporary name: what a killed run left half written is overwritten by the next one.
    temporary = path.with_name(f".{path.name}.part")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        # The folder itself may be gone; the first error is the one to report.
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise UsageError(
            f"{path} could not be written: {error.strerror or error}; what was there before stays."
        ) from error


def as_csv(rows: list[dict[str, float]]) -> str:
    """Returns lines of numbers as text; the first line names the columns, of which a line may lack some."""
    text = io.StringIO()
    columns: dict[str, None] = {}  # in the order in which they first appear
    for row in rows:
        columns.update(dict.fromkeys(row))
    writer = csv.DictWriter(text, fieldnames=list(columns), restval="nan", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def read_rows(path: Path, before: float = math.inf) -> list[dict[str, float]]:
    """Returns lines of numbers; of epochs after `before`, which a stopped run repeats from its checkpoint, none."""
    if not path.exists():
        return []
    try:
        with open(path, encoding="utf-8", newline="") as file:
            lines = list(csv.DictReader(file))
        rows = []
        for line in lines:
            row = {name: float(value) for name, value in line.items()}
            if row.get("epoch", 0) <= before:
                rows.append(row)
        return rows
    except (OSError, ValueError, TypeError, KeyError, csv.Error):
        return []  # a damaged log is begun anew; the run itself does not hang on it
