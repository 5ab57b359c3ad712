"""Sensitivities against naive loops: every weight alone, every sign, image and position."""

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.utils.parametrizations import weight_norm

from pruning import PrunableNetwork, UsageError
from pruning.scores.activations import channel_sensitivities, weight_sensitivities
from tests.support.zoo.small import Attention, build, tokens

LAYERS = {
    "linear": (lambda: nn.Linear(5, 4), (3, 5)),
    "tokens": (lambda: nn.Linear(5, 4), (2, 3, 5)),
    "plain": (lambda: nn.Conv2d(3, 2, 2), (2, 3, 4, 4)),
    "strided": (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1, dilation=2, groups=2), (2, 4, 7, 7)),
    "depthwise": (lambda: nn.Conv2d(3, 6, 3, groups=3, padding=1), (1, 3, 4, 4)),
    "circular": (lambda: nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"), (1, 2, 4, 4)),
    "one dimension": (lambda: nn.Conv1d(3, 4, 3, stride=2), (2, 3, 9)),
    "three dimensions": (lambda: nn.Conv3d(2, 2, 2), (1, 2, 3, 3, 3)),
    "transposed": (
        lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2),
        (1, 4, 3, 3),
    ),
    "one channel": (lambda: nn.Conv2d(1, 1, 1), (1, 1, 2, 2)),
}


def outputs(layer, weight, point):
    """(outputs, positions) of a layer with this weight and no bias; each row of a linear layer is a position."""
    bias = torch.zeros_like(layer.bias)
    out = functional_call(layer, {"weight": weight, "bias": bias}, (point,))
    return out.flatten(0, -2).t() if isinstance(layer, nn.Linear) else out[0].flatten(1)


