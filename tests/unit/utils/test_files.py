import os

import pytest

from pruning import UsageError
from utils.files import write_atomic


def test_writes_text_and_bytes(tmp_path):
    write_atomic(tmp_path / "a", "grün\n")
    assert (tmp_path / "a").read_text(encoding="utf-8") == "grün\n"
    write_atomic(tmp_path / "a", b"\x00\x01")
    assert (tmp_path / "a").read_bytes() == b"\x00\x01"
    assert [path.name for path in tmp_path.iterdir()] == ["a"], "no temporary file stays"


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_a_failure_at_any_moment_leaves_the_old_file(tmp_path, monkeypatch, moment):
    write_atomic(tmp_path / "a", "old")

    def fail(*_args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, moment, fail)
    with pytest.raises(UsageError, match="No space left on device; what was there before stays"):
        write_atomic(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_folder_that_is_none(tmp_path):
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file" / "a", tmp_path / "gone" / "a"):
        with pytest.raises(UsageError, match="could not be written"):
            write_atomic(path, "new")
