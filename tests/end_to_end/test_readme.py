"""What the README and the pages of docs/ say is run: every command on generated data, every piece of Python.

Where the engine's words changed on purpose, this writes the outputs on the pages anew:
`PYTHONPATH=. python tests/end_to_end/test_readme.py`
"""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import io
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import main as program
from docs import make_tables
from pruning import UsageError
from pruning.trace.rules import table
from trainers._pruning import Timing
from utils.settings import registry, resolve
from utils.settings.listing import first_line, paper

ROOT = registry.ROOT
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {
    str(file.relative_to(ROOT)): file.read_text(encoding="utf-8")
    for file in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "pruning" / "README.md", *ROOT.glob("docs/*.md")]
}
CIFAR_CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
RUN = "RUN"  # how the pages write the name of a run folder


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    `output` is what the block of text right behind it shows. `reason` says why it is not run, in a comment that stands
    before it: `<!-- not run: needs a GPU -->`.
    """

    page: str
    language: str
    text: str
    output: str
    reason: str

    @property
    def file(self) -> str:
        """The path that the first line names, if the block is a file to be put somewhere."""
        found = re.match(r"# (\S+\.(?:py|yaml))\n", self.text)
        return found[1] if found else ""


FENCED = re.compile(
    r"(?:^<!-- not run: (?P<reason>.+?) -->\n)?^```(?P<language>\w+)\n(?P<text>.*?)^```$"
    r"(?:\n+^```text\n(?P<output>.*?)^```$)?",
    re.MULTILINE | re.DOTALL,
)


def blocks_of(page: str) -> list[Block]:
    parts = [found.groupdict(default="") for found in FENCED.finditer(PAGES[page])]
    return [Block(page, **part) for part in parts]


BLOCKS = [block for page in PAGES for block in blocks_of(page)]


def commands_in(blocks: list[Block]) -> list[str]:
    """Returns each command of the bash blocks once, those behind `&&` too."""
    lines = [
        line for block in blocks if block.language == "bash" and not block.reason for line in block.text.splitlines()
    ]
    return list(dict.fromkeys(command.strip() for line in lines for command in line.split("&&")))


COMMANDS = commands_in(BLOCKS)
ALL_JOBS = [command for command in COMMANDS if command.startswith("python main.py")]
MANY = ("--experiment", "--report")  # many runs: test_experiments.py
JOBS = [job for job in ALL_JOBS if not set(MANY) & set(job.split())]


# -- a place to run in ------------------------------------------------------------------------------------------------


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder with the pages' files and tiny data in it; plug-ins and signals are put back afterwards."""
    monkeypatch.chdir(tmp_path)
    for block in BLOCKS:
        if block.file:
            Path(block.file).parent.mkdir(parents=True, exist_ok=True)
            Path(block.file).write_text(block.text, encoding="utf-8")
    _write_mnist(Path("data/MNIST/raw"))
    _write_pictures(Path("data/cifar10"), CIFAR_CLASSES, size=32)
    _write_pictures(Path("my_pictures"), ["apple", "pear"], size=70)
    _write_scenes(Path("my_scenes"))
    Path("my_texts").mkdir()
    Path("my_texts/one.txt").write_text("a line of a text\n" * 300)
    rows = [f"{number},{'red' if number % 3 else 'blue'},{number * number / 7}" for number in range(40)]
    Path("my_table.csv").write_text("\n".join(["size,colour,price", *rows]))
    paths = {kind: list(import_module(kind).__path__) for kind in registry.KINDS}
    modules = set(sys.modules)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield tmp_path
    for number, handler in handlers.items():
        signal.signal(number, handler)
    for kind, path in paths.items():
        import_module(kind).__path__[:] = path
    for name in set(sys.modules) - modules:
        if name.partition(".")[0] in registry.KINDS:
            # A later test may have a plug-in of the same name.
            del sys.modules[name]


