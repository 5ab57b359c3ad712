"""A file in its room is all that a plug-in takes: one of each kind, with a parameter of its own."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
import torch

from tests.support.plug_ins import PLUG_INS
from tests.support.running import QUICK, write_plug_in
from tests.support.tiers import few, thorough
from tests.support.words import lacking
from utils.runs.run_folder import CODE
from utils.settings.registry import KINDS, ROOT


def typed(kind):
    setting, name, _, values, _ = PLUG_INS[kind]
    return [f"--{setting}", name, *values]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "testers"])
def test_plug_in_from_a_folder_of_the_users_own(command, tmp_path, kind):
    setting, name, source, _, _ = PLUG_INS[kind]
    plug_ins = write_plug_in(tmp_path / "mine", kind, name, source)
    argv = ["--limit_batches", "2", "--epochs", "1", "--no-tensorboard", "--plugin_dir", plug_ins]
    done = command(*argv, *typed(kind))
    assert done.err == ""
    assert done.result["status"] == "finished"
    assert done.result.get(setting, name) == name
    assert done.result["sparsity_reached"] == pytest.approx(0.9, abs=0.005)
    assert (done.folder / "codebase" / "plugin_dir" / kind / f"{name}.py").is_file()


def test_tester_from_a_folder_of_the_users_own(command, tmp_path):
    plug_ins = write_plug_in(tmp_path / "mine", "testers", "MyTester", PLUG_INS["testers"][2])
    trained = command.quick().folder
    command.quick("--plugin_dir", plug_ins, "--eval", "--checkpoint_name", trained, *typed("testers"))
    record = json.loads((next(run for run in command.runs() if "_eval_" in run.name) / "result.json").read_text())
    assert record["test_scheme"] == "MyTester" and record["threshold"] == 0.5
    assert 0 < record["above"] < 1


def test_tester_that_only_writes_files(command, tmp_path):
    source = "class Silent:\n    def evaluate(self, folder):\n        folder.write_output('seen.json', [1])\n"
    plug_ins = write_plug_in(tmp_path / "mine", "testers", "Silent", source)
    trained = command.quick().folder
    done = command("--plugin_dir", plug_ins, "--eval", "--checkpoint_name", trained, "--test_scheme", "Silent")
    assert done.code == 0, done.err
    folder = next(run for run in done.runs if "_eval_" in run.name)
    assert json.loads((folder / "output" / "seen.json").read_text()) == [1]


@pytest.mark.parametrize("kind", KINDS)
def test_help_explains_a_plug_ins_flags_from_its_docstring(command, tmp_path, kind):
    setting, name, source, _, expected = PLUG_INS[kind]
    plug_ins = write_plug_in(tmp_path, kind, name, source)
    done = command("--plugin_dir", plug_ins, f"--{setting}", name, "--help")
    assert done.code == 0
    heading = f"{KINDS[kind][1]} {name}:"
    assert heading in done.out
    assert re.search(expected, done.out.split(heading)[1])


def test_parameter_reaches_the_constructor(command, tmp_path):
    # Scores are |w - alpha|, so with a huge alpha the smallest weights stay, with a negative one the largest.
    plug_ins = write_plug_in(tmp_path, "criterions", "MyIdea", PLUG_INS["criterions"][2])
    kept = {}
    for alpha in (100, -100):
        argv = ["--plugin_dir", plug_ins, "--prune_criterion", "MyIdea", f"--alpha={alpha}"]
        folder = command.quick(*argv, "--learning_rate", "0", "--run_name", f"a{alpha}").runs
        file = next(run for run in folder if run.name.endswith(f"a{alpha}")) / "models" / "MLP5_finished"
        state = torch.load(file, weights_only=True)
        kept[alpha] = torch.cat([state["state_dict"][name][mask] for name, mask in state["masks"].items()])
    assert kept[100].max() < 0 < kept[-100].min()


@thorough
def test_plug_ins_dropped_into_the_rooms_themselves(tmp_path):
    """Point 3 of what a user can do, literally: a copy of the project, six files put in place, nothing else touched."""
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in CODE:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.is_file():
            shutil.copy(source, copy / name)
    argv = ["--epochs", "1", "--limit_batches", "2", "--no-tensorboard", "--pruning_limit", "0.5"]
    for kind, (_, name, source, _, _) in PLUG_INS.items():
        write_plug_in(copy, kind, name, source)
        argv += typed(kind)
    script = f"import main, sys; sys.exit(main.main({argv!r}) or main.main(['--list']))"
    environment = {**os.environ, "PYTHONPATH": str(copy)}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=copy, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    # The tester's flag is known, though training does not run a tester.
    assert not lacking(done.stderr, "warning", "--eval", "--test_scheme", "--threshold")
    [run] = (copy / "gitignored" / "results").iterdir()
    record = json.loads((run / "result.json").read_text())
    assert [record["model"], record["data_set"], record["prune_criterion"]] == ["MyNet", "MyData", "MyIdea"]
    assert record["weights_total"] == 5 * 6 * 8 + 8 * 3
    assert re.search(r"MyIdea +weights +before +Weights far from alpha \(nobody 2024, arXiv:0000\.00000\)", done.stdout)
    for _, name, *_ in PLUG_INS.values():
        assert re.search(rf"^  {name} ", done.stdout, re.MULTILINE)


# -- trainers of ten lines -------------------------------------------------------------------------------------------

OVERRIDES = {
    "train_epoch": "self.seen = self.epoch\n        super().train_epoch()",
    "train_batch": "self.seen = len(targets)\n        return super().train_batch(inputs, targets)",
    "forward": "self.seen = len(inputs)\n        return super().forward(inputs)",
    "loss": "self.seen = len(targets)\n        return super().loss(outputs, targets) + 5",
    "step": "self.seen = True\n        super().step()",
    "validate": "self.seen = True\n        return {**super().validate(), 'test_accuracy': 0.125}",
}
ARGUMENTS = {"train_batch": ", inputs, targets", "forward": ", inputs", "loss": ", outputs, targets"}


@pytest.mark.parametrize("method", few(OVERRIDES, ["train_epoch", "loss", "validate"]))
def test_trainer_of_ten_lines_overrides_one_method(command, tmp_path, method):
    name = f"Own_{method}"
    source = f'''
from trainers.DefaultTrainer import DefaultTrainer

class {name}(DefaultTrainer):
    """Notes that its own method was called."""

    def {method}(self{ARGUMENTS.get(method, "")}):
        {OVERRIDES[method]}

    def train(self):
        super().train()
        assert hasattr(self, "seen")
'''
    plug_ins = write_plug_in(tmp_path, "trainers", name, source)
    result = command.quick("--plugin_dir", plug_ins, "--train_scheme", name).result
    assert result["status"] == "finished"
    assert result["sparsity_reached"] == pytest.approx(0.9, abs=0.001)
    if method == "validate":
        assert result["test_accuracy"] == 0.125
    if method == "loss":
        assert result["train_loss"] > 5


# -- what constructors may ask for -----------------------------------------------------------------------------------

EVERY_KIND_OF_PARAMETER = '''
from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Literal, Optional

from pruning import Criterion, WeightCriterion

if TYPE_CHECKING:
    from somewhere import Something


@dataclass
class Ways:
    """Ways.

    Args:
        depth: how deep.
        places: where.
    """

    depth: int = 3
    places: list[int] = field(default_factory=lambda: [1, 2])


class Everything(WeightCriterion):
    """Asks for everything.

    Args:
        needed: has no default.
        maybe: a number or none.
        choice: one of three.
        numbered: one of two numbers.
        several: some words.
        pair: two numbers.
        switch: on or off.
        path: a file.
        mixed: a number or a word.
        inner: another criterion.
        seed: shared with the core.
        first, second: explained together; 5 % of what is there.
    """

    def __init__(
        self,
        needed: str,
        maybe: Optional[float] = None,
        choice: Literal["a", "b", "c"] = "a",
        numbered: Literal[1, 2] = 1,
        several: list[str] = (),
        pair: tuple[float, float] = (0.5, 0.999),
        switch: bool = True,
        path: Path = Path("x"),
        mixed: int | str = "auto",
        inner: Criterion | None = None,
        seed: int = 7,
        first: float = 1.0,
        second: float = 2.0,
        unannotated=3,
        plain=(1, 2),
        hidden_thing: Something = None,
        activation: Callable = print,
        anything: Any = 0.25,
        *,
        ways: Ways,
    ):
        left_out = ("self", "ways", "inner", "activation")
        values = {name: value for name, value in locals().items() if name not in (*left_out, "left_out")}
        self.values = {**values, "depth": ways.depth, "places": ways.places, "inner": type(inner).__name__}
        self.inner = inner

    def weight_scores(self, network, batches):
        import json
        Path(self.values["needed"]).write_text(json.dumps(self.values, default=repr))
        return {name: weight.abs() for name, weight in network.weights()}
'''


@pytest.fixture
def everything(command, tmp_path):
    plug_ins = write_plug_in(tmp_path, "criterions", "Everything", EVERY_KIND_OF_PARAMETER)
    out = tmp_path / "values.json"

    def run(*argv):
        chosen = ["--plugin_dir", plug_ins, "--prune_criterion", "Everything", "--needed", out]
        done = command.quick(*chosen, *argv)
        assert done.code == 0, done.err
        return json.loads(out.read_text()), done

    run.plug_ins = plug_ins
    return run


def test_defaults_of_every_kind_of_parameter(everything):
    values, done = everything()
    assert values["maybe"] is None and values["choice"] == "a" and values["numbered"] == 1
    assert values["several"] == [] and values["pair"] == [0.5, 0.999] and values["switch"] is True
    assert values["path"] == "PosixPath('x')" and values["mixed"] == "auto" and values["inner"] == "NoneType"
    assert values["unannotated"] == 3 and values["plain"] == [1, 2] and values["anything"] == 0.25
    assert values["depth"] == 3 and values["places"] == [1, 2] and values["hidden_thing"] is None
    # The core's seed is the run's: a default of the part's own never becomes a second one.
    assert values["seed"] == 333
    # settings.yaml must hold all of it.
    resumed = (done.folder / "settings.yaml").read_text()
    assert "path: x\n" in resumed and "pair:\n- 0.5\n- 0.999\n" in resumed


def test_typed_values_of_every_kind_of_parameter(everything):
    typed = "--maybe 1e-3 --choice c --numbered 2 --several x y --pair 0.1 0.2 --no-switch --path a/b --mixed 5"
    more = "--inner SNIP --seed 5 --unannotated 9 --plain 7 8 9 --anything 0.5 --depth 4 --places 6 --second 3"
    values, _ = everything(*typed.split(), *more.split())
    assert values["maybe"] == 0.001 and values["choice"] == "c" and values["numbered"] == 2
    assert values["several"] == ["x", "y"] and values["pair"] == [0.1, 0.2] and values["switch"] is False
    assert values["path"] == "PosixPath('a/b')" and values["mixed"] == 5 and values["inner"] == "SNIP"
    assert values["seed"] == 5 and values["unannotated"] == 9 and values["plain"] == [7, 8, 9]
    assert values["anything"] == 0.5 and values["depth"] == 4 and values["places"] == [6]
    assert values["first"] == 1.0 and values["second"] == 3.0
    values, _ = everything("--mixed", "word")
    assert values["mixed"] == "word"


def test_help_of_every_kind_of_parameter(everything, command):
    done = command("--plugin_dir", everything.plug_ins, "--prune_criterion", "Everything", "--inner", "SNIP", "-h")
    own = done.out.split("criterion Everything:")[1].split("\n\n")[0]
    for expected in (
        r"--needed STR +has no default\.$",
        r"--maybe FLOAT +a number or none\.$",
        r"--choice \{a,b,c\} +one of three\. \(default: a\)",
        r"--switch, --no-switch +on or off\. \(default: on\)",
        r"--inner CRITERION +another criterion\.$",
        r"--second FLOAT +explained together; 5 % of what is there\. \(default: 2\.0\)",
        r"--depth INT +how deep\. \(default: 3\)",
        r"--places \[INT \.\.\.\] +where\. \(default: 1 2\)",
    ):
        assert re.search(expected, own, re.MULTILINE), expected
    assert "--activation" not in own, "what cannot be typed is no flag"
    assert "--seed" not in own, "the core has it"
    assert "criterion SNIP:\n  --batch_statistics" in done.out, "the inner criterion's flags stand beside"


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ([], "--needed is needed by criterion Everything: has no default."),
        (["--needed", "x", "--pair", "1"], "--pair takes 2 numbers"),
        (["--needed", "x", "--choice", "d"], "--choice takes one of a, b, c; 'd' was given"),
        (["--needed", "x", "--numbered", "3"], "--numbered takes one of 1, 2"),
        (["--needed", "x", "--maybe", "none"], "--maybe takes a number; 'none' was given"),
        (["--needed", "x", "--inner", "Snap1"], "There is no criterion 'Snap1'"),
        (["--needed", "x", "--activation", "relu"], "There is no flag --activation"),
    ],
)
def test_wrong_values_of_every_kind_of_parameter(everything, command, wrong, expected):
    chosen = ["--plugin_dir", everything.plug_ins, "--prune_criterion", "Everything"]
    assert expected in command.refused(*QUICK, *chosen, *wrong)


def test_error_of_a_plug_ins_own_check_is_one_line(command, tmp_path):
    source = """
    from criterions.SNIP import SNIP

    class Choosy(SNIP):
        def __init__(self, alpha: float = 0.3):
            super().__init__()
            if alpha > 1:
                raise ValueError(f"alpha must be at most 1; {alpha} was given")
    """
    plug_ins = write_plug_in(tmp_path, "criterions", "Choosy", source)
    line = command.refused(*QUICK, "--plugin_dir", plug_ins, "--prune_criterion", "Choosy", "--alpha", "2")
    assert not lacking(line, "error", "Choosy", "alpha", "at most 1", "2.0")


def test_flags_of_an_inner_criterion_reach_it(command):
    done = command.quick("--prune_criterion", "UnstructuredRandom", "--quotas_of", "SNIPit", "--snip_steps", "2")
    assert done.err == ""
    assert done.result["pruning_events"] == 4


def test_criterion_inside_itself_ends(command):
    done = command.quick("--prune_criterion", "UnstructuredRandom", "--quotas_of", "UnstructuredRandom")
    assert done.result["sparsity_reached"] == pytest.approx(0.9, abs=0.001)


def test_parts_with_the_same_parameter_keep_their_own_defaults(command, tmp_path):
    for kind, base, name, default in (
        ("criterions", "from criterions.SNIP import SNIP as Base", "ShareA", 0.25),
        ("losses", "from losses.CrossEntropy import CrossEntropy as Base", "ShareB", 0.75),
    ):
        source = f"""
        from pathlib import Path
        {base}

        class {name}(Base):
            def __init__(self, share: float = {default}):
                super().__init__()
                with open(Path(__file__).parents[1] / "shares.txt", "a") as file:
                    file.write(f"{name} {{share}}\\n")
        """
        write_plug_in(tmp_path, kind, name, source)
    chosen = ["--plugin_dir", tmp_path, "--prune_criterion", "ShareA", "--loss", "ShareB"]
    assert command.quick(*chosen).code == 0
    assert sorted((tmp_path / "shares.txt").read_text().split("\n")) == ["", "ShareA 0.25", "ShareB 0.75"]
    (tmp_path / "shares.txt").unlink()
    assert command.quick(*chosen, "--share", "0.5").code == 0
    assert sorted((tmp_path / "shares.txt").read_text().split("\n")) == ["", "ShareA 0.5", "ShareB 0.5"]
    assert "(default: each part's own)" in command(*chosen, "--help").out


def test_users_plug_in_wins_over_ours_of_the_same_name(command, tmp_path):
    source = '''
    from pruning import WeightCriterion

    class SNIP(WeightCriterion):
        """Mine."""

        def weight_scores(self, network, batches):
            return {name: weight.abs() for name, weight in network.weights()}
    '''
    plug_ins = write_plug_in(tmp_path, "criterions", "SNIP", source)
    assert re.search(r"SNIP +weights +before +Mine\.", command("--plugin_dir", plug_ins, "--list").out)
    # Without the folder it is ours again, in the same process too.
    assert re.search(r"SNIP +weights +before +Connection sensitivity", command("--list").out)


def test_what_a_part_wants_stands_between_presets_and_defaults(command, tmp_path):
    source = """
    from criterions.SNIP import SNIP

    class Wishful(SNIP):
        wants = {"learning_rate": 0.5, "batch_size": 7, "loss": "CrossEntropy"}
    """
    plug_ins = write_plug_in(tmp_path, "criterions", "Wishful", source)
    chosen = ["--plugin_dir", plug_ins, "--prune_criterion", "Wishful"]
    text = (command.quick(*chosen).folder / "settings.yaml").read_text()
    assert "learning_rate: 0.5\n" in text
    assert "batch_size: 64\n" in text, "DIGITS has a preset, which wins over a wish"
    text = command(*chosen, "--help", "--no-autoconfig").out
    assert "samples per batch. (default: 7)" in text


@pytest.mark.parametrize(
    ("wish", "expected"),
    [('{"learning_rat": 1}', "Wishful, `wants`: there is no setting 'learning_rat'. Did you mean learning_rate"),
     ('{"epochs": "many"}', "Wishful, `wants`: epochs takes a whole number; 'many' was given")],
)  # fmt: skip
def test_wrong_wish_of_a_part_names_the_part(command, tmp_path, wish, expected):
    source = f"from criterions.SNIP import SNIP\n\nclass Wishful(SNIP):\n    wants = {wish}\n"
    plug_ins = write_plug_in(tmp_path, "criterions", "Wishful", source)
    argv = ["--no-tensorboard", "--plugin_dir", plug_ins, "--prune_criterion", "Wishful"]
    assert expected in command.refused(*argv)


def test_a_model_without_layers_is_pruned_and_evaluated(command, tmp_path):
    model = """
    import torch
    from torch import nn


    class Unlayered(nn.Module):
        def __init__(self, num_classes: int, input_shape: tuple[int, int, int]) -> None:
            super().__init__()
            self.one, self.two = nn.Parameter(torch.randn(64, 12) / 8), nn.Parameter(torch.randn(12, num_classes))

        def forward(self, x):
            return (x.flatten(1) @ self.one).relu() @ self.two
    """
    plug_ins = ["--plugin_dir", write_plug_in(tmp_path, "models", "Unlayered", model)]
    argv = ["--limit_batches", "2", "--epochs", "1", "--no-tensorboard", "--model", "Unlayered", *plug_ins]
    done = command(*argv, "--prune_criterion", "SNAP", "--pruning_limit", 0.5)
    assert done.result["nodes_left"] == 6 and done.result["weights_total"] == 64 * 12 + 12 * 10
    evaluated = command("--eval", "--checkpoint_name", done.folder, "--limit_batches", "2", *plug_ins)
    assert evaluated.result["test_accuracy"] == done.result["test_accuracy"]
