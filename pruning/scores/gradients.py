"""Statistics that several criteria share: gradients and Hessian-gradient products over batches.

None of them leaves a trace: modes, `.grad`, `requires_grad` and running statistics are as before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from pruning.distributed import round_robin
from pruning.errors import UsageError
from pruning.modules.calls import Batches, call, device_of, inputs_for, mapped, pairs
from pruning.modules.modes import eval_mode, loss_mode, plain_recurrence, same_random_state
from pruning.state import PrunableState

BATCH_NORMS = nn.modules.batchnorm._BatchNorm


@contextmanager
def scoring(model: nn.Module, *, batch_statistics: bool = False) -> Iterator[None]:
    """Eval mode with gradients on, also for frozen parameters; everything is put back at the end.

    Args:
        model: the network that is scored.
        batch_statistics: batch norms use the batch's own statistics (training mode) and still learn nothing from it.
    """
    wanted = [parameter.requires_grad for parameter in model.parameters()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        with eval_mode(model), torch.enable_grad(), plain_recurrence(model):
            for parameter in model.parameters():
                parameter.requires_grad_(parameter.is_floating_point() or parameter.is_complex())
            for module in model.modules():
                if batch_statistics and isinstance(module, BATCH_NORMS):
                    module.train()
            yield
    finally:
        for parameter, flag in zip(model.parameters(), wanted, strict=True):
            parameter.requires_grad_(flag)
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)


def on_device(batches: Batches, model: nn.Module) -> Iterator[tuple[Any, Any]]:
    """Yields the batches on the model's device; raises UsageError if there are none or they are no pairs."""
    device = device_of(model)

    def move(tensor: Tensor) -> Tensor:
        return tensor.to(device)

    empty = True
    for inputs, targets in pairs(batches):
        empty = False
        yield mapped(inputs, move), mapped(targets, move)
    if empty:
        raise UsageError("This criterion scores on data, and it was given no batches.")


