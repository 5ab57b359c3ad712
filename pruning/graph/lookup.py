"""What a dependency graph knows: its nodes, their groups, and what has to stay."""

from __future__ import annotations

import numpy as np
from torch import Tensor, nn

from pruning.errors import UsageError
from pruning.graph.nodes import Group, Node, NodeList, Pin, Slices
from pruning.modules.kinds import channel_dims
from pruning.trace.components import Couplings, Structure
from pruning.trace.labels import CONSUMER, NORM, PRODUCER, ROLES, Labels
from pruning.trace.traced import TracedNetwork

# Where a module's channels can be counted, the best place first.
_WITH_CHANNELS = ("weight", "weight_v", "weight_orig", "weight_ih_l0", "running_mean")

# (parameter name, dimension, role) -> (positions along it that count, their nodes), None where none count.
Positions = dict[tuple[str, int, str], tuple[Tensor, Tensor] | None]


class NodeLookup:
    """Nodes, groups and pins of a traced network.

    Args:
        traced: the network with its labels.
    """

    def __init__(self, traced: TracedNetwork) -> None:
        self.traced = traced
        self.model = traced.model
        self._positions: Positions = {}
        self._couplings = Couplings(traced.structure)
        self._generation = traced.structure.generation

    def _follow_cuts(self) -> None:
        """Forgets what was looked up before nodes were numbered anew."""
        if self._generation != self.structure.generation:
            self._generation = self.structure.generation
            self._positions = {}
            self._couplings = Couplings(self.structure)

    @property
    def positions(self) -> Positions:
        """What `reduce_to_nodes` looked up, kept until nodes are numbered anew."""
        self._follow_cuts()
        return self._positions

    @property
    def couplings(self) -> Couplings:
        """Says which operations tie dimensions to each other."""
        self._follow_cuts()
        return self._couplings

    @property
    def seen(self) -> TracedNetwork:
        """The traced network, by its former name."""
        return self.traced

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

    def follow(self) -> None:
        """Looks the network's tensors up again: a copy, `load_state_dict(assign=True)` or a new layer made others.

        Raises:
            UsageError: if they have other names or shapes than those that the graph knows.
        """
        self.traced.refresh()

    def fits(self) -> bool:
        """Says whether the network has the names and shapes that the graph knows."""
        try:
            self.follow()
        except UsageError:
            return False
        return True

    def name_of(self, tensor: Tensor) -> str | None:
        """Returns the first name of a parameter or buffer of the network, None for any other tensor."""
        name = self.traced.names.get(id(tensor))
        # The number of an object that is gone may be another's by now.
        if name is None or self.tensors[name] is not tensor:
            self.follow()
            name = self.traced.names.get(id(tensor))
        return name

    def _channels(self, module: nn.Module, side: str) -> tuple[str, int]:
        """Returns (parameter name, dimension) of a module's output or input channels, side "out" or "in"."""
        self.path_of(module)  # or UsageError
        if isinstance(module, nn.MultiheadAttention):
            module = module.out_proj
        tensor = _counted_tensor(module)
        name = None if tensor is None else self.name_of(tensor)
        if tensor is None or name is None:
            raise UsageError(f"{type(module).__name__} has no weight whose channels could be named.")
        if tensor.dim() == 1:  # a norm hands every channel on by itself
            return name, 0
        output_dim, input_dim = channel_dims(module)
        return name, output_dim if side == "out" else input_dim

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
    def heads(self) -> np.ndarray:
        """The numbers of the nodes that are whole attention heads; none unless the graph is one of heads."""
        return self.structure.nodes_in(self.traced.head_labels)

    @property
    def groups(self) -> list[Group]:
        """Nodes by the dimensions they consist of."""
        group_of_node = self.structure.group_of_node
        order = np.argsort(group_of_node, kind="stable")
        starts = np.searchsorted(group_of_node[order], np.arange(1, self.structure.group_count))
        found = []
        for index, nodes in enumerate(np.split(order, starts)):
            if len(nodes):  # a network without nodes has no group either
                found.append(Group(index, nodes, self._layers(nodes[0])))
        return found

    def _layers(self, node: int) -> tuple[tuple[str, int], ...]:
        structure = self.structure
        owners = np.unique(structure.owners(structure.labels_of_node(node)))
        dimensions = [structure.dimensions[owner] for owner in owners]
        return tuple((dimension.name, dimension.dim) for dimension in dimensions)

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
        structure = self.structure
        owners = structure.owners(labels)
        found: Slices = {}
        for label, owner in zip(labels.tolist(), owners.tolist(), strict=True):
            dimension = structure.dimensions[owner]
            # Labels are of the start; positions count what is left in front.
            position = int(structure.alive[dimension.start : label].sum())
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
        fact_of_label = structure.pinned_by[structure.component[labels]]
        is_pinned = fact_of_label >= 0
        owners = structure.owners(labels[is_pinned])
        pairs, counts = np.unique(np.stack([fact_of_label[is_pinned], owners]), axis=1, return_counts=True)
        # Several facts may say the same of a dimension; their indices are told together.
        found: dict[tuple[str, str, str], dict[tuple[str, int], int]] = {}
        for fact, owner, count in zip(*pairs.tolist(), counts.tolist(), strict=True):
            _, place, why = facts.pins[fact]
            operation, module = facts.places[place]
            dimension = structure.dimensions[owner]
            if dimension.name in self.traced.tables:
                continue  # whether a table that is no parameter shrinks is nothing by itself
            slices = found.setdefault((operation, module, why), {})
            key = (dimension.name, dimension.dim)
            slices[key] = slices.get(key, 0) + count
        return [Pin(slices, *said) for said, slices in found.items()]

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
        if role == "all":
            return nodes
        plays_it = self.structure.roles[labels] & ROLES[role] > 0
        return np.where(plays_it, nodes, -1)

    def one_per_group(self, nodes: np.ndarray) -> np.ndarray:
        """Returns one node of each group that a choice touches."""
        return self.structure.one_per_group(nodes)

    def pin_reason(self, labels: Labels) -> str:
        """Returns why the first of some labels has to stay."""
        if not len(labels):
            return "there is only one"
        structure = self.structure
        fact = structure.pinned_by[structure.component[labels[0]]]
        return structure.facts.told(structure.facts.pins[fact])

    def owner_path(self, path: str) -> str:
        """Returns the path of the module that a user knows: parametrised weights belong to their layer."""
        return self.traced.owner_path(path)

    def owner(self, path: str) -> nn.Module:
        """Returns the module that a user knows."""
        return self.traced.owner(path)


def _counted_tensor(module: nn.Module) -> Tensor | None:
    """Returns the tensor along which a module's channels are counted; of a computed weight, what it is made from."""
    own: dict[str, Tensor | None] = {}
    for name, originals in getattr(module, "parametrizations", {}).items():
        own[name] = getattr(originals, "original", getattr(originals, "original1", None))
    own |= {**module._parameters, **module._buffers}
    for name in _WITH_CHANNELS:
        tensor = own.get(name)
        if tensor is not None:
            return tensor
    return None
