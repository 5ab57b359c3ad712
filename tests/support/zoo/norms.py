"""Other norms, and weights that are computed from others."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from tests.support.zoo.blocks import Head, conv
from tests.support.zoo.registry import case, picture, rows


@case(picture(), 8)
def instance_norm() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.InstanceNorm2d(6, affine=True), nn.ReLU(), nn.Conv2d(6, 8, 3),
                         nn.GroupNorm(8, 8), nn.ReLU(), Head(8))  # fmt: skip


@case(rows(8, 6), 7)
class SumsTokens(nn.Module):
    """Where a token is gone, the bias of a norm over channels would have stood: their sum is not exact."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.norm, self.out = nn.Linear(6, 7), nn.BatchNorm1d(8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(self.tokens(x.transpose(1, 2))).sum(2))


@case(picture(), 6)
def group_norm() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.ReLU(), conv(8, 6), Head(6))


@case(rows(), 8)
def norms_without_weights() -> nn.Module:
    """Nothing but an integer says how wide they are."""
    over_batch = nn.BatchNorm1d(5, affine=False, track_running_stats=False)  # the rows' positions are its channels
    return nn.Sequential(
        nn.Linear(6, 8), nn.LayerNorm(8, elementwise_affine=False), nn.Tanh(), nn.Linear(8, 6), over_batch,
        nn.ReLU(), nn.Linear(6, 4))  # fmt: skip


@case(picture(), 12)
def weight_norm() -> nn.Module:
    return nn.Sequential(parametrizations.weight_norm(nn.Conv2d(3, 6, 3)), nn.ReLU(),
                         parametrizations.weight_norm(nn.Conv2d(6, 8, 3)), nn.ReLU(), Head(8))  # fmt: skip


@case(picture(), 12)
def weight_norm_of_old() -> nn.Module:
    return nn.Sequential(torch.nn.utils.weight_norm(nn.Conv2d(3, 6, 3)), nn.ReLU(), conv(6, 6), Head(6))


@case(picture(), 12)
def spectral_norm() -> nn.Module:
    return nn.Sequential(parametrizations.spectral_norm(nn.Conv2d(3, 6, 3)), nn.ReLU(),
                         parametrizations.spectral_norm(nn.Conv2d(6, 8, 3)), nn.ReLU(), Head(8))  # fmt: skip


@case(rows(), 6)
class RmsNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm, self.up, self.down = nn.Linear(6, 8), nn.RMSNorm(8), nn.Linear(8, 6), nn.Linear(6, 8)
        self.out = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x)
        return self.out(x + self.down(F.gelu(self.up(self.norm(x)))))


class Standardised(nn.Conv2d):
    """Weight standardisation: a statistic over the input channels of the weight."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(x, weight / (weight.flatten(1).std(1).view(-1, 1, 1, 1) + 1e-5), self.bias)


@case(picture(), 8)
def weight_standardised() -> nn.Module:
    return nn.Sequential(Standardised(3, 6, 3), nn.ReLU(), Standardised(6, 8, 3), nn.ReLU(), Head(8))


@case(picture(), 6)
class FrozenNorm(nn.Module):
    """A norm of buffers, as detection backbones have it, and a channel gate that mixes by softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.head = nn.Conv2d(3, 6, 3), Head(6)
        for name in ("weight", "bias", "mean", "var"):
            self.register_buffer(name, torch.rand(6) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight.reshape(1, -1, 1, 1) * (self.var.reshape(1, -1, 1, 1) + 1e-5).rsqrt()
        return self.head(self.one(x) * scale + self.bias.reshape(1, -1, 1, 1) - self.mean.reshape(1, -1, 1, 1) * scale)
