"""Files of text: which there are, where each is cut into training and test, and what is in them piece by piece."""

from __future__ import annotations

import codecs
import hashlib
import io
import json
import mmap
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pruning.errors import UsageError

ENDINGS = (".txt", ".md", ".jsonl")
HELD_OUT_NAMES = ("test", "val", "valid", "validation")
PIECE_BYTES = 2**20  # read and turned into tokens at a time
FIELD = "text"  # of a line of .jsonl


@dataclass(frozen=True)
class Stretch:
    """A part of a file, in bytes; it begins and ends where a line does, if the file has lines."""

    file: Path
    start: int
    stop: int


def split_texts(name: str, place: Path) -> tuple[list[Stretch], list[Stretch]]:
    """Returns the training and the test part of a folder of texts, or of one file.

    A folder's own parts are taken where it has them: train/ and test/ (or val/), or files called train and test (or
    val). Otherwise the last tenth of every file, from the end of a line on, is for testing.

    Raises:
        UsageError: no text is there.
    """
    files = text_files(name, place)
    if place.is_dir():
        by_name = _parts_by_name(place, files)
        if by_name is not None:
            return by_name
    training, testing = [], []
    for file in files:
        size = file.stat().st_size
        cut = _cut(file, size)
        training.append(Stretch(file, 0, cut))
        testing.append(Stretch(file, cut, size))
    return training, testing


def text_files(name: str, place: Path) -> list[Path]:
    """Returns the file that was named, or those below a folder, sorted by their paths; hidden ones do not count."""
    wanted = f"text files ({', '.join(ENDINGS)})"
    if place.is_file():
        if place.suffix.lower() not in ENDINGS:
            raise UsageError(f"{name}: {place} is none of the {wanted}.")
        return [place]
    if not place.is_dir():
        raise UsageError(f"{name}: there is no {place}; --data_dir names a folder of {wanted}, or one of them.")
    found, others = [], set()
    for folder, inside, names in os.walk(place):
        inside[:] = [one for one in inside if not one.startswith(".")]
        for one in names:
            ending = os.path.splitext(one)[1].lower()
            if one.startswith("."):
                continue
            if ending in ENDINGS:
                found.append(Path(folder, one))
            else:
                others.add(ending or one)
    if not found:
        there = f"only {', '.join(sorted(others)[:5])}" if others else "nothing"
        raise UsageError(f"{name}: {place} holds no {wanted}, {there}.")
    return sorted(found, key=lambda file: file.relative_to(place).as_posix())


def _parts_by_name(place: Path, files: Sequence[Path]) -> tuple[list[Stretch], list[Stretch]] | None:
    """Returns the parts that folders or files are named after, or None where there are not both."""
    parts: dict[str, list[Stretch]] = {}
    for file in files:
        first = file.relative_to(place).parts[0]
        part = first.lower() if len(file.relative_to(place).parts) > 1 else file.stem.lower()
        parts.setdefault(part, []).append(Stretch(file, 0, file.stat().st_size))
    held_out = [part for part in HELD_OUT_NAMES if part in parts]
    if "train" not in parts or not held_out:
        return None
    return parts["train"], parts[held_out[0]]


def _cut(file: Path, size: int) -> int:
    """Returns where the last tenth of a file begins: after a line's end if one is near, otherwise between letters."""
    if not size:
        return 0
    wanted = size * 9 // 10
    has_records = file.suffix.lower() == ".jsonl"
    earliest = 0 if has_records else size * 8 // 10
    with open(file, "rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
        after = content.find(b"\n", max(wanted - 1, 0)) + 1
        if 0 < after < size:
            return after
        before = content.rfind(b"\n", earliest, wanted) + 1
        if before or has_records:
            return before or size  # a single record is not cut
        letters = content[wanted : wanted + 4]
    # Bytes 10xxxxxx go on with a letter of UTF-8.
    inside = next((number for number, byte in enumerate(letters) if byte & 0xC0 != 0x80), len(letters))
    return wanted + inside


def content_hash(stretches: Sequence[Stretch]) -> str:
    """Changes whenever what is read does; the names of files do not matter, but their order and their kind do."""
    digest = hashlib.blake2b(digest_size=16)
    for stretch in stretches:
        digest.update(f"{stretch.file.suffix.lower()} {stretch.start} {stretch.stop}\n".encode())
        with open(stretch.file, "rb") as opened:
            opened.seek(stretch.start)
            left = stretch.stop - stretch.start
            while left > 0:
                block = opened.read(min(left, PIECE_BYTES))
                if not block:
                    break
                digest.update(block)
                left -= len(block)
    return digest.hexdigest()


def documents(name: str, stretches: Sequence[Stretch]) -> Iterator[Iterator[bytes]]:
    """Yields every document as its pieces, of about a million bytes each: a file, or a line of .jsonl.

    Raises:
        UsageError: a line of .jsonl holds no text; it names the file and the line.
    """
    for stretch in stretches:
        if stretch.start == stretch.stop:
            continue
        if stretch.file.suffix.lower() == ".jsonl":
            for record in _records(name, stretch):
                yield iter([record])
        else:
            yield _pieces(stretch)


def _pieces(stretch: Stretch) -> Iterator[bytes]:
    """Yields what a stretch holds, cut at the ends of lines where they are not too long, else between letters."""
    with open(stretch.file, "rb") as file:
        file.seek(stretch.start)
        if stretch.start == 0 and file.read(3) != codecs.BOM_UTF8:  # a mark that some editors put first is no text
            file.seek(0)
        left = stretch.stop - file.tell()
        while left > 0:
            piece = file.read(min(left, PIECE_BYTES))
            piece += file.readline(min(left - len(piece), PIECE_BYTES))
            while len(piece) < left and _goes_on_with_a_letter(file):
                piece += file.read(1)
            if not piece:  # the file has been cut short meanwhile
                return
            left -= len(piece)
            yield piece


def _goes_on_with_a_letter(file: io.BufferedReader) -> bool:
    following = file.peek(1)[:1]
    return bool(following) and following[0] & 0xC0 == 0x80


def _records(name: str, stretch: Stretch) -> Iterator[bytes]:
    """Yields the text of every line of a .jsonl file: its field "text", or the line itself where that is a text."""
    with open(stretch.file, "rb") as file:
        file.seek(stretch.start)
        at = stretch.start
        while at < stretch.stop:
            line = file.readline()
            if line.strip():
                yield _text_of(name, stretch.file, at, line).encode()
            at += len(line)


def _text_of(name: str, file: Path, at: int, line: bytes) -> str:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise _wrong_line(name, file, at, f"is no JSON ({error})") from error
    text = record.get(FIELD) if isinstance(record, dict) else record
    if isinstance(text, str):
        return text
    has = f"; it has {', '.join(map(repr, record))}" if isinstance(record, dict) else ""
    raise _wrong_line(name, file, at, f"has no text in a field {FIELD!r}{has}")


def _wrong_line(name: str, file: Path, at: int, problem: str) -> UsageError:
    with open(file, "rb") as opened:
        number = opened.read(at).count(b"\n") + 1
    return UsageError(f"{name}: {file}, line {number} {problem}.")
