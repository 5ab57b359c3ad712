"""Losses that ask another network, or the network itself: against loops over samples, and through stopped runs."""

import json
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from criterions.GRASP import GRASP
from losses.BinaryCrossEntropy import BinaryCrossEntropy
from losses.CrossEntropy import CrossEntropy
from losses.Distillation import Distillation
from losses.FromModel import FromModel
from losses.L1 import L1
from losses.MSE import MSE
from losses.NextToken import NextToken
from pruning import PrunableNetwork, UsageError
from pruning.measure.evaluate import measure
from pruning.scores.gradients import accumulate_gradients
from tests.support.running import QUICK

DOUBLE = {"dtype": torch.float64}


def distilled(base, told, temperature=3.0, alpha=0.7):
    """A loss whose teacher says the same whatever it is asked."""

    class Teacher(nn.Module):
        def forward(self, x):
            return told

    return Distillation(
        teacher="run",
        load_teacher=lambda name: Teacher(),
        make_loss=lambda name: base,
        temperature=temperature,
        alpha=alpha,
    )


def divergence(own, told, temperature):
    """T^2 KL(told / T || own / T) of two lists of scores, number by number."""

    def shares(scores):
        powers = [math.exp(score / temperature) for score in scores]
        return [power / sum(powers) for power in powers]

    total = 0.0
    for p, q in zip(shares(told), shares(own), strict=True):
        total += p * math.log(p / q)
    return temperature**2 * total


def test_the_distance_of_classes_is_hintons():
    own, told = torch.randn(5, 4, **DOUBLE), torch.randn(5, 4, **DOUBLE)
    classes = torch.tensor([0, 3, 1, 2, 2])
    loss = distilled(CrossEntropy(), told)
    hard = float(F.cross_entropy(own, classes))
    soft = sum(divergence(own[i].tolist(), told[i].tolist(), 3.0) for i in range(5)) / 5
    assert float(loss.with_inputs(None, own, classes)) == pytest.approx(0.7 * soft + 0.3 * hard)
    assert float(loss(own, classes)) == pytest.approx(hard), "criteria and tests see the own loss"
    assert "accuracy" in loss.measures(own, classes)


def test_the_distance_of_pixels_and_tokens_leaves_out_what_counts_nowhere():
    own, told = torch.randn(2, 3, 2, 2, **DOUBLE), torch.randn(2, 3, 2, 2, **DOUBLE)
    classes = torch.tensor([[[0, -100], [1, 2]], [[2, 2], [-100, 0]]])
    found = []
    for picture in range(2):
        for y in range(2):
            for x in range(2):
                if classes[picture, y, x] >= 0:
                    one, other = own[picture, :, y, x].tolist(), told[picture, :, y, x].tolist()
                    found.append(divergence(one, other, 3.0))
    hard = float(F.cross_entropy(own, classes))
    value = float(distilled(CrossEntropy(), told).with_inputs(None, own, classes))
    assert value == pytest.approx(0.7 * sum(found) / 6 + 0.3 * hard)

    own, told = torch.randn(2, 4, 5, **DOUBLE), torch.randn(2, 4, 5, **DOUBLE)
    tokens = torch.tensor([[1, 2, 3, 4], [0, 1, -100, -100]])
    counted = [(0, 0), (0, 1), (0, 2), (1, 0)]  # places whose next token counts
    soft = sum(divergence(own[w, t].tolist(), told[w, t].tolist(), 3.0) for w, t in counted) / 4
    hard = float(NextToken()(own, tokens))
    value = float(distilled(NextToken(), told).with_inputs(None, own, tokens))
    assert value == pytest.approx(0.7 * soft + 0.3 * hard)


def test_the_distance_of_numbers_and_of_labels():
    own, told = torch.randn(4, 2, **DOUBLE), torch.randn(4, 2, **DOUBLE)
    numbers = torch.randn(4, 2, **DOUBLE)
    for base in (MSE(), L1()):
        expected = 0.7 * float((own - told).square().mean()) + 0.3 * float(base(own, numbers))
        assert float(distilled(base, told).with_inputs(None, own, numbers)) == pytest.approx(expected)
    labels = (numbers > 0).double()
    pairs = zip(own.flatten().tolist(), told.flatten().tolist(), strict=True)
    soft = sum(divergence([one, 0.0], [other, 0.0], 3.0) for one, other in pairs) / 8
    hard = float(BinaryCrossEntropy()(own, labels))
    value = float(distilled(BinaryCrossEntropy(), told).with_inputs(None, own, labels))
    assert value == pytest.approx(0.7 * soft + 0.3 * hard)


