import json
import math
from datetime import datetime

import pytest
import yaml

from pruning import UsageError
from tests.support.running import write_plug_in
from utils.runs import run_folder
from utils.runs.run_folder import RunFolder
from utils.settings import resolve
from utils.settings.earlier_runs import list_runs


class FrozenClock(datetime):
    @classmethod
    def now(cls, tz=None):
        return cls(2024, 5, 6, 7, 8, 9)


@pytest.fixture
def create(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "datetime", FrozenClock)
    return lambda *argv: RunFolder.create(resolve.parse(["--results_dir", str(tmp_path / "r"), *argv]), argv)


def test_two_runs_of_one_second_never_share_a_folder(create):
    paths = [create("--run_name", "same").path.name for _ in range(3)]
    assert paths == [f"2024-05-06_07-08-09_same{end}" for end in ("", "_2", "_3")]


@pytest.mark.parametrize("name", ["../../escape", "a/b", "/etc", "sp ace", "ümlaut", "a" * 20])
def test_run_names_stay_inside_the_results(create, tmp_path, name):
    assert create("--run_name", name).path.parent == tmp_path / "r"


def test_a_run_name_too_long_for_a_file_system_is_one_error(create):
    with pytest.raises(UsageError, match="No run folder can be made"):
        create("--run_name", "a" * 5000)


def test_folder_names_say_what_ran(create):
    assert create().path.name.endswith("_SNIPit_MLP5_DIGITS")
    assert create("--model", "torchvision/resnet18").path.name.endswith("_SNIPit_torchvision-resnet18_DIGITS")
    assert create("--eval").path.name.endswith("_eval_MLP5_DIGITS")


def test_users_plug_ins_are_kept_with_the_code(create, tmp_path):
    plug_ins = write_plug_in(tmp_path / "mine", "losses", "Kept", "class Kept:\n    __call__ = print\n")
    folder = create("--plugin_dir", str(plug_ins), "--loss", "Kept")
    assert (folder.path / "codebase" / "plugin_dir" / "losses" / "Kept.py").is_file()
    assert yaml.safe_load(folder.settings_file.read_text())["plugin_dir"] == str(plug_ins)


def test_runs_are_found_by_name_and_by_path(create, tmp_path):
    folder = create()
    results = str(tmp_path / "r")
    assert RunFolder.open(folder.path.name, results).path == folder.path
    assert RunFolder.open(str(folder.path), "elsewhere").path == folder.path
    assert list_runs(results) == [folder.path.name]
    assert list_runs(str(tmp_path / "none")) == []
    (tmp_path / "r" / "not_a_run").mkdir()
    with pytest.raises(UsageError, match="no run 'not_a_run'"):
        RunFolder.open("not_a_run", results)


def test_result_is_json_for_every_reader(create):
    folder = create()
    assert folder.result() == {}
    folder.write_result({"a": math.nan, "b": [math.inf, 1.5], "c": {"d": -math.inf}, "e": None, "f": 3})

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    found = json.loads(folder.result_file.read_text(), parse_constant=refuse)
    assert found == {"a": None, "b": [None, 1.5], "c": {"d": None}, "e": None, "f": 3}
    for damaged in ("{damaged", "[1]", ""):
        folder.result_file.write_text(damaged)
        assert folder.result() == {}
