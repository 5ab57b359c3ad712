"""A user's own texts."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from data_sets._files import reading
from data_sets._texts import Stretch, content_hash, documents, split_texts
from data_sets._tokenizer import Bytes, FromFolder, Tokenizer, all_tokens, has_tokenizer
from data_sets._tokens import RESIDENT_TOKENS, TokenFile, TokenWindows, keep_tokens, kept_tokens, resident_windows

log = logging.getLogger(__name__)


class TEXT:
    """Your own texts: --data_dir is a folder with .txt, .md and .jsonl files (field "text"), or one such file.

    A folder's parts train/ and test/ (or val/) are taken, or files of these names; without them the last tenth of
    every file is for testing. All of the text is cut into windows that share one token, so that every token but the
    first is predicted once. Tokens of a tokenizer, and of large texts, are kept in hidden files `.train-<key>.tokens`
    beside the texts, from where large ones are read as they are needed.

    Args:
        data_dir: a folder of texts, or one file.
        tokenizer: folder with a tokenizer in the form of transformers; without one that of --model hf/FOLDER is taken,
            and where there is none either, every byte is a token.
        context: tokens of a window.
    """

    task = "language"
    wants = {"model": "GPT", "loss": "NextToken"}

    def __init__(
        self,
        data_dir: str,
        tokenizer: str = "",
        context: Annotated[int, {"at_least": 2}] = 256,
        model: str = "",
    ) -> None:
        self.place = Path(data_dir).expanduser()
        self.context = context
        with reading("TEXT", self.place.parent, [self.place.name]):
            self.parts = dict(zip(("training", "test"), split_texts("TEXT", self.place), strict=True))
        self.tokenizer, self.notes = _tokenizer(tokenizer, model)
        self.input_shape = (context,)
        self.num_classes = self.tokenizer.vocabulary

    def train(self) -> tuple[Tensor, Tensor] | TokenWindows:
        """Returns windows of tokens, int64 (N, context), and the same as targets; a Dataset of them where many."""
        return self._part("training")

    def test(self) -> tuple[Tensor, Tensor] | TokenWindows:
        """Returns the like of the test part; targets of the last window that were counted before are -100."""
        return self._part("test")

    def _part(self, part: str) -> tuple[Tensor, Tensor] | TokenWindows:
        stretches = self.parts[part]
        size = sum(stretch.stop - stretch.start for stretch in stretches)
        with reading("TEXT", self.place.parent, [self.place.name]):
            if isinstance(self.tokenizer, Bytes) and size <= RESIDENT_TOKENS:
                tokens = self._in_memory(stretches)
                return resident_windows("TEXT", part, tokens, self.context)
            file = self._cache(part)
            made_of = f"{content_hash(stretches)} {self.tokenizer.key}"
            kept = kept_tokens(file, made_of) or self._made(file, made_of, stretches)
            if kept is None:
                return resident_windows("TEXT", part, self._in_memory(stretches), self.context)
            if kept.count > RESIDENT_TOKENS:
                return TokenWindows("TEXT", part, kept, self.context)
            return resident_windows("TEXT", part, kept.read(0, kept.count), self.context)

    def _cache(self, part: str) -> Path:
        """Where the tokens of a part are kept: in the folder, or beside the one file."""
        kind = f"{part}-{self.tokenizer.key}.tokens"
        if self.place.is_dir():
            return self.place / f".{kind}"
        return self.place.with_name(f".{self.place.name}-{kind}")

    def _made(self, file: Path, made_of: str, stretches: Sequence[Stretch]) -> TokenFile | None:
        log.info("TEXT: turning text into tokens once; they are kept in %s", file)
        pieces = all_tokens(self.tokenizer, documents("TEXT", stretches))
        return keep_tokens(file, made_of, pieces, self.tokenizer.vocabulary)

    def _in_memory(self, stretches: Sequence[Stretch]) -> Tensor:
        pieces = [np.empty(0, dtype=np.int64), *all_tokens(self.tokenizer, documents("TEXT", stretches))]
        return torch.from_numpy(np.concatenate(pieces))


def _tokenizer(folder: str, model: str) -> tuple[Tokenizer, list[str]]:
    """Returns the tokenizer that was named, else that of the model's folder, else bytes; and a line that says which."""
    if folder:
        return FromFolder("TEXT", Path(folder).expanduser()), []
    library, _, place = model.partition("/")
    if library == "hf" and has_tokenizer(Path(place).expanduser()):
        return FromFolder("TEXT", Path(place).expanduser()), [f"TEXT: the tokenizer is that of {place}"]
    return Bytes(), ["TEXT: every byte is a token"]
