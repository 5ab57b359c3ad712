"""The papers' formulas, computed in the slowest and plainest way; the project's fast scores are tested against these.

Imports torch and NumPy only, so that a mistake in the project cannot hide here as well. Every function works on a
float64 copy, whatever the precision of the model it is given, and leaves the model as it was. `batches` is a list of
(x, y); the loss L is the cross-entropy averaged over a batch, then averaged over the batches; batch norm uses its
running statistics unless `train=True` (dropout is off in both). Prunable are the weights of `nn.Linear`,
`nn.Conv*`, recurrent layers and `nn.MultiheadAttention`. Scores are {parameter name: tensor of the parameter's shape}.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

Tensors = dict[str, Tensor]
Batches = Sequence[tuple[Tensor, Tensor]]
LAYERS = (nn.Linear, nn.modules.conv._ConvNd)


# --- network and loss
def twin(model: nn.Module, *, train: bool = False) -> nn.Module:
    """A frozen float64 copy: scoring it cannot leave gradients or moved running statistics in the original."""
    double = copy.deepcopy(model).double().requires_grad_(False).train(train)
    for module in double.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.eval()
    return double


def prunable(model: nn.Module) -> Tensors:
    """Weights of linear, convolution, recurrent and attention layers by name; one that is shared appears once."""
    weights = {id(module.weight) for module in model.modules() if isinstance(module, LAYERS)}
    for module in model.modules():
        if isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None:
            weights.add(id(module.in_proj_weight))
        if isinstance(module, nn.RNNBase):
            weights |= {id(tensor) for name, tensor in module.named_parameters() if "weight" in name}
    return {name: parameter.detach() for name, parameter in model.named_parameters() if id(parameter) in weights}


def masked(model: nn.Module, masks: Mapping[str, Tensor]) -> nn.Module:
    """A float64 copy whose masked weights are 0: what an iterative method scores in its next round."""
    double = twin(model)
    for name, weight in prunable(double).items():
        weight.mul_(masks[name])
    return double


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean of -log softmax(logits)[label] over a batch; logits (B, classes), labels (B,)."""
    right = torch.stack([row[int(label)] for row, label in zip(logits, labels, strict=True)])
    return (torch.logsumexp(logits, dim=1) - right).mean()


def mean_loss(model: nn.Module, batches: Batches, replaced: Tensors | None = None, temperature: float = 1.0) -> Tensor:
    """L of a `twin`, with some of its parameters replaced and its logits divided by the temperature."""
    losses = []
    for x, labels in batches:
        x = x.double() if x.is_floating_point() else x
        losses.append(cross_entropy(functional_call(model, replaced or {}, (x,)) / temperature, labels))
    return torch.stack(losses).mean()


def central_differences(value: Callable[[Tensors], Tensor], at: Tensors, *, step: float = 1e-5) -> Tensors:
    """Slope of a scalar function of named tensors along every single entry: (f(a + h) - f(a - h)) / 2h."""
    at = {name: tensor.detach().clone().contiguous() for name, tensor in at.items()}
    slopes = {name: torch.zeros_like(tensor) for name, tensor in at.items()}
    for name, tensor in at.items():
        entries, slope = tensor.view(-1), slopes[name].view(-1)
        for i, centre in enumerate(entries.tolist()):
            entries[i] = centre + step
            above = value(at)
            entries[i] = centre - step
            slope[i] = (above - value(at)) / (2 * step)
            entries[i] = centre
    return slopes


# --- scores of weights
def magnitude(model: nn.Module) -> Tensors:
    """|w|."""
    return {name: weight.double().abs() for name, weight in prunable(model).items()}


def lamp(model: nn.Module) -> Tensors:
    """LAMP (arXiv:2010.07611): w_u^2 over the sum of w_v^2 of all v that come at or after u in ascending order."""
    return {name: lamp_of(weight) for name, weight in prunable(model).items()}


def lamp_of(weight: Tensor) -> Tensor:
    """LAMP scores of one layer by a double loop; equal weights rank by flat index; an all-zero layer scores 0."""
    squares = [value * value for value in weight.double().flatten().tolist()]
    scores = []
    for u, square in enumerate(squares):
        tail = math.fsum(other for v, other in enumerate(squares) if (other, v) >= (square, u))
        scores.append(square / tail if tail > 0 else 0.0)
    return torch.tensor(scores, dtype=torch.float64).reshape(weight.shape)


