"""Gates on norms in Ticks and Tocks: against a network that really has gates, epoch by epoch, and from the console."""

import copy
import json
import os
import signal

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from criterions.GateDecorators import GateDecorators
from criterions.SNAP import SNAP
from pruning import NodeCriterion, PrunableNetwork, UsageError
from tests.papers.test_during import Batches
from tests.support.tiers import few
from tests.support.zoo.small import build, data
from trainers._optimization import Optimization
from trainers._pruning import Pruning
from trainers.DefaultTrainer import DefaultTrainer
from trainers.TickTock import TickTock, gate_of, gated

DOUBLE = {"dtype": torch.float64}


def conv_net():
    first = [nn.Conv2d(2, 5, 3, bias=False), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 6, 3), nn.BatchNorm2d(6)]
    return nn.Sequential(*first, nn.ReLU(), nn.Flatten(), nn.Linear(24, 7), nn.ReLU(), nn.Linear(7, 4))


def awkward():
    """Channels without a scale, without both, and with a shift that dwarfs the scale."""
    model = build(conv_net, **DOUBLE)
    with torch.no_grad():
        model[1].weight[0], model[1].bias[0] = 0.0, 0.7
        model[1].weight[1], model[1].bias[1] = 0.0, 0.0
        model[4].weight[2], model[4].bias[2] = -1e-3, 1.5
        model[4].weight[3], model[4].bias[3] = -0.8, 0.4
    return model


def make_trainer(model, criterion, optimization, *, limit=0.0, callbacks=(), trainer=TickTock, **options):
    network = PrunableNetwork(model, torch.zeros(2, 2, 6, 6, **DOUBLE))
    batches = data((2, 6, 6), sizes=(8, 6, 8), **DOUBLE)
    pruning = Pruning(
        network=network, criterion=criterion, draw_batches=lambda event: batches, fresh_model=lambda: None,
        report=lambda line: None, pruning_limit=limit, epochs=len(criterion.phases),
    )  # fmt: skip
    return trainer(
        criterion=criterion, network=network, loss_function=F.cross_entropy, train_batches=Batches(batches),
        test_batches=batches, optimization=optimization, epochs=len(criterion.phases),
        callbacks=[*callbacks, pruning], **options,
    )  # fmt: skip


# -- a network that really has gates --------------------------------------------------------------------------------


class Gated(nn.Module):
    """A batch norm written as phi (s x + t); where the shift is more than ten times the scale, phi takes its place."""

    def __init__(self, norm):
        super().__init__()
        self.norm = nn.BatchNorm2d(norm.num_features, affine=False, **DOUBLE)
        self.norm.load_state_dict({n: b for n, b in norm.state_dict().items() if n not in ("weight", "bias")})
        pairs = list(zip(norm.weight.tolist(), norm.bias.tolist(), strict=True))
        plain = [abs(beta) <= 10 * abs(gamma) for gamma, beta in pairs]
        values = [
            (g, 1.0, b / g if g else 0.0) if p else (b, g / b, 1.0) for (g, b), p in zip(pairs, plain, strict=True)
        ]
        phi, s, t = torch.tensor(values, **DOUBLE).T
        self.phi, self.t = nn.Parameter(phi.clone()), nn.Parameter(t.clone())
        self.register_buffer("s", s.clone())
        self.held = ~torch.tensor(plain)  # where t is no parameter but 1

    def forward(self, x):
        shape = (1, -1, 1, 1)
        return self.phi.view(shape) * (self.s.view(shape) * self.norm(x) + self.t.view(shape))


def with_gates(model):
    return nn.Sequential(*(Gated(m) if isinstance(m, nn.BatchNorm2d) else copy.deepcopy(m) for m in model))


def triangle(phase, place, length, top):
    """The learning rate `place` batches into a phase."""
    if phase == "tick":
        return 0.1 * top
    return top * (0.1 + 0.9 * (2 * place / length if place <= length / 2 else 2 - 2 * place / length))


