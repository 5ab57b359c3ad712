"""Hard-concrete gates on the nodes of any network (Louizos, Welling and Kingma 2018, arXiv:1712.01312).

A node's gate z in [0, 1] multiplies what the layers that read the node see of it: where the node is made, a batch norm
behind it would undo the gate. All producers of a node (in residual networks) so share one gate, and what a gate
multiplies, its group of weights, are the columns of its readers: every weight is in one group at most.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pruning.errors import UsageError
from pruning.l0.readers import Reader, attach, find_readers, folded
from pruning.modules.calls import tensors_in
from pruning.prune.bounds import node_selection_of
from pruning.prune.layout import NodeSelection
from pruning.prune.nodes import remove_nodes
from pruning.prune.step import Event
from pruning.state import PrunableState

# Of the paper's section 4: the temperature, and the interval that the concrete distribution is stretched to.
BETA, GAMMA, ZETA = 2 / 3, -0.1, 1.1

LOG_ALPHA_RANGE = (math.log(1e-2), math.log(1e2))

MARGIN = 1e-6  # uniform draws keep away from 0 and 1

FIRST_PENALTY = 0.5  # about what the paper's own runs start with: 266,200 weights at 0.1 / 60,000, nearly all there


def sampled(log_alpha: Tensor, samples: int | None = None) -> Tensor:
    """Returns gates drawn anew, differentiable in log alpha: (gates,), or (samples, gates) with a draw per sample."""
    shape = log_alpha.shape if samples is None else (samples, *log_alpha.shape)
    uniform = torch.rand(shape, dtype=log_alpha.dtype, device=log_alpha.device)
    uniform = uniform * (1 - 2 * MARGIN) + MARGIN
    concrete = (torch.logit(uniform) + log_alpha) / BETA
    return _stretched(concrete).clamp(0, 1)


def deterministic(log_alpha: Tensor) -> Tensor:
    """Returns the gates of evaluation."""
    return _stretched(log_alpha).clamp(0, 1)


def probability_open(log_alpha: Tensor) -> Tensor:
    """Returns P(z != 0) of drawn gates."""
    return torch.sigmoid(log_alpha - BETA * math.log(-GAMMA / ZETA))


def _stretched(logits: Tensor) -> Tensor:
    return torch.sigmoid(logits) * (ZETA - GAMMA) + GAMMA


class NodeGates:
    """One gate per node, put on a network by hooks; `fold` takes them off again.

    In training mode gates are drawn at each call of the model, in eval mode they are deterministic. Nodes that
    something else than linear and convolutional layers reads have no gate.

    Args:
        network: what is gated.
        droprate: log alpha starts around ln((1 - droprate) / droprate), between 0 and 1.
        per_sample: draw gates for each sample instead of each batch.
        samples: N of the paper, how many training samples there are.

    Raises:
        UsageError: if no node can have a gate.
    """

    def __init__(
        self, network: PrunableState, *, droprate: float = 0.5, per_sample: bool = False, samples: int = 1
    ) -> None:
        if not 0 < droprate < 1:
            raise ValueError(f"droprate must lie between 0 and 1; {droprate} was given")
        self.network, self.per_sample, self.samples = network, per_sample, samples
        self._values: Tensor | None = None  # (nodes,) or (samples, nodes), during a call of the model
        self._hooks: list[Any] = []
        self._put_on()
        first_log_alpha = math.log((1 - droprate) / droprate)
        start = torch.normal(first_log_alpha, 0.01, (len(self.nodes),))
        self.log_alpha = nn.Parameter(start.to(self.readers[0].module.weight))
        # The price of a weight at which all together cost FIRST_PENALTY before training.
        gated_weights = sum(int((reader.nodes >= 0).sum()) * reader.weights_each for reader in self.readers)
        chance = float(probability_open(torch.tensor(first_log_alpha)))
        self.price = FIRST_PENALTY * samples / (chance * gated_weights)
        self.note(torch.ones(len(network.graph.nodes)))

    def _put_on(self) -> None:
        model = self.network.model
        self.readers = self._readers()
        if not self.readers:
            raise UsageError(f"{type(model).__name__} has no node that a gate could close.")
        read = torch.cat([reader.nodes for reader in self.readers]).unique()
        self.nodes = read[read >= 0]  # (gates,) the node of each gate
        self._hooks = attach(self.readers, lambda: self._values)
        self._hooks.append(model.register_forward_pre_hook(self._draw, with_kwargs=True))
        self._hooks.append(model.register_forward_hook(self._forget, always_call=True))
        self.network.gates, self.network.learns_nodes = self, True

    def _readers(self) -> list[Reader]:
        """Returns the layers that read nodes which the rules by layer let go; others get no gate."""
        is_open = torch.from_numpy(self.network.open_nodes())
        readers = []
        for reader in find_readers(self.network):
            protected = ~is_open.to(reader.nodes.device)[reader.nodes]
            reader.nodes = reader.nodes.masked_fill(protected, -1)
            if bool((reader.nodes >= 0).any()):
                readers.append(reader)
        return readers

    def describe(self) -> str:
        """One line for a person: how many nodes have a gate, where those are that have none, and the default price."""
        graph, total = self.network.graph, len(self.network.graph.nodes)
        gated = np.isin(np.arange(total), self.nodes.cpu().numpy())
        line = f"{len(self.nodes):,} of {total:,} nodes have a gate; l0_reg is {self.price:.3g} by default here"
        if gated.all():
            return line
        others = []
        for node in graph.one_per_group(np.flatnonzero(~gated)):
            name, _ = next(iter(graph.node(int(node)).slices))
            others.append(name)
        shown = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
        return f"{line}; more than linear and convolutional layers read those of {shown}"

    def take_off(self) -> None:
        """Leaves the network as if there had been no gates."""
        for hook in self._hooks:
            hook.remove()
        self._hooks, self.network.gates = [], None

    # -- while training --------------------------------------------------------------------------------------------

    def _draw(self, model: nn.Module, args: Any, kwargs: Any) -> None:
        if not model.training:
            gates = deterministic(self.log_alpha)
        elif self.per_sample:
            batch_size = len(tensors_in((args, kwargs))[0])
            gates = sampled(self.log_alpha, batch_size)
        else:
            gates = sampled(self.log_alpha)
        self._values = self._by_node(gates)

    def _forget(self, *_: Any) -> None:
        self._values = None

    def _by_node(self, values: Tensor) -> Tensor:
        """Returns (..., nodes) from (..., gates), 1 for nodes without a gate."""
        every = values.new_ones(*values.shape[:-1], len(self.network.graph.nodes))
        return every.index_copy(-1, self.nodes, values)

    def penalty(self, l0_reg: float | None, l2_reg: float) -> Tensor:
        """Returns the sum over gates of P(z != 0) * (l0_reg / N * size of the group + l2_reg / 2 * sum of its squares).

        It is the paper's (1 / N) sum of P * (lambda * n + rho / 2 * |w|^2) with rho = N * l2_reg. What no gate
        multiplies (biases, norms, weights that read the network's input) decays as what is there for certain. Without
        an l0_reg it is `price`, at which all weights together cost FIRST_PENALTY before training.
        """
        price = self.price if l0_reg is None else l0_reg
        chances = self._by_node(probability_open(self.log_alpha))
        gated = {reader.name: reader for reader in self.readers}
        total = chances.new_zeros(())
        for name, weight in self.network.model.named_parameters():
            if name not in gated:
                total = total + l2_reg / 2 * weight.square().sum()
                continue
            reader = gated[name]
            other_dims = [dim for dim in range(weight.dim()) if dim != reader.dim]
            squares = weight.square().sum(other_dims)  # (columns,)
            has_gate = (reader.nodes >= 0).to(weight)
            size = has_gate * (price / self.samples * reader.weights_each)
            total = total + (reader.pick(chances) * (size + l2_reg / 2 * squares)).sum()
        return total

    @torch.no_grad()
    def clamp(self) -> None:
        """Keeps log alpha where its gradient has not vanished; to be called after each step."""
        self.log_alpha.clamp_(*LOG_ALPHA_RANGE)

    # -- what is closed --------------------------------------------------------------------------------------------

    @torch.no_grad()
    def note_closed(self) -> None:
        """Takes down which gates are closed in evaluation; the network's counts are of these from now on."""
        self.note(self._by_node(_stretched(self.log_alpha)).cpu())

    def note(self, scores: Tensor) -> None:
        """Takes over (nodes,) gates before they are clamped to [0, 1]."""
        network = self.network
        self.scores = scores
        self.closed = scores <= 0
        self.gone = ~self._choose(node_selection_of(network))
        self.left: dict[str, int] = {}
        for name, weight in network.prunable().items():
            self.left[name] = self._count(name, network.masks.of(name, weight))

    def _choose(self, layout: NodeSelection) -> Tensor:
        """Marks the nodes that stay: the open ones, and those that their layer or the others need."""
        ranking = self.scores.double().masked_fill(torch.from_numpy(self.network.graph.inexact), 1.0)
        return layout.keep_above(ranking, math.ulp(0.0))

    def _count(self, name: str, keep: Tensor) -> int:
        read = {(reader.name, reader.dim) for reader in self.readers}
        for dim in range(keep.dim()):
            along = self.network.graph.nodes_along(name, dim)
            removed = (along >= 0) & self.closed.numpy()[along]
            # A reader's columns go with a closed gate; all else goes with the node, and no layer is emptied.
            if (name, dim) not in read or removed.all():
                removed = (along >= 0) & self.gone.numpy()[along]
            if removed.any():
                kept = torch.from_numpy(np.flatnonzero(~removed))
                keep = keep.index_select(dim, kept.to(keep.device))
        return int(keep.count_nonzero())

    # -- afterwards ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def fold(self, optimizers: Iterable[torch.optim.Optimizer] = ()) -> str:
        """Takes the gates off: open ones are multiplied into columns, nodes of closed ones removed. Says what went.

        What the network computes in eval mode stays as it was. Where removing a closed node would change others (a
        layer norm's statistic), or leave nothing of a layer, the node stays and its columns are masked.
        """
        network, layout = self.network, node_selection_of(self.network)
        self.note_closed()
        self.take_off()
        weights = dict(network.model.named_parameters())
        gates = self._by_node(deterministic(self.log_alpha))
        for name, weight in folded(self.readers, gates, weights).items():
            weights[name].copy_(weight)
        closed = int(self.closed.sum())
        must_stay = self.closed & torch.from_numpy(network.graph.inexact)
        reasons = ["removing them would change what others compute"] if must_stay.any() else []
        before, event = len(network.graph.nodes), Event(0.0, optimizers=optimizers)
        why = remove_nodes(network, layout, self._choose, event)
        reasons += [why] if why else []
        for reader in self.readers:
            self._mask_zero_columns(reader)
        gone = before - len(network.graph.nodes)
        line = f"{closed:,} of {len(self.nodes):,} gates closed, {gone:,} of {before:,} nodes removed"
        why = "; ".join(reasons) or layout.describe()
        return line if gone == closed else f"{line}; {closed - gone:,} closed ones stay: {why}"

    def _mask_zero_columns(self, reader: Reader) -> None:
        weight = self.network.model.get_parameter(reader.name)
        other_dims = [dim for dim in range(weight.dim()) if dim != reader.dim]
        zero = (weight == 0).all(dim=other_dims, keepdim=True)
        if reader.name not in self.network.owners() or not zero.any() or zero.all():
            return
        mask = self.network.masks.of(reader.name, weight)
        self.network.masks.set({reader.name: mask & ~zero})

    # -- to disk and back ------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Tensor]:
        """Everything but the network."""
        return {"log_alpha": self.log_alpha.detach(), "nodes": self.nodes, "scores": self.scores}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Takes over a state from `state_dict`; the network must be loaded already, and may have become smaller.

        Raises:
            ValueError: if it is of gates on other nodes.
        """
        if len(self.scores) != len(self.network.graph.nodes):
            self.take_off()
            self._put_on()
        if not torch.equal(self.nodes.cpu(), state["nodes"].cpu()):
            raise ValueError("the gates are of other nodes")
        with torch.no_grad():
            self.log_alpha.set_(state["log_alpha"].to(self.log_alpha))  # type: ignore[call-overload]
        self.note(state["scores"].cpu())
