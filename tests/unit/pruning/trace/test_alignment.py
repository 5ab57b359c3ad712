"""Operations that take only multiples of a number: plans keep such widths, and say why where asked for others."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from criterions.GroupMagnitude import GroupMagnitude
from pruning import PrunableNetwork, UsageError
from tests.support.zoo.small import with_zeros


class RotatesAPart(nn.Module):
    """Latent values and a part that is rotated as complex numbers stand in one projection (DeepSeek V2)."""

    def __init__(self) -> None:
        super().__init__()
        self.latent, self.rotated = 10, 4
        self.joint = nn.Linear(6, self.latent + self.rotated + 2)
        self.up, self.last = nn.Linear(self.latent, 7), nn.Linear(7 + self.rotated + 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        latent, part, rest = self.joint(x).split([self.latent, self.rotated, 2], -1)
        pairs = torch.view_as_complex(part.reshape(*part.shape[:-1], -1, 2))
        turned = torch.view_as_real(pairs * 1j).flatten(2)
        return self.last(torch.cat([self.up(latent), turned, rest], -1))


def test_rows_of_complex_numbers_stay_even() -> None:
    torch.manual_seed(0)
    model, x = RotatesAPart().double(), torch.randn(2, 5, 6, dtype=torch.float64)
    network = PrunableNetwork(model, x)
    latent = network.graph.nodes_along("up.weight", 1)
    assert (latent >= 0).all(), "\n".join(map(str, network.graph.pinned))
    with pytest.raises(UsageError, match="view_as_complex in the network takes widths that are multiples of 2, and 15"):
        network.graph.plan(latent[:1])
    plan = network.graph.plan(latent[[0, 3, 4, 7]])
    torch.testing.assert_close(plan.preview()(x), with_zeros(model, x, plan.keeps))
    network.prune(GroupMagnitude(), sparsity=0.4)
    assert model.joint.out_features % 2 == 0 and model.latent < 10
    assert model(x).isfinite().all()
