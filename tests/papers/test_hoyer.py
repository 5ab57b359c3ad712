"""Criteria whose threshold decides how many go: exactly those under it, the guards kept, and no limit."""

import json
import math

import pytest
import torch
from torch import nn

from criterions.GroupHoyerSquare import GroupHoyerSquare
from criterions.HoyerSquare import HoyerSquare
from pruning import NodeRules, PrunableNetwork
from tests.support.zoo.by_hand import BY_HAND, in_groups, node_numbers
from tests.support.zoo.small import SHAPES, Residual, build, conv_net, mlp
from trainers.DefaultTrainer import DefaultTrainer


def network_of(maker, **options):
    return PrunableNetwork(build(maker), torch.zeros(2, *SHAPES[maker]), **options)


@pytest.mark.parametrize("maker", [mlp, conv_net, Residual])
def test_the_score_is_the_weight_by_the_size_that_the_penalty_trims(maker):
    network = network_of(maker)
    for name, scores in HoyerSquare().weight_scores(network, ()).items():
        weights = [float(w) for w in network.prunable()[name].detach().flatten()]
        size = math.fsum(w * w for w in weights) / math.fsum(map(abs, weights))
        assert torch.allclose(scores.flatten().double(), torch.tensor([abs(w) / size for w in weights]).double())


@pytest.mark.parametrize("limit", [0.01, 0.99])
@pytest.mark.parametrize("maker", [mlp, conv_net, Residual])
def test_exactly_the_weights_under_the_threshold_go_whatever_the_limit(maker, limit):
    network = network_of(maker)
    with torch.no_grad():
        for weight in network.prunable().values():
            weight *= torch.rand_like(weight) ** 3
    scores = HoyerSquare().weight_scores(network, ())
    report = network.prune(HoyerSquare(hoyer_threshold=0.2), sparsity=limit)
    assert 0 < report.reached < 1 and not report.steps[0].reason and report.steps[0].asked is None
    assert all(torch.equal(network.masks.keep[name], score >= 0.2) for name, score in scores.items())
    assert "asked none reached" in str(report)


def test_no_layer_is_emptied_and_no_other_weight_pays_for_it():
    network = network_of(mlp)
    with torch.no_grad():
        network.model[4].weight.zero_()
    before = HoyerSquare(hoyer_threshold=0.3).weight_scores(network, ())
    network.prune(HoyerSquare(hoyer_threshold=0.3), sparsity=0.5)
    assert int(network.masks.keep["4.weight"].sum()) == 1
    assert all(torch.equal(network.masks.keep[n], before[n] >= 0.3) for n in ("0.weight", "6.weight"))


@pytest.mark.parametrize("kind", BY_HAND)
def test_exactly_the_nodes_under_the_threshold_go(kind):
    case = BY_HAND[kind]
    network = case.network()
    with torch.no_grad():  # some nodes small in everything
        for name, parameter in network.model.named_parameters():
            parameter[::2] *= 0.01
            if parameter.dim() > 1 and name in network.prunable():
                parameter[:, : parameter.shape[1] // 3] *= 0.01
    scores = in_groups(GroupHoyerSquare().node_scores(network, ()), node_numbers(network, case.groups))
    expected = sum(max(1, int((values >= 0.4).sum())) for values in scores)
    report = network.prune(GroupHoyerSquare(hoyer_threshold=0.4), sparsity=0.9)
    assert len(network.graph.nodes) == expected < network.nodes_total()
    assert report.steps[0].asked is None and not report.steps[0].reason


def test_nothing_under_the_threshold_is_said_in_one_line():
    weights, nodes = network_of(mlp), network_of(mlp)
    said = weights.prune(HoyerSquare(hoyer_threshold=0.0), sparsity=0.5).steps[0]
    also = nodes.prune(GroupHoyerSquare(hoyer_threshold=0.0), sparsity=0.5).steps[0]
    assert said.reason == also.reason == "no score lies under the threshold of 0.0"
    assert weights.weight_sparsity() == nodes.node_sparsity() == 0


def test_controls_and_shapes_hold_for_a_threshold_too():
    plain, inverted = network_of(mlp), network_of(mlp)
    plain.prune_to(HoyerSquare(hoyer_threshold=0.5), 0.9)
    inverted.prune_to(HoyerSquare(hoyer_threshold=0.5), 0.9, invert=True)
    assert plain.weights_left() == inverted.weights_left()
    assert not torch.equal(plain.masks.keep["0.weight"], inverted.masks.keep["0.weight"])
    rounded = network_of(mlp, node_rules=NodeRules(round_to=2, min_keep=4))
    rounded.prune_to(GroupHoyerSquare(hoyer_threshold=1.0), 0.9)
    assert [m.out_features for m in rounded.model if isinstance(m, nn.Linear)] == [4, 4, 4]


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf])
def test_a_threshold_that_makes_no_sense_is_refused(value, command):
    for criterion in ("HoyerSquare", "GroupHoyerSquare"):
        line = command.refused("--prune_criterion", criterion, "--hoyer_threshold", value)
        assert "hoyer_threshold" in line and str(value) in line


