import json

import pytest
import yaml

from pruning import UsageError
from utils.runs.run_folder import RunFolder
from utils.settings import presets, registry, resolve
from utils.settings.registry import ROOT


@pytest.fixture
def autoconfig(tmp_path, monkeypatch):
    file = tmp_path / "autoconfig.json"
    monkeypatch.setattr(presets, "AUTOCONFIG", file)

    def write(content):
        file.write_text(content if isinstance(content, str) else json.dumps(content))

    return write


def values(*argv):
    return resolve.parse(argv).values


def test_a_preset_may_choose_a_part_that_has_presets_of_its_own(autoconfig):
    autoconfig({"data_set": {"DIGITS": {"model": "LeNet5"}}, "model": {"LeNet5": {"epochs": 7}, "MLP5": {"epochs": 9}}})
    assert (values()["model"], values()["epochs"]) == ("LeNet5", 7)
    assert values("--epochs", "3")["epochs"] == 3
    assert (values("--model", "MLP5")["model"], values("--model", "MLP5")["epochs"]) == ("MLP5", 9)
    assert (values("--no-autoconfig")["model"], values("--disable_autoconfig")["epochs"]) == ("MLP5", 80)


def test_presets_are_checked_like_everything_else(autoconfig):
    for content, expected in (
        ({"data_set": {"DIGITS": {"epoch": 7}}}, "data_set DIGITS: there is no setting 'epoch'. Did you mean epochs"),
        ({"data_set": {"DIGITS": {"epochs": "x"}}}, "data_set DIGITS: epochs takes a whole number; 'x' was given"),
        ({"dataset": {"DIGITS": {"epochs": 1}}}, "holds presets of 'dataset'"),
        ({"data_set": {"DIGITS": 3}}, "must hold"),
        ([1], "must hold"),
        ("{", "cannot be read"),
    ):
        autoconfig(content)
        with pytest.raises(UsageError, match=expected):
            values()
        assert values("--no-autoconfig")["epochs"] == 80, "there is a way around a broken file"


def test_preset_for_a_part_that_is_not_chosen_is_nothing(autoconfig):
    autoconfig(
        {"prune_criterion": {"IMP": {"rewind_to": 3}, "Gone": {"epochs": 1}}, "model": {"MLP5": {"rewind_to": 2}}}
    )
    assert "rewind_to" not in values()
    assert values("--prune_criterion", "IMP")["rewind_to"] == 3


def test_settings_come_back_from_their_file(tmp_path):
    argv = ["--prune_criterion", "IMP", "--milestones", "3", "4", "--results_dir", str(tmp_path), "--quiet"]
    chosen = resolve.parse([*argv, "--no-outer_layer_pruning", "--limit_batches", "2", "--learning_rate", "3e-4"])
    folder = RunFolder.create(chosen, argv)
    again = resolve.load(folder.settings(), {}, folder.settings_file)
    assert again.core == chosen.core
    assert again.values == chosen.values
    assert again.values["milestones"] == (3, 4) and again.core.outer_layer_pruning is False


def test_a_settings_file_that_was_damaged_is_named(tmp_path):
    folder = RunFolder.create(resolve.parse(["--results_dir", str(tmp_path)]), [])
    saved = folder.settings()
    for damage, expected in (
        ({"epochs": "many"}, "epochs takes a whole number"),
        ({"model": "Gone"}, "no model 'Gone'"),
    ):
        folder.settings_file.write_text(yaml.safe_dump(saved | damage))
        with pytest.raises(UsageError, match=expected):
            resolve.load(folder.settings(), {}, folder.settings_file)
    del saved["epochs"]
    with pytest.raises(UsageError, match=r"settings\.yaml lacks epochs"):
        resolve.load(saved, {}, folder.settings_file)
    for text in ("epochs: [", "just words"):
        folder.settings_file.write_text(text)
        with pytest.raises(UsageError, match=r"settings\.yaml"):
            folder.settings()


def test_folders_by_default_lie_beside_the_program(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resolve.parse([]).core.results_dir == str(ROOT / "gitignored" / "results")
    assert resolve.parse(["--results_dir", "mine"]).core.results_dir == str(tmp_path / "mine")
    assert resolve.parse(["--data_dir", "~/mine"]).core.data_dir.endswith("/mine")
    assert "~" not in resolve.parse(["--data_dir", "~/mine"]).core.data_dir


def test_every_flag_is_known_to_no_more_than_one_meaning_of_its_type():
    # Parts may share a flag, but then what is typed must suit both of them.
    kinds = {}
    for kind in registry.KINDS:
        for name in resolve.registry.names(kind):
            for flag in resolve.registry.flags(kind, name):
                assert kinds.setdefault(flag.name, flag.kind) == flag.kind, f"--{flag.name} of {name}"
