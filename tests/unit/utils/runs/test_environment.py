import subprocess

import pytest
import torch

from pruning import UsageError
from utils.runs import environment
from utils.runs.environment import describe, peak_memory_bytes, pick_device

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"),
    [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu"), (True, False, "cuda")],
)
def test_auto_takes_the_best_there_is(monkeypatch, cuda, mps, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert pick_device("auto").type == expected
    assert pick_device("cpu").type == "cpu"
    for name, there in (("cuda", cuda), ("mps", mps)):
        if not there:
            with pytest.raises(UsageError, match=f"--device {name}: .*Usable here: cpu"):
                pick_device(name)


def test_a_machine_is_described():
    found = describe(CPU)
    assert found["versions"]["torch"] and found["versions"]["python"].startswith("3.")
    assert found["hardware"]["cpu_count"] >= 1 and len(found["hardware"]["cpu"]) > 2
    assert found["hardware"]["gpu"] is None and found["threads"] == torch.get_num_threads()


def test_no_git_is_no_error(monkeypatch):
    def gone(*_args, **_kwargs):
        raise FileNotFoundError("git")

    monkeypatch.setattr(subprocess, "run", gone)
    assert describe(CPU)["git_commit"] is None


def test_outside_a_repository_there_is_no_commit(monkeypatch, tmp_path):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.setattr(environment, "ROOT", tmp_path)
    assert describe(CPU)["git_commit"] is None


def test_memory_is_counted_in_bytes():
    # Of a Python process with torch: more than 64 MiB, less than 1 TiB. Counted in KiB it would be neither.
    assert 2**26 < peak_memory_bytes(CPU) < 2**40
