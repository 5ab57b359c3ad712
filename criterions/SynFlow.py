from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from pruning import PrunableState, UsageError, WeightCriterion, schedule
from pruning.modules.calls import Batches, call_with, device_of, mapped, tensors_in
from pruning.modules.modes import same_random_state
from pruning.scores import require_signal, scoring


class SynFlow(WeightCriterion):
    """Synaptic flow |w dR/dw| through the network of absolute weights (Tanaka et al. 2020, arXiv:2006.05467).

    R is the sum of the outputs on an input of ones (of the form of the example); no data is needed. Large means that
    much flow runs through the weight. Iterated with an exponential schedule, it never empties a layer before it must.

    Args:
        synflow_rounds: pruning events, all before training.
    """

    needs_data = False

    def __init__(self, *, synflow_rounds: int = 100) -> None:
        if synflow_rounds < 1:
            raise ValueError(f"synflow_rounds must be at least 1; {synflow_rounds} was given")
        self.schedule = partial(schedule.exponential, rounds=synflow_rounds)

    def weight_scores(self, network: PrunableState, batches: Batches) -> dict[str, Tensor]:
        # The flow multiplies over layers, so single precision overflows in deep networks.
        state: dict[str, Tensor] = {}
        for name, tensor in chain(network.model.named_parameters(), network.model.named_buffers()):
            state[name] = _absolute(tensor)
        names = [name for name, _ in network.weights()]
        chosen = [state[name].requires_grad_() for name in names]
        with scoring(network.model), same_random_state(chosen[0].device):
            outputs = call_with(network.model, state, _ones(network))
            sums = [output.sum() for output in tensors_in(outputs) if output.is_floating_point()]
            flow = torch.stack(sums).sum()
            gradients = torch.autograd.grad(flow, chosen, allow_unused=True)
        if not torch.isfinite(flow):
            raise UsageError("SynFlow's flow is infinite even in double precision; this network is too deep for it.")
        scores = {}
        for name, weight, gradient in zip(names, chosen, gradients, strict=True):
            if gradient is None:  # nothing flows through it
                scores[name] = torch.zeros_like(weight)
            else:
                scores[name] = (weight * gradient).detach().abs()
        return require_signal(scores)


def _absolute(tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point():
        return tensor.detach()  # indices and counts
    wide = tensor.detach().to(_wide(tensor))
    # A mask of -inf, as attention has it, must go on hiding.
    return wide if torch.isinf(wide).any() else wide.abs()


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.float32 if tensor.device.type == "mps" else torch.float64


def _ones(network: PrunableState) -> Any:
    """Inputs of the example's form, all ones; whole numbers (tokens) stay as they are."""
    example, device = network.example_inputs, device_of(network.model)
    if example is None:
        raise UsageError("SynFlow feeds ones of the input's shape, so it needs example inputs.")

    def one(tensor: Tensor) -> Tensor:
        moved = tensor.to(device)
        return torch.ones_like(moved, dtype=_wide(moved)) if moved.is_floating_point() else moved

    # All samples would be alike.
    first = example[:1] if isinstance(example, Tensor) else example
    return mapped(first, one)