OPTIMIZERS = {
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=1e-2),
    "ADAM": lambda parameters: torch.optim.Adam(parameters, lr=0.1, weight_decay=1e-2),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_moves_the_network_as_if_it_had_gates(name):
    model = awkward()
    real = with_gates(model).train()
    x = data((2, 6, 6), **DOUBLE)[1][0]
    assert torch.allclose(real.eval()(x), model.eval()(x), rtol=1e-12)
    real.train()
    criterion = GateDecorators(ticks=2, tocks=2, epochs=6)
    assert criterion.phases == ["tick", "tick", "tock", "tock", "tune", "tune"]
    optimization = Optimization(optimizer=name, learning_rate=0.1, grad_clip=0, l2_reg=1e-2)
    trainer = make_trainer(model, criterion, optimization, gate_reg=0.05)
    trainer.train()

    optimizer = OPTIMIZERS[name](real.parameters())
    gates = [m for m in real if isinstance(m, Gated)]
    ticking = {id(p) for p in [*(p for g in gates for p in (g.phi, g.t)), *real[9].parameters()]}
    scores = [torch.zeros(5, **DOUBLE), torch.zeros(6, **DOUBLE)]
    for epoch, phase in enumerate(criterion.phases):
        for number, (inputs, targets) in enumerate(trainer.train_batches):
            place = (epoch - 2) * 3 + number if phase == "tock" else number
            rate = 0.1 if phase == "tune" else triangle(phase, place, 6, 0.1)
            optimizer.param_groups[0]["lr"] = rate
            optimizer.zero_grad()
            loss = F.cross_entropy(real(inputs), targets)
            if phase == "tock":
                loss = loss + 0.05 * sum(gate.phi.abs().sum() for gate in gates)
            loss.backward()
            if phase == "tick":
                for score, gate in zip(scores, gates, strict=True):
                    score += (gate.phi * gate.phi.grad).abs().detach()
                for parameter in real.parameters():
                    parameter.grad = parameter.grad if id(parameter) in ticking else None
            optimizer.step()
            for gate in gates:
                gate.t.data[gate.held] = 1
    assert torch.allclose(model.eval()(x), real.eval()(x), rtol=1e-7, atol=1e-9)
    graph = trainer.network.graph
    for path, expected in zip(("1", "4"), scores, strict=True):
        assert torch.allclose(criterion.gathered[graph.nodes_along(f"{path}.weight", 0)], expected, rtol=1e-6)


def test_putting_gates_in_and_taking_them_out_changes_nothing():
    model = awkward()
    for norm in (model[1], model[4]):
        scale, shift = norm.weight, norm.bias
        before = scale.detach().clone(), shift.detach().clone()
        scale.grad, shift.grad = torch.ones_like(scale), torch.ones_like(shift)
        phi = gate_of(scale, shift).detach().clone()
        with gated(scale, shift):
            assert torch.equal(scale, phi) and bool((shift.abs() <= 10).all())
            assert torch.isfinite(torch.stack([scale, shift, scale.grad, shift.grad])).all()
        for now, then in zip((scale, shift), before, strict=True):
            assert torch.allclose(now, then, rtol=1e-15, atol=0)


def test_in_a_tick_only_gates_shifts_and_the_last_layer_move():
    changed, before = {}, {}

    def watch(trainer, moment):
        state = {n: p.detach().clone() for n, p in trainer.network.model.named_parameters()}
        if moment == "epoch_trained":
            moved = {name for name in state if not torch.equal(state[name], before[name])}
            changed.setdefault(trainer.phase, []).append(moved)
        if moment in ("train_start", "epoch_trained"):
            before.update(state)

    criterion = GateDecorators(ticks=1, tocks=1, epochs=6)
    assert criterion.phases == ["tick", "tock"] * 2 + ["tune"] * 2
    trainer = make_trainer(build(conv_net, **DOUBLE), criterion, Optimization(optimizer="SGD"), callbacks=[watch])
    trainer.train()
    everything = {name for name, _ in trainer.network.model.named_parameters()}
    assert changed["tick"] == [{"1.weight", "1.bias", "4.weight", "4.bias", "9.weight", "9.bias"}] * 2
    # A bias before a batch norm has no slope but for rounding.
    assert all(moved | {"3.bias"} == everything for moved in changed["tock"] + changed["tune"])


# -- the sequence of events -----------------------------------------------------------------------------------------


