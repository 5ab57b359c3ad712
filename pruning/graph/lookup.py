"""What a dependency graph knows: its nodes, their groups, and what has to stay."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor, nn

from pruning.errors import UsageError
from pruning.graph.nodes import Group, Node, NodeList, Pin, Slices
from pruning.trace.components import Couplings, Structure
from pruning.trace.labels import CONSUMER, NORM, PRODUCER, ROLES, Labels
from pruning.trace.traced import TracedNetwork


class NodeLookup:
    """Nodes, groups and pins of a traced network.

    Args:
        traced: the network with its labels.
    """

    def __init__(self, traced: TracedNetwork) -> None:
        self.traced = traced
        self.model = traced.model
        self._indices: dict[Any, Any] = {}
        self._couplings = Couplings(traced.structure)
        self._generation = traced.structure.generation

    def _follow_cuts(self) -> None:
        """Forgets what was looked up before nodes were numbered anew."""
        if self._generation != self.structure.generation:
            self._generation = self.structure.generation
            self._indices, self._couplings = {}, Couplings(self.structure)

    @property
    def indices(self) -> dict[Any, Any]:
        """What `reduce_to_nodes` looked up, kept until nodes are numbered anew."""
        self._follow_cuts()
        return self._indices

    @property
    def couplings(self) -> Couplings:
        """Says which operations tie dimensions to each other."""
        self._follow_cuts()
        return self._couplings

    @property
    def structure(self) -> Structure:
        """The arrays behind the graph."""
        return self.traced.structure

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Every parameter and buffer once, by its first name."""
        return self.traced.tensors

    def named(self) -> dict[str, Tensor]:
        """Returns every parameter and buffer by all its names."""
        return self.traced.named()

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
        if tensor is None or id(tensor) not in self.traced.names:
            raise UsageError(f"{type(module).__name__} has no weight whose channels could be named.")
        flipped = getattr(module, "transposed", False) or isinstance(module, (nn.Embedding, nn.EmbeddingBag))
        dim = 0 if tensor.dim() == 1 else int(flipped) if side == "out" else 1 - int(flipped)
        return self.traced.names[id(tensor)], dim

    def path_of(self, module: nn.Module) -> str:
        """Returns a module's path; UsageError if it is not part of the network."""
        for path, other in self.model.named_modules():
            if other is module:
                return path
        raise UsageError(f"This {type(module).__name__} is not a module of the network that the graph was built for.")

    @property
    def nodes(self) -> NodeList:
        """Every node that can be removed, in the order of its first slice."""
        return NodeList(self.structure.count, self.node)

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
        return self.structure.inexact_reason(node)

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
        labels = self.traced.labels(name, dim)
        if not len(labels):
            return np.full(self.tensors[name].shape[dim], -1)
        nodes = self.structure.node_of_label[labels]
        return nodes if role == "all" else np.where(self.structure.roles[labels] & ROLES[role] > 0, nodes, -1)

    def one_per_group(self, nodes: np.ndarray) -> np.ndarray:
        """Returns one node of each group that a choice touches."""
        return self.structure.one_per_group(nodes)

    def _pin_reason(self, labels: Labels) -> str:
        if not len(labels):
            return "there is only one"
        facts = self.structure.facts
        return facts.told(facts.pins[self.structure.pinned_by[self.structure.component[labels[0]]]])

    def owner_path(self, path: str) -> str:
        """Returns the path of the module that a user knows: parametrised weights belong to their layer."""
        return self.traced.owner_path(path)

    def owner(self, path: str) -> nn.Module:
        """Returns the module that a user knows."""
        return self.traced.owner(path)