def loss_with_gates(model: nn.Module, batches: Batches, gates: Tensors) -> Tensor:
    """L of a `twin` in which every prunable weight w_j is replaced by c_j * w_j."""
    weights = prunable(model)
    return mean_loss(model, batches, {name: gate * weights[name] for name, gate in gates.items()})


def snip_gates(model: nn.Module, batches: Batches, *, train: bool = False) -> Tensors:
    """SNIP (arXiv:1810.02340): |dL/dc_j| of a gate c_j = 1 on every connection, unnormalised, by autograd."""
    double = twin(model, train=train)
    gates = {name: torch.ones_like(weight).requires_grad_() for name, weight in prunable(double).items()}
    # a layer that does not run (an auxiliary head in eval mode) does not move the loss: its score is 0
    slopes = torch.autograd.grad(
        loss_with_gates(double, batches, gates), list(gates.values()), allow_unused=True, materialize_grads=True
    )
    return {name: slope.abs() for name, slope in zip(gates, slopes, strict=True)}


def snip_differences(model: nn.Module, batches: Batches, *, step: float = 1e-5) -> Tensors:
    """SNIP with no derivative taken at all: two evaluations of L for every weight. For tiny networks."""
    double = twin(model)
    gates = {name: torch.ones_like(weight) for name, weight in prunable(double).items()}
    slopes = central_differences(lambda moved: loss_with_gates(double, batches, moved), gates, step=step)
    return {name: slope.abs() for name, slope in slopes.items()}


def hessian_times_gradient(loss: Callable[[Tensor], Tensor], point: Tensor) -> Tensor:
    """H g of a scalar function at a flat point, from the full matrix of second derivatives."""
    return torch.autograd.functional.hessian(loss, point) @ torch.autograd.functional.jacobian(loss, point)


def grasp(model: nn.Module, batches: Batches, *, temperature: float = 200.0, train: bool = False) -> Tensors:
    """GraSP (arXiv:2002.07376): -w * (H g) of L with logits / T. The LARGEST are to be removed.

    H and g are taken over the prunable weights only, as in the paper, and of the mean over batches: an implementation
    that sums over B batches gets the same ranking and B^2 times the values.
    """
    double = twin(model, train=train)
    weights = prunable(double)
    point = torch.cat([weight.flatten() for weight in weights.values()])

    def loss(flat: Tensor) -> Tensor:
        return mean_loss(double, batches, unflatten(flat, weights), temperature=temperature)

    return unflatten(-point * hessian_times_gradient(loss, point), weights)


def unflatten(flat: Tensor, like: Tensors) -> Tensors:
    """Cuts a flat vector into tensors of the given names and shapes."""
    pieces = flat.split([tensor.numel() for tensor in like.values()])
    return {name: piece.view(tensor.shape) for (name, tensor), piece in zip(like.items(), pieces, strict=True)}


# --- SynFlow
def positive_twin(model: nn.Module) -> nn.Module:
    """A float64 eval-mode copy with the absolute value of every parameter and floating-point buffer."""
    double = twin(model)
    for tensor in [*double.parameters(), *double.buffers()]:
        if tensor.is_floating_point():
            tensor.abs_()
    return double


def synflow(model: nn.Module, input_shape: Sequence[int]) -> Tensors:
    """SynFlow (arXiv:2006.05467): |w| * dR/d|w|, where R sums the outputs of the all-positive network fed with ones."""
    double = positive_twin(model)
    weights = {name: weight.clone().requires_grad_() for name, weight in prunable(double).items()}
    ones = torch.ones(1, *input_shape, dtype=torch.float64)
    flow = functional_call(double, weights, (ones,)).sum()
    slopes = torch.autograd.grad(flow, list(weights.values()), allow_unused=True, materialize_grads=True)
    return {name: (w.detach() * slope).abs() for (name, w), slope in zip(weights.items(), slopes, strict=True)}


def synflow_products(weights: Sequence[Tensor]) -> list[Tensor]:
    """SynFlow of a bias-free MLP with ReLU in closed form; weights (out, in) from input to output.

    The score of an entry is (flow arriving at its input) * |w| * (flow leaving from its output).
    """
    absolute = [weight.detach().double().abs().numpy() for weight in weights]
    scores = []
    for layer, weight in enumerate(absolute):
        arriving = np.ones(absolute[0].shape[1])
        for earlier in absolute[:layer]:
            arriving = earlier @ arriving
        leaving = np.ones(absolute[-1].shape[0])
        for later in reversed(absolute[layer + 1 :]):
            leaving = leaving @ later
        scores.append(torch.from_numpy(leaving[:, None] * weight * arriving[None, :]))
    return scores