def test_seventy_epochs_are_two_rounds_of_the_papers_ten_and_ten():
    criterion = GateDecorators(epochs=70)
    assert criterion.phases == (["tick"] * 10 + ["tock"] * 10) * 2 + ["tune"] * 30
    assert criterion.event_epochs == [*range(10), *range(20, 30)]
    assert criterion.sparsities(0.93) == pytest.approx([0.93 * i / 20 for i in range(1, 21)])
    line = criterion.announcement(0.93)
    assert "2 x (10 Tick + 10 Tock epochs), then 30 epochs of fine-tuning" in line
    assert "4.65 % of the nodes (the paper: 0.5 % for VGG-16 on CIFAR, 0.2 % for ResNets)" in line


@pytest.mark.parametrize("epochs", range(2, 100))
def test_however_few_epochs_there_are_ticks_come_first_and_something_follows(epochs):
    criterion = GateDecorators(epochs=epochs)
    assert len(criterion.phases) == epochs and criterion.event_epochs[0] == 0
    assert criterion.event_epochs[-1] < epochs - 1 and criterion.sparsities(0.5)[-1] == 0.5
    assert epochs < 3 or criterion.phases.count("tune") >= epochs / 3
    assert epochs < 30 or (criterion.ticks, criterion.tocks) == (10, 10)


def test_a_run_has_the_events_and_learning_rates_of_its_phases(command, monkeypatch):
    seen, train_batch = [], TickTock.train_batch

    def watch(self, inputs, targets):
        penalty = float((self.loss(torch.zeros(1, 2), torch.tensor([0])) - torch.log(torch.tensor(2.0))).detach())
        seen.append((self.epoch, self.phase, self.optimizer.param_groups[0]["lr"], penalty))
        return train_batch(self, inputs, targets)

    monkeypatch.setattr(TickTock, "train_batch", watch)
    flags = ["--prune_criterion", "GateDecorators", "--ticks", "2", "--tocks", "2", "--epochs", "12"]
    done = command.quick(*flags, "--pruning_limit", "0.6", "--limit_batches", "2")
    events = json.loads((done.folder / "output" / "pruning_events.json").read_text())
    assert [event["epoch"] for event in events] == [0, 1, 4, 5]
    assert [event["asked"] for event in events] == pytest.approx([0.15, 0.3, 0.45, 0.6])
    assert [event["nodes_left"] for event in events] == [54, 44, 35, 25]
    assert done.result["status"] == "finished" and done.result["nodes_left"] == 25
    phases = ["tick"] * 2 + ["tock"] * 2
    assert [phase for _, phase, _, _ in seen[::2]] == phases * 2 + ["tune"] * 4
    rates = [1e-3] * 4 + [1e-3, 5.5e-3, 1e-2, 5.5e-3]
    assert [rate for _, _, rate, _ in seen] == pytest.approx(rates * 2 + [1e-2] * 8)
    assert all((penalty > 1e-4) == (phase == "tock") for _, phase, _, penalty in seen)
    assert done.out.count("Tick epochs") == 0 and done.out.count("each Tick removes 15.00 % of the nodes") == 1
    settings = (done.folder / "settings.yaml").read_text()
    assert "train_scheme: TickTock" in settings and "optimizer: SGD" in settings


class FirstGoFirst(NodeCriterion):
    """Would take the first layer whole before anything of the second."""

    min_share = GateDecorators.min_share

    def node_scores(self, network, batches):
        return torch.arange(len(network.graph.nodes))


def test_every_layer_keeps_a_tenth_of_what_it_had_or_half_of_what_the_target_leaves():
    model = nn.Sequential(nn.Linear(4, 40), nn.ReLU(), nn.Linear(40, 60), nn.ReLU(), nn.Linear(60, 3))
    network = PrunableNetwork(model, torch.zeros(1, 4))
    for target, widths in ((0.3, (10, 60)), (0.6, (4, 36)), (0.75, (4, 21)), (0.9, (2, 8))):
        assert not network.prune_to(FirstGoFirst(), target).reason
        assert (model[0].out_features, model[2].out_features) == widths
    step = network.prune_to(FirstGoFirst(), 0.999)
    assert step.nodes_left == 2 and step.reason.endswith("every layer keeps a share of its nodes")


