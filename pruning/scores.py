"""Statistics that several criteria share: gradients and Hessian-gradient products over batches.

None of them leaves a trace: modes, `.grad`, `requires_grad` and running statistics are as before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from pruning.count import quiet_eval
from pruning.criterion import Batches
from pruning.errors import UsageError

if TYPE_CHECKING:
    from pruning.network import PrunableNetwork

BATCH_NORMS = nn.modules.batchnorm._BatchNorm


@contextmanager
def scoring(model: nn.Module, *, batch_statistics: bool = False) -> Iterator[None]:
    """Eval mode with gradients on, also for frozen parameters; everything is put back at the end.

    Args:
        model: the network that is scored.
        batch_statistics: batch norms use the batch's own statistics (training mode) and still learn nothing from it.
    """
    wanted = [parameter.requires_grad for parameter in model.parameters()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()] if batch_statistics else []
    try:
        with quiet_eval(model), torch.enable_grad():
            for parameter in model.parameters():
                parameter.requires_grad_(parameter.is_floating_point())
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


def on_device(batches: Batches, model: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields the batches on the model's device; raises UsageError if there are none."""
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    empty = True
    for inputs, targets in batches:
        empty = False
        yield inputs.to(device), targets.to(device)
    if empty:
        raise UsageError("This criterion scores on data, and it was given no batches.")


def accumulate_gradients(
    network: PrunableNetwork,
    batches: Batches,
    *,
    names: list[str] | None = None,
    batch_statistics: bool = False,
    loss: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> tuple[dict[str, Tensor], float]:
    """Returns the gradient of the mean loss over the batches, and that mean loss.

    Args:
        network: the network to differentiate.
        batches: pairs (inputs, targets); each counts the same.
        names: parameters to differentiate; by default the ranked weights.
        batch_statistics: see `scoring`.
        loss: replaces the network's own loss.

    Raises:
        UsageError: if no gradient reaches any of them (the network is cut) or the loss is not finite.
    """
    parameters = dict(network.model.named_parameters())
    chosen = names if names is not None else [name for name, _ in network.weights()]
    weights = [parameters[name] for name in chosen]
    totals = [torch.zeros_like(weight) for weight in weights]
    loss_total, count = 0.0, 0
    with scoring(network.model, batch_statistics=batch_statistics):
        for inputs, targets in on_device(batches, network.model):
            value = (loss or network.loss)(network.model(inputs), targets)
            for total, gradient in zip(totals, torch.autograd.grad(value, weights, allow_unused=True), strict=True):
                if gradient is not None:
                    total += gradient
            loss_total, count = loss_total + float(value.detach()), count + 1
    for total in totals:
        total /= count
    _check_signal(totals, loss_total)
    return dict(zip(chosen, totals, strict=True)), loss_total / count


def hessian_gradient_products(
    network: PrunableNetwork, batches: Batches, *, temperature: float = 1.0
) -> dict[str, Tensor]:
    """Returns H g per ranked weight: the Hessian of the mean loss times its gradient, g taken over all batches.

    One double backward per batch, no Hessian is stored (arXiv:2002.07376, section 4). Outputs are divided by
    `temperature` before the loss.
    """
    batches = list(batches)

    def tempered(outputs: Tensor, targets: Tensor) -> Tensor:
        return network.loss(outputs / temperature, targets)

    gradient, _ = accumulate_gradients(network, batches, loss=tempered)
    parameters = dict(network.model.named_parameters())
    weights = [parameters[name] for name in gradient]
    totals = [torch.zeros_like(weight) for weight in weights]
    # Fused attention has no second derivative; its plain form has.
    with scoring(network.model), sdpa_kernel(SDPBackend.MATH):
        for inputs, targets in on_device(batches, network.model):
            value = tempered(network.model(inputs), targets)
            first = torch.autograd.grad(value, weights, create_graph=True, allow_unused=True)
            pairs = [(f, g) for f, g in zip(first, gradient.values(), strict=True) if f is not None]
            along = torch.stack([(f * g).sum() for f, g in pairs]).sum()
            for total, second in zip(totals, torch.autograd.grad(along, weights, allow_unused=True), strict=True):
                if second is not None:
                    total += second
    return {name: total / len(batches) for name, total in zip(gradient, totals, strict=True)}


def _check_signal(gradients: list[Tensor], loss: float) -> None:
    if loss != loss or loss in (float("inf"), float("-inf")):
        raise UsageError(f"The loss on the scoring batches is {loss}; scores from it would mean nothing.")
    if gradients and not any(bool(gradient.any()) for gradient in gradients):
        raise UsageError("Every score is zero: no gradient reaches any prunable weight, the network is cut in two.")
