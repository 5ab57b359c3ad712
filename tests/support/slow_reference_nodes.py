"""Node scores in the slowest and plainest way: loops over layers, channels and columns that are coupled by hand.

Imports torch and NumPy only, so that a mistake in the project cannot hide here as well. Which channels go together is
written down by a person (`Group`), not found by the graph. Every function works on a float64 copy and leaves the model
as it was; L is the cross-entropy of a batch, averaged over batches; batch norm uses its running statistics.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

Batches = Sequence[tuple[Tensor, Tensor]]
Rows = list[list[int]]


@dataclass
class Group:
    """Nodes that run through the same layers. Each entry is module -> per node, the indices that belong to it.

    producers: output channels (rows of weights, entries of biases).
    norms: channels of normalisations.
    consumers: input channels (columns of weights, as the weight counts them).
    """

    producers: dict[str, Rows]
    norms: dict[str, Rows] = field(default_factory=dict)
    consumers: dict[str, Rows] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(next(iter(self.producers.values())))


def each(width: int, *, start: int = 0) -> Rows:
    """One index per node."""
    return [[start + node] for node in range(width)]


def spread(width: int, positions: int) -> Rows:
    """A flatten: every channel becomes that many columns in a row."""
    return [[node * positions + p for p in range(positions)] for node in range(width)]


def across(width: int, groups: int) -> Rows:
    """A grouped convolution: one channel of each group."""
    return [[group * width + node for group in range(groups)] for node in range(width)]


def twin(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).double().eval().requires_grad_(True)


def weight_of(model: nn.Module, path: str) -> Tensor:
    return model.get_submodule(path).weight.detach().double()


# --- scores of nodes, group by group
def gate_slopes(model: nn.Module, batches: Batches, groups: Sequence[Group]) -> list[Tensor]:
    """dL/dc of real gates c = 1, multiplied to the outputs of all layers that produce a node."""
    double = twin(model)
    gates = [torch.ones(len(group), dtype=torch.float64, requires_grad=True) for group in groups]
    handles = []
    for group, gate in zip(groups, gates, strict=True):
        for path, rows in group.producers.items():
            handles.append(double.get_submodule(path).register_forward_hook(_multiply(rows, gate)))
    slopes = torch.autograd.grad(_loss(double, batches), gates, allow_unused=True, materialize_grads=True)
    for handle in handles:
        handle.remove()
    return list(slopes)


def gate_differences(model: nn.Module, batches: Batches, groups: Sequence[Group]) -> list[Tensor]:
    """The same with no derivative taken at all: every producing row and bias is scaled by 1 + h and by 1 - h."""
    found, step = [], 1e-5
    for group in groups:
        slopes = []
        for node in range(len(group)):
            above, below = (float(_loss(_scaled(model, group, node, 1 + h), batches)) for h in (step, -step))
            slopes.append((above - below) / (2 * step))
        found.append(torch.tensor(slopes, dtype=torch.float64))
    return found


def _scaled(model: nn.Module, group: Group, node: int, factor: float) -> nn.Module:
    double = twin(model).requires_grad_(False)
    for path, rows in group.producers.items():
        layer = double.get_submodule(path)
        for tensor in [layer.weight] + ([layer.bias] if layer.bias is not None else []):
            tensor[rows[node]] *= factor
    return double


def _multiply(rows: Rows, gate: Tensor) -> Callable:
    def hook(module: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
        dim = output.dim() - 1 if isinstance(module, nn.Linear) else 1
        factors = [torch.ones((), dtype=torch.float64)] * output.shape[dim]
        for node, channels in enumerate(rows):
            for channel in channels:
                factors[channel] = gate[node]
        shape = [-1 if axis == dim else 1 for axis in range(output.dim())]
        return output * torch.stack(factors).view(shape)

    return hook


def _loss(model: nn.Module, batches: Batches) -> Tensor:
    losses = []
    for x, labels in batches:
        logits = model(x.double() if x.is_floating_point() else x)
        right = torch.stack([row[int(label)] for row, label in zip(logits, labels, strict=True)])
        losses.append((torch.logsumexp(logits, dim=1) - right).mean())
    return torch.stack(losses).mean()


def snap(model: nn.Module, batches: Batches, groups: Sequence[Group]) -> list[Tensor]:
    """SNAP (arXiv:2006.00896): |dL/dc|."""
    return [slopes.abs() for slopes in gate_slopes(model, batches, groups)]


def taylor(model: nn.Module, batches: Batches, groups: Sequence[Group]) -> list[Tensor]:
    """Taylor (arXiv:1906.10771): (dL/dc)^2 of each batch, then their mean."""
    each_batch = [gate_slopes(model, [batch], groups) for batch in batches]
    return [torch.stack([slopes[g].square() for slopes in each_batch]).mean(0) for g in range(len(groups))]


def filter_norms(model: nn.Module, groups: Sequence[Group]) -> list[Tensor]:
    """Efficient ConvNets (arXiv:1608.08710): the sum of |w| over the rows of all producers, biases left out."""
    found = []
    for group in groups:
        sums = [0.0] * len(group)
        for path, rows in group.producers.items():
            weight = weight_of(model, path).numpy()
            for node, channels in enumerate(rows):
                sums[node] += sum(float(np.abs(weight[channel]).sum()) for channel in channels)
        found.append(torch.tensor(sums, dtype=torch.float64))
    return found


def group_norms(model: nn.Module, groups: Sequence[Group]) -> list[Tensor]:
    """DepGraph (arXiv:2301.12900): squares of rows, norm scales and columns, over the group's mean."""
    return [sums / sums.mean() for sums in group_squares(model, groups)]


