"""Pictures of a dependency graph: networkx, SVG, text."""

from __future__ import annotations

from html import escape
from pathlib import Path

import networkx as nx
import numpy as np

from pruning.errors import UsageError
from pruning.graph.lookup import NodeLookup
from pruning.trace.labels import CONSUMER, PRODUCER

_WIDE, _HIGH, _GAP = 250, 34, 26

_COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb")


def to_networkx(graph: NodeLookup) -> nx.DiGraph:
    """Returns layers as nodes and, from the layers that make channels to those that read them, edges.

    Node attributes: `kind` (class of the module), `produces` (groups whose channels it makes), `reads`, `pinned` (how
    many of its indices have to stay). Edge attributes: `channels`, and `groups`, empty where the channels have to stay.
    """
    structure, found = graph.structure, nx.DiGraph()
    labels = np.flatnonzero(structure.alive[: structure.slice_labels])
    roles, owners, component = structure.roles[labels], structure.owners(labels), structure.component[labels]
    layers = [graph.owner_path(dimension.name.rpartition(".")[0]) for dimension in structure.dimensions]
    for path in dict.fromkeys(layers):
        found.add_node(path, kind=type(graph.model.get_submodule(path)).__name__, produces=[], reads=[], pinned=0)
    for label, owner in zip(labels.tolist(), owners.tolist(), strict=True):
        found.nodes[layers[owner]]["pinned"] += int(structure.node_of_label[label] < 0)
    sides = []
    for role in (PRODUCER, CONSUMER):
        chosen = roles & role > 0
        sides.append(np.unique(np.stack([component[chosen], owners[chosen]]), axis=1))
    for made, read, count in _meetings(*sides):
        start, end = layers[made], layers[read]
        if start != end:
            edge = found.edges.get((start, end), {"channels": 0, "groups": []})
            found.add_edge(start, end, channels=edge["channels"] + count, groups=edge["groups"])
    for group in graph.groups:
        owners_of = {
            (dimension.name, dimension.dim): path for dimension, path in zip(structure.dimensions, layers, strict=True)
        }
        node = graph.nodes[int(group.nodes[0])]
        makers = list(dict.fromkeys(owners_of[key] for key in node.producers))
        readers = list(dict.fromkeys(owners_of[key] for key in node.consumers))
        for paths, name in ((makers, "produces"), (readers, "reads")):
            for path in paths:
                found.nodes[path][name].append(group.index)
        for start in makers:
            for end in readers:
                if found.has_edge(start, end):
                    found.edges[start, end]["groups"].append(group.index)
    return found


def _meetings(makers: np.ndarray, readers: np.ndarray) -> list[tuple[int, int, int]]:
    """Returns (dimension that makes, dimension that reads, how many components they share)."""
    first = np.searchsorted(readers[0], makers[0], "left")
    last = np.searchsorted(readers[0], makers[0], "right")
    pairs = np.concatenate(
        [np.stack([np.full(end - start, owner), readers[1, start:end]]) for owner, start, end in
         zip(makers[1], first, last, strict=True)] or [np.empty((2, 0), np.int64)], axis=1
    )  # fmt: skip
    unique, counts = np.unique(pairs, axis=1, return_counts=True)
    return list(zip(*unique.tolist(), counts.tolist(), strict=True))


def tree(graph: NodeLookup) -> str:
    """Returns the groups as text: how many nodes, and the layers that make, norm and read them; then what is pinned."""
    lines = [f"{type(graph.model).__name__}: {len(graph.nodes)} nodes in {len(graph.groups)} groups"]
    for group in graph.groups:
        node = graph.nodes[int(group.nodes[0])]
        flag = "" if not node.inexact else f"  (not exact: {node.inexact})"
        lines.append(f"+- group {group.index}: {len(group.nodes)} nodes{flag}")
        for title, slices in (("made by", node.producers), ("normed by", node.norms), ("read by", node.consumers)):
            lines += [f"|  {title} {name}[{dim}]" for name, dim in slices]
    lines += [f"+- stays: {pin}" for pin in graph.pinned]
    return "\n".join(lines)


def draw(graph: NodeLookup, path: str | Path) -> None:
    """Writes a picture (`.svg`) or the text tree (`.txt`) to a file.

    Raises:
        UsageError: for another kind of file.
    """
    target = Path(path)
    if target.suffix == ".txt":
        target.write_text(tree(graph) + "\n", encoding="utf-8")
    elif target.suffix == ".svg":
        target.write_text(svg(graph), encoding="utf-8")
    else:
        raise UsageError(f"A graph is drawn as .svg or .txt, not {target.suffix or target.name}.")


def svg(graph: NodeLookup) -> str:
    """Returns the layers as boxes, in rows by their distance from the input; the border's colour names the group."""
    network = to_networkx(graph)
    places = _places(network)
    width = 40 + max((column for _, column in places.values()), default=0) * (_WIDE + _GAP) + _WIDE
    height = 40 + max((row for row, _ in places.values()), default=0) * (_HIGH + _GAP) + _HIGH
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" '
             'font-size="11">', '<rect width="100%" height="100%" fill="white"/>']  # fmt: skip
    corner = {path: (20 + column * (_WIDE + _GAP), 20 + row * (_HIGH + _GAP)) for path, (row, column) in places.items()}
    for start, end, data in network.edges(data=True):
        (x1, y1), (x2, y2) = corner[start], corner[end]
        colour = _COLOURS[data["groups"][0] % len(_COLOURS)] if data["groups"] else "#888888"
        bend = f"C{x1 + _WIDE // 2},{y1 + _HIGH + _GAP} {x2 + _WIDE // 2},{y2 - _GAP}"
        parts.append(
            f'<path d="M{x1 + _WIDE // 2},{y1 + _HIGH} {bend} {x2 + _WIDE // 2},{y2}" fill="none" stroke="{colour}"/>'
        )
    for path, data in network.nodes(data=True):
        x, y = corner[path]
        made = data["produces"]
        colour = _COLOURS[made[0] % len(_COLOURS)] if made else "#888888"
        parts.append(
            f'<rect x="{x}" y="{y}" width="{_WIDE}" height="{_HIGH}" rx="4" fill="#f7f7f7" '
            f'stroke="{colour}" stroke-width="2"/>'
        )
        parts.append(f'<text x="{x + 8}" y="{y + 15}">{escape(path or "(network)")}</text>')
        told = f"{data['kind']}" + (f", makes group {', '.join(map(str, made))}" if made else ", outputs stay")
        parts.append(f'<text x="{x + 8}" y="{y + 28}" fill="#666666">{escape(told)}</text>')
    return "\n".join([*parts, "</svg>"])


def _places(network: nx.DiGraph) -> dict[str, tuple[int, int]]:
    """Returns (row, column) per layer: below everything it reads from; layers used in a circle share a row."""
    condensed = nx.condensation(network)
    rows: dict[int, int] = {}
    for part in nx.topological_sort(condensed):
        rows[part] = 1 + max((rows[before] for before in condensed.predecessors(part)), default=-1)
    taken: dict[int, int] = {}
    places = {}
    for path in network:
        row = rows[condensed.graph["mapping"][path]]
        places[path] = (row, taken.get(row, 0))
        taken[row] = taken.get(row, 0) + 1
    return places
