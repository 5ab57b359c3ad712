"""Experiment files: what they expand to, and what is said about those that do not fit."""

from __future__ import annotations

import textwrap
from pathlib import Path

import numpy as np
import pytest

from pruning.errors import UsageError
from tests.support.tiers import few, later
from utils.experiments import experiment
from utils.experiments.experiment import Experiment, command
from utils.experiments.spacing import spaced
from utils.settings import resolve
from utils.settings.registry import ROOT

FILES = sorted((ROOT / "experiments").rglob("*.yaml"))
# Of a cascade, a grid and rewinding one each.
QUICK_FILES = [file for file in FILES if file.parent.name in ("quick", "lottery")]


@pytest.fixture
def read(tmp_path):
    def read(text: str, **typed: object) -> Experiment:
        (tmp_path / "e.yaml").write_text(textwrap.dedent(text))
        return experiment.read(str(tmp_path / "e.yaml"), typed)

    return read


GRID = """
    name: tiny
    base: {model: MLP5, hidden: 16, epochs: 2}
    compare:
      prune_criterion: [SNIP, {name: IMP, enable_rewinding: true, epochs: 20, label: IMP rewound}]
      pruning_limit: [0.9, 0.5]
      seed: [1, 2]
"""


def titles(plan: Experiment) -> list[str]:
    return [cell.title for cell in plan.cells]


def test_the_grid_is_seed_by_seed_with_one_dense_run_each(read):
    assert titles(read(GRID)) == [
        f"{what}, seed {seed}"
        for seed in (1, 2)
        for what in ("dense", "SNIP 0.5", "SNIP 0.9", "IMP rewound 0.5", "IMP rewound 0.9")
    ]


def test_settings_of_a_cell(read):
    cell = read(GRID).cells[4]
    assert dict(cell.settings) == {
        "model": "MLP5",
        "hidden": 16,
        "epochs": 20,
        "enable_rewinding": True,
        "tensorboard": False,
        "pictures": False,
        "prune_criterion": "IMP",
        "pruning_limit": 0.9,
        "seed": 1,
    }
    assert resolve.parse(command(cell.settings)).values["enable_rewinding"] is True
    assert cell.start is None


def test_what_is_typed_wins_and_cannot_be_what_is_compared(read):
    assert {cell.settings["epochs"] for cell in read(GRID, epochs=30).cells} == {30}
    with pytest.raises(UsageError, match=r"--seed cannot be typed: .*line 7 compares"):
        read(GRID, seed=4)


def test_more_seeds_add_cells_and_change_none(read):
    fewer, more = read(GRID), read(GRID.replace("[1, 2]", "[1, 2, 3]"))
    old, new = ({cell.run_name for cell in plan.cells} for plan in (fewer, more))
    assert old < new
    assert len(new - old) == 5


def test_where_a_run_is_made_is_no_part_of_what_it_is(read):
    keys = [{cell.key for cell in read(GRID, **typed).cells} for typed in ({}, {"device": "cpu"}, {"hidden": 8})]
    assert keys[0] == keys[1]
    assert not keys[0] & keys[2]


def test_runs_draw_nothing_unless_the_file_or_who_starts_it_asks_for_it(read):
    asked = GRID.replace("epochs: 2}", "epochs: 2, pictures: true}")
    drawn = [{cell.settings["pictures"] for cell in plan.cells} for plan in (read(GRID), read(asked))]
    assert drawn == [{False}, {True}]
    assert {cell.settings["pictures"] for cell in read(GRID, pictures=True).cells} == {True}
    # Drawing changes nothing of a run: a finished one is found again.
    assert {cell.key for cell in read(GRID).cells} == {cell.key for cell in read(asked).cells}


def test_a_cascade_goes_from_limit_to_limit_and_starts_from_dense(read):
    cascade = "mode: cascade\n    retrain: {epochs: 1, learning_rate: 0.01}"
    plan = read(GRID.replace("name: tiny", cascade))
    dense, low, high = plan.cells[:3]
    assert (dense.settings["epochs"], low.settings["epochs"]) == (2, 1)
    assert (low.start, high.start, low.rewind) == (dense, low, None)
    assert low.settings["learning_rate"] == 0.01