# --- scores of nodes
def loss_with_output_gates(model: nn.Module, batches: Batches, gates: Tensors) -> Tensor:
    """L of a `twin` in which the output channels of the named modules are multiplied by gates of shape (channels,)."""

    def multiply(gate: Tensor) -> Callable:
        def hook(module: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
            channel = output.dim() - 1 if isinstance(module, nn.Linear) else 1
            return output * gate.view([-1 if axis == channel else 1 for axis in range(output.dim())])

        return hook

    handles = [model.get_submodule(name).register_forward_hook(multiply(gate)) for name, gate in gates.items()]
    try:
        return mean_loss(model, batches)
    finally:
        for handle in handles:
            handle.remove()


def snap_gates(
    model: nn.Module,
    batches: Batches,
    *,
    modules: Iterable[str] | None = None,
    tied: Iterable[Sequence[str]] = (),
    signed: bool = False,
    train: bool = False,
) -> Tensors:
    """SNAP (arXiv:2006.00896): |dL/dc| of real gates c = 1 on output channels, bias included, before any norm.

    Keys are `<module>.weight`, values (channels,); not divided by |L|; the network's outputs are among them.

    Args:
        modules: names of what to gate instead of all linear and convolution layers (a norm, to gate behind it).
        tied: groups of module names whose outputs are added up and therefore share one gate (residual networks).
        signed: leave the absolute value out.
        train: score with the statistics of the batch.
    """
    double = twin(model, train=train)
    names = modules or [name for name, module in double.named_modules() if isinstance(module, LAYERS)]
    gates = {name: torch.ones(width(double.get_submodule(name)), dtype=torch.float64) for name in names}
    for first, *others in tied:
        gates.update(dict.fromkeys(others, gates[first]))
    for gate in gates.values():
        gate.requires_grad_()
    # a module whose forward is bypassed (as in attention) makes autograd raise here: better than a score of 0
    slopes = torch.autograd.grad(loss_with_output_gates(double, batches, gates), list(gates.values()))
    return {f"{name}.weight": s if signed else s.abs() for name, s in zip(gates, slopes, strict=True)}


def width(module: nn.Module) -> int:
    """Output channels of a linear, convolution (also transposed) or normalisation module."""
    found = [getattr(module, key) for key in ("out_channels", "out_features", "num_features") if hasattr(module, key)]
    return found[0]


# --- schedules: sparsities to be reached, as fractions of all prunable weights
def halving_schedule(limit: float, steps: int = 5, start: float | None = None) -> list[float]:
    """SNIP-it (arXiv:2006.00896): begin at `start`, halve the distance to the limit `steps` times, then close it.

    `start` is 0.5, or half the limit where that would leave no room (a limit of 0.5 or less is never overshot).
    """
    sparsity = start if start is not None else (0.5 if limit > 0.5 else limit / 2)
    targets = [sparsity]
    for _ in range(steps):
        sparsity += (limit - sparsity) / 2
        targets.append(sparsity)
    return [*targets, limit]


def exponential_schedule(limit: float, rounds: int = 100) -> list[float]:
    """SynFlow: every round keeps the same share of what is left, (1 - limit)^(1/n)."""
    density, targets = 1.0, []
    for _ in range(rounds):
        density *= (1 - limit) ** (1 / rounds)
        targets.append(1 - density)
    return targets


def cubic_schedule(limit: float, events: int, start: float = 0.0) -> list[float]:
    """GMP (arXiv:1710.01878): s_f + (s_i - s_f)(1 - t/n)^3 at t = 0 .. n, `events` = n intervals, so n + 1 values."""
    return [limit + (start - limit) * (1 - t / events) ** 3 for t in range(events + 1)]


# --- selection
def kept_of(total: int, sparsity: float) -> int:
    """How many of `total` weights stay: all but round(sparsity * total), never none."""
    return max(1, total - round(sparsity * total))


def keep_top(scores: Tensors, n_keep: int, *, alive: Tensors | None = None, min_per_layer: int = 1) -> Tensors:
    """Boolean masks of the n_keep highest scores over all layers, by a Python sort of (score, layer, flat index).

    Among equal scores the earlier layer and the lower index stay. What is not `alive` never comes back. The best
    `min_per_layer` of each layer stay first, even where these alone are more than n_keep.
    """
    entries = []
    for position, (name, score) in enumerate(scores.items()):
        living = alive[name].flatten().tolist() if alive else [True] * score.numel()
        values = score.double().flatten().tolist()
        if not all(map(math.isfinite, values)):
            raise ValueError(f"{name} has a score that is not finite")
        entries += [(-value, position, i) for i, value in enumerate(values) if living[i]]
    entries.sort()
    guarded = []
    for position in range(len(scores)):
        guarded += [entry for entry in entries if entry[1] == position][:min_per_layer]
    protected = set(guarded)
    others = [entry for entry in entries if entry not in protected]
    masks = {name: torch.zeros(score.shape, dtype=torch.bool) for name, score in scores.items()}
    names = list(scores)
    for _, position, i in guarded + others[: max(0, n_keep - len(guarded))]:
        masks[names[position]].view(-1)[i] = True
    return masks


def erk_densities(shapes: Mapping[str, Sequence[int]], sparsity: float) -> dict[str, float]:
    """ERK (arXiv:1911.11134): density_l = min(1, e * (sum of the sizes) / (product of the sizes)), e by bisection."""
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    wanted = (1 - sparsity) * sum(sizes.values())

    def densities(scale: float) -> dict[str, float]:
        return {name: min(1.0, scale * sum(shape) / sizes[name]) for name, shape in shapes.items()}

    low, high = 0.0, max(sizes[name] / sum(shape) for name, shape in shapes.items())
    for _ in range(200):
        middle = (low + high) / 2
        kept = math.fsum(density * sizes[name] for name, density in densities(middle).items())
        low, high = (middle, high) if kept < wanted else (low, middle)
    return densities(high)


# --- whole methods, event by event
def prune_in_steps(model: nn.Module, score: Callable[[nn.Module], Tensors], targets: Iterable[float]) -> Tensors:
    """Masks after scoring the masked network anew before each target, weights unchanged (SNIP-it, SynFlow)."""
    masks = {name: torch.ones(weight.shape, dtype=torch.bool) for name, weight in prunable(model).items()}
    total = sum(mask.numel() for mask in masks.values())
    for target in targets:
        masks = keep_top(score(masked(model, masks)), kept_of(total, target), alive=masks)
    return masks


def gmp_event(weights: Tensors, masks: Tensors, sparsity: float, *, local: bool = False) -> Tensors:
    """GMP: keeps the largest |w| among those still there, over all layers or the same share of each (`local`)."""
    if local:
        return {n: gmp_event({n: weight}, {n: masks[n]}, sparsity)[n] for n, weight in weights.items()}
    total = sum(weight.numel() for weight in weights.values())
    return keep_top({name: weight.abs() for name, weight in weights.items()}, kept_of(total, sparsity), alive=masks)


def imp_event(now: Tensors, rewind: Tensors, masks: Tensors, sparsity: float) -> tuple[Tensors, Tensors]:
    """IMP with rewinding (arXiv:1912.05671): new (state, masks) from the trained state and theta_k = `rewind`.

    Both are state dicts; everything in them (biases, norms) is rewound, but only if the mask changed.
    """
    new = gmp_event({name: now[name] for name in masks}, masks, sparsity)
    if all(torch.equal(new[name], masks[name]) for name in masks):
        return {name: tensor.clone() for name, tensor in now.items()}, new
    return {name: tensor * new[name] if name in new else tensor.clone() for name, tensor in rewind.items()}, new


# --- comparison
def assert_same(fast: Tensors, slow: Tensors, *, rtol: float = 1e-4, up_to_scale: bool = False) -> None:
    """Asserts equal names, shapes and values, to rtol times the largest |value| of each tensor of the reference.

    Args:
        up_to_scale: divide both by their sum of |values| first (a positive factor: a flipped sign still shows).
    """
    assert fast.keys() == slow.keys(), f"scores of {sorted(fast)} where {sorted(slow)} are expected"
    fast, slow = ({name: t.detach().double().cpu() for name, t in side.items()} for side in (fast, slow))
    scales = [math.fsum(float(t.abs().sum()) for t in side.values()) or 1.0 for side in (fast, slow)]
    for name, expected in slow.items():
        got = fast[name]
        assert got.shape == expected.shape, f"{name}: shape {tuple(got.shape)}, not {tuple(expected.shape)}"
        if up_to_scale:
            got, expected = got / scales[0], expected / scales[1]
        worst, allowed = (got - expected).abs().max().item(), rtol * expected.abs().max().item()
        # written so that NaN fails
        assert worst <= allowed, f"{name}: differs by {worst:.3g}, allowed {allowed:.3g}"
