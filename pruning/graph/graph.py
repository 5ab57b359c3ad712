"""The dependency graph: which slices of which parameters can only live or die together.

    graph = DependencyGraph(model, torch.randn(1, 3, 224, 224))
    plan = graph.get_pruning_plan(model.conv1, idxs=[2, 6, 9])
    print(plan)
    plan.exec()

Every index of every dimension of every parameter gets a label; one run on stand-ins without data carries them through
the network (pruning/trace/); what is tied becomes one node (pruning/trace/components.py). A trial removal then shows
whether the network's own code runs with fewer channels (pruning/dry_run/).
"""

from __future__ import annotations

import copyreg
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch._ops import OpOverload

from pruning.cut.plan import PruningPlan, make_plan
from pruning.dry_run.couple import tie_attention
from pruning.dry_run.trials import try_out
from pruning.errors import UsageError, whole_numbers
from pruning.graph import render
from pruning.graph.lookup import NodeLookup
from pruning.graph.nodes import Node, Unit
from pruning.graph.reduce import reduce_to_nodes
from pruning.modules.calls import check_network
from pruning.modules.modes import all_kept, without_garbage_collection
from pruning.trace.components import Dimension
from pruning.trace.labels import Labels
from pruning.trace.outputs import ChooseOutputs
from pruning.trace.traced import TracedNetwork

if TYPE_CHECKING:
    import networkx as nx


