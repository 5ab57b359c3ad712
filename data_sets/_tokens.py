"""Windows of tokens, of a text in memory or in a token file: a line that says what is in it, then the numbers."""

from __future__ import annotations

import json
import logging
import os
import zlib
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from data_sets._files import BAD_INPUT
from data_sets._sources import LEFT_OUT
from pruning.errors import UsageError

RESIDENT_TOKENS = 2**24  # longer texts stay on the disk; as int64 in memory, windows of so many take 128 MB
HEAD_BYTES = 256  # of a token file, before its numbers
log = logging.getLogger(__name__)


# -- windows ----------------------------------------------------------------------------------------------------------


def window_starts(name: str, part: str, count: int, context: int) -> list[int]:
    """Returns where each window of a text begins, so that every token but the first is predicted once.

    A window of `context` tokens predicts all of its own but the first, so the next one begins with its last. The last
    window ends with the text and may hold some tokens of the one before, which are not to be counted again.

    Args:
        name: of the data set, for messages.
        part: "training" or "test", for messages.
        count: tokens of the text.
        context: tokens of a window, at least 2.

    Raises:
        UsageError: the text is shorter than one window.
    """
    if count < context:
        raise UsageError(f"{name}: the {part} text has {count} tokens, fewer than one window of --context {context}.")
    starts = list(range(0, count - context + 1, context - 1))
    end = starts[-1] + context
    if end < count:
        starts.append(count - context)
    return starts


def resident_windows(name: str, part: str, tokens: Tensor, context: int) -> tuple[Tensor, Tensor]:
    """Returns all windows of a text, int64 (N, context), and the same as targets.

    A target at place t is the token at place t, which the outputs at t - 1 are for. Those of the last window that the
    window before has counted are -100.

    Args:
        name: of the data set, for messages.
        part: "training" or "test", for messages.
        tokens: int64 (count,).
        context: tokens of a window.
    """
    starts = window_starts(name, part, len(tokens), context)
    windows = tokens.unfold(0, context, context - 1)  # a view
    if len(windows) == len(starts):
        return windows, windows
    windows = torch.cat([windows, tokens[None, -context:]])
    targets = windows.clone()
    targets[-1, : _seen_before(starts, len(starts) - 1, context)] = LEFT_OUT
    return windows, targets


def _seen_before(starts: list[int], number: int, context: int) -> int:
    """Returns how many tokens of a window its predecessor has predicted, 0 where only its last one is shared."""
    if number == 0:
        return 0
    shared = starts[number - 1] + context - starts[number]
    return 0 if shared == 1 else shared


class TokenWindows(Dataset):
    """The windows of a text in a token file, read when they are asked for: (int64 (context,), the same as targets)."""

    def __init__(self, name: str, part: str, file: TokenFile, context: int) -> None:
        self.file, self.context = file, context
        self.starts = window_starts(name, part, file.count, context)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        start = self.starts[index]
        window = self.file.read(start, start + self.context)
        targets = window.clone()
        targets[: _seen_before(self.starts, index, self.context)] = LEFT_OUT
        return window, targets


# -- token files ------------------------------------------------------------------------------------------------------


class TokenFile:
    """A token file that is whole.

    Args:
        path: where it lies.
        count: tokens in it.
        dtype: their type, such as "uint16".
    """

    def __init__(self, path: Path, count: int, dtype: str) -> None:
        self.path, self.count, self.dtype = path, count, dtype

    def read(self, start: int, stop: int) -> Tensor:
        """Returns tokens as int64 (stop - start,)."""
        # Mapped anew each time: a mapping that lives on would be copied to every worker, and keep all that it has read.
        return torch.from_numpy(self._mapped()[start:stop].astype(np.int64))

    def checksum(self) -> int:
        """Returns the crc32 of the numbers."""
        crc = 0
        tokens = self._mapped()
        for start in range(0, self.count, RESIDENT_TOKENS):
            crc = zlib.crc32(tokens[start : start + RESIDENT_TOKENS].tobytes(), crc)
        return crc

    def _mapped(self) -> np.ndarray:
        if not self.count:  # nothing cannot be mapped
            return np.empty(0, dtype=self.dtype)
        return np.memmap(self.path, dtype=self.dtype, mode="r", offset=HEAD_BYTES, shape=(self.count,))


def kept_tokens(path: Path, made_of: str) -> TokenFile | None:
    """Returns a token file that is there, whole, and made of the texts as they are now; otherwise None.

    Args:
        path: where it would lie.
        made_of: what tells one text, cut and tokenizer from another.
    """
    if not path.is_file():
        return None
    try:
        with open(path, "rb") as opened:
            head: dict[str, Any] = json.loads(opened.read(HEAD_BYTES))
        if head["made_of"] != made_of:
            return None
        file = TokenFile(path, int(head["tokens"]), str(head["dtype"]))
        size = HEAD_BYTES + file.count * np.dtype(file.dtype).itemsize
        is_whole = path.stat().st_size == size and file.checksum() == head["crc32"]
    except BAD_INPUT as error:
        log.info("%s is damaged (%s) and is made anew", path, type(error).__name__)
        return None
    return file if is_whole else None


def keep_tokens(path: Path, made_of: str, pieces: Iterable[np.ndarray], vocabulary: int) -> TokenFile | None:
    """Writes a token file, under another name first: a run killed meanwhile leaves no half file under the real one.

    Args:
        path: where it is to lie.
        made_of: see `kept_tokens`.
        pieces: the tokens, (n,) each, in order.
        vocabulary: how many different ones there are.

    Returns:
        The file, or None where the folder cannot be written to.
    """
    dtype = token_type(vocabulary)
    count, crc = 0, 0
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(b" " * HEAD_BYTES)
            for piece in pieces:
                numbers = piece.astype(dtype)
                file.write(numbers.tobytes())
                count += len(numbers)
                crc = zlib.crc32(numbers.tobytes(), crc)
            head = json.dumps({"made_of": made_of, "tokens": count, "dtype": dtype, "crc32": crc})
            file.seek(0)
            file.write(head.encode().ljust(HEAD_BYTES - 1) + b"\n")
        temporary.replace(path)
    except OSError as error:  # a full disk or a read-only folder only costs the time to do it again
        log.info("cannot keep the tokens in %s (%s)", path, error)
        return None
    finally:
        with suppress(OSError):
            temporary.unlink()
    return TokenFile(path, count, dtype)


def token_type(vocabulary: int) -> str:
    """Returns the smallest unsigned type that holds every token of a vocabulary."""
    return str(np.min_scalar_type(max(vocabulary - 1, 0)))
