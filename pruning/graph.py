"""The dependency graph: which slices of which parameters can only live or die together.

    graph = DependencyGraph(model, torch.randn(1, 3, 224, 224))
    plan = graph.get_pruning_plan(model.conv1, idxs=[2, 6, 9])
    print(plan)
    plan.exec()

Every index of every dimension of every parameter gets a label; one run on stand-ins without data carries them through
the network (pruning/trace.py, pruning/rules*.py); what is tied becomes one node (pruning/structure.py). A trial removal
then shows whether the network's own code goes along (pruning/fitting.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
from torch import Tensor, nn

from pruning import drawing
from pruning.errors import UsageError, whole_numbers
from pruning.joining import ROLES, reduce_to_nodes
from pruning.labels import CONSUMER, NORM, PRODUCER, Labels
from pruning.nodes import Group, Node, NodeList, Pin, Slices
from pruning.observer import Observer
from pruning.plan import PruningPlan, make_plan
from pruning.sandbox import without_garbage_collection
from pruning.structure import Couplings, Dimension, Mask, Structure
from pruning.trials import try_out


class DependencyGraph:
    """Nodes of a network, and plans to remove them.

    Args:
        model: any nn.Module. Its parameters, modes and random state are left as they are.
        example_inputs: what the model is called with: a tensor, a tuple of arguments, or a dict of keywords. Values do
            not matter, shapes do; the batch may be of any size.
        fake_input: another name for `example_inputs`.
        keep: modules whose parameters must stay, besides those marked by `keep(module)`.

    Raises:
        UsageError: if the model cannot be run on these inputs, or holds scripted or lazy modules.
    """

    @without_garbage_collection()
    def __init__(
        self, model: nn.Module, example_inputs: Any = None, *, fake_input: Any = None, keep: Iterable[nn.Module] = ()
    ):
        given = fake_input if example_inputs is None else example_inputs
        if given is None:
            raise UsageError(
                "DependencyGraph needs example_inputs: a tensor, a tuple of arguments or a dict of keywords."
            )
        self.model = model
        self.seen = Observer(model, given)
        self.generation = 0
        self.indices: dict[Any, Any] = {}
        self._apply_marks(keep)
        self.structure.assemble()
        try_out(self.seen)
        self._couplings = Couplings(self.structure)

    @property
    def structure(self) -> Structure:
        """The arrays behind the graph."""
        return self.seen.structure

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Every parameter and buffer once, by its first name."""
        return self.seen.tensors

    def named(self) -> dict[str, Tensor]:
        """Returns every parameter and buffer by all its names."""
        buffers = dict(self.model.named_buffers(remove_duplicate=False))
        return {**dict(self.model.named_parameters(remove_duplicate=False)), **buffers}

    # -- what only the user, or a module's kind, knows -------------------------------------------------------------

    def _apply_marks(self, kept: Iterable[nn.Module]) -> None:
        for module in self.model.modules():
            if getattr(module, "_pruning_keep", False):
                self._protect(module)
            for other in getattr(module, "_pruning_ties", ()):
                self._couple(self._output(module), self._output(other))
            if isinstance(module, nn.MultiheadAttention):
                self._tie_attention(module)
        for module in kept:
            self._protect(module)

    def _tie_attention(self, module: nn.MultiheadAttention) -> None:
        # It takes its head width from the embedding, so query, key and value rows can only go with an embedding index.
        weights = (module.in_proj_weight, module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
        present = [weight for weight in weights if weight is not None]
        embedding = self.seen.labels(self.seen.names[id(present[0])], 1)
        for weight in present if len(embedding) else ():
            for rows in self.seen.labels(self.seen.names[id(weight)], 0).reshape(-1, len(embedding)):
                self._couple(rows, embedding)

    def _protect(self, module: nn.Module) -> None:
        path = self.path_of(module)
        own = {id(tensor) for tensor in (*module.parameters(), *module.buffers())}
        dimensions = [item for item in self.structure.dimensions if id(self.tensors[item.name]) in own]
        rows = [self.structure.labels_of(dimension) for dimension in dimensions]
        self.structure.pin(rows, "keep", path, "is protected")

    def _couple(self, one: Labels, other: Labels) -> None:
        if len(one) != len(other):
            raise UsageError(f"tie needs as many channels on both sides, not {len(one)} and {len(other)}.")
        self.structure.facts.ties.append((one, other, self.structure.facts.place("tie", "")))

    def _output(self, part: nn.Module | tuple[str, int]) -> Labels:
        """Returns the labels of a module's output channels, or of (parameter name, dimension)."""
        if isinstance(part, tuple):
            if part[0] not in self.tensors:
                raise UsageError(f"There is no parameter {part[0]}.")
            return self.seen.labels(*part)
        return self.seen.labels(*self._side(part, "out"))

    def _side(self, module: nn.Module, side: str) -> tuple[str, int]:
        """Returns (parameter name, dimension) of a module's output or input channels."""
        self.path_of(module)
        if isinstance(module, nn.MultiheadAttention):
            module = module.out_proj
        own = {**module._parameters, **module._buffers}
        for originals in getattr(module, "parametrizations", {}).values():
            own = {"weight": getattr(originals, "original", getattr(originals, "original1", None)), **own}
        names = ("weight", "weight_v", "weight_orig", "weight_ih_l0", "running_mean")
        tensor = next((own[name] for name in names if own.get(name) is not None), None)
        if tensor is None or id(tensor) not in self.seen.names:
            raise UsageError(f"{type(module).__name__} has no weight whose channels could be named.")
        flipped = getattr(module, "transposed", False) or isinstance(module, (nn.Embedding, nn.EmbeddingBag))
        dim = 0 if tensor.dim() == 1 else int(flipped) if side == "out" else 1 - int(flipped)
        return self.seen.names[id(tensor)], dim

    def path_of(self, module: nn.Module) -> str:
        """Returns a module's path; UsageError if it is not part of the network."""
        for path, other in self.model.named_modules():
            if other is module:
                return path
        raise UsageError(f"This {type(module).__name__} is not a module of the network that the graph was built for.")

    def keep(self, module: nn.Module) -> None:
        """Protects all parameters of a module from now on."""
        self._protect(module)
        self._reassemble()

    def tie(self, one: nn.Module | tuple[str, int], other: nn.Module | tuple[str, int]) -> None:
        """Couples two layers' output channels, or two (parameter name, dimension), index by index from now on."""
        self._couple(self._output(one), self._output(other))
        self._reassemble()

    def _reassemble(self) -> None:
        self.structure.assemble()
        self._forget()

    def _forget(self) -> None:
        self.generation += 1
        self.indices, self._couplings = {}, Couplings(self.structure)

    # -- look-ups --------------------------------------------------------------------------------------------------

    @property
    def nodes(self) -> NodeList:
        """Every node that can be removed, in the order of its first slice."""
        return NodeList(self)

    @property
    def groups(self) -> list[Group]:
        """Nodes by the dimensions they consist of."""
        structure = self.structure
        order = np.argsort(structure.group_of_node, kind="stable")
        ends = np.searchsorted(structure.group_of_node[order], np.arange(structure.group_count + 1))
        parts = [order[start:end] for start, end in zip(ends[:-1], ends[1:], strict=True)]
        return [Group(index, nodes, self._layers(nodes[0])) for index, nodes in enumerate(parts)]

    def _layers(self, node: int) -> tuple[tuple[str, int], ...]:
        owners = np.unique(self.structure.owners(self.structure.labels_of_node(node)))
        return tuple((self.structure.dimensions[owner].name, self.structure.dimensions[owner].dim) for owner in owners)

    def node(self, index: int) -> Node:
        """Returns one node with all its slices."""
        structure = self.structure
        labels = structure.labels_of_node(index)
        roles = structure.roles[labels]
        return Node(
            index,
            slices=self._slices(labels),
            producers=self._slices(labels[roles & PRODUCER > 0]),
            consumers=self._slices(labels[roles & CONSUMER > 0]),
            norms=self._slices(labels[roles & NORM > 0]),
            inexact=self.inexact_reason(index),
        )

    def _slices(self, labels: Labels) -> Slices:
        found: Slices = {}
        for label, owner in zip(labels.tolist(), self.structure.owners(labels).tolist(), strict=True):
            dimension = self.structure.dimensions[owner]
            position = int(self.structure.alive[dimension.start : label].sum())
            found.setdefault((dimension.name, dimension.dim), []).append(position)
        return found

    def inexact_reason(self, node: int) -> str:
        """Returns why removing a node changes other values, "" if it does not."""
        fact = self.structure.inexact_by[self.structure.components[node]]
        return self.structure.facts.told(self.structure.facts.inexact[fact]) if fact >= 0 else ""

    @property
    def inexact(self) -> np.ndarray:
        """Per node: whether removing it changes other values a little."""
        return self.structure.inexact_by[self.structure.components] >= 0

    @property
    def pinned(self) -> list[Pin]:
        """What has to stay, by the operation and module that pins it."""
        structure, facts = self.structure, self.structure.facts
        labels = np.flatnonzero(structure.alive[: structure.slice_labels])
        fact = structure.pinned_by[structure.component[labels]]
        labels, fact = labels[fact >= 0], fact[fact >= 0]
        found: dict[tuple[str, str, str], dict[tuple[str, int], int]] = {}
        pairs, counts = np.unique(np.stack([fact, structure.owners(labels)]), axis=1, return_counts=True)
        for one, owner, count in zip(*pairs.tolist(), counts.tolist(), strict=True):
            _, place, why = facts.pins[one]
            dimension = structure.dimensions[owner]
            slices = found.setdefault((*facts.places[place], why), {})
            slices[dimension.name, dimension.dim] = slices.get((dimension.name, dimension.dim), 0) + count
        return [Pin(slices, *place) for place, slices in found.items()]

    def node_of(self, name: str, dim: int, index: int) -> int | None:
        """Returns the node that an index of a parameter's dimension belongs to, None if it has to stay."""
        nodes = self.nodes_along(name, dim)
        if not -len(nodes) <= index < len(nodes):
            raise UsageError(f"{name} has {len(nodes)} indices along dimension {dim}; {index} is none of them.")
        return int(nodes[index]) if nodes[index] >= 0 else None

    def nodes_along(self, name: str, dim: int, role: str = "all") -> np.ndarray:
        """Returns the node of every index of a parameter's dimension, -1 where it has to stay or plays another role."""
        if name not in self.tensors or not 0 <= dim < self.tensors[name].dim():
            raise UsageError(f"There is no parameter {name} with a dimension {dim}.")
        labels = self.seen.labels(name, dim)
        if not len(labels):
            return np.full(self.tensors[name].shape[dim], -1)
        nodes = self.structure.node_of_label[labels]
        return nodes if role == "all" else np.where(self.structure.roles[labels] & ROLES[role] > 0, nodes, -1)

    def one_per_group(self, nodes: np.ndarray) -> np.ndarray:
        """Returns one node of each group that a choice touches."""
        return nodes[np.unique(self.structure.group_of_node[nodes], return_index=True)[1]]

    def why(self, dimension: Dimension, seeds: Iterable[Dimension]) -> str:
        """Returns which operation couples a dimension to what is removed: the last step on the way from the seeds."""
        return self._couplings.why(dimension, tuple(seeds))

    # -- scores ----------------------------------------------------------------------------------------------------

    def reduce_to_nodes(self, values: Mapping[str, Tensor], role: str = "producer", reduce: str = "sum") -> Tensor:
        """Joins values per weight into one per node.

        Args:
            values: parameter name -> tensor of the parameter's shape; parameters left out count as zero.
            role: which slices of a node count: "producer" (rows and biases), "consumer" (columns), "norm", or "all".
                A weight in two slices of the same node counts twice.
            reduce: "sum", "mean" (sum over the number of values), or "max".

        Returns:
            A tensor of `len(graph.nodes)` values on the device of the first one given; gradients pass.

        Raises:
            UsageError: for an unknown role, reduction or parameter, or a wrong shape.
        """
        return reduce_to_nodes(self, values, role, reduce)

    # -- plans -----------------------------------------------------------------------------------------------------

    def plan(self, nodes: Any) -> PruningPlan:
        """Returns a plan to remove nodes, rehearsed.

        Args:
            nodes: numbers of nodes, `Node`s, or a mask over all of them, as list, array or tensor.

        Raises:
            UsageError: if there are no such nodes, or a layer would be emptied.
        """
        rows = nodes.detach().cpu().numpy() if isinstance(nodes, Tensor) else nodes
        rows = rows if isinstance(rows, np.ndarray) else [getattr(node, "index", node) for node in _listed(rows)]
        chosen = np.asarray(rows)
        if chosen.dtype == bool:
            if len(chosen) != self.structure.count:
                raise UsageError(f"A mask over nodes needs {self.structure.count} entries, not {len(chosen)}.")
            chosen = np.flatnonzero(chosen)
        if chosen.dtype.kind not in "iuf" or (chosen % 1 != 0).any():
            raise UsageError("Nodes are given by whole numbers or by a mask over all of them.")
        chosen = np.unique(chosen.astype(np.int64))
        if not len(chosen) or chosen[0] < 0 or chosen[-1] >= self.structure.count:
            raise UsageError(
                f"Nodes are numbered 0 to {self.structure.count - 1}; none of them, or others, were asked for."
            )
        return make_plan(self, chosen)

    def get_pruning_plan(
        self, module: nn.Module, function: Callable[..., Any] | None = None, idxs: Iterable[int] = (), *, side: str = ""
    ) -> PruningPlan:
        """Returns a plan to remove channels of one module, and everything that is coupled to them.

        Args:
            module: a part of the network with a weight.
            function: one of the cuts in pruning/functions.py; it says which side is meant. Output channels without it.
            idxs: positions of the channels.
            side: "out" or "in", instead of a function.

        Raises:
            UsageError: for a module of another network, positions that do not exist, channels that have to stay, or a
                layer that would be emptied.
        """
        if side not in ("", "out", "in") or not (function is None or callable(function)):
            raise UsageError(f"A side is 'out' or 'in', or a function that cuts it, not {side or function!r}.")
        name, dim = self._side(module, side or getattr(function, "side", "out"))
        self.seen.refresh()
        size = self.tensors[name].shape[dim]
        positions = whole_numbers(idxs)
        if not positions or positions[0] < 0 or positions[-1] >= size:
            raise UsageError(f"{name} has channels 0 to {size - 1} along dimension {dim}, not {positions}.")
        nodes = self.nodes_along(name, dim)[positions]
        if (nodes < 0).any():
            labels = self.seen.labels(name, dim)
            fixed = labels[np.array(positions)[nodes < 0]] if len(labels) else labels
            raise UsageError(f"Channels of {name} have to stay: {self._pin_reason(fixed)}.")
        asked = self.seen.dimension(name, dim)
        return make_plan(self, np.unique(nodes), asked=(asked,) if asked else ())

    def _pin_reason(self, labels: Labels) -> str:
        if not len(labels):
            return "there is only one"
        facts = self.structure.facts
        return facts.told(facts.pins[self.structure.pinned_by[self.structure.component[labels[0]]]])

    def commit(self, removed: Mask) -> None:
        """Takes note that labels are gone; called by a plan that was executed."""
        self.structure.alive &= ~removed
        self.structure.renumber()
        self._forget()
        self.seen.refresh()

    # -- pictures --------------------------------------------------------------------------------------------------

    def to_networkx(self) -> nx.DiGraph:
        """Returns layers as nodes and channels as edges; see `pruning.drawing.to_networkx`."""
        return drawing.to_networkx(self)

    def tree(self) -> str:
        """Returns the groups, and what has to stay, as text."""
        return drawing.tree(self)

    def draw(self, path: str | Path) -> None:
        """Writes a picture (`.svg`) or the text (`.txt`) to a file."""
        drawing.draw(self, path)

    def owner_path(self, path: str) -> str:
        """Returns the path of the module that a user knows: parametrised weights belong to their layer."""
        return path.split(".parametrizations.")[0] if ".parametrizations." in f"{path}." else path

    def owner(self, path: str) -> nn.Module:
        """Returns the module that a user knows."""
        return self.model.get_submodule(self.owner_path(path))


def _listed(nodes: Any) -> list[Any]:
    return [nodes] if isinstance(nodes, (int, Node)) else list(nodes)


def keep(module: nn.Module) -> nn.Module:
    """Marks a module so that every graph built from now on protects its parameters; returns it."""
    module._pruning_keep = True  # type: ignore[assignment]
    return module


def tie(one: nn.Module, other: nn.Module) -> None:
    """Marks two modules so that every graph built from now on couples their output channels index by index."""
    vars(one)["_pruning_ties"] = [*getattr(one, "_pruning_ties", ()), other]
