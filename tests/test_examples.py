"""The examples run, and the engine's page says what happens: every block of Python in it, every output under it."""

from __future__ import annotations

import importlib.util
import re
import sys
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from data_sets.CIFAR10 import CLASSES
from pruning import rules

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "pruning" / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$(?:\n+```text\n(.*?)^```$)?", PAGE, re.MULTILINE | re.DOTALL)


def example(name: str) -> ModuleType:
    """Imports an example by its file, as a program would be run but for its last lines."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", ROOT / "examples" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def path_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))


# -- the engine's page ------------------------------------------------------------------------------------------------


def plain(output: str) -> str:
    """Output without the names of torch's operations, which differ from release to release."""
    return re.sub(r"\baten\.\w+", "aten", output).strip()


def test_every_block_of_the_engines_page_does_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    known = dict(rules.RULES)
    names: dict[str, Any] = {"__name__": "page"}
    try:
        for number, (code, output) in enumerate(BLOCKS):
            exec(compile(code, f"pruning/README.md, block {number}", "exec"), names)
            assert plain(capsys.readouterr().out) == plain(output), code
    finally:
        rules.RULES.clear()
        rules.RULES.update(known)  # the page teaches an operation of its own
    assert len(BLOCKS) > 15 and sum(bool(output) for _, output in BLOCKS) > 12


def test_the_page_shows_the_eleven_thousand_parameters_behind_three_channels() -> None:
    assert "11211 parameters will be pruned" in PAGE


def test_files_that_the_page_names_are_there() -> None:
    table = PAGE[PAGE.index("| file |") :]
    named = {name for row in table.splitlines()[2:] for name in re.findall(r"`(\w+\.py)`", row.split("|")[1])}
    assert len(named) > 15 and [name for name in named if not (ROOT / "pruning" / name).is_file()] == []
    links = re.findall(r"\]\((\.\./[\w/.]+)\)", PAGE)
    assert links and [link for link in links if not (ROOT / "pruning" / link).exists()] == []


# -- cuts by hand -----------------------------------------------------------------------------------------------------


def test_cuts_by_hand_and_by_the_graph_agree_and_are_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    functions = example("pruning_functions")
    functions.main(["--draw_dir", str(tmp_path / "drawn")])
    printed = capsys.readouterr().out
    assert printed.count("parameters will be pruned") == 5  # three cuts of the plain network, one of each other
    assert printed.count("outputs differ by") == 3
    assert sorted(path.name for path in (tmp_path / "drawn").iterdir()) == [
        "Concatenated.svg",
        "Plain.svg",
        "Residual.svg",
    ]
    assert all("<svg" in path.read_text(encoding="utf-8") for path in (tmp_path / "drawn").iterdir())


def test_the_example_notices_a_cut_that_was_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    functions = example("pruning_functions")
    # Another channel of the same number: all shapes fit, and only the values say that it is the wrong one.
    wrong = partial(functions.prune_batchnorm, idxs=[0, 1])
    monkeypatch.setattr(functions, "prune_batchnorm", lambda module, idxs: wrong(module))
    with pytest.raises(SystemExit, match="differ"):
        functions.main([])


# -- rounds on CIFAR-10 -----------------------------------------------------------------------------------------------


@pytest.fixture
def rounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs examples/prune_resnet18.py on a few pictures; the orthogonal start of a large network is left out."""
    for part in ("train", "test"):
        for place, name in enumerate(CLASSES):
            folder = tmp_path / "data" / "cifar10" / part / name
            folder.mkdir(parents=True)
            pixels = np.random.RandomState(place).randint(0, 256, (32, 32, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "0.png")
    monkeypatch.setattr(nn.init, "orthogonal_", lambda tensor, gain=1.0: tensor)
    program = example("prune_resnet18")
    places = ["--data_dir", str(tmp_path / "data"), "--out_dir", str(tmp_path / "out"), "--device", "cpu"]

    def run(*argv: str) -> None:
        quick = ["--total_epochs", "1", "--step_size", "1", "--limit_batches", "1", "--batch_size", "4"]
        program.main([*argv, *places, *quick])

    run.program = program  # type: ignore[attr-defined]
    return run


def test_resnet18_is_pruned_in_rounds_to_the_published_sizes(
    rounds: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rounds("--mode", "train")
    printed = capsys.readouterr().out
    assert "11.2 M parameters (11,173,962)" in printed
    assert "published: 11.1 M parameters, test accuracy 0.9248" in printed
    for number, size, published in ((1, "4.5 M", "0.9229"), (2, "1.9 M", "0.9207")):
        rounds("--mode", "prune", "--round", str(number), *(["--norm", "group"] if number == 2 else []))
        printed = capsys.readouterr().out
        assert f"round {number}: {size} parameters" in printed
        assert f"published: {size} parameters, test accuracy {published}" in printed
    state = torch.load(tmp_path / "out" / "round2.pth", weights_only=True)
    size_of_file = sum(tensor.numel() for name, tensor in state.items() if "running" not in name)
    assert size_of_file == pytest.approx(1.9e6, rel=0.02)


def test_sizes_follow_the_published_ones_to_the_last_round(rounds: Any) -> None:
    program = rounds.program
    model = program.resnet18()
    for number, (millions, _) in enumerate(program.PUBLISHED[1:], start=1):
        program.prune(model, program.share_for(model, number), "l1")
        assert program.count(model) == pytest.approx(millions * 1e6, rel=0.02)
    assert program.share_for(model, 6) == 0.3


def test_the_weakest_filters_go(rounds: Any) -> None:
    program = rounds.program
    model = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[3.0], [1], [-5], [0.5], [2], [-0.25]]).expand(6, 3))
        model[0].bias.fill_(100.0)  # belongs to no filter
    graph = program.DependencyGraph(model, torch.randn(1, 3))
    gone = program.weakest(graph, program.scores(graph, "l1"), 0.5)
    assert [graph.node_of("0.weight", 0, row) in gone for row in range(6)] == [False, True, False, True, False, True]


@pytest.mark.parametrize("argv", [["--mode", "prune", "--round", "0"], ["--mode", "prune", "--share", "1"], []])
def test_mistakes_are_refused(rounds: Any, argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        rounds.program.main(argv)
    assert refused.value.code == 2 and "error:" in capsys.readouterr().err


def test_a_round_without_the_one_before_says_which_file_is_missing(rounds: Any) -> None:
    with pytest.raises(ValueError, match=r"no file .*round2\.pth"):
        rounds("--mode", "prune", "--round", "3")
