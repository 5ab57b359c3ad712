"""Training with gates: clamps, the running average, sparsity as an outcome, and a folded network at the end."""

import math

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from criterions.EmptyCrit import EmptyCrit
from criterions.SNAP import SNAP
from data_sets._batches import make_batches
from losses.CrossEntropy import CrossEntropy
from losses.L0CrossEntropy import L0CrossEntropy
from pruning import PrunableNetwork, UsageError
from tests.support.words import lacking
from trainers._average import Average
from trainers._optimization import Optimization
from trainers.DefaultTrainer import DefaultTrainer
from trainers.L0Trainer import L0Trainer


class Points:
    """Two classes, told apart by the sign of the first of four numbers."""

    input_shape, num_classes = (4,), 2

    def train(self):
        inputs = torch.randn(96, 4, generator=torch.Generator().manual_seed(1))
        return TensorDataset(inputs, (inputs[:, 0] > 0).long())

    test = train


def make(trainer=L0Trainer, *, loss=None, criterion=None, rate=0.01, width=8, epochs=2, **how):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 2))
    batches = {part: make_batches(Points(), part, batch_size=32, device="cpu") for part in ("train", "test")}
    loss = loss or L0CrossEntropy(l0_reg=how.pop("l0_reg", 0.01))
    lines = []
    more = {} if trainer is DefaultTrainer else {"criterion": criterion or EmptyCrit(), "report": lines.append}
    made = trainer(
        network=PrunableNetwork(model, torch.randn(1, 4), loss=loss),
        loss_function=loss,
        train_batches=batches["train"],
        test_batches=batches["test"],
        optimization=Optimization(learning_rate=rate),
        epochs=epochs,
        **more,
        **how,
    )
    made.lines = lines
    return made


def test_log_alpha_is_clamped_after_every_step():
    trainer = make(rate=0.5, gate_rate=20.0, l0_reg=100.0)
    seen = []
    trainer.callbacks.append(lambda t, moment: seen.append(t.gates.log_alpha.detach().clone()))
    trainer.train()
    assert min(float(values.min()) for values in seen) == pytest.approx(math.log(1e-2))
    assert max(float(values.max()) for values in seen) <= math.log(1e2) + 1e-6


def test_the_average_starts_at_zero_and_is_corrected_for_it():
    weight = torch.tensor([3.0, -1.0])
    average, past = Average(lambda: {"weight": weight}, 0.9), []
    for step in range(5):
        weight += torch.tensor([1.0, 0.5]) * step
        past.append(weight.clone())
        average.update()
    slow = sum(0.1 * 0.9 ** (4 - step) * value for step, value in enumerate(past)) / (1 - 0.9**5)
    with average.in_place():
        assert torch.allclose(weight, slow)
    assert torch.equal(weight, past[-1])
    average.take_over()
    assert torch.allclose(weight, slow)
    with pytest.raises(ValueError, match="ema_decay must lie in"):
        Average(dict, 1.0)


def test_evaluation_is_of_the_average_and_training_goes_on_from_the_present():
    trainer = make(epochs=1, ema_decay=0.5)
    past = []
    step = trainer.step

    def noted():
        step()
        past.append({name: tensor.clone() for name, tensor in trainer._learned().items()})

    trainer.step = noted
    trainer.flops_per_sample = 0.0
    trainer.train_epoch()
    now = trainer._learned()
    found = trainer.validate()
    assert all(torch.equal(tensor, past[-1][name]) for name, tensor in now.items()), "nothing moved"
    weights = [0.5 ** (len(past) - number) for number in range(len(past))]
    for name, tensor in now.items():
        mean = sum(weight * state[name] for weight, state in zip(weights, past, strict=True)) / sum(weights)
        tensor.copy_(mean)
    assert found["test_loss"] == pytest.approx(DefaultTrainer.validate(trainer)["test_loss"], rel=1e-5)


def test_gates_close_and_the_folded_network_computes_the_same():
    trainer = make(rate=0.02, epochs=20, ema_decay=0.5, l0_reg=2.0, gate_rate=5.0)
    sparsities = []
    trainer.callbacks.append(
        lambda t, moment: sparsities.append(t.network.node_sparsity()) if moment == "epoch_end" else None
    )
    before = {}
    fold = trainer.gates.fold

    def noted(optimizers):
        before.update(DefaultTrainer.validate(trainer))
        return fold(optimizers)

    trainer.gates.fold = noted
    metrics = trainer.train()
    network = trainer.network
    assert 0 < network.node_sparsity() == sparsities[-1] and sparsities[0] == 0
    assert network.model[0].out_features == len(network.graph.nodes) == network.model[3].in_features < 8
    assert metrics["test_loss"] == pytest.approx(before["test_loss"], rel=1e-5)
    assert metrics["test_accuracy"] == before["test_accuracy"] > 0.9
    assert trainer.lines[0].startswith("8 of 8 nodes have a gate; l0_reg is ") and "gates closed" in trainer.lines[1]


def test_the_loss_decays_weights_in_place_of_the_optimizer():
    assert [group["weight_decay"] for group in make().optimizer.param_groups] == [0.0, 0.0]
    trainer = make(loss=CrossEntropy(), gate_rate=3.0)
    assert [group["weight_decay"] for group in trainer.optimizer.param_groups] == [5e-5, 0.0]
    assert trainer.optimizer.param_groups[1]["lr"] == pytest.approx(3 * trainer.optimizer.param_groups[0]["lr"])


def test_what_does_not_fit_is_one_line():
    with pytest.raises(UsageError, match="SNAP changes shapes or rewinds. EmptyCrit fits"):
        make(criterion=SNAP())
    with pytest.raises(UsageError, match="--train_scheme L0Trainer puts on a network"):
        make(DefaultTrainer, loss=L0CrossEntropy()).train()
    for wrong in ({"l0_reg": -1.0}, {"l0_reg": math.nan}, {"l2_reg": math.inf}):
        with pytest.raises(ValueError, match="must be at least 0"):
            L0CrossEntropy(**wrong)
    with pytest.raises(ValueError, match="gate_rate must be at least 0"):
        make(gate_rate=-1.0)


def test_a_run_from_the_command_line(command):
    strong = ["--l0", "--l0_reg", "30", "--gate_rate", "100", "--ema_decay", "0.5", "--epochs", "9"]
    done = command.quick(*strong, "--limit_batches", "4", "--hidden", "32", "--measure_latency")
    result = done.result
    assert result["status"] == "finished" and result["sparsity_asked"] is None
    assert 0 < result["nodes_left"] < result["nodes_total"] == 128 and 0 < result["weight_sparsity"] < 1
    assert result["flops_per_sample"] < result["flops_per_sample_dense"]
    assert "128 of 128 nodes have a gate" in done.out and "not fixed in advance" in done.out
    state = torch.load(done.folder / "models" / "MLP5_finished", weights_only=True)
    assert sum(mask.numel() for mask in state["masks"].values()) == 0, "what is closed is gone, not masked"
    again = command("--eval", "--checkpoint_name", done.folder.name, "--limit_batches", "4").result
    assert again["test_accuracy"] == pytest.approx(result["test_accuracy"])
    assert again["nodes_left"] == result["nodes_left"]
    line = command.refused("--l0", "--loss", "CrossEntropy")
    assert not lacking(line, "error", "--l0", "--loss L0CrossEntropy", "--loss CrossEntropy")
    assert "contradict each other" in command.refused("--l0", "--hoyer_square")
