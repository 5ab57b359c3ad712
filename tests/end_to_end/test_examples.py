"""The examples and benchmarks run, and the map of the engine names what is there."""

from __future__ import annotations

import ast
import importlib.util
import io
import json
import re
import sys
import tokenize
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from data_sets.CIFAR10 import CLASSES
from models.ResNet20 import ResNet20
from pruning import DependencyGraph, extras_of

ROOT = Path(__file__).resolve().parents[2]
MAP = (ROOT / "pruning" / "README.md").read_text(encoding="utf-8")
MOST_FILES, MOST_LINES = 14, 1700  # of the way of one event


def example(name: str, room: str = "examples") -> ModuleType:
    """Imports a script by its file, as a program would be run but for its last lines."""
    spec = importlib.util.spec_from_file_location(f"script_{name}", ROOT / room / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def path_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))


# -- the map of the engine --------------------------------------------------------------------------------------------


def way_of_one_event() -> list[Path]:
    """The files on the map's picture."""
    picture = re.search(r"^```mermaid\n(.*?)^```$", MAP, re.MULTILINE | re.DOTALL)
    assert picture is not None
    named = re.findall(r'\["([\w/]+\.py)<br/>', picture[1])
    return [ROOT / name if name.startswith("criterions/") else ROOT / "pruning" / name for name in named]


def lines_of_code(source: str) -> int:
    """Counts lines that hold code: without comments, docstrings and blank lines."""
    blank = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in blank:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
            docstring = node.body[0]
            lines.difference_update(range(docstring.lineno, (docstring.end_lineno or docstring.lineno) + 1))
    return len(lines)


def test_lines_of_code_are_counted_without_words() -> None:
    source = (
        '"""Of a module."""\n\nx = (\n    1  # one\n)\n\n\ndef f():\n    """Of\n    f."""\n    # why\n    return x\n'
    )
    assert lines_of_code(source) == 5


def test_one_event_is_read_in_few_files() -> None:
    files = way_of_one_event()
    assert 8 < len(set(files)) == len(files) <= MOST_FILES
    assert [file for file in files if not file.is_file()] == []
    lines = sum(lines_of_code(file.read_text(encoding="utf-8")) for file in files)
    assert lines <= MOST_LINES, f"{lines} lines; the map says about 1,700"


def test_the_map_names_every_file_and_no_other() -> None:
    floors = MAP[MAP.index("<!-- generated: floors -->") : MAP.index("<!-- end: floors -->")]
    named = re.findall(r"`((?:\w+/)*\w+\.py)`", floors)
    there = [str(file.relative_to(ROOT / "pruning")) for file in (ROOT / "pruning").rglob("*.py")]
    assert sorted(named) == sorted(name for name in there if not name.endswith("__init__.py"))


def test_the_map_lists_the_floors_as_the_imports_go() -> None:
    from tests.unit.test_rooms import ENGINE

    floors = MAP[MAP.index("<!-- generated: floors -->") :]
    rooms = re.findall(r"^\| (?:\*\*(\w+)/\*\*|`(\w+)\.py`) \|", floors, re.MULTILINE)
    assert [room or file for room, file in rooms] == ENGINE


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


@pytest.mark.thorough
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


# -- benchmarks -------------------------------------------------------------------------------------------------------


def test_the_pruning_benchmark_removes_as_many_channels_as_asked() -> None:
    benchmark = example("pruning", "benchmarks")
    model, inputs = benchmark.Wide(width=60, blocks=2), torch.randn(1, 3, 4, 4)
    before = benchmark.channels(model)
    # A channel is a row of the entrance and one of both depthwise layers; of the head none can go.
    assert before == 3 * 60 + 10
    benchmark.ours(model, inputs, keep=benchmark.keep_for(model, inputs, 90))
    assert benchmark.channels(model) == before - 90 and model.leave.in_features == 30
    model = benchmark.Wide(width=60, blocks=1)
    benchmark.ours(model, inputs, local=True)
    assert model.enter.out_channels == 30


def test_the_pruning_benchmark_notices_networks_that_do_not_run() -> None:
    benchmark = example("pruning", "benchmarks")

    def break_head(model: nn.Module, inputs: torch.Tensor, *, local: bool) -> None:
        model.classifier[1] = nn.Conv2d(512, 7, 1)

    def nothing(model: nn.Module, inputs: torch.Tensor, *, local: bool) -> None:
        assert local

    outcomes = [benchmark.outcome(way, "squeezenet1_1") for way in (benchmark.ours, break_head, nothing)]
    assert outcomes[0].problem == "" and 0.3 < outcomes[0].share < 0.5
    assert "outputs are [(2, 7)]" in outcomes[1].problem and outcomes[2].problem == "nothing was removed"


def test_the_latency_benchmark_sets_times_beside_flops(capsys: pytest.CaptureFixture[str]) -> None:
    benchmark = example("latency", "benchmarks")
    threads = torch.get_num_threads()
    try:
        benchmark.main(["--models", "LeNet5", "--sparsities", "0.9,0.5", "--turns", "2", "--device", "cpu"])
    finally:
        torch.set_num_threads(threads)
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("LeNet5")]
    assert [row[1] for row in rows] == ["0.50", "0.90"]
    assert 1 < float(rows[0][5].rstrip("x")) < float(rows[1][5].rstrip("x"))  # FLOPs fall
    with pytest.raises(SystemExit):
        benchmark.main(["--sparsities", "1.5"])