def _write_mnist(raw: Path) -> None:
    raw.mkdir(parents=True)
    rng = np.random.RandomState(0)
    for part, count in (("train", 40), ("t10k", 20)):
        images = rng.randint(0, 256, (count, 28, 28)).astype(np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
            (raw / f"{part}-{kind}-ubyte").write_bytes(bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes())


def _write_pictures(root: Path, classes: list[str], *, size: int) -> None:
    rng = np.random.RandomState(1)
    for part in ("train", "test"):
        for name in classes:
            (root / part / name).mkdir(parents=True)
            for number in range(2):
                pixels = rng.randint(0, 256, (size, size, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{number:04d}.jpg")


def _write_scenes(root: Path) -> None:
    rng = np.random.RandomState(2)
    for kind in ("images", "masks"):
        (root / kind).mkdir(parents=True)
        for number in range(10):
            pixels = rng.randint(0, 3, (64, 64)).astype(np.uint8)
            Image.fromarray(pixels).save(root / kind / f"{number}.png")


# -- the commands -----------------------------------------------------------------------------------------------------


def _argv(command: str) -> list[str]:
    return shlex.split(command)[2:]


def _elsewhere(argv: list[str]) -> list[str]:
    """The same command with its results, and the data it does not name, in the folder of the test."""
    added = ["--results_dir", "results"]
    if "--resume" in argv:
        return [*argv, *added]
    return [*argv, *added, *([] if "--data_dir" in argv else ["--data_dir", "data"])]


def _quick(argv: list[str]) -> list[str]:
    """The least that still is the whole job: one batch an epoch, no more epochs than the events need, slim layers."""
    chosen = resolve.parse(argv)
    assert chosen is not None
    core, values, criterion = chosen.core, chosen.values, chosen.build("criterions")
    events = len(criterion.sparsities(core.pruning_limit)) if criterion.moment == "during" else 0
    epochs = Timing(core.epochs, values["prune_delay"], values["prune_freq"]).epochs_for(events) if events else 1
    assert epochs <= core.epochs, "the README's epochs are too few"
    # A network that comes from a run is as wide as that run's.
    slim = "width_multiplier" in values and "--checkpoint_name" not in argv
    few = ["--epochs", str(epochs), "--limit_batches", "1"]
    # Pictures are drawn by the test below, in a process of its own.
    few += ["--save_freq", "1000", "--eval_freq", "1000", "--no-tensorboard", "--no-pictures"]
    return [*argv, *few, *(["--width_multiplier", "0.1"] if slim else [])]


def _run(argv: list[str], capsys: pytest.CaptureFixture[str], exit_code: int = 0) -> str:
    """Runs a command line in this process; returns what it printed. A warning means that a flag is not used."""
    assert program.main(argv) == exit_code, capsys.readouterr().err
    printed = capsys.readouterr()
    assert exit_code or not printed.err
    return printed.out


def _results() -> list[Path]:
    return sorted(Path("results").glob("*/result.json"), key=os.path.getmtime)


def _last_result() -> dict:
    return json.loads(_results()[-1].read_text(encoding="utf-8"))


def _stop_in_training(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Runs a command line and presses Ctrl-C in its first batch."""
    from trainers.DefaultTrainer import DefaultTrainer

    train_batch = DefaultTrainer.train_batch

    def interrupted(trainer, inputs, targets):
        signal.raise_signal(signal.SIGINT)
        return train_batch(trainer, inputs, targets)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DefaultTrainer, "train_batch", interrupted)
        _run(argv, capsys, exit_code=130)
    assert _last_result()["status"] == "interrupted"


def _needs(argv: list[str], capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Makes what a command takes for granted: a finished run, a stopped one, or weights; RUN becomes its name."""
    short = ["--epochs", "2", "--limit_batches", "1", "--no-tensorboard", "--no-pictures"]
    if "--resume" in argv:
        _stop_in_training(_elsewhere(short), capsys)
    elif RUN in argv:
        start = [] if "--eval" in argv else _dense_for(argv)
        _run(_elsewhere([*short, *start]), capsys)
    elif "--weights" in argv:
        from safetensors.torch import save_file

        model = registry.build("models", "MLP5", {}, {"num_classes": 10, "input_shape": (1, 8, 8)})
        save_file(model.state_dict(), argv[argv.index("--weights") + 1])
    return [_results()[-1].parent.name if word == RUN else word for word in argv]


def _dense_for(argv: list[str]) -> list[str]:
    """The flags of a dense run that a command can start from: its network, and the data that it scores on left out."""
    options = dict(zip(argv, argv[1:], strict=False))
    model = options.get("--checkpoint_model", "").removesuffix("_finished") or options.get("--model", "MLP5")
    dense = ["--model", model, "--prune_criterion", "EmptyCrit", "--pruning_limit", "0"]
    if model == "ResNet20":
        dense += ["--data_set", "CIFAR10", "--width_multiplier", "0.25"]
    if options.get("--prune_criterion") in ("SiPP", "PFP"):
        dense += ["--hold_out", "0.1"]
    return dense


def _check_job(command: str, adapt: Callable[[list[str]], list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    argv = _needs(_argv(command), capsys)
    if {"--help", "--list"} & set(argv):
        assert _run(argv, capsys).strip()
        return
    argv = _elsewhere(argv)
    _run(argv if {"--resume", "--eval"} & set(argv) else adapt(argv), capsys)
    result = _last_result()
    assert result["status"] == "finished"
    if "--resume" not in argv and "--eval" not in argv:
        chosen = resolve.parse(argv)
        assert chosen is not None
        assert result["prune_criterion"] == chosen.core.prune_criterion
        if "--l0" in argv or chosen.build("criterions").threshold is not None:  # sparsity is an outcome
            assert result["sparsity_asked"] is None and result["pruning_events"] == ("--l0" not in argv)
            return
        assert result["sparsity_asked"] == pytest.approx(chosen.core.pruning_limit)
        # Of the slimmest layers, a whole weight is a large share, and a whole node a larger one of the FLOPs.
        slack = 0.05 if "--target" in argv else 1e-3
        assert result["sparsity_reached"] == pytest.approx(chosen.core.pruning_limit, abs=slack)


QUICK_JOBS = [job for job in commands_in(blocks_of("README.md")) if job in JOBS]


@pytest.mark.parametrize("command", QUICK_JOBS)
def test_every_command_of_the_readme_runs(command, workplace, capsys):
    _check_job(command, _quick, capsys)


@pytest.mark.thorough
@pytest.mark.parametrize("command", [job for job in JOBS if job not in QUICK_JOBS])
def test_every_command_of_the_pages_runs(command, workplace, capsys):
    _check_job(command, _quick, capsys)


@pytest.mark.parametrize("command", JOBS)
def test_every_command_of_the_pages_is_understood(command, workplace):
    """All flags exist and fit together. What starts from a run is told by the run: see the thorough test above."""
    argv = _argv(command)
    if not {"--help", "--list", RUN} & set(argv):
        assert resolve.parse(_elsewhere(argv)) is not None


@pytest.mark.parametrize("command", [job for job in ALL_JOBS if "--experiment" in job])
def test_commands_about_many_runs_are_understood(command, workplace, capsys):
    plan = [word for word in _argv(command) if word not in ("--status", "--dry_run")]
    assert "93 left of 93" in _run(_elsewhere([*plan, "--dry_run"]), capsys)


@pytest.mark.slow
@pytest.mark.parametrize("command", [job for job in JOBS if "--epochs 80" in job])
def test_the_long_commands_run_as_typed(command, workplace, capsys):
    """All epochs and the full width, on one batch an epoch; a checkpoint each epoch would write gigabytes."""
    _check_job(command, lambda argv: [*argv, "--limit_batches", "1", "--save_freq", "1000"], capsys)


@pytest.mark.parametrize("command", [job for job in JOBS if "--epochs 80" in job])
def test_the_long_commands_build_their_networks_in_full_width(command, workplace):
    chosen = resolve.parse(_elsewhere(_argv(command)))
    assert chosen is not None and chosen.core.epochs == 80
    data_set = chosen.build("data_sets")
    with torch.device("meta"):
        model = chosen.build("models", num_classes=data_set.num_classes, input_shape=data_set.input_shape)
    weights = [p for name, p in model.named_parameters() if p.ndim > 1]
    assert sum(p.numel() for p in weights) == {"ResNet18": 11_693_760, "VGG16": 50_665_152}[chosen.core.model]


def test_the_help_of_a_new_criterion_explains_its_flag(workplace, capsys):
    command = next(job for job in JOBS if "MyIdea" in job and "--help" in job)
    assert "share of the magnitude, 0 to 1. (default: 0.5)" in " ".join(_run(_argv(command), capsys).split())


def test_the_first_command_in_a_process_of_its_own(tmp_path):
    command = JOBS[0].replace("python main.py", f"{sys.executable} {ROOT / 'main.py'}")
    few = "--epochs 1 --limit_batches 1 --no-tensorboard --results_dir results"
    done = subprocess.run(shlex.split(f"{command} {few}"), cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    shown = next(block.text for block in BLOCKS if block.language == "text" and "test accuracy" in block.text)
    # The README shows a real run; its table must have the rows that the table has today.
    assert _rows(shown) and _rows(shown) == _rows(done.stdout)


def _rows(shown: str) -> list[str]:
    cells = [line.split("│")[1].strip() for line in shown.splitlines() if line.count("│") == 3]
    return [cell for cell in cells if cell]  # empty where a line is the last one's second half


@pytest.mark.thorough
def test_tensorboard_finds_a_run(workplace, capsys):
    command = next(line for line in COMMANDS if line.startswith("tensorboard"))
    _run(_elsewhere(["--epochs", "2", "--limit_batches", "1", "--pruning_limit", "0.5"]), capsys)
    words = [word.replace("gitignored/results", "results") for word in shlex.split(command)[1:]]
    inspect = [sys.executable, "-m", "tensorboard.main", *words, "--inspect"]
    found = subprocess.run(inspect, capture_output=True, text=True, check=True).stdout
    assert "test_accuracy" in found and "sparsity_per_layer/" in found


def test_every_command_is_of_a_kind_that_is_run():
    """The first two commands are run by .ci/run as a whole, and pytest is what runs this."""
    # The tests above and below, test_processes.py, .ci/run.
    elsewhere = ("tensorboard ", "torchrun ", "pip install ", "python -m pytest")
    assert [command for command in COMMANDS if command not in ALL_JOBS and not command.startswith(elsewhere)] == []
    first = next(block for block in BLOCKS if block.page == "README.md")
    assert first.text.splitlines() == [
        "pip install -r requirements.txt && python main.py --prune_criterion SNIPit",
        "pip install -r requirements.txt && python -m pytest",
    ]
    assert all(len(block.reason.split()) > 1 for block in BLOCKS if block.reason)


# -- Python on the pages ----------------------------------------------------------------------------------------------

# Pages whose Python takes more than a few seconds.
LONG_PAGES = ("docs/engine.md", "docs/SiPP.md", "docs/PFP.md", "docs/low_rank.md")


def said(block: Block, names: dict[str, Any]) -> str:
    """Runs a block and returns what it printed."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(block.text, block.page, "exec"), names)
    return printed.getvalue()


def plain(output: str) -> str:
    """Output without the names of torch's operations, which differ from release to release."""
    return re.sub(r"\baten\.\w+", "aten", output).strip()


def python_of(page: str) -> list[Block]:
    return [b for b in blocks_of(page) if b.language == "python" and not b.file and not b.reason]


def _marked(page: str) -> Any:
    return pytest.param(page, marks=pytest.mark.thorough if page in LONG_PAGES else ())


@pytest.mark.parametrize("page", [_marked(page) for page in PAGES if python_of(page)])
def test_the_python_of_a_page_runs_from_top_to_bottom(page, workplace):
    known = dict(table.RULES)
    names: dict[str, Any] = {"__name__": "page"}
    try:
        for block in python_of(page):
            printed = said(block, names)
            assert not block.output or plain(printed) == plain(block.output), block.text
    finally:
        table.RULES.clear()
        table.RULES.update(known)  # a page teaches an operation of its own


def test_the_engines_page_shows_what_its_code_prints():
    blocks = python_of("docs/engine.md")
    assert len(blocks) > 15 and sum(bool(block.output) for block in blocks) > 12
    assert "11211 parameters will be pruned" in PAGES["docs/engine.md"]


# -- the site ---------------------------------------------------------------------------------------------------------


def test_the_readme_is_read_in_two_minutes():
    assert len(README.splitlines()) <= 150


def test_every_page_is_in_the_navigation():
    # The file names a function of the site's tools, which only they can read.
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").replace("!!python/name:", "")
    shown = re.findall(r"[\w/]+\.md", str(yaml.safe_load(text)["nav"]))
    assert sorted(shown) == sorted(page.removeprefix("docs/") for page in PAGES if page.startswith("docs/"))


@cache
def _anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    prose = re.sub(r"^```.*?^```$", "", PAGES[page], flags=re.MULTILINE | re.DOTALL)
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", prose) if "://" not in link]
    for link in links:
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), link
        assert not anchor or anchor in _anchors(target), link


@pytest.mark.thorough
@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason='needs pip install -e ".[docs]"')
def test_the_site_is_built_without_a_warning(tmp_path):
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Pruned, but not faster?" in (tmp_path / "site" / "not_faster.html").read_text(encoding="utf-8")


def test_the_files_for_github_are_sound():
    templates = [file for file in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if file.stem != "config"]
    forms = [yaml.safe_load(file.read_text(encoding="utf-8")) for file in templates]
    assert len(forms) >= 3 and all(form["name"] and form["body"] for form in forms)
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    version = re.search(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert version is not None and citation["version"] == version[1]
    assert f"## {version[1]}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


# -- the tables and the files -----------------------------------------------------------------------------------------


def _tracked_files(pattern: str) -> list[Path]:
    """The files that belong to the project: those git knows, so that one of the user's own breaks no test."""
    try:
        listed = subprocess.run(["git", "ls-files", pattern], cwd=ROOT, capture_output=True, text=True).stdout
    except FileNotFoundError:
        listed = ""
    # A copy without its history has nothing but itself to tell.
    return [ROOT / line for line in listed.splitlines()] or list(ROOT.glob(f"*/{pattern}")) + list(ROOT.glob(pattern))


def _tracked(kind: str) -> list[str]:
    known = {path.stem for path in _tracked_files("*.py") if path.parent == ROOT / kind}
    return [name for name in make_tables.plug_ins(kind) if name in known]


def test_the_tables_are_current():
    texts = [file.read_text(encoding="utf-8") for file in make_tables.FILES]
    assert make_tables.rewrite(texts, _tracked) == texts, "run: python docs/make_tables.py"


def test_a_page_without_its_markers_is_refused():
    texts = [file.read_text(encoding="utf-8").replace("<!-- end: families -->", "") for file in make_tables.FILES]
    with pytest.raises(UsageError, match="families"):
        make_tables.rewrite(texts, _tracked)


def test_a_table_with_the_wrong_text_is_put_right(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(make_tables, "TABLES", {"criteria": make_tables.criteria_table})
    copy = tmp_path / "criteria.md"
    copy.write_text(re.sub(r"\| `SNIPit` \|.*\n", "", PAGES["docs/criteria.md"], count=1), encoding="utf-8")
    assert make_tables.main([copy]) == 0 and "criteria.md has new tables" in capsys.readouterr().out
    assert "| `SNIPit` |" in copy.read_text(encoding="utf-8")
    assert make_tables.main([copy]) == 0 and "criteria.md was current" in capsys.readouterr().out


def test_what_the_criteria_cite_can_be_cited():
    cited = {n for name in _tracked("criterions") for n in _papers(registry.find("criterions", name).__doc__ or "")}
    entries = (ROOT / "docs" / "papers.bib").read_text(encoding="utf-8").split("@")[1:]
    assert len(cited) > 5 and cited <= {n for entry in entries for n in re.findall(r"eprint = \{([\d.]+)\}", entry)}
    assert all(entry.count("{") == entry.count("}") for entry in entries)


def _papers(text: str) -> list[str]:
    return re.findall(r"arXiv:(\d{4}\.\d{4,5})", text)


def test_a_citation_is_found_in_a_docstring():
    criterion = registry.find("criterions", "SNIP")
    assert paper(criterion) == "Lee et al. 2019, arXiv:1810.02340" and paper(criterion) in first_line(criterion)


# Data sets that need no files, and those whose files the user names.
EMBEDDED = {"DIGITS", "STDLIB", "DIABETES", "SHAPES"}
YOUR_OWN = {"IMAGEFOLDER", "TEXT", "CSV", "SEGMENTATIONFOLDER"}


def test_files_of_data_sets_lie_where_the_page_says(tmp_path, monkeypatch):
    """What a data set asks for on a machine without a network is what the page's picture of the folder shows."""

    def refuse(*_args, **_kwargs):
        raise OSError("no network in tests")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    asked = []
    for name in set(_tracked("data_sets")) - EMBEDDED - YOUR_OWN:
        with pytest.raises(UsageError) as error:
            registry.build("data_sets", name, {"data_dir": str(tmp_path / name)}).train()
        asked.append(str(error.value).replace(f"{tmp_path / name}/", "DATA/"))
    layout = next(block.text for block in BLOCKS if block.text.startswith("gitignored/data/"))
    folders = [line.split("(")[0].split() for line in layout.splitlines()[1:]]
    for folder, *files in folders:
        naming = [text for text in asked if f"DATA/{folder.rstrip('/')}" in text]
        assert len(naming) == 1, folder
        assert [file for file in files if file.rstrip("/") not in naming[0] and file != "..."] == []
    assert all(any(f"DATA/{folder.rstrip('/')}" in text for folder, *_ in folders) for text in asked)


@pytest.mark.parametrize("page", PAGES)
def test_files_that_a_page_names_are_there(page):
    folders = "utils|criterions|benchmarks|models|trainers|losses|testers|data_sets|pruning|tests|docs|experiments"
    named = re.findall(rf"`(?:python )?((?:{folders}|\.ci|examples)/[\w./]*)(?: [^`]*)?`", PAGES[page])
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_the_license_is_there():
    assert "Permission is hereby granted" in (ROOT / "LICENSE").read_text(encoding="utf-8")


# -- requirements and the check script --------------------------------------------------------------------------------


def test_requirements_are_what_the_code_imports():
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    required = dict(re.findall(r"^([\w-]+)>=([\d.]+)$", text, re.MULTILINE))
    assert required["torch"] == "2.6" and "foolbox" in required
    optional = {"timm", "transformers", "tokenizers", "onnx", "onnxruntime", "ray"}
    ours = {path.stem for path in ROOT.iterdir()} | {path.stem for path in (ROOT / "tests").rglob("*.py")}
    foreign = {name for name in _imports() if name not in sys.stdlib_module_names | ours | optional | {"__future__"}}
    sources = packages_distributions()
    lacking = {
        name for name in foreign if not {_plain(d) for d in sources.get(name, [])} & {_plain(r) for r in required}
    }
    assert len(foreign) > 5 and lacking == set()


def _imports() -> set[str]:
    found = set()
    for path in filter(Path.exists, _tracked_files("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.split(".")[0])
    return found


def _plain(name: str) -> str:
    return name.lower().replace("_", "-")


def test_the_check_script_is_sound_and_the_service_calls_it():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert subprocess.run(["bash", "-n", str(script)]).returncode == 0
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))["jobs"]
    assert any(step.get("run") == ".ci/run" for job in jobs.values() for step in job["steps"])
    assert jobs["check"]["strategy"]["matrix"]["python"] == ["3.10", "3.12"]


def rewritten(page: str) -> str:
    """Returns a page with the outputs that its blocks have today."""
    names: dict[str, Any] = {"__name__": "page"}
    text = PAGES[page]
    for block in python_of(page):
        printed = said(block, names)
        if block.output:
            text = text.replace(f"{block.text}```\n\n```text\n{block.output}", f"{block.text}```\n\n```text\n{printed}")
    return text


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        pages = {page: rewritten(page) for page in PAGES if any(block.output for block in python_of(page))}
        os.chdir(ROOT)
    for page, text in pages.items():
        (ROOT / page).write_text(text, encoding="utf-8")