def test_a_rewound_cascade_goes_back_to_the_dense_runs_early_weights(read):
    plan = read(GRID.replace("name: tiny", "name: tiny\n    mode: cascade_rewind\n    rewind_epoch: 1"))
    dense, low, high = plan.cells[:3]
    assert dense.settings["keep_epochs"] == [1]
    assert (low.rewind, high.rewind, high.start) == (dense, dense, low)


def test_a_rewound_cascade_must_have_something_left_to_train(read):
    text = GRID.replace("name: tiny", "mode: cascade_rewind\n    rewind_epoch: 2").replace("epochs: 20, label", "label")
    with pytest.raises(UsageError, match=r"line 3: training goes on after rewind_epoch; SNIP has 2 epochs\."):
        read(text)


def test_retraining_starts_each_limit_from_dense_in_one_shot(read):
    plan = read(GRID.replace("name: tiny", "name: tiny\n    retrain: {epochs: 1}"))
    assert {cell.start for cell in plan.cells if cell.method and cell.seed == 1} == {plan.cells[0]}


def test_an_entry_that_prunes_nothing_is_the_dense_run(read):
    plan = read(GRID.replace("[SNIP,", "[{name: EmptyCrit, epochs: 7}, SNIP,"))
    assert [cell.settings["epochs"] for cell in plan.cells if not cell.method] == [7, 7]
    assert plan.methods == ["SNIP", "IMP rewound"]
    called_alike = read(GRID.replace("[SNIP,", "[{name: SNIP, label: EmptyCrit2},"))
    assert called_alike.methods == ["EmptyCrit2", "IMP rewound"]
    assert not any(not cell.method for cell in read(GRID.replace("name: tiny", "name: tiny\n    dense: none")).cells)


def test_other_settings_make_groups_with_dense_runs_of_their_own(read):
    plan = read(GRID.replace("seed: [1, 2]", "seed: 1\n      hidden: [8, 16]"))
    assert [cell.group for cell in plan.cells] == ["hidden 8"] * 5 + ["hidden 16"] * 5
    assert plan.cells[5].settings["hidden"] == 16


def test_a_criterion_twice_is_told_apart_by_its_options(read):
    plan = read(GRID.replace("[SNIP, {name: IMP", "[SNIP, {name: SNIP, score_batches: 1}, {name: IMP"))
    assert plan.methods == ["SNIP", "SNIP (score_batches 1)", "IMP rewound"]


def test_flags_of_libraries_models_may_stand_in_a_file(read):
    cells = read("base: {model: torchvision/squeezenet1_1, data_set: CIFAR10, pretrained: true}\n").cells
    assert all(cell.settings["pretrained"] is True for cell in cells)


def test_settings_that_no_run_uses_are_named_with_their_line(read):
    plan = read("""
        base: {hidden: 16, snip_steps: 3, attack: FGSM}
        compare:
          prune_criterion:
            - name: SNIP
              l0_reg: 3
            - {name: IMP, enable_rewinding: true, epochs: 20}
          seed: [1, 2]
    """)
    lines = [line.split("e.yaml, ")[1] for line in plan.warnings]
    assert len(lines) == 2
    assert any(line.startswith("line 6: --l0_reg is not used: it belongs to loss L0CrossEntropy") for line in lines)
    assert any(line.startswith("line 2: ") and line.endswith("--attack.") for line in lines)


def test_pruning_twice_without_retraining(read):
    plan = read("""
        base: {hidden: 16}
        compare: {prune_criterion: [Magnitude], seed: [1]}
        spacing: [{linear: {from: 0.1, to: 0.6, n: 6}}, {retrain_every: 3}]
        mode: cascade
    """)
    steps = [(cell.limit, cell.settings.get("prune_through")) for cell in plan.cells[1:]]
    assert steps == [(0.3, [0.1, 0.2]), (0.6, [0.4, 0.5])]


# -- spacing -----------------------------------------------------------------------------------------------------------

