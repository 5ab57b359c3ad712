from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from criterions._low_rank import Decomposition
from pruning import Batches, LowRankCriterion, PrunableState, UsageError
from pruning.cut.factorize import Factors, Layer, blocks_of, precise
from pruning.modules.calls import call, device_of
from pruning.modules.modes import eval_mode, plain_recurrence, same_random_state
from pruning.scores import on_device


class PCA(Decomposition, LowRankCriterion):
    """Principal components of a layer's outputs on data (Zhang et al. 2015, arXiv:1505.06798).

    Outputs are projected on the eigenvectors Q of their covariance, y -> m + Q Q'(y - m), which gives the factors Q and
    Q'W and a bias, also to layers that had none. Component j is worth lambda_j / (lambda_1 + ... + lambda_j), by FLOPs
    of a rank, and those under one threshold for all layers go (arXiv:2107.11442). Needs a trained network and data.
    """

    needs_data = True
    lost = "error: worth of the first component that goes, by FLOPs of a rank"

    def rank_errors(
        self, network: PrunableState, layers: Mapping[str, Layer], batches: Batches
    ) -> dict[str, dict[int, Tensor]]:
        """Returns the worth of the first component that goes at each rank."""
        self.components: dict[str, tuple[Tensor, Tensor]] = {}  # layer -> eigenvectors in columns, mean
        found = {}
        for path, (rows, total, squares) in _moments(network, layers, batches).items():
            mean = total / rows
            covariance = squares / rows - mean.outer(mean)
            values, vectors = torch.linalg.eigh(covariance)  # the smallest first
            values = values.flip(0).clamp_min(0)
            self.components[path] = vectors.flip(1), mean
            outputs, entries = layers[path].weight.flatten(1).shape
            flops = rows * (outputs + entries)
            worth = values / values.cumsum(0).clamp_min(1e-300) / flops
            # At rank j the first component that goes is the next one.
            after = torch.cat([worth[1:], worth.new_zeros(1)])
            found[path] = {1: after[: min(outputs, entries)]}
        return found

    def factors(self, path: str, layer: Layer, rank: int, subspaces: int) -> Factors:
        vectors, mean = self.components[path]
        chosen = vectors[:, :rank]
        bias = torch.zeros_like(mean) if layer.bias is None else precise(layer.bias)
        projected = mean + chosen @ (chosen.T @ (bias - mean))
        encoder = chosen.T @ blocks_of(layer)[0]
        return Factors(encoder[None], chosen, projected)


@torch.no_grad()
def _moments(
    network: PrunableState, layers: Mapping[str, Layer], batches: Batches
) -> dict[str, tuple[int, Tensor, Tensor]]:
    """Returns per layer the number of outputs over all positions, their sum and the sum of their outer products."""
    found: dict[str, tuple[int, Tensor, Tensor]] = {}

    def note(module: nn.Module, inputs: Any, output: Tensor, *, path: str) -> None:
        outputs = output.movedim(-3, -1) if isinstance(layers[path], nn.Conv2d) else output
        rows = precise(outputs.flatten(0, -2))
        if not torch.isfinite(rows).all():
            raise UsageError(f"{path!r} puts out values that are not finite; nothing was decomposed.")
        count, total, squares = found.get(path, (0, rows.new_zeros(()), rows.new_zeros(())))
        found[path] = count + len(rows), total + rows.sum(0), squares + rows.T @ rows

    modules = {path: network.model.get_submodule(path) for path in layers}
    hooks = [module.register_forward_hook(partial(note, path=path)) for path, module in modules.items()]
    try:
        with eval_mode(network.model), same_random_state(device_of(network.model)), plain_recurrence(network.model):
            for inputs, _ in on_device(batches, network.model):
                call(network.model, inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return found
