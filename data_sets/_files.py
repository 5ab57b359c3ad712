"""Reading data files: whatever is missing or damaged ends in one line that names the folder and the files."""

from __future__ import annotations

import http.client
import lzma
import pickle
import re
import socket
import tarfile
import textwrap
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pruning.errors import UsageError

# Everything that readers of archives, pickles, idx files and downloads were seen to raise on bad input.
BAD_INPUT = (
    OSError,
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    AssertionError,
    EOFError,
    AttributeError,
    ImportError,
    pickle.UnpicklingError,
    http.client.HTTPException,
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
)
SECONDS_TO_CONNECT = 5.0


@contextmanager
def reading(name: str, folder: Path, files: Sequence[str], url: str = "") -> Iterator[None]:
    """Turns what goes wrong in the body, downloads included, into one UsageError.

    Args:
        name: of the data set.
        folder: where the files belong.
        files: that belong there.
        url: where a person finds them.
    """
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SECONDS_TO_CONNECT)  # behind a silent firewall a download would hang for minutes
    try:
        yield
    except UsageError:
        raise
    except BAD_INPUT as error:
        raise missing(name, folder, files, reason=_one_line(error), url=url) from error
    finally:
        socket.setdefaulttimeout(before)


def missing(name: str, folder: Path, files: Sequence[str], *, reason: str, url: str = "") -> UsageError:
    """The error for files that are not there or not whole."""
    source = f" (from {url})" if url else ""
    return UsageError(f"{name}: cannot read the data: {reason}. Put {', '.join(files)} into {folder}{source}")


def _one_line(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "it is not there, and the download took too long to answer"
    text = " ".join(str(error).split()) or type(error).__name__
    refused = re.search(r"<urlopen error (.*?)>", text)  # torchvision repeats it for every mirror
    if refused:
        return f"it is not there, and the download failed ({refused[1]})"
    return textwrap.shorten(text, 160, placeholder=" ...").rstrip(".")


def need_folder(name: str, folder: Path) -> None:
    """Refuses a file, or something below a file, that stands where a folder should be."""
    for place in (folder, *folder.parents):
        if place.exists():
            if not place.is_dir():
                raise UsageError(f"{name}: {place} is a file, but a folder should be there; move it away")
            return