RESNET20 = [0.85, 0.776, 0.708, 0.646, 0.590, 0.539, 0.492, 0.449, 0.410, 0.374, 0.341, 0.311, 0.284, 0.259, 0.237]
RESNET20 += [0.216, 0.197, 0.180, 0.164, 0.150, 0.104, 0.062, 0.020]
RESNET56 = [0.85, 0.698, 0.573, 0.470, 0.386, 0.317, 0.260, 0.214, 0.175, 0.144, 0.118, 0.097, 0.080, 0.065, 0.054]
RESNET56 += [0.044, 0.036, 0.030, 0.024, 0.020]


@pytest.mark.parametrize(
    ("file", "kept"), [("resnet20", RESNET20), *later(("resnet56", RESNET56), ("vgg16", RESNET56))]
)
@pytest.mark.parametrize("study", ["pfp/cifar", "sipp/cifar/cascade"])
def test_published_keep_ratios(study, file, kept):
    plan = experiment.read(str(ROOT / "experiments" / study / f"{file}.yaml"))
    own = [cell.limit for cell in plan.cells if cell.method == plan.methods[0] and cell.seed == plan.cells[0].seed]
    np.testing.assert_allclose([1 - limit for limit in own], kept, atol=6e-4)


@pytest.mark.parametrize(
    ("kind", "kept"),
    [
        ("geometric", [0.8, 0.4, 0.2]),
        ("linear", [0.8, 0.5, 0.2]),
        ("cubic", [0.8, 0.2 + 0.6 / 8, 0.2]),
        ("harmonic", [0.8, 0.8 * 2 ** -(np.log(4) / np.log(3)), 0.2]),
    ],
)
def test_spacings_by_their_formulas(kind, kept):
    limits, every = spaced({kind: {"from": 0.2, "to": 0.8, "n": 3}}, lambda *names: "")
    np.testing.assert_allclose(1 - np.array(limits), kept, atol=1e-6)
    assert every == 1