@pytest.mark.parametrize("criterion", ["HoyerSquare", "GroupHoyerSquare"])
def test_a_run_ends_finished_with_the_sparsity_as_an_outcome(criterion, command, monkeypatch):
    penalties, loss = [], DefaultTrainer.loss

    def watch(self, outputs, targets):
        penalties.append((self.epoch, float(torch.as_tensor(self.loss_function.penalty(self.network)).detach())))
        return loss(self, outputs, targets)

    monkeypatch.setattr(DefaultTrainer, "loss", watch)
    flags = ["--prune_criterion", criterion, "--hoyer_reg", "1e-3", "--hoyer_threshold", "0.95"]
    flags += ["--epochs", "5", "--prune_delay", "1"]
    done = command.quick(*flags)
    result = done.result
    assert [epoch for epoch, penalty in penalties if penalty > 0] == [0, 1, 2]
    assert [epoch for epoch, penalty in penalties if penalty == 0] == [3, 4]
    assert result["status"] == "finished" and result["pruning_events"] == 1
    assert result["sparsity_asked"] is None and 0 < result["sparsity_reached"] < 0.9
    assert done.out.count("not fixed in advance") >= 2  # before the first event, and in the table at the end
    events = json.loads((done.folder / "output" / "pruning_events.json").read_text())
    assert [(event["epoch"], event["asked"]) for event in events] == [(2, None)]
    settings = (done.folder / "settings.yaml").read_text()
    assert f"loss: {criterion}" in settings


def test_the_switches_choose_criterion_and_loss(command):
    for switch, name in (("--hoyer_square", "HoyerSquare"), ("--group_hoyer_square", "GroupHoyerSquare")):
        settings = (command.quick(switch, "--hoyer_reg", "1e-5", "--epochs", "3").folder / "settings.yaml").read_text()
        assert f"prune_criterion: {name}" in settings and f"loss: {name}" in settings
        assert name in command.refused(switch, "--loss", "CrossEntropy")


@pytest.mark.parametrize("criterion", ["HoyerSquare", "GroupHoyerSquare"])
def test_a_run_taken_up_after_the_event_goes_on_without_the_penalty(criterion, command, monkeypatch):
    flags = ["--prune_criterion", criterion, "--hoyer_reg", "1e-3", "--epochs", "5", "--hoyer_threshold", "0"]
    whole = command.quick(*flags)
    epochs, train_epoch = [], DefaultTrainer.train_epoch

    def stop(self):
        epochs.append(self.epoch)
        if self.epoch == 3 and len(epochs) == 4:
            raise KeyboardInterrupt
        train_epoch(self)

    monkeypatch.setattr(DefaultTrainer, "train_epoch", stop)
    assert command.quick(*flags).code == 130
    assert command("--resume", command.runs()[-1]).code == 0 and epochs == [0, 1, 2, 3, 3, 4]
    files = [next((folder / "models").glob("*_finished")) for folder in (whole.folder, command.runs()[-1])]
    one, other = (torch.load(file, weights_only=True)["state_dict"] for file in files)
    assert all(torch.equal(one[name], other[name]) for name in one)
