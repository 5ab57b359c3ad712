"""What is imported when: names of the engine when they are asked for, libraries when they are used."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import pruning
from tests.support.tiers import few
from utils.settings.registry import ROOT

# Nothing that --help or --list prints needs one of them; together they take seconds.
HEAVY = ["matplotlib", "networkx", "scipy", "sklearn", "torchvision", "timm", "jinja2", "tensorboard", "triton"]
HEAVY += ["onnx", "ray", "pandas", "torch.utils.tensorboard", "torch.utils.flop_counter", "torch._dynamo", "PIL"]


QUESTIONS = [["--help"], ["--list"], ["--prune_criterion", "SNAP", "--model", "ResNet18", "-h"]]


@pytest.mark.parametrize("argv", few(QUESTIONS, [["--list"]]))
def test_help_and_list_import_nothing_heavy(argv: list[str]) -> None:
    script = f"""
import sys

import main

before = set(sys.modules)
code = main.main({argv!r})
heavy = [name for name in {HEAVY!r} if name in sys.modules]
assert code == 0 and not heavy, (code, heavy)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", pruning.__all__)
def test_every_public_name_is_there_whatever_was_imported_before(name: str) -> None:
    assert getattr(pruning, name) is not None
    namespace: dict[str, object] = {}
    exec(f"from pruning import {name}", namespace)
    assert namespace[name] is getattr(pruning, name)


def test_names_that_are_modules_and_names_that_are_not_there() -> None:
    assert pruning.schedule.__name__.endswith("schedule")
    assert pruning.select.__name__.endswith(("rank", "select"))
    assert set(pruning.__all__) <= set(dir(pruning))
    with pytest.raises(AttributeError, match="no attribute 'Prunable'"):
        pruning.Prunable  # noqa: B018 - asking is what is tested
    with pytest.raises(ImportError, match="Prunable"):
        exec("from pruning import Prunable")


def test_type_checkers_see_the_same_names_as_the_program() -> None:
    tree = ast.parse(Path(pruning.__file__).read_text())
    [block] = [node for node in tree.body if isinstance(node, ast.If)]
    seen: dict[str, str] = {}
    for node in block.body:
        assert isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names:
            seen[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    assert sorted(seen) == sorted(pruning.__all__)
    for name, path in seen.items():
        home = f"pruning.{pruning._HOMES[name]}"
        assert path in (home, f"{home}.{name}"), name


def test_the_engine_is_imported_by_pieces() -> None:
    script = "import sys, pruning; from pruning import UsageError; assert 'pruning.graph' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
