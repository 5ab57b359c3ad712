"""The default data set of language: real text that is there wherever Python is."""

from __future__ import annotations

import hashlib
import os
import sysconfig
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from data_sets._files import reading
from data_sets._tokens import resident_windows
from pruning.errors import UsageError

# What not every installation has, what is made for one machine, and long tables of numbers.
LEFT_OUT = {"test", "tests", "idlelib", "lib2to3", "turtledemo", "ensurepip", "site-packages", "dist-packages"}
LEFT_OUT |= {"__pycache__", "pydoc_data", "encodings", "lib-dynload"}
TEST_SHARE = 10  # one file in so many is for testing


class STDLIB:
    """The source text of Python's own standard library, as bytes: 300,000 for training and 30,000 for testing.

    Which files are for testing, and the order of all, hangs on their names alone; so it is the same on every machine
    and, but for what changed in a file, in every version of Python. A line break stands between two files. Windows
    share one byte, so that every byte but the first is predicted once.

    Args:
        data_dir: not used; the text comes with Python.
        context: bytes of a window.
        text_bytes: of the training part; the test part has a tenth of them. Where there is less, all is taken.
    """

    task = "language"
    wants = {"model": "GPT", "loss": "NextToken"}
    num_classes = 256

    def __init__(
        self,
        data_dir: str = "",
        context: Annotated[int, {"at_least": 2}] = 256,
        text_bytes: Annotated[int, {"at_least": 1}] = 300_000,
    ) -> None:
        self.data_dir = data_dir
        self.context, self.text_bytes = context, text_bytes
        self.input_shape = (context,)

    def train(self) -> tuple[Tensor, Tensor]:
        """Returns windows of bytes, int64 (N, context), and the same as targets."""
        return self._part("training", self.text_bytes)

    def test(self) -> tuple[Tensor, Tensor]:
        """Returns the like of the test files; targets of the last window that were counted before are -100."""
        return self._part("test", max(1, self.text_bytes // TEST_SHARE))

    def _part(self, part: str, size: int) -> tuple[Tensor, Tensor]:
        folder = Path(sysconfig.get_path("stdlib"))
        with reading("STDLIB", folder, ["the sources of Python's standard library (*.py)"]):
            text = _text(folder, part == "test", size)
        if not text:
            raise UsageError(f"STDLIB: {folder} holds no sources of Python's standard library (*.py).")
        tokens = torch.from_numpy(np.frombuffer(text, dtype=np.uint8).astype(np.int64))
        return resident_windows("STDLIB", part, tokens, self.context)


def _text(folder: Path, for_testing: bool, size: int) -> bytes:
    """Returns the first `size` bytes of the files of a part, in the order of their hashes."""
    by_hash: list[tuple[int, Path]] = []
    for place, inside, names in os.walk(folder):
        inside[:] = [one for one in inside if one not in LEFT_OUT]  # which are not even looked into
        for name in names:
            if not name.endswith(".py") or name.startswith("_sysconfigdata"):
                continue
            file = Path(place, name)
            path = file.relative_to(folder).as_posix()
            number = int.from_bytes(hashlib.blake2b(path.encode(), digest_size=8).digest(), "big")
            if (number % TEST_SHARE == 0) == for_testing:
                by_hash.append((number, file))
    text = bytearray()
    for _, file in sorted(by_hash):
        text += file.read_bytes() + b"\n"
        if len(text) >= size:
            break
    return bytes(text[:size])
