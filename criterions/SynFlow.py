from itertools import chain

import torch
from torch import Tensor
from torch.func import functional_call

from pruning import PrunableNetwork, UsageError, WeightCriterion, schedule
from pruning.criterion import Batches
from pruning.scores import scoring


class SynFlow(WeightCriterion):
    """Synaptic flow |w dR/dw| through the network of absolute weights (Tanaka et al. 2020, arXiv:2006.05467).

    R is the sum of the outputs on an input of ones; no data is needed. Large means that much flow runs through the
    weight. Iterated with an exponential schedule, it never empties a layer before it must.

    Args:
        synflow_rounds: pruning events, all before training.
    """

    needs_data = False

    def __init__(self, *, synflow_rounds: int = 100) -> None:
        if synflow_rounds < 1:
            raise ValueError(f"synflow_rounds must be at least 1; {synflow_rounds} was given")
        self.synflow_rounds = synflow_rounds

    def targets(self, limit: float) -> list[float]:
        return schedule.exponential(limit, self.synflow_rounds)

    def weight_scores(self, network: PrunableNetwork, batches: Batches) -> dict[str, Tensor]:
        # The flow multiplies over layers, so single precision overflows in deep networks.
        tensors = chain(network.model.named_parameters(), network.model.named_buffers())
        state = {name: _absolute(tensor) for name, tensor in tensors}
        names = [name for name, _ in network.weights()]
        chosen = [state[name].requires_grad_() for name in names]
        with scoring(network.model):
            flow = _flow(network, state)
            gradients = torch.autograd.grad(flow, chosen, allow_unused=True)
        if not torch.isfinite(flow):
            raise UsageError("SynFlow's flow is infinite even in double precision; this network is too deep for it.")
        return {
            name: (weight * gradient).detach().abs() if gradient is not None else torch.zeros_like(weight)
            for name, weight, gradient in zip(names, chosen, gradients, strict=True)
        }


def _absolute(tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point():
        return tensor.detach()
    wide = tensor.detach() if tensor.device.type == "mps" else tensor.detach().double()
    return wide.abs()


def _flow(network: PrunableNetwork, state: dict[str, Tensor]) -> Tensor:
    example = network.example_inputs
    if not isinstance(example, Tensor):
        raise UsageError("SynFlow feeds one tensor of ones, so it needs a network of one input.")
    wide = torch.float32 if example.device.type == "mps" else torch.float64
    ones = torch.ones(1, *example.shape[1:], dtype=wide, device=example.device)
    return functional_call(network.model, state, (ones,)).sum()
