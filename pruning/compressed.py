"""A compressed copy of a network beside the original, for those who want both."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pruning.errors import UsageError
from pruning.modules.by_name import LayerRules
from pruning.modules.calls import Batches, mapped
from pruning.network import PrunableNetwork
from pruning.prune.criterion import Criterion
from pruning.prune.report import PruneReport
from pruning.scores.gradients import pairs
from pruning.state import NodeRules
from pruning.trace.outputs import ChooseOutputs


class CompressedNetwork(nn.Module):
    """A copy of a network that a criterion compresses; the original stays as it is.

    It is a module: call it, train it, save it. Masked weights stay zero while training if `enforce()` is called after
    each optimizer step; what was removed is gone.

    Args:
        model: the original, never changed.
        loader: (inputs, targets) batches to score on; the first gives the example input.
        criterion: any criterion of `criterions/` or of your own.
        loss: loss(outputs, targets) for criteria that need one.
        node_rules: see `PrunableNetwork`.
        outputs: see `PrunableNetwork`.
        layer_rules: see `PrunableNetwork`.
    """

    def __init__(
        self,
        model: nn.Module,
        loader: Batches,
        criterion: Criterion,
        *,
        loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
        node_rules: NodeRules | None = None,
        outputs: ChooseOutputs | None = None,
        layer_rules: LayerRules | None = None,
    ) -> None:
        super().__init__()
        self.loader = loader if hasattr(loader, "__len__") else list(loader)
        first = next(pairs(self.loader), None)
        if first is None:
            raise UsageError("The loader must give pairs (inputs, targets), at least one.")
        self.criterion = criterion
        self._example = mapped(first[0], lambda tensor: tensor[:1])
        self._how: dict[str, Any] = {"loss": loss, "node_rules": node_rules, "outputs": outputs}
        self._how["layer_rules"] = layer_rules
        self._original = [copy.deepcopy(model)]  # in a list: `cuda()` and `state_dict()` mean the compressed copy
        self.network = self._start()

    def compress(self, keep_ratio: float, *, from_original: bool = True) -> PruneReport:
        """Compresses to a keep ratio, 1 - sparsity of what the criterion's limit counts, of the original.

        Args:
            keep_ratio: above 0 to 1.
            from_original: start from the original again; False goes on from the last result, retrained or not.
        """
        if from_original:
            self.network = self._start()
        return self.network.prune(self.criterion, self.loader, keep_ratio=keep_ratio)

    def size(self) -> int:
        """Returns how many parameters are left, masked ones not counted."""
        return self.network.size()

    def flops(self) -> float:
        """Returns forward FLOPs per sample, 2 per multiply-add, masked weights not counted."""
        return self.network.flops()

    def enforce(self) -> None:
        """Sets masked weights to zero."""
        self.network.enforce()

    def forward(self, *inputs: Any, **named: Any) -> Any:
        return self.model(*inputs, **named)

    def _start(self) -> PrunableNetwork:
        device = next((parameter.device for parameter in self.parameters()), None)
        self.model = copy.deepcopy(self._original[0])
        if device is not None:
            self.model.to(device)
        where = next((parameter.device for parameter in self.model.parameters()), torch.device("cpu"))
        return PrunableNetwork(self.model, mapped(self._example, lambda tensor: tensor.to(where)), **self._how)


def compressed_with(criterion: Callable[..., Criterion]) -> Callable[..., CompressedNetwork]:
    """Returns a maker of networks that one kind of criterion compresses: maker(model, loader, **options of it)."""

    def compressed(model: nn.Module, loader: Batches, **options: Any) -> CompressedNetwork:
        return CompressedNetwork(model, loader, criterion(**options))

    return compressed
