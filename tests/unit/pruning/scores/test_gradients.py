"""Shared statistics: gradients over batches, and that looking at a network does not change it."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pruning import PrunableNetwork
from pruning.scores.gradients import accumulate_gradients, hessian_gradient_products, require_signal, scoring
from tests.support import slow_reference as slow
from tests.support.zoo.small import SHAPES, Residual, build, conv_net, data, mlp


def network_of(maker, dtype=torch.float64):
    return PrunableNetwork(build(maker, dtype=dtype), torch.zeros(1, *SHAPES[maker], dtype=dtype))


def test_gradients_are_those_of_the_mean_over_batches():
    network, batches = network_of(Residual), data(SHAPES[Residual], dtype=torch.float64)
    names = [name for name, _ in network.model.named_parameters()]
    found, loss = accumulate_gradients(network, batches, names=names)
    model = network.model.eval()
    mean = sum(F.cross_entropy(model(x), y) for x, y in batches) / len(batches)
    mean.backward()
    assert loss == pytest.approx(mean.item())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad)


def test_another_loss_may_take_the_networks_place():
    network, batches = network_of(mlp), data(SHAPES[mlp], dtype=torch.float64)
    found, loss = accumulate_gradients(
        network, batches, loss=lambda outputs, targets: 3 * F.cross_entropy(outputs, targets)
    )
    plain, value = accumulate_gradients(network, batches)
    assert loss == pytest.approx(3 * value)
    slow.assert_same(found, {name: 3 * gradient for name, gradient in plain.items()})


def test_one_batch_twice_weighs_as_one():
    network, (batch, _) = network_of(conv_net), data(SHAPES[conv_net], dtype=torch.float64)
    for statistic in (lambda batches: accumulate_gradients(network, batches)[0],
                      lambda batches: hessian_gradient_products(network, batches)):  # fmt: skip
        slow.assert_same(statistic([batch, batch]), statistic([batch]))


def test_a_generator_of_batches_is_enough_for_both_passes():
    network, batches = network_of(mlp), data(SHAPES[mlp], dtype=torch.float64)
    slow.assert_same(
        hessian_gradient_products(network, (batch for batch in batches)), hessian_gradient_products(network, batches)
    )


def test_scoring_works_inside_no_grad_and_on_frozen_networks():
    network, batches = network_of(mlp), data(SHAPES[mlp], dtype=torch.float64)
    expected, _ = accumulate_gradients(network, batches)
    network.model.requires_grad_(False)
    with torch.no_grad():
        found, _ = accumulate_gradients(network, batches)
    slow.assert_same(found, expected)
    assert not any(parameter.requires_grad for parameter in network.model.parameters())


def test_everything_comes_back_after_an_error_in_the_middle():
    model = build(mlp).train()
    model[0].weight.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(KeyError), scoring(model, batch_statistics=True):
        model(torch.randn(8, 6))
        raise KeyError
    assert all(module.training for module in model.modules())
    assert not model[0].weight.requires_grad and model[0].bias.requires_grad
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_batch_statistics_switch_norms_only():
    model = build(mlp).eval()
    with scoring(model, batch_statistics=True):
        assert [type(m) for m in model.modules() if m.training] == [nn.BatchNorm1d]


class Counting(nn.Module):
    """Changes a buffer and draws numbers in eval mode too."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return self.layer(x + 0.1 * torch.rand_like(x))


def test_buffers_and_random_state_of_odd_networks_stay():
    network = PrunableNetwork(Counting(), torch.zeros(1, 4))
    calls, state = network.model.calls.clone(), torch.get_rng_state()
    accumulate_gradients(network, data((4,), classes=3))
    hessian_gradient_products(network, data((4,), classes=3))
    assert torch.equal(network.model.calls, calls)
    assert torch.equal(torch.get_rng_state(), state)


class Recurrent(nn.Module):
    """Reads a sequence."""

    def __init__(self):
        super().__init__()
        self.cell, self.head = nn.GRU(4, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x):
        return self.head(self.cell(x)[0][:, -1])


def test_recurrent_networks_have_first_and_second_derivatives():
    torch.manual_seed(0)
    network = PrunableNetwork(Recurrent().double(), torch.zeros(1, 6, 4).double())
    batches = data((6, 4), dtype=torch.float64, classes=3)
    expected = slow.grasp(network.model, batches, temperature=1.0)
    found = hessian_gradient_products(network, batches)
    scores = {name: -weight * found[name] for name, weight in network.weights()}
    slow.assert_same(scores, expected, rtol=1e-6)


def test_signal_is_required_of_some_layer_not_of_each():
    scores = {"a": torch.zeros(2), "b": torch.tensor([0.0, 1e-30])}
    assert require_signal(scores) is scores