def naive(layer, inputs):
    """Per weight the largest share and the largest mean share; per input channel the largest sum of shares."""
    layer, weight = layer.double(), layer.weight.detach().double()
    largest, means = torch.zeros_like(weight), torch.zeros_like(weight)
    groups = getattr(layer, "groups", 1)
    sums = torch.zeros(groups, getattr(layer, "in_channels", weight.shape[1]) // groups, dtype=torch.float64)
    conv_transposed = isinstance(layer, nn.ConvTranspose2d)
    for point in inputs.double().split(1):
        for half in (point.clamp(min=0), (-point).clamp(min=0)):
            for part in (weight.clamp(min=0), (-weight).clamp(min=0)):
                total = outputs(layer, part, half)
                by_channel = {}
                for place in part.nonzero().tolist():
                    alone = torch.zeros_like(weight)
                    alone[tuple(place)] = part[tuple(place)]
                    share = torch.where(total > 1.19e-7, outputs(layer, alone, half) / total, 0)
                    if conv_transposed:
                        group, channel = divmod(place[0], sums.shape[1])
                        row = group * weight.shape[1] + place[1]
                    else:
                        row, channel = place[:2]
                        group = row // (weight.shape[0] // groups)
                    key = tuple(place)
                    largest[key] = max(largest[key], share.max())
                    mean = share[row].max() if isinstance(layer, nn.Linear) else share[row].mean()
                    means[key] = max(means[key], mean)
                    by_channel[group, channel] = by_channel.get((group, channel), 0) + share
                for key, share in by_channel.items():
                    sums[key] = max(sums[key], share.max())
    return largest, means, sums


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("signed", [True, False])
def test_sensitivities_are_those_of_a_naive_loop(kind, signed):
    torch.manual_seed(1)
    maker, shape = LAYERS[kind]
    layer = maker()
    with torch.no_grad():
        layer.weight.view(-1)[0] = 0.0
    inputs = torch.randn(shape) if signed else torch.relu(torch.randn(shape))
    inputs.view(-1)[:4] = 0.0  # zeros among the denominators
    network = PrunableNetwork(nn.Sequential(layer), inputs)
    largest, means, sums = naive(layer, inputs)
    network.model.float()
    found = weight_sensitivities(network, [(inputs, None)], "max")["0.weight"]
    assert torch.allclose(found.double(), largest, atol=1e-6)
    assert torch.allclose(
        weight_sensitivities(network, [(inputs, None)], "mean")["0.weight"].double(), means, atol=1e-6
    )
    assert torch.allclose(channel_sensitivities(network, [(inputs, None)], "sum")["0.weight"].double(), sums, atol=1e-6)
    assert float(found.max()) <= 1 + 1e-6


def test_blocks_change_nothing(monkeypatch):
    layer, inputs = nn.Conv2d(4, 6, 3, groups=2), torch.randn(2, 4, 7, 7)
    network, batches = PrunableNetwork(nn.Sequential(layer), inputs), [(inputs, None)]
    whole = weight_sensitivities(network, batches), channel_sensitivities(network, batches, "sum")
    monkeypatch.setattr("pruning.scores.layer.BLOCK", {"cpu": 40})
    small = weight_sensitivities(network, batches), channel_sensitivities(network, batches, "sum")
    for one, other in zip(whole, small, strict=True):
        assert torch.allclose(one["0.weight"], other["0.weight"], atol=1e-6)


def test_scaling_a_layer_changes_nothing_and_dead_inputs_count_nothing():
    inputs = torch.rand(3, 4) * torch.tensor([1.0, 0.0, 1.0, 1.0])
    layer = nn.Linear(4, 3)
    network = PrunableNetwork(nn.Sequential(layer), inputs)
    before = weight_sensitivities(network, [(inputs, None)])["0.weight"]
    with torch.no_grad():
        layer.weight.mul_(7)
    assert torch.allclose(before, weight_sensitivities(network, [(inputs, None)])["0.weight"], atol=1e-6)
    assert not before[:, 1].any() and bool(before[:, 0].all())
    with torch.no_grad():
        layer.weight.zero_()
    assert not weight_sensitivities(network, [(inputs, None)])["0.weight"].any()


def test_weights_that_are_read_but_never_called_or_computed_are_seen():
    attention = PrunableNetwork(build(Attention), tokens()[0][0])
    found = weight_sensitivities(attention, tokens())
    assert all(float(values.max()) > 0 for values in found.values())
    layer = nn.Linear(5, 4)
    inputs, scale = torch.randn(3, 5), 3 * torch.rand(4, 1)
    plain = weight_sensitivities(PrunableNetwork(nn.Sequential(layer), inputs), [(inputs, None)])["0.weight"]
    normed = nn.Sequential(weight_norm(nn.Linear(5, 4)))
    with torch.no_grad():
        normed[0].parametrizations.weight.original0.copy_(scale)
        normed[0].parametrizations.weight.original1.copy_(layer.weight)
    (computed,) = weight_sensitivities(PrunableNetwork(normed, inputs), [(inputs, None)]).values()
    assert torch.allclose(plain, computed, atol=1e-6)


def test_activations_that_are_not_finite_are_one_line_that_names_the_layer():
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2))
    network = PrunableNetwork(model, torch.zeros(1, 3))
    with torch.no_grad():
        model[0].bias[1] = torch.nan
    with pytest.raises(UsageError, match=r"activations that reach layer '2.weight' are not finite"):
        weight_sensitivities(network, [(torch.ones(1, 3), None)])
    with pytest.raises(UsageError, match="no batches"):
        weight_sensitivities(network, [])


class Backwards(nn.Module):
    """Multiplies by the transpose of a layer's weight."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3, bias=False)

    def forward(self, x):
        return self.layer(x) @ self.layer.weight


def test_a_weight_that_multiplies_from_both_sides_counts_both():
    network = PrunableNetwork(Backwards(), torch.zeros(1, 3))
    weight, x = network.model.layer.weight.detach(), torch.tensor([[1.0, 2.0, 0.5]])
    inwards = weight_sensitivities(PrunableNetwork(nn.Sequential(network.model.layer), x), [(x, None)])["0.weight"]
    back = nn.Linear(3, 3, bias=False)
    with torch.no_grad():
        hidden = network.model.layer(x)
        back.weight.copy_(weight.t())
    outwards = weight_sensitivities(PrunableNetwork(nn.Sequential(back), hidden), [(hidden, None)])["0.weight"]
    found = weight_sensitivities(network, [(x, None)])["layer.weight"]
    assert torch.equal(found, torch.maximum(inwards, outwards.t()))