def group_hoyer(model: nn.Module, groups: Sequence[Group]) -> list[Tensor]:
    """Group Hoyer-Square (arXiv:1908.09979): node norms over the layer's trimming size, sum n^2 / sum n."""
    found = []
    for sums in group_squares(model, groups):
        norms = [math.sqrt(float(value)) for value in sums]
        size = math.fsum(n * n for n in norms) / math.fsum(norms)
        found.append(torch.tensor([n / size for n in norms], dtype=torch.float64))
    return found


def group_squares(model: nn.Module, groups: Sequence[Group]) -> list[Tensor]:
    """The sum of squares of rows, norm scales and columns of each node."""
    found = []
    for group in groups:
        sums = np.zeros(len(group))
        for path, rows in [*group.producers.items(), *group.norms.items()]:
            weight = weight_of(model, path).numpy()
            for node, channels in enumerate(rows):
                sums[node] += sum(float((weight[channel] ** 2).sum()) for channel in channels)
        for path, columns in group.consumers.items():
            weight = weight_of(model, path).numpy()
            for node, places in enumerate(columns):
                sums[node] += sum(float((weight[:, place] ** 2).sum()) for place in places)
        found.append(torch.from_numpy(sums))
    return found


def slimming(model: nn.Module, groups: Sequence[Group]) -> list[Tensor]:
    """Network slimming (arXiv:1708.06519): the largest |gamma| behind a node; without a norm, the median."""
    values: list[list[float | None]] = []
    for group in groups:
        scales = [(weight_of(model, path), rows) for path, rows in group.norms.items()]
        values.append([
            max(abs(float(weight[channel])) for weight, rows in scales for channel in rows[node]) if scales else None
            for node in range(len(group))
        ])  # fmt: skip
    known = sorted(value for row in values for value in row if value is not None)
    median = known[(len(known) - 1) // 2]
    return [torch.tensor([median if v is None else v for v in row], dtype=torch.float64) for row in values]


def gate_decorators(model: nn.Module, batches: Batches, groups: Sequence[Group]) -> list[Tensor]:
    """Gate Decorators (arXiv:1909.08174): the sum over batches and gates of |phi dL/dphi|, with real gates put in.

    A gate phi = gamma stands behind a norm whose scale became 1 and whose shift beta / gamma. A node without a norm has
    one behind its producers and one before its consumers; the larger counts.
    """
    totals = [torch.zeros(len(group), dtype=torch.float64) for group in groups]
    for batch in batches:
        double = twin(model)
        gates: list[tuple[int, list[Tensor]]] = []
        for number, group in enumerate(groups):
            for path, rows in group.norms.items():
                norm = double.get_submodule(path)
                gamma = norm.weight.detach().clone()
                phi = gamma.clone().requires_grad_(True)
                each_row = [[node for node, r in enumerate(rows) if c in r] for c in range(len(gamma))]
                norm.register_forward_hook(_times_ratio(phi, gamma))
                gates.append((number, [phi, torch.tensor([row[0] if row else -1 for row in each_row])]))
            if not group.norms:
                before, behind = (torch.ones(len(group), dtype=torch.float64, requires_grad=True) for _ in range(2))
                for path, rows in group.producers.items():
                    double.get_submodule(path).register_forward_hook(_multiply(rows, before))
                for path, columns in group.consumers.items():
                    double.get_submodule(path).register_forward_pre_hook(_multiply_inputs(columns, behind))
                gates.append((number, [before, behind]))
        leaves = [t for _, pair in gates for t in pair if t.requires_grad]
        slopes = dict(zip(map(id, leaves), torch.autograd.grad(
            _loss(double, [batch]), leaves, allow_unused=True, materialize_grads=True), strict=True))  # fmt: skip
        for number, (first, second) in gates:
            if second.requires_grad:
                totals[number] += torch.maximum(slopes[id(first)].abs(), slopes[id(second)].abs())
            else:
                for value, node in zip((first.detach() * slopes[id(first)]).abs(), second.tolist(), strict=True):
                    if node >= 0:
                        totals[number][node] += value
    return totals


def _times_ratio(phi: Tensor, gamma: Tensor) -> Callable:
    def hook(module: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
        return output * (phi / gamma).view(1, -1, *[1] * (output.dim() - 2))

    return hook


def _multiply_inputs(columns: Rows, gate: Tensor) -> Callable:
    def hook(module: nn.Module, inputs: tuple) -> tuple:
        return (_multiply(columns, gate)(module, (), inputs[0]),)

    return hook


def fpgm(model: nn.Module, groups: Sequence[Group]) -> list[Tensor]:
    """FPGM (arXiv:1811.00250): the sum of Euclidean distances to all filters of the layer, over all producers."""
    found = []
    for group in groups:
        sums = [0.0] * len(group)
        for path, rows in group.producers.items():
            filters = [row.flatten() for row in weight_of(model, path)]
            for node, channels in enumerate(rows):
                for channel in channels:
                    sums[node] += math.fsum(float((filters[channel] - other).norm()) for other in filters)
        found.append(torch.tensor(sums, dtype=torch.float64))
    return found


def elasticities(model: nn.Module, batches: Batches, groups: Sequence[Group]) -> tuple[dict[str, Tensor], list[Tensor]]:
    """CNIP (arXiv:2006.00896): |w dL/dw / L| per weight and |dL/dc / L| per node, L from the same batches."""
    double = twin(model)
    loss = _loss(double, batches)
    kinds = (nn.Linear, nn.modules.conv._ConvNd)
    layers = {f"{path}.weight": module for path, module in double.named_modules() if isinstance(module, kinds)}
    slopes = torch.autograd.grad(loss, [layer.weight for layer in layers.values()])
    weights = {name: (layer.weight * slope / loss).detach().abs()
               for (name, layer), slope in zip(layers.items(), slopes, strict=True)}  # fmt: skip
    return weights, [slope.abs() / float(loss.detach()) for slope in gate_slopes(model, batches, groups)]


# --- selections
def joint_selection(
    weights: dict[str, Tensor], nodes: list[Tensor], groups: Sequence[Group], n_keep: int
) -> tuple[list[set[int]], dict[str, Tensor]]:
    """One threshold for weights and nodes: the largest that leaves at least `n_keep` weights, then weights alone.

    The best node of each group stays; among equal scores the earlier stays. Returns the nodes that go per group, and
    masks of the dense shapes; the best weight of each layer stays as well.
    """
    candidates = sorted({float(v) for t in [*weights.values(), *nodes] for v in t.flatten()}, reverse=True)
    for threshold in candidates:
        gone = _nodes_under(nodes, threshold)
        masks = {name: score >= threshold for name, score in weights.items()}
        _cut(masks, groups, gone)
        if sum(int(mask.sum()) for mask in masks.values()) >= n_keep:
            break
    there = {name: torch.ones_like(score, dtype=torch.bool) for name, score in weights.items()}
    _cut(there, groups, gone)
    ranked = [(-float(score.flatten()[i]), position, i) for position, (name, score) in enumerate(weights.items())
              for i in range(score.numel()) if there[name].flatten()[i]]  # fmt: skip
    # No layer loses its last weight.
    best = [min(entry for entry in ranked if entry[1] == position) for position in range(len(weights))]
    rest = sorted(entry for entry in ranked if entry not in best)
    kept = best + rest[: max(0, n_keep - len(best))]
    masks = {name: torch.zeros_like(score, dtype=torch.bool) for name, score in weights.items()}
    names = list(weights)
    for _, position, i in kept:
        masks[names[position]].view(-1)[i] = True
    return gone, masks


def _nodes_under(nodes: list[Tensor], threshold: float) -> list[set[int]]:
    gone = []
    for scores in nodes:
        best = max(range(len(scores)), key=lambda node, scores=scores: (float(scores[node]), -node))
        gone.append({node for node in range(len(scores)) if float(scores[node]) < threshold and node != best})
    return gone


def _cut(masks: dict[str, Tensor], groups: Sequence[Group], gone: list[set[int]]) -> None:
    for group, chosen in zip(groups, gone, strict=True):
        for node in chosen:
            for path, rows in group.producers.items():
                masks[f"{path}.weight"][rows[node]] = False
            for path, columns in group.consumers.items():
                masks[f"{path}.weight"][:, columns[node]] = False


def keep_nodes(scores: list[Tensor], n_keep: int, *, least: int = 1) -> list[set[int]]:
    """The best `n_keep` of all groups together, by a Python sort; the best `least` of each group stay first.

    Of equal scores those stay that have fewer better ones in their group, as a share of it.
    """
    entries = []
    for g, row in enumerate(scores):
        ordered = sorted((-float(score), node) for node, score in enumerate(row))
        entries += [(score, place / len(row), g, node) for place, (score, node) in enumerate(ordered)]
    first = [entry for g in range(len(scores)) for entry in sorted(e for e in entries if e[2] == g)[:least]]
    rest = sorted(entry for entry in entries if entry not in first)
    kept: list[set[int]] = [set() for _ in scores]
    for _, _, g, node in first + rest[: max(0, n_keep - len(first))]:
        kept[g].add(node)
    return kept
