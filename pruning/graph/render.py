"""Pictures of a dependency graph: networkx, Mermaid, SVG and PNG, text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pruning.errors import UsageError
from pruning.graph.lookup import NodeLookup
from pruning.graph.nodes import Slices
from pruning.trace.labels import CONSUMER, PRODUCER

if TYPE_CHECKING:
    import networkx as nx

_COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb")
_GREY = "#888888"  # channels that have to stay

_INCHES_WIDE, _INCHES_HIGH = 2.6, 0.9  # of a picture, per layer: room for two lines of text and an arrow


def to_networkx(graph: NodeLookup) -> nx.DiGraph:
    """Returns layers as nodes and, from the layers that make channels to those that read them, edges.

    Node attributes: `kind` (class of the module), `produces` (groups whose channels it makes), `reads`, `pinned` (how
    many of its indices have to stay). Edge attributes: `channels`, and `groups`, empty where the channels have to stay.
    """
    import networkx as nx  # only those who draw wait for it

    structure, found = graph.structure, nx.DiGraph()
    layers = [graph.owner_path(dimension.name.rpartition(".")[0]) for dimension in structure.dimensions]
    for path in dict.fromkeys(layers):
        kind = type(graph.model.get_submodule(path)).__name__
        found.add_node(path, kind=kind, produces=[], reads=[], pinned=0)
    labels = np.flatnonzero(structure.alive[: structure.slice_labels])
    owners = structure.owners(labels)
    for owner in owners[structure.node_of_label[labels] < 0]:
        found.nodes[layers[owner]]["pinned"] += 1
    roles, component = structure.roles[labels], structure.component[labels]
    makes, reads = roles & PRODUCER > 0, roles & CONSUMER > 0
    makers = np.unique(np.stack([component[makes], owners[makes]]), axis=1)
    readers = np.unique(np.stack([component[reads], owners[reads]]), axis=1)
    for made, read, count in _meetings(makers, readers):
        start, end = layers[made], layers[read]
        if start == end:
            continue
        if not found.has_edge(start, end):
            found.add_edge(start, end, channels=0, groups=[])
        found.edges[start, end]["channels"] += count
    _name_groups(graph, found)
    return found


def _meetings(makers: np.ndarray, readers: np.ndarray) -> list[tuple[int, int, int]]:
    """Returns (dimension that makes, dimension that reads, how many components they share).

    Args:
        makers: (2, n) components in order, and the dimensions that make them.
        readers: (2, m) the same of dimensions that read them.
    """
    first = np.searchsorted(readers[0], makers[0], "left")
    last = np.searchsorted(readers[0], makers[0], "right")
    pairs = [np.empty((2, 0), np.int64)]
    for maker, start, end in zip(makers[1], first, last, strict=True):
        own_readers = readers[1, start:end]
        pairs.append(np.stack([np.full_like(own_readers, maker), own_readers]))
    unique, counts = np.unique(np.concatenate(pairs, axis=1), axis=1, return_counts=True)
    return list(zip(*unique.tolist(), counts.tolist(), strict=True))


def _name_groups(graph: NodeLookup, found: nx.DiGraph) -> None:
    """Notes the groups at the layers that make or read their channels, and at the edges between these."""
    for group in graph.groups:
        # All nodes of a group consist of slices of the same tensors.
        node = graph.nodes[int(group.nodes[0])]
        makers = _layers_of(graph, node.producers)
        readers = _layers_of(graph, node.consumers)
        for path in makers:
            found.nodes[path]["produces"].append(group.index)
        for path in readers:
            found.nodes[path]["reads"].append(group.index)
        for start in makers:
            for end in readers:
                if found.has_edge(start, end):
                    found.edges[start, end]["groups"].append(group.index)


def _layers_of(graph: NodeLookup, slices: Slices) -> list[str]:
    """Returns the layers that some slices belong to, each once."""
    paths = [graph.owner_path(name.rpartition(".")[0]) for name, _ in slices]
    return list(dict.fromkeys(paths))


# -- text --------------------------------------------------------------------------------------------------------------


def tree(graph: NodeLookup) -> str:
    """Returns the groups as text: how many nodes, and the layers that make, norm and read them; then what is pinned."""
    lines = [f"{type(graph.model).__name__}: {len(graph.nodes)} nodes in {len(graph.groups)} groups"]
    for group in graph.groups:
        node = graph.nodes[int(group.nodes[0])]
        flag = f"  (not exact: {node.inexact})" if node.inexact else ""
        lines.append(f"+- group {group.index}: {len(group.nodes)} nodes{flag}")
        for title, slices in (("made by", node.producers), ("normed by", node.norms), ("read by", node.consumers)):
            lines += [f"|  {title} {name}[{dim}]" for name, dim in slices]
    lines += [f"+- stays: {pin}" for pin in graph.pinned]
    lines += [f"+- note: {note}" for note in graph.traced.notes]
    return "\n".join(lines)


def mermaid(graph: NodeLookup) -> str:
    """Returns the layers as a Mermaid flow chart; the border's colour names the group, edges say how many channels."""
    network = _connected(graph)
    numbers = {path: number for number, path in enumerate(network)}
    lines = ["flowchart TD"]
    for path, data in network.nodes(data=True):
        # Mermaid takes no double quotes in a text, and HTML for a new line.
        text = _caption(path, data, new_line="<br>").replace('"', "'")
        lines.append(f'    layer{numbers[path]}["{text}"]')
        lines.append(f"    style layer{numbers[path]} stroke:{_colour(data['produces'])}")
    for number, (start, end, data) in enumerate(network.edges(data=True)):
        lines.append(f"    layer{numbers[start]} -->|{data['channels']}| layer{numbers[end]}")
        lines.append(f"    linkStyle {number} stroke:{_colour(data['groups'])}")
    return "\n".join(lines)


