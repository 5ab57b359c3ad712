"""From text to tokens: by a tokenizer in the form of transformers, or one token for each byte."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from data_sets._files import BAD_INPUT
from pruning.errors import UsageError
from pruning.pretrained.files import refuse_code, transformers_for

# One of these lies in every folder that holds a tokenizer.
TOKENIZER_FILES: tuple[str, ...] = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
    "tokenizer.model",
)
TOKENIZER_FILES += ("spiece.model",)


class Tokenizer(Protocol):
    """Turns pieces of text into tokens.

    Attributes:
        vocabulary: how many tokens there are.
        key: tells it from others, in the name of a file.
        between: the tokens between two documents.
    """

    vocabulary: int
    key: str
    between: np.ndarray

    def tokens(self, piece: bytes) -> np.ndarray:
        """Returns the tokens of a piece of text, int64 (n,)."""


class Bytes:
    """Every byte is a token; a line break stands between documents."""

    vocabulary = 256
    key = "bytes"
    between = np.array([10])

    def tokens(self, piece: bytes) -> np.ndarray:
        return np.frombuffer(piece, dtype=np.uint8).astype(np.int64)


class FromFolder:
    """A tokenizer of transformers; its end-of-text token stands between documents, or else a line break.

    Args:
        name: of the data set, for messages.
        folder: where its files lie.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder
        if not folder.is_dir():
            raise UsageError(f"{name}: there is no folder {folder}; --tokenizer names one in the form of transformers.")
        if not has_tokenizer(folder):
            raise UsageError(f"{name}: {folder} holds no tokenizer; it should have {' or '.join(TOKENIZER_FILES[:2])}.")
        refuse_code(folder)
        self.tokenizer = self._loaded()
        numbers = self.tokenizer.get_vocab().values()
        self.vocabulary = max(len(self.tokenizer), 1 + max(numbers, default=-1))
        self.key = _key(folder)
        end = self.tokenizer.eos_token_id
        self.between = self.tokens(b"\n") if end is None else np.array([end])

    def tokens(self, piece: bytes) -> np.ndarray:
        try:
            text = piece.decode()
        except UnicodeDecodeError as error:
            near = piece[max(error.start - 20, 0) : error.start].decode(errors="replace")
            raise UsageError(f"{self.name}: a text is not in UTF-8, after {near!r}; a tokenizer needs that.") from error
        # Quietly: it would warn that a text is longer than a window, which is cut into windows later.
        found = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return np.asarray(found, dtype=np.int64)

    def _loaded(self) -> Any:
        transformers = transformers_for(f"{self.name} --tokenizer")
        options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        try:
            return transformers.AutoTokenizer.from_pretrained(self.folder, **options)
        except BAD_INPUT as error:
            file = self.folder / "tokenizer.json"
            if file.is_file():  # which says all that is needed; the others only which class transformers takes
                try:
                    return transformers.PreTrainedTokenizerFast(tokenizer_file=str(file))
                except Exception as damaged:  # noqa: BLE001 - what the tokenizers library raises is a bare Exception
                    raise self._unreadable(damaged) from damaged
            raise self._unreadable(error) from error

    def _unreadable(self, error: Exception) -> UsageError:
        why = " ".join(str(error).split())[:160] or type(error).__name__
        return UsageError(f"{self.name}: the tokenizer in {self.folder} cannot be read: {why}.")


def has_tokenizer(folder: Path) -> bool:
    """Says whether a folder holds files of a tokenizer."""
    return any((folder / file).is_file() for file in TOKENIZER_FILES)


def _key(folder: Path) -> str:
    """Changes with whatever the tokenizer is made of."""
    digest = hashlib.blake2b(digest_size=6)
    for file in sorted(folder.iterdir()):
        is_of_model = file.name.startswith(("config.", "model", "pytorch_model", "generation_config"))
        if file.is_file() and file.suffix in (".json", ".txt", ".model") and not is_of_model:
            digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def all_tokens(tokenizer: Tokenizer, documents: Iterator[Iterator[bytes]]) -> Iterator[np.ndarray]:
    """Yields the tokens of all documents, one after the other."""
    for number, document in enumerate(documents):
        if number:
            yield tokenizer.between
        for piece in document:
            yield tokenizer.tokens(piece)
