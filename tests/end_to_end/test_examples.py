"""The examples run, and the engine's page says what happens: every block of Python in it, every output under it.

Where the engine's words changed on purpose, this writes the outputs anew:
`PYTHONPATH=. python tests/end_to_end/test_examples.py`
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import re
import sys
import tempfile
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
from pruning.trace.rules import table

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "pruning" / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$(?:\n+```text\n(.*?)^```$)?", PAGE, re.MULTILINE | re.DOTALL)


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


# -- the engine's page ------------------------------------------------------------------------------------------------


def said(code: str, place: str, names: dict[str, Any]) -> str:
    """Runs a block and returns what it printed."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, f"pruning/README.md, {place}", "exec"), names)
    return printed.getvalue()


def plain(output: str) -> str:
    """Output without the names of torch's operations, which differ from release to release."""
    return re.sub(r"\baten\.\w+", "aten", output).strip()


def test_every_block_of_the_engines_page_does_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    known = dict(table.RULES)
    names: dict[str, Any] = {"__name__": "page"}
    try:
        for number, (code, output) in enumerate(BLOCKS):
            assert plain(said(code, f"block {number}", names)) == plain(output), code
    finally:
        table.RULES.clear()
        table.RULES.update(known)  # the page teaches an operation of its own
    assert len(BLOCKS) > 15 and sum(bool(output) for _, output in BLOCKS) > 12


def test_the_page_shows_the_eleven_thousand_parameters_behind_three_channels() -> None:
    assert "11211 parameters will be pruned" in PAGE


def test_the_page_names_every_file_and_no_other() -> None:
    named = set(re.findall(r"`((?:\w+/)*\w+\.py)`", PAGE[PAGE.index("## The floors") :]))
    there = {str(file.relative_to(ROOT / "pruning")) for file in (ROOT / "pruning").rglob("*.py")}
    assert named == {name for name in there if not name.endswith("__init__.py")}
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


def rewritten() -> str:
    """Returns the engine's page with the outputs that its blocks have today."""
    names: dict[str, Any] = {"__name__": "page"}
    pieces = re.split(r"(^```(?:python|text)\n.*?^```$)", PAGE, flags=re.MULTILINE | re.DOTALL)
    output = ""
    for place, piece in enumerate(pieces):
        if piece.startswith("```python"):
            output = said(piece[len("```python\n") : -len("```")], f"piece {place}", names)
        elif piece.startswith("```text"):
            pieces[place] = f"```text\n{output}```"
    return "".join(pieces)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        page = rewritten()
        os.chdir(ROOT)
    (ROOT / "pruning" / "README.md").write_text(page, encoding="utf-8")
