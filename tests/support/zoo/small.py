"""Networks small enough for full Hessians and hand counts, data for them, and what they compute with zeros."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.support.zoo.registry import case


def floats(*shape):
    return lambda: torch.randn(2, *shape, dtype=torch.float64)


@case(floats(2, 5, 5), 3, name="small_residual")
class Residual(nn.Module):
    """Two branches that are added, normalised, pooled and classified; layers are defined out of order."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 4)
        self.branch = nn.Conv2d(3, 3, 3, padding=1, groups=3)
        self.norm = nn.BatchNorm2d(3)
        self.stem = nn.Conv2d(2, 3, 3)

    def forward(self, x):
        stem = self.stem(x)
        return self.head(F.silu(self.norm(stem + self.branch(F.silu(stem)))).mean((2, 3)))


@case(lambda: torch.randint(20, (2, 6)), 16, name="small_attention")
class Attention(nn.Module):
    """Tokens in, classes out; the transformer's layers read weights that are never called as modules."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.block = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.1, batch_first=True)
        self.head = nn.Linear(8, 4)

    def forward(self, tokens):  # (B, T) -> (B, 4)
        return self.head(self.block(self.embed(tokens)).mean(1))


@case(floats(6), 12)
def mlp():
    """Dense layers with batch norm and dropout."""
    hidden = [nn.Linear(6, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Dropout(0.3), nn.Linear(7, 5, bias=False), nn.Tanh()]
    return nn.Sequential(*hidden, nn.Linear(5, 4))


@case(floats(2, 5, 5), 7)
def conv_net():
    """Convolutions with stride, batch norm and a flatten."""
    features = [nn.Conv2d(2, 3, 3, bias=False), nn.BatchNorm2d(3), nn.LeakyReLU(), nn.Conv2d(3, 4, 2, stride=2)]
    return nn.Sequential(*features, nn.ReLU(), nn.Flatten(), nn.Linear(4, 4))


def bias_free(*widths):
    """Linear layers with ReLU between them, no biases."""
    layers = [nn.Linear(i, o, bias=False) for i, o in zip(widths, widths[1:], strict=False)]
    return nn.Sequential(*[part for layer in layers for part in (layer, nn.ReLU())][:-1])


SHAPES = {mlp: (6,), conv_net: (2, 5, 5), Residual: (2, 5, 5)}


def build(maker, seed=0, dtype=torch.float32):
    """A network whose norms are no identity, so that a formula that forgets them shows."""
    torch.manual_seed(seed)
    model = maker()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.weight, 0.5, 2.0)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
    return model.to(dtype)


def data(shape, sizes=(3, 6), dtype=torch.float32, classes=4, seed=1):
    """Batches of different sizes, which tell a mean over batches from a mean over samples."""
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(n, *shape, generator=generator).to(dtype), torch.arange(n) % classes) for n in sizes]


def tokens(sizes=(3, 5)):
    """Batches for `Attention`."""
    generator = torch.Generator().manual_seed(1)
    return [(torch.randint(20, (n, 6), generator=generator), torch.arange(n) % 4) for n in sizes]


def with_zeros(model: nn.Module, x: Tensor, keeps: dict) -> Tensor:
    """Returns what a network computes with the removed slices set to zero."""
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name, keep in keeps.items():
        for dim, kept in keep.items():
            gone = np.setdiff1d(np.arange(state[name].shape[dim]), kept.numpy())
            state[name].index_fill_(dim, torch.from_numpy(gone), 0)
    return torch.func.functional_call(model, state, (x,))