def _connected(graph: NodeLookup) -> nx.DiGraph:
    """Returns the layers that make channels for others or read them; norms, which follow one of these, take room."""
    network = to_networkx(graph)
    linked = [path for path, degree in network.degree if degree]
    return network.subgraph(linked) if linked else network


def _caption(path: str, data: dict[str, Any], *, new_line: str = "\n") -> str:
    groups = ", ".join(str(group) for group in data["produces"])
    made = f"makes group {groups}" if groups else "outputs stay"
    return f"{path or '(network)'}{new_line}{data['kind']}, {made}"


def _colour(groups: list[int]) -> str:
    return _COLOURS[groups[0] % len(_COLOURS)] if groups else _GREY


# -- files -------------------------------------------------------------------------------------------------------------


def draw(graph: NodeLookup, path: str | Path) -> None:
    """Writes the graph to a file: a picture (.svg, .png), Mermaid (.md, .mmd), or the text tree (.txt).

    Raises:
        UsageError: for another kind of file, or a picture where matplotlib is not installed.
    """
    target = Path(path)
    writers: dict[str, Callable[[], str]] = {
        ".txt": lambda: tree(graph),
        ".mmd": lambda: mermaid(graph),
        ".md": lambda: f"```mermaid\n{mermaid(graph)}\n```",
    }
    if target.suffix in writers:
        target.write_text(writers[target.suffix]() + "\n", encoding="utf-8")
    elif target.suffix in (".svg", ".png"):
        _picture(_connected(graph), target)
    else:
        given = target.suffix or target.name
        raise UsageError(f"A graph is drawn as .svg, .png, .md, .mmd or .txt, not {given}.")


def _picture(network: nx.DiGraph, target: Path) -> None:
    """Draws the layers in rows, each below everything that it reads from."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        kind = target.suffix
        raise UsageError(f"A {kind} picture needs matplotlib: pip install matplotlib; .md needs nothing.") from error
    rows = _rows(network)
    places = {}
    for row, paths in enumerate(rows):
        for column, path in enumerate(paths):
            places[path] = (column - (len(paths) - 1) / 2, row)  # each row in the middle
    widest = max(len(paths) for paths in rows)
    # A figure of its own, not pyplot's: whatever window or backend the user's program has stays as it is.
    figure = Figure(figsize=(_INCHES_WIDE * widest, _INCHES_HIGH * len(rows)))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(-widest / 2, widest / 2), ylim=(len(rows) - 0.5, -0.5))
    axes.axis("off")
    boxes = {}
    for path, data in network.nodes(data=True):
        box = {"boxstyle": "round", "facecolor": "#f7f7f7", "edgecolor": _colour(data["produces"]), "linewidth": 2}
        text = axes.text(*places[path], _caption(path, data), fontsize=8, ha="center", va="center", bbox=box, zorder=2)
        boxes[path] = text.get_bbox_patch()
    for start, end, groups in network.edges(data="groups"):
        # networkx would end its arrows at circles; these end at the boxes, and bend so that none hides another.
        arrow = {"arrowstyle": "->", "color": _colour(groups), "connectionstyle": "arc3,rad=0.12"}
        ends = {"patchA": boxes[start], "patchB": boxes[end]}
        axes.annotate("", xy=places[end], xytext=places[start], zorder=1, arrowprops={**arrow, **ends})
    with matplotlib.rc_context({"svg.fonttype": "none"}):  # letters stay letters, so that a picture can be searched
        figure.savefig(target)


def _rows(network: nx.DiGraph) -> list[list[str]]:
    """Returns the layers by row: below everything it reads from; layers used in a circle share a row."""
    import networkx as nx

    condensed = nx.condensation(network)
    row_of: dict[int, int] = {}
    for part in nx.topological_sort(condensed):
        above = [row_of[before] for before in condensed.predecessors(part)]
        row_of[part] = 1 + max(above, default=-1)
    rows: list[list[str]] = [[] for _ in range(1 + max(row_of.values()))]
    for path in network:
        part = condensed.graph["mapping"][path]
        rows[row_of[part]].append(path)
    return rows