class DependencyGraph(NodeLookup):
    """Nodes of a network, and plans to remove them.

    Args:
        model: any nn.Module. Its parameters, modes and random state are left as they are.
        example_inputs: what the model is called with: a tensor, a tuple of arguments, or a dict of keywords. Values do
            not matter, shapes do; the batch may be of any size.
        fake_input: another name for `example_inputs`.
        keep: modules whose parameters must stay, besides those marked by `keep(module)`.
        outputs: takes what the model returns and returns what of it must keep its shape (a tensor, or several in any
            container); the rest (hidden states, feature maps) may shrink. Without it everything stays but caches, see
            `pruning.trace.outputs`.
        unit: "head" makes every attention head one node, with all its rows and columns; grouped queries go with their
            key-value head. "channel" lets all heads of a layer get narrower alike. Other nodes are the same for both.

    Raises:
        UsageError: if the model cannot be run on these inputs, or holds scripted or lazy modules, or if `outputs` does
            not fit what it returns.
    """

    @without_garbage_collection()
    def __init__(
        self,
        model: nn.Module,
        example_inputs: Any = None,
        *,
        fake_input: Any = None,
        keep: Iterable[nn.Module] = (),
        outputs: ChooseOutputs | None = None,
        unit: Unit = "channel",
    ) -> None:
        check_network(model)
        given = fake_input if example_inputs is None else example_inputs
        if given is None:
            raise UsageError(
                "DependencyGraph needs example_inputs: a tensor, a tuple of arguments or a dict of keywords."
            )
        if unit not in get_args(Unit):
            raise UsageError(f"unit must be one of {', '.join(get_args(Unit))}; {unit!r} was given.")
        with all_kept(model, given) as snapshot:
            super().__init__(TracedNetwork(model, given, outputs, by_heads=unit == "head", snapshot=snapshot))
            self._apply_marks(keep)
            self.structure.assemble()
            try_out(self.traced)
            self.traced.snapshot = None  # later runs look at what the network is by then

    def _apply_marks(self, kept: Iterable[nn.Module]) -> None:
        for module in self.model.modules():
            if getattr(module, "_pruning_keep", False):
                self._protect(module)
            for other in getattr(module, "_pruning_ties", ()):
                self._couple(self._output(module), self._output(other))
        tie_attention(self.traced)
        for module in kept:
            self._protect(module)

    def _protect(self, module: nn.Module) -> None:
        path = self.path_of(module)
        own = {id(tensor) for tensor in (*module.parameters(), *module.buffers())}
        rows = []
        for dimension in self.structure.dimensions:
            if id(self.tensors[dimension.name]) in own:
                rows.append(self.structure.labels_of(dimension))
        self.structure.pin(rows, "keep", path, "is protected")

    def _couple(self, one: Labels, other: Labels) -> None:
        if len(one) != len(other):
            raise UsageError(f"tie needs as many channels on both sides, not {len(one)} and {len(other)}.")
        facts = self.structure.facts
        facts.ties.append((one, other, facts.place("tie", "")))

    def _output(self, part: nn.Module | tuple[str, int]) -> Labels:
        """Returns the labels of a module's output channels, or of (parameter name, dimension)."""
        name, dim = part if isinstance(part, tuple) else self._channels(part, "out")
        if name not in self.tensors:
            raise UsageError(f"There is no parameter {name}.")
        return self.traced.labels(name, dim)

    def keep(self, module: nn.Module) -> None:
        """Protects all parameters of a module from now on."""
        self.follow()
        self._protect(module)
        self.structure.assemble()

    def tie(self, one: nn.Module | tuple[str, int], other: nn.Module | tuple[str, int]) -> None:
        """Couples two layers' output channels, or two (parameter name, dimension), index by index from now on."""
        self.follow()
        self._couple(self._output(one), self._output(other))
        self.structure.assemble()

    def why(self, dimension: Dimension, seeds: Iterable[Dimension]) -> str:
        """Returns which operation couples a dimension to what is removed: the last step on the way from the seeds."""
        return self.couplings.why(dimension, tuple(seeds))

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

    def plan(self, nodes: Any) -> PruningPlan:
        """Returns a plan to remove nodes, proven by a dry run.

        Args:
            nodes: numbers of nodes, `Node`s, or a mask over all of them, as list, array or tensor.

        Raises:
            UsageError: if there are no such nodes, or a layer would be emptied.
        """
        chosen, count = _numbers_of(nodes), self.structure.count
        if chosen.dtype == bool:
            if len(chosen) != count:
                raise UsageError(f"A mask over nodes needs {count} entries, not {len(chosen)}.")
            chosen = np.flatnonzero(chosen)
        if chosen.dtype.kind not in "iuf" or (chosen % 1 != 0).any():
            raise UsageError("Nodes are given by whole numbers or by a mask over all of them.")
        chosen = np.unique(chosen.astype(np.int64))
        if not len(chosen) or chosen[0] < 0 or chosen[-1] >= count:
            raise UsageError(f"Nodes are numbered 0 to {count - 1}; none of them, or others, were asked for.")
        return make_plan(self.traced, self.couplings, chosen)

    def get_pruning_plan(
        self, module: nn.Module, function: Callable[..., Any] | None = None, idxs: Iterable[int] = (), *, side: str = ""
    ) -> PruningPlan:
        """Returns a plan to remove channels of one module, and everything that is coupled to them.

        Args:
            module: a part of the network with a weight.
            function: one of the cuts in pruning/cut/by_hand.py, which says what side is meant; outputs without it.
            idxs: positions of the channels.
            side: "out" or "in", instead of a function.

        Raises:
            UsageError: for a module of another network, positions that do not exist, channels that have to stay, or a
                layer that would be emptied.
        """
        if side not in ("", "out", "in") or not (function is None or callable(function)):
            raise UsageError(f"A side is 'out' or 'in', or a function that cuts it, not {side or function!r}.")
        name, dim = self._channels(module, side or getattr(function, "side", "out"))
        self.follow()
        size = self.tensors[name].shape[dim]
        positions = whole_numbers(idxs)
        if not positions or positions[0] < 0 or positions[-1] >= size:
            raise UsageError(f"{name} has channels 0 to {size - 1} along dimension {dim}, not {positions}.")
        nodes = self.nodes_along(name, dim)[positions]
        must_stay = nodes < 0
        if must_stay.any():
            labels = self.traced.labels(name, dim)
            if len(labels):  # a dimension of size 1 has none
                labels = labels[np.array(positions)[must_stay]]
            raise UsageError(f"Channels of {name} have to stay: {self.pin_reason(labels)}.")
        asked = self.traced.dimension(name, dim)
        return make_plan(self.traced, self.couplings, np.unique(nodes), asked=(asked,) if asked else ())

    def to_networkx(self) -> nx.DiGraph:
        """Returns layers as nodes and channels as edges; see `pruning.graph.render.to_networkx`."""
        return render.to_networkx(self)

    def tree(self) -> str:
        """Returns the groups, and what has to stay, as text."""
        return render.tree(self)

    def draw(self, path: str | Path) -> None:
        """Writes a picture (`.svg`, `.png`), Mermaid (`.md`, `.mmd`, which GitHub draws), or the text tree (`.txt`)."""
        render.draw(self, path)


def _numbers_of(nodes: Any) -> np.ndarray:
    """Returns numbers of nodes, or a mask over them, as an array."""
    if isinstance(nodes, Tensor):
        return nodes.detach().cpu().numpy()
    if isinstance(nodes, np.ndarray):
        return nodes
    several = [nodes] if isinstance(nodes, (int, Node)) else list(nodes)
    return np.asarray([node.index if isinstance(node, Node) else node for node in several])


def _operation(name: str, overload: str) -> OpOverload:
    namespace, operation = name.split("::")
    found: OpOverload = getattr(getattr(getattr(torch.ops, namespace), operation), overload)
    return found


def _named(operation: OpOverload) -> tuple[Callable[..., OpOverload], tuple[str, str]]:
    return _operation, (operation._schema.name, operation._overloadname)


# A graph remembers what ran; torch copies its operations, and cannot pickle them.
copyreg.pickle(OpOverload, _named)
