"""The network that a smaller one must equal: all that a plan removes is zero in it."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from pruning.cut.plan import PruningPlan


def zero_what_goes(model: nn.Module, plan: PruningPlan) -> None:
    """Sets the slices that a plan removes to zero in a network of the shapes before the plan."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with torch.no_grad():
        for name, keep in plan.keeps.items():
            for dim, kept in keep.items():
                if dim == 0 and name.endswith(("weight.original1", "weight_v")):
                    continue  # a direction of length zero is no direction; its length is zero already
                everything = np.arange(tensors[name].shape[dim])
                gone = np.setdiff1d(everything, kept.numpy())
                tensors[name].index_fill_(dim, torch.from_numpy(gone), 0)
