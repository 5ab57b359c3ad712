"""Accuracy and loss count samples, not batches."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pruning.measure.evaluate import evaluate, measure


class Given(nn.Module):
    """Returns its input as scores."""

    def forward(self, x):
        return x


def test_unequal_batches_weigh_by_their_samples():
    scores = torch.tensor([[2.0, 1.0], [0.0, 1.0], [3.0, 0.0], [1.0, 0.0]])
    labels = torch.tensor([0, 1, 1, 1])
    accuracy, loss = evaluate(Given(), [(scores[:1], labels[:1]), (scores[1:], labels[1:])], F.cross_entropy)
    assert accuracy == 0.5
    assert loss == pytest.approx(F.cross_entropy(scores, labels).item())


def test_every_pixel_counts_in_segmentation():
    scores = torch.zeros(2, 3, 2, 2)
    scores[:, 1] = 1
    labels = torch.tensor([[[1, 1], [1, 0]], [[0, 0], [2, 2]]])
    assert evaluate(Given(), [(scores, labels)], F.cross_entropy)[0] == pytest.approx(3 / 8)


def test_dropout_is_off_and_modes_stay():
    model = nn.Sequential(nn.Dropout(0.9), Given()).train()
    model[1].eval()
    batch = (torch.eye(50), torch.arange(50))
    assert evaluate(model, [batch], F.cross_entropy)[0] == 1.0
    assert [module.training for module in model.modules()] == [True, True, False]
    assert not any(parameter.grad is not None for parameter in model.parameters())


def test_a_network_of_several_inputs():
    accuracy, _ = evaluate(
        nn.Bilinear(2, 2, 2), [((torch.ones(3, 2), torch.ones(3, 2)), torch.zeros(3).long())], F.cross_entropy
    )
    assert accuracy in (0.0, 1.0)


def test_no_sample_is_no_number():
    assert all(math.isnan(value) for value in evaluate(Given(), [], F.cross_entropy))
    assert math.isnan(measure(Given(), [], F.cross_entropy)["loss"])


def test_many_samples_do_not_drown_in_single_precision():
    batches = [(torch.tensor([[0.0, 1.0]]).expand(2**14, 2), torch.ones(2**14, dtype=torch.long))] * 40
    accuracy, loss = evaluate(Given(), batches, F.cross_entropy)
    assert accuracy == 1.0 and loss == pytest.approx(math.log(1 + math.exp(-1)), rel=1e-6)