# -- what does not fit -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("name: tiny", "nmae: tiny", r"line 2: there is no key 'nmae'. Did you mean .*name"),
        ("epochs: 2}", "epoch: 2}", r"line 3: there is no setting 'epoch'. Did you mean .*epochs"),
        ("epochs: 2}", "epochs: two}", r"line 3: epochs takes a whole number; 'two' was given"),
        ("epochs: 2}", "epochs: -1}", r"line 3: .*--epochs must be at least 0"),
        ("[SNIP,", "[SNOP,", r"line 5: There is no criterion 'SNOP'. Did you mean SNIP or SNAP"),
        ("[SNIP,", "[SNIP, SNIP,", r"line 5: SNIP is there twice; give one of them a `label`"),
        ("[SNIP,", "[3,", r"line 5: an entry is a criterion's name"),
        ("enable_rewinding: true", "enable_rewindin: true", r"line 5: there is no setting .*enable_rewinding"),
        ("enable_rewinding: true", "enable_rewinding: 3", r"line 5: enable_rewinding takes true or false"),
        ("enable_rewinding: true", "seed: 3", r"line 5: seed cannot stand here"),
        ("[0.9, 0.5]", "[0.9, 1.5]", r"line 6: pruning_limit is a fraction removed"),
        ("[0.9, 0.5]", "[]", r"line 6: pruning_limit has no values"),
        ("[1, 2]", "[1, -2]", r"line 7: seed must be 0 to below"),
        ("[1, 2]", "[1, x]", r"line 7: seed takes a whole number"),
        ("name: tiny", "mode: cascde", r"line 2: mode is one of one_shot, cascade.* Did you mean cascade"),
        ("name: tiny", "dense: twice", r"line 2: dense is one of once per seed, none"),
        ("name: tiny", "mode: cascade\n    dense: none", r"line 3: retraining starts from a dense run"),
        ("[1, 2]", "[1, 1]", r"line 7: seed 1 is there twice"),
        ("[SNIP,", "[{name: SNIP, label: 3},", r"line 5: a label is text"),
        ("[SNIP,", "[{name: SNIP, label: dense},", r"line 5: a label is text, and not dense"),
        ("name: tiny", "name: ..", r"line 2: name is that of a folder"),
        ("name: tiny", "name: [a]", r"line 2: name is that of a folder"),
        ("name: tiny", "retrain: {seed: 3}", r"line 2: seed cannot stand here"),
        ("name: tiny", "rewind_epoch: 1", r"line 2: rewind_epoch is for mode: cascade_rewind"),
        ("name: tiny", "rewind_epoch: 9\n    mode: cascade_rewind", r"line 2: rewind_epoch 9 is after the 2"),
        ("name: tiny", "report: {x: [[a]]}", r"line 2: \['a'\] cannot be an axis"),
        ("name: tiny", "report: {x: []}", r"line 2: x is empty"),
        ("name: tiny", "report: {tolerance: [0.1, -0.1]}", r"line 2: a tolerance is a loss of accuracy"),
        ("name: tiny", "report: {tolerance: [.nan]}", r"line 2: a tolerance is a loss of accuracy"),
        ("name: tiny", "rewind_epoch: -1", r"line 2: rewind_epoch is a number of epochs"),
        ("name: tiny", "retrain: {resume: x}", r"line 2: resume is set by the runner"),
        ("name: tiny", "report: {y: [test_acuracy]}", r"line 2: 'test_acuracy' cannot be an axis. Did you mean"),
        ("name: tiny", "report: {y: [test_perplexty]}", r"line 2: 'test_perplexty' cannot be an axis. Did you mean"),
        ("name: tiny", "report: {z: 1}", r"line 2: there is no key 'z'"),
        ("name: tiny", "report: {tolerance: [much]}", r"line 2: a tolerance is a loss of accuracy"),
        ("name: tiny", "spacing: {linear: {from: 0.1, to: 0.9, n: 3}}", r"line 2: spacing stands instead of"),
        ("name: tiny", "base: {}", r"line 3: base is given twice"),
        ("name: tiny", "name: [", r"no valid YAML"),
    ],
)
def test_a_mistake_is_one_line_that_names_its_place(read, old, new, message):
    assert old in GRID
    with pytest.raises(UsageError, match=message) as caught:
        read(GRID.replace(old, new, 1))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("spacing", "message"),
    [
        ("{geometrical: {from: 0.1, to: 0.9, n: 3}}", "Did you mean geometric"),
        ("{geometric: {from: 0.1, to: 0.9}}", "geometric takes {from"),
        ("{geometric: {from: 0.1, to: 1.0, n: 3}}", "fractions removed"),
        ("{linear: {from: 0.9, to: 0.1, n: 3}}", "sparsities that rise"),
        ("{linear: {from: 0.1, to: 0.9, n: 0}}", "n is a whole number from 1"),
        ("[0.5, 0.9]", "spacing takes"),
        ("{linear: {from: 0.1, to: 0.9, n: 1}}", "n is 2 to"),
        ("{linear: {from: 0.1, to: 0.9, n: 1000000000}}", "n is 2 to"),
        ("{linear: {from: false, to: 0.9, n: 2}}", "fractions removed"),
        ("{linear: {from: 0.1, to: 0.9, n: 3}, retrain_every: 4}", "retrain_every is 4; there are 3"),
        ("[{linear: {from: 0.1, to: 0.9, n: 3}, retrain_every: 2}, {retrain_every: 3}]", "given twice"),
    ],
)
def test_a_spacing_that_does_not_fit(read, spacing, message):
    with pytest.raises(UsageError, match=rf"line 3: .*{message}"):
        read(f"\ncompare: {{prune_criterion: [SNIP]}}\nspacing: {spacing}\n")


@pytest.mark.parametrize(
    "file", few(FILES, QUICK_FILES), ids=[str(file.relative_to(ROOT / "experiments")) for file in FILES]
)
def test_every_experiment_file_expands(file):
    plan = experiment.read(str(file), {"plugin_dir": str(ROOT / "tests" / "support" / "plugins")})
    assert len(plan.cells) > len(plan.methods)
    assert len({cell.run_name for cell in plan.cells}) == len(plan.cells)
    assert plan.warnings == []
    first = next((line for line in Path(file).read_text().splitlines() if line), "")
    assert first.startswith("# "), "a file says first what it is for"