def accumulate_gradients(
    network: PrunableState,
    batches: Batches,
    *,
    names: list[str] | None = None,
    extra: Mapping[str, Tensor] | None = None,
    batch_statistics: bool = False,
    loss: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> tuple[dict[str, Tensor], float]:
    """Returns the gradient of the mean loss over the batches, and that mean loss.

    Args:
        network: the network to differentiate.
        batches: pairs (inputs, targets), inputs as `count.call` takes them; each batch counts the same.
        names: parameters to differentiate; by default the ranked weights.
        extra: other leaves to differentiate as well, by a name of their own.
        batch_statistics: see `scoring`.
        loss: replaces the network's own loss.

    Raises:
        UsageError: if no gradient reaches any of them (the network is cut) or the loss is not finite.
    """
    leaves = _leaves(network, names, extra or {})
    weights = list(leaves.values())
    totals = [_wide_zeros(weight) for weight in weights]
    loss_total, count = 0.0, 0

    def differentiate(batch: tuple[Any, Any]) -> list[Tensor]:
        value = _loss(network, *batch, loss or network.loss)
        return [value.detach().cpu().double(), *_gradients(value, weights)]

    # What a process receives that did not compute it: the loss, and a gradient per leaf.
    like = [torch.zeros((), dtype=torch.float64), *weights]
    with scoring(network.model, batch_statistics=batch_statistics):
        for value, *gradients in round_robin(on_device(batches, network.model), differentiate, like):
            _add(totals, gradients)
            loss_total += float(value)
            count += 1
    for total in totals:
        total /= count
    _check_signal(totals, loss_total)
    return dict(zip(leaves, totals, strict=True)), loss_total / count


def _leaves(network: PrunableState, names: Sequence[str] | None, extra: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns what is differentiated, by name: the parameters named, or the ranked weights, and what comes beside."""
    if names is None:
        leaves: dict[str, Tensor] = dict(network.weights())
    else:
        parameters = dict(network.model.named_parameters())
        leaves = {name: parameters[name] for name in names}
    return {**leaves, **extra}


def hessian_gradient_products(
    network: PrunableState, batches: Batches, *, temperature: float = 1.0
) -> dict[str, Tensor]:
    """Returns H g per ranked weight: the Hessian of the mean loss times its gradient, g taken over all batches.

    One double backward per batch, no Hessian is stored (arXiv:2002.07376, section 4). Outputs are divided by
    `temperature` before the loss.
    """
    batches = list(batches)
    if temperature != 1 and hasattr(network.loss, "inputs_for"):
        raise UsageError(
            f"A temperature ({temperature:g}) divides scores before the loss, which this network computes itself; "
            "temperature 1, or another loss, would do."
        )

    def tempered(outputs: Any, targets: Any) -> Tensor:
        return network.loss(mapped(outputs, lambda output: output / temperature), targets)

    gradient, _ = accumulate_gradients(network, batches, loss=tempered)
    parameters = dict(network.model.named_parameters())
    weights = [parameters[name] for name in gradient]
    totals = [_wide_zeros(weight) for weight in weights]

    def differentiate_twice(batch: tuple[Any, Any]) -> list[Tensor]:
        first = _gradients(_loss(network, *batch, tempered), weights, create_graph=True)
        # The derivative of g' g, one factor held fixed, is H g.
        products = [(own * fixed).sum() for own, fixed in zip(first, gradient.values(), strict=True)]
        return _gradients(torch.stack(products).sum(), weights)

    # Fused attention has no second derivative; its plain form has.
    with scoring(network.model), sdpa_kernel(SDPBackend.MATH):
        for products in round_robin(on_device(batches, network.model), differentiate_twice, weights):
            _add(totals, products)
    return {name: total / len(batches) for name, total in zip(gradient, totals, strict=True)}


def connection_sensitivities(
    network: PrunableState, batches: Batches, *, batch_statistics: bool = False
) -> dict[str, Tensor]:
    """Returns |w dL/dw| per ranked weight, the derivative to a gate on the connection (SNIP, arXiv:1810.02340).

    Args:
        network: the network to differentiate.
        batches: pairs (inputs, targets).
        batch_statistics: see `scoring`.
    """
    gradients, _ = accumulate_gradients(network, batches, batch_statistics=batch_statistics)
    scores = {}
    for name, weight in network.weights():
        scores[name] = (weight.detach() * gradients[name]).abs()
    return require_signal(scores)


def require_signal(scores: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns the scores, or raises UsageError if all are zero: their order would then be that of position."""
    has_signal = any(bool(score.any()) for score in scores.values())
    if scores and not has_signal:
        raise UsageError(
            "Every score is zero: no gradient reaches a weight that is not zero itself, the network is cut in two."
        )
    return scores


def require_node_signal(scores: Tensor) -> Tensor:
    """Returns scores per node, or raises UsageError if all are zero."""
    if len(scores):
        require_signal({"nodes": scores})
    return scores


def _loss(network: PrunableState, inputs: Any, targets: Any, loss: Callable[..., Tensor]) -> Tensor:
    model = network.model
    with same_random_state(device_of(model)), loss_mode(model, network.loss):
        outputs = call(model, inputs_for(network.loss, model, inputs, targets))
        value = loss(outputs, targets)
    if value.numel() != 1:
        raise UsageError(f"The loss must be one number; it has shape {tuple(value.shape)}.")
    return value


def _gradients(value: Tensor, weights: Sequence[Tensor], *, create_graph: bool = False) -> list[Tensor]:
    # What depends on no weight at all has no graph, and its derivative is zero.
    if not value.requires_grad or not weights:
        return [torch.zeros_like(weight) for weight in weights]
    found = torch.autograd.grad(value, weights, allow_unused=True, create_graph=create_graph)
    gradients = []
    for weight, gradient in zip(weights, found, strict=True):
        gradients.append(torch.zeros_like(weight) if gradient is None else gradient)
    return gradients


def _wide_zeros(weight: Tensor) -> Tensor:
    """Zeros to add up in: half precision would lose small gradients among large sums."""
    return torch.zeros_like(weight, dtype=_wide(weight.dtype), requires_grad=False)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def _add(totals: list[Tensor], gradients: Sequence[Tensor]) -> None:
    for total, gradient in zip(totals, gradients, strict=True):
        total += gradient.detach()


def _check_signal(gradients: list[Tensor], loss: float) -> None:
    if not math.isfinite(loss):
        raise UsageError(f"The loss on the scoring batches is {loss}; scores from it would mean nothing.")
    has_signal = any(bool(gradient.any()) for gradient in gradients)
    if gradients and not has_signal:
        raise UsageError("No gradient reaches any prunable weight: every score is zero, the network is cut in two.")