def test_the_sensitivity_benchmark_agrees_with_its_loop_over_filters(capsys: pytest.CaptureFixture[str]) -> None:
    benchmark = example("sensitivity", "benchmarks")
    threads = torch.get_num_threads()
    try:
        benchmark.main(["--models", "LeNet5", "--images", "2", "--turns", "1"])  # raises where the two differ
    finally:
        torch.set_num_threads(threads)
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| LeNet5")]
    assert [row[1] for row in rows] == ["weights, mean", "weights, largest", "channels"]
    assert all(float(row[3]) > 0 for row in rows)


def test_time_behind_flops_is_shared_out() -> None:
    behind = example("latency", "benchmarks").behind
    dense, pruned = {"products": 8.0, "memory": 2.0, "calls": 1.0}, {"products": 3.0, "memory": 1.0, "calls": 1.0}
    # A quarter of the FLOPs would take 2, 0.5 and 0.25.
    assert behind(dense, pruned, 0.25) == pytest.approx(
        {"products": 1 / 2.25, "memory": 0.5 / 2.25, "calls": 0.75 / 2.25}
    )
    assert set(behind(dense, dict.fromkeys(dense, 0.0), 0.25).values()) == {0.0}


# -- tools side by side, and the README's picture ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def tools() -> ModuleType:
    return example("compare_tools", "benchmarks")


def test_the_table_of_tools_says_what_espalier_and_torch_do(tools: ModuleType) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert tools.sizes(tools.cut_by_espalier) == "3.1 of 11.7 M" and "3.1 of 11.7 M parameters" in readme
    assert tools.sizes(tools.mask_by_torch) == "11.7 of 11.7 M"
    assert [tools.half(tools.cut_by_espalier, kind) for kind in tools.NETWORKS] == ["exact"] * 6
    assert {tools.half(tools.mask_by_torch, kind) for kind in tools.NETWORKS} == {"nothing is smaller"}
    assert "6 of 6 exact" in readme and "none smaller" in readme
    assert tools.commands("Espalier") == "main.py" and tools.commands("torch.nn.utils.prune") == "none"


@pytest.mark.thorough
def test_the_table_of_tools_says_what_becomes_of_adam(tools: ModuleType) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for cut in (tools.cut_by_espalier, tools.mask_by_torch):
        assert tools.optimizer_state(cut) == "62 of 62 held, 62 with moments that fit"
    assert "62 of 62, moments cut along" in readme


@pytest.mark.thorough
def test_the_table_of_tools_says_what_torch_pruning_does(tools: ModuleType) -> None:
    pytest.importorskip("torch_pruning", reason="needs pip install -r benchmarks/requirements.txt")
    cut = tools.cut_by_torch_pruning
    outcomes = [tools.half(cut, kind) for kind in tools.NETWORKS]
    assert outcomes.count("exact") == 3 and outcomes.count("nothing is smaller") == 1
    assert sum("Error" in outcome for outcome in outcomes) == 2
    assert tools.sizes(cut) == "3.1 of 11.7 M" and tools.optimizer_state(cut).startswith("1 of 62 held")
    assert tools.commands("Torch-Pruning") == "none"


def test_a_cut_of_the_wrong_channel_is_no_exact_one(tools: ModuleType) -> None:
    def wrong(model: nn.Module, example_input: torch.Tensor) -> nn.Module:
        reference = tools.cut_by_espalier(model, example_input)
        model.get_submodule("head").weight.data.mul_(1.01)
        return reference

    assert tools.half(wrong, tools.Residual).startswith("runs; differs by")


def test_the_picture_shows_what_two_runs_left(tmp_path: Path) -> None:
    for name, gone in (("dense", 0), ("pruned", 4)):
        torch.manual_seed(0)
        model = ResNet20(num_classes=10, input_shape=(3, 32, 32))
        if gone:
            graph = DependencyGraph(model, torch.randn(1, 3, 32, 32))
            graph.get_pruning_plan(model.get_submodule("stem.0"), idxs=range(gone)).exec()
        (tmp_path / name / "models").mkdir(parents=True)
        content = {"state_dict": model.state_dict(), "extras": extras_of(model)}
        torch.save(content, tmp_path / name / "models" / "ResNet20_finished")
        result = {"flops_per_sample": 8e7 - gone * 1e6, "test_accuracy": 0.75 - gone / 100}
        (tmp_path / name / "result.json").write_text(json.dumps(result))
    out = tmp_path / "picture.svg"
    runs = [str(tmp_path / name) for name in ("dense", "pruned")]
    threads = torch.get_num_threads()
    try:
        example("draw_resnet", "docs").main([*runs, "--repeats", "1", "--out", str(out)])
    finally:
        torch.set_num_threads(threads)
    words = [element.text for element in ElementTree.parse(out).iter() if element.text]
    assert "12/16" in words and "64/64" in words and "0.7500 → 0.7100" in words and "80.0 M → 76.0 M" in words
