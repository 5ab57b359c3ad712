"""A plug-in file dropped into its folder turns no test red: the contracts take it up, no list of names forbids it."""

import os
import re
import shutil
import subprocess
import sys

import pytest

from tests.support.plug_ins import MORE, PLUG_INS
from tests.support.running import write_plug_in
from utils.runs.run_folder import CODE
from utils.settings.registry import ROOT

# Every test that lists what the folders hold.
LISTING = ["tests/contract", "tests/papers/test_nodes.py", "tests/papers/test_low_rank.py", "tests/unit/utils/settings"]
# Those of them that look at all names at once.
AT_ONCE = ["are_there", "that_are_there", "every_flag_is_known"]


def copy_of_the_project(place):
    """A copy of code and tests without what Git or an earlier run left there."""
    for name in [*CODE, "tests", "pyproject.toml"]:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, place / name, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
        elif source.is_file():
            shutil.copy(source, place / name)


@pytest.mark.thorough
def test_dropped_in_plug_ins_are_met_by_the_contracts_and_turn_none_red(tmp_path):
    copy_of_the_project(tmp_path)
    dropped = [(kind, name, source) for kind, (_, name, source, *_) in PLUG_INS.items()] + MORE
    for kind, name, source in dropped:
        write_plug_in(tmp_path, kind, name, source)
    wanted = " or ".join([*(name for _, name, _ in dropped), *AT_ONCE])
    # The quick and the thorough cases of each family; a cache would be written into the copy for nothing.
    command = [sys.executable, "-m", "pytest", "-vv", "-m", "not slow", "-p", "no:cacheprovider", *LISTING]
    command += ["-k", f"({wanted}) and not dropped_in"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    environment.pop("PYTEST_XDIST_WORKER", None)
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    passed = re.findall(r"::(\S+) PASSED", done.stdout)
    for _, name, _ in dropped:
        met = [test for test in passed if name in test]
        assert met, f"no contract met {name}"