# -- from the command line ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "stop", few([(1, 1), (3, 2), (6, 1)], [(3, 2)]), ids=["in a tick", "in a tock", "in fine-tuning"]
)
def test_a_stopped_run_ends_with_the_same_numbers(stop, command, monkeypatch):
    flags = ["--prune_criterion", "GateDecorators", "--ticks", "2", "--tocks", "3", "--epochs", "8"]
    flags += ["--pruning_limit", "0.5", "--limit_batches", "4"]
    whole = command.quick(*flags)
    train_batch, stopped = DefaultTrainer.train_batch, []

    def interrupt(self, inputs, targets):
        if (self.epoch, self.batch) == stop and not stopped:
            stopped.append(stop)
            os.kill(os.getpid(), signal.SIGINT)
        return train_batch(self, inputs, targets)

    monkeypatch.setattr(DefaultTrainer, "train_batch", interrupt)
    assert command.quick(*flags).code == 130 and stopped
    again = command("--resume", command.runs()[-1])
    assert f"going on at epoch {stop[0]}, batch {stop[1] + 1}" in again.out
    states = []
    for folder in (whole.folder, again.folder):
        (file,) = (folder / "models").glob("*_finished")
        states.append(torch.load(file, weights_only=True)["state_dict"])
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    same = ("test_loss", "train_loss", "nodes_left")
    assert [whole.result[key] for key in same] == [again.result[key] for key in same]


NETWORKS = [["ResNet20", "--width_multiplier", "0.25"], ["MLP5", "--hidden", "16", "--no-norm"], ["LeNet300"]]


@pytest.mark.parametrize(
    "network",
    few(NETWORKS, [["MLP5", "--hidden", "16", "--no-norm"]]),
    ids=lambda network: network[0],
)
def test_it_starts_from_a_trained_network_with_or_without_norms(network, command):
    short = ["--limit_batches", "2", "--no-tensorboard", "--data_set", "DIGITS"]
    dense = command("--model", *network, "--prune_criterion", "EmptyCrit", "--epochs", "1", *short)
    (file,) = (dense.folder / "models").glob("*_finished")
    start = ["--checkpoint_name", dense.folder.name, "--checkpoint_model", file.name, "--model", *network]
    flags = ["--prune_criterion", "GateDecorators", "--pruning_limit", "0.5", "--epochs", "6", *short]
    done = command(*flags, *start)
    assert done.result["status"] == "finished" and not done.result["sparsity_reason"]
    assert done.result["nodes_left"] == done.result["nodes_total"] // 2
    states = [torch.load(f, weights_only=True)["state_dict"] for f in (file, done.folder / "models" / file.name)]
    assert states[0].keys() == states[1].keys(), "a gated network is saved as an ordinary one"
    assert command("--eval", "--checkpoint_name", done.folder.name, *start[4:], *short[2:]).code == 0


def test_what_does_not_fit_is_one_line(command):
    line = command.refused("--prune_criterion", "SNAP", "--train_scheme", "TickTock")
    assert "TickTock trains in the phases of a criterion such as GateDecorators; SNAP has none" in line
    assert "epochs must be at least 2" in command.refused("--prune_criterion", "GateDecorators", "--epochs", "1")
    assert "ticks must be at least 1" in command.refused("--prune_criterion", "GateDecorators", "--ticks", "0")
    flags = ["--prune_criterion", "GateDecorators", "--gate_reg"]
    assert "gate_reg must be at least 0" in command.refused(*flags, "-0.5")
    assert "gate_reg must be at least 0" in command.refused(*flags, "nan")
    network = PrunableNetwork(build(conv_net, **DOUBLE), torch.zeros(2, 2, 6, 6, **DOUBLE))
    with pytest.raises(UsageError, match="SNAP has none"):
        TickTock(criterion=SNAP(), network=network)


def test_another_trainer_scores_on_the_score_batches(command):
    flags = ["--prune_criterion", "GateDecorators", "--train_scheme", "DefaultTrainer", "--epochs", "4"]
    done = command.quick(*flags, "--pruning_limit", "0.5")
    assert done.result["status"] == "finished" and done.result["nodes_left"] == 32
