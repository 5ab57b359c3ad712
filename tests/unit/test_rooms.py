"""The rooms: what imports what. Read from the source, so imports for type checking and inside functions count too."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import networkx as nx
import pytest

from utils.settings.registry import KINDS, ROOT

# From the ground up; a room imports only those before it (docs: architecture, section 1).
ENGINE = [
    "errors",
    "masks",
    "distributed",
    "modules",
    "measure",
    "trace",
    "dry_run",
    "cut",
    "graph",
    "weights",
    "state",
]
ENGINE += ["scores", "prune", "l0", "low_rank", "dead", "export", "pretrained", "network", "compressed", "former_names"]
TOOLS = ["trainer", "files", "processes", "console", "settings", "runs", "callbacks", "jobs", "experiments"]
ORDERS = {"pruning": ENGINE, "utils": TOOLS}
MOST_FILES = 14


# -- the checker ------------------------------------------------------------------------------------------------------


def sources() -> dict[str, str]:
    """The text of every module of the project, by its dotted name."""
    files = [ROOT / "main.py"]
    for top in (*ORDERS, *KINDS):
        files += sorted((ROOT / top).rglob("*.py"))
    found = {}
    for file in files:
        parts = file.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts).removesuffix(".__init__")
        found[name] = file.read_text(encoding="utf-8")
    return found


def imported(source: str) -> Iterator[tuple[str, str]]:
    """Yields (module, name) of every import wherever it stands; the name is empty for `import module`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, ""
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports of this project are absolute"
            for alias in node.names:
                yield node.module or "", alias.name


def graph_of(texts: Mapping[str, str]) -> nx.DiGraph:
    """Returns an edge from every module to each module of the project that it imports."""
    graph = nx.DiGraph()
    graph.add_nodes_from(texts)
    for module, source in texts.items():
        for package, name in imported(source):
            submodule = f"{package}.{name}"
            # `from package import name` means the submodule where there is one, else the package itself.
            target = submodule if submodule in texts else package
            if target in texts and target != module:
                graph.add_edge(module, target)
    return graph


def circles(graph: nx.DiGraph) -> list[list[str]]:
    return [sorted(part) for part in nx.strongly_connected_components(graph) if len(part) > 1]


def room_of(module: str) -> str:
    """The first name below pruning or utils; empty for the package itself."""
    return module.split(".")[1] if "." in module else ""


def upward(graph: nx.DiGraph, top: str, order: list[str]) -> list[str]:
    """Returns the imports within a package that go to a room that comes later."""
    height = {room: number for number, room in enumerate(order)}
    wrong = []
    for module, target in graph.edges:
        # The package itself is the front of everything, so it may import every room.
        inside = module.startswith(f"{top}.") and target.split(".")[0] == top
        if not inside:
            continue
        if target == top or height[room_of(target)] > height[room_of(module)]:
            wrong.append(f"{module} imports {target}")
    return sorted(wrong)


def leaving(graph: nx.DiGraph, top: str, allowed: set[str]) -> list[str]:
    """Returns the imports from a package into others of the project that it must not know."""
    wrong = []
    for module, target in graph.edges:
        here, there = module.split(".")[0], target.split(".")[0]
        if here == top and there != top and there not in allowed:
            wrong.append(f"{module} imports {target}")
    return sorted(wrong)


def crowded(root: Path, folders: list[str], most: int = MOST_FILES) -> list[str]:
    """Returns the folders, with those below them, that hold too many files to find one's way in."""
    full = []
    for top in folders:
        inside = [root / top, *(path for path in (root / top).rglob("*") if path.is_dir())]
        for folder in inside:
            files = [file for file in folder.glob("*.py") if file.name != "__init__.py"]
            if len(files) > most:
                full.append(f"{folder.relative_to(root)} holds {len(files)} files")
    return sorted(full)


# -- the project ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def project() -> nx.DiGraph:
    return graph_of(sources())


def test_there_is_no_circle(project: nx.DiGraph) -> None:
    assert circles(project) == []


@pytest.mark.parametrize("top", ORDERS)
def test_every_room_has_its_place(project: nx.DiGraph, top: str) -> None:
    rooms = {room_of(module) for module in project if module.startswith(f"{top}.")}
    assert rooms == set(ORDERS[top])


@pytest.mark.parametrize("top", ORDERS)
def test_imports_go_downwards(project: nx.DiGraph, top: str) -> None:
    assert upward(project, top, ORDERS[top]) == []


def test_the_engine_stands_alone(project: nx.DiGraph) -> None:
    assert leaving(project, "pruning", set()) == []


@pytest.mark.parametrize("kind", KINDS)
def test_plug_ins_of_one_kind_know_no_other_kind(project: nx.DiGraph, kind: str) -> None:
    assert leaving(project, kind, {"pruning", "utils"}) == []


def test_nothing_imports_main(project: nx.DiGraph) -> None:
    assert list(project.predecessors("main")) == []


def test_no_folder_is_crowded() -> None:
    """Plug-ins and tests are looked up by name; everything else is read through."""
    assert crowded(ROOT, ["pruning", "utils", "benchmarks", "docs", "examples", "experiments"]) == []


# -- the checker can fail ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "back",
    [
        "from pruning.masks import Masks",
        "import pruning.masks",
        "from pruning import masks",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from pruning.masks import Masks",
        "def late():\n    from pruning.masks import Masks",
    ],
)
def test_a_circle_is_found_wherever_its_import_stands(back: str) -> None:
    made_up = {"pruning": "", "pruning.errors": back, "pruning.masks": "from pruning.errors import UsageError"}
    graph = graph_of(made_up)
    assert circles(graph) == [["pruning.errors", "pruning.masks"]]
    assert upward(graph, "pruning", ENGINE) == ["pruning.errors imports pruning.masks"]


def test_what_goes_around_through_the_front_is_found() -> None:
    made_up = {"pruning": "from pruning.masks import Masks", "pruning.masks": "from pruning import UsageError"}
    graph = graph_of(made_up)
    assert circles(graph) == [["pruning", "pruning.masks"]]
    assert upward(graph, "pruning", ENGINE) == ["pruning.masks imports pruning"]


def test_an_import_of_a_foreign_kind_is_found() -> None:
    graph = graph_of({"losses.One": "from criterions.Two import Two", "criterions.Two": ""})
    assert leaving(graph, "losses", {"pruning", "utils"}) == ["losses.One imports criterions.Two"]
    assert leaving(graph, "criterions", {"pruning", "utils"}) == []


def test_a_crowded_folder_is_found(tmp_path: Path) -> None:
    room = tmp_path / "utils" / "deep"
    room.mkdir(parents=True)
    for number in range(MOST_FILES):
        (room / f"part_{number}.py").touch()
    (room / "__init__.py").touch()
    assert crowded(tmp_path, ["utils"]) == []
    (room / "one_more.py").touch()
    assert crowded(tmp_path, ["utils"]) == [f"utils/deep holds {MOST_FILES + 1} files"]