def test_a_teacher_that_says_something_else_is_refused():
    loss = distilled(CrossEntropy(), torch.randn(4, 7))
    with pytest.raises(UsageError, match=r"\(4, 7\).*\(4, 3\)"):
        loss.with_inputs(None, torch.randn(4, 3), torch.zeros(4).long())
    with pytest.raises(UsageError, match="distance"):
        distilled(FromModel(), torch.zeros(1))
    with pytest.raises(ValueError, match="alpha"):
        distilled(MSE(), torch.zeros(1), alpha=1.5)


def test_a_run_with_a_teacher_goes_on_exactly_where_it_was_stopped(command):
    dense = command.quick("--prune_criterion", "EmptyCrit", "--pruning_limit", "0").folder
    start = [
        *QUICK,
        "--epochs",
        "3",
        "--prune_criterion",
        "SNAP",
        "--pruning_limit",
        "0.5",
        "--checkpoint_name",
        dense.name,
    ]
    start += ["--loss", "Distillation", "--teacher", dense.name]
    whole = command(*start).result
    stopped = command(*start, "--max_training_minutes", "1e-9").runs[-1]
    assert json.loads((stopped / "result.json").read_text())["status"] == "interrupted"
    command("--resume", stopped, "--max_training_minutes", "9")
    resumed = json.loads((stopped / "result.json").read_text())
    for field in ("train_loss", "test_loss", "test_accuracy"):
        assert resumed[field] == whole[field]
    assert whole["loss"] == "Distillation" and whole["measures"] == {"accuracy": "higher"}
    # What starts from it, or tests it, has its own loss, and needs no teacher.
    evaluated = command("--eval", "--checkpoint_name", stopped, "--limit_batches", "1").result
    assert evaluated["test_loss"] == pytest.approx(whole["test_loss"])
    plain = command(*[word for word in start if word not in ("--loss", "Distillation", "--teacher", dense.name)])
    assert plain.code == 2 or plain.result["train_loss"] != whole["train_loss"]


def test_a_teacher_of_another_task_or_none_is_refused(command):
    other = command("--task", "regression", *QUICK, "--prune_criterion", "EmptyCrit", "--pruning_limit", "0").folder
    line = command.refused(*QUICK, "--loss", "Distillation", "--teacher", other.name)
    assert "regression" in line and "classification" in line and other.name in line
    assert "--teacher" in command.refused("--loss", "Distillation")
    assert "no run 'nobody'" in command.refused("--loss", "Distillation", "--teacher", "nobody")


# -- the network's own loss --------------------------------------------------------------------------------------------


class Detector(nn.Module):
    """As torchvision's are: losses in training mode, from pictures and a dict for each; else what was found."""

    def __init__(self):
        super().__init__()
        self.layer, self.norm, self.drop = nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(0.5)

    def forward(self, images, targets=None):
        found = self.drop(self.norm(self.layer(images)))
        if not self.training:
            return [{"boxes": row} for row in found]
        true = torch.stack([target["boxes"] for target in targets])
        return {"loss_box": F.mse_loss(found, true), "loss_size": found.abs().mean()}


def test_losses_of_a_detector_are_added_up_in_training_mode_that_learns_nothing():
    model = Detector().eval()
    network = PrunableNetwork(model, torch.zeros(1, 4), loss=FromModel())
    images, boxes = torch.randn(6, 4), torch.randn(6, 3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    batches = [(images, [{"boxes": row} for row in boxes])]
    found = model.norm(model.layer(images))  # dropout and running statistics as in eval mode
    loss = F.mse_loss(found, boxes) + found.abs().mean()
    (slope,) = torch.autograd.grad(loss, [model.layer.weight])
    expected = loss.detach()
    assert measure(model, batches, network.loss) == {"loss": pytest.approx(float(expected))}
    assert measure(model, [(images, {"boxes": boxes})], network.loss)["loss"] == pytest.approx(float(expected))
    gradients, value = accumulate_gradients(network, batches)
    assert value == pytest.approx(float(expected)) and torch.allclose(gradients["layer.weight"], slope)
    assert not any(module.training for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_temperature_is_refused_where_the_network_computes_its_loss():
    network = PrunableNetwork(Detector(), torch.zeros(1, 4), loss=FromModel())
    batches = [(torch.randn(6, 4), {"boxes": torch.randn(6, 3)})]
    with pytest.raises(UsageError, match="temperature"):
        network.prune(GRASP(), batches, sparsity=0.5)
    network.prune(GRASP(temperature=1.0), batches, sparsity=0.5)
    assert network.weights_left() == 6


def test_a_network_that_takes_no_targets_is_refused():
    with pytest.raises(UsageError, match="labels.*Linear"):
        FromModel().inputs_for(nn.Linear(3, 2), torch.zeros(1, 3), torch.zeros(1))
    with pytest.raises(UsageError, match="own loss"):
        FromModel()({"scores": torch.zeros(3, 2)}, torch.zeros(3))
