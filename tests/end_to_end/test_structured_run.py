"""Structured training from the command line: smaller tensors from the first epoch, and everything that goes along."""

import copy
import json
import os
import signal
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn

import main
from losses.SlimmingL1 import SlimmingL1
from models.LeNet5 import LeNet5
from models.MLP5 import MLP5
from pruning import PrunableNetwork, load_pruned
from pruning.cut.plan import PruningPlan
from pruning.measure import flops
from tests.support.tiers import few, thorough
from tests.support.words import lacking
from tests.support.zoo.small import data
from trainers.DefaultTrainer import DefaultTrainer
from utils.callbacks import attach
from utils.files import read_rows
from utils.settings import registry

TINY = ["--data_set", "DIGITS", "--batch_size", "128", "--limit_batches", "2", "--score_batches", "1"]
TINY += ["--device", "cpu", "--no-tensorboard"]
DURING = ["--epochs", "5", "--snip_steps", "1"]  # three events, at the end of epochs 1, 2 and 3


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(attach.Pictures, "draw", lambda *args: None)


@pytest.fixture
def run(command):
    def start(*argv):
        return command(*TINY, *argv)

    start.commands = command
    return start


def finished(folder: Path) -> dict:
    (file,) = (folder / "models").glob("*_finished")
    return torch.load(file, weights_only=True)


def parameters(folder: Path) -> int:
    return sum(tensor.numel() for name, tensor in finished(folder)["state_dict"].items() if tensor.is_floating_point())


# -- tensors that are really smaller --------------------------------------------------------------------------------

RUNS = {
    "MLP5": ["--hidden", "32"],
    "LeNet5": [],
    "ResNet20": ["--width_multiplier", "0.25"],
}


@pytest.mark.parametrize(
    "criterion", few(["SNAPit", "SNAPitDuring", "CNIPit", "EfficientConvNets"], ["SNAPitDuring", "CNIPit"])
)
@pytest.mark.parametrize("model", few(RUNS, ["LeNet5"]))
def test_a_run_ends_smaller_and_says_by_how_much(model, criterion, run, monkeypatch):
    seen, train_epoch = [], DefaultTrainer.train_epoch

    def watch(self):
        seen.append(sum(parameter.numel() for parameter in self.model.parameters()))
        train_epoch(self)

    monkeypatch.setattr(DefaultTrainer, "train_epoch", watch)
    flags = [*RUNS[model], "--prune_criterion", criterion, "--pruning_limit", "0.6", *DURING]
    done = run("--model", model, *flags)
    result, during = done.result, criterion in ("SNAPitDuring", "EfficientConvNets")
    assert result["status"] == "finished" and not result["sparsity_reason"]
    assert result["pruning_events"] == {"EfficientConvNets": 1}.get(criterion, 3)
    dense = seen[0] if during else None
    assert (seen[-1] < dense) if during else (len(set(seen)) == 1)
    if criterion == "CNIPit":
        assert result["target"] == "weights" and result["weights_left"] == round(0.4 * result["weights_total"])
        assert result["nodes_left"] < result["nodes_total"] or model == "LeNet5"
    else:
        assert result["target"] == "nodes"
        assert result["nodes_left"] == int((1 - 0.6) * result["nodes_total"] + 1e-6)
        assert result["weights_left"] < (1 - 0.6) * result["weights_total"]
        assert result["flops_per_sample"] == result["flops_per_sample_nonzero"] < 0.6 * result["flops_per_sample_dense"]
    assert result["training_flops"] < result["training_flops_dense"] or result["nodes_left"] == result["nodes_total"]
    assert result["sparsity_reached"] >= 0.6
    assert parameters(done.folder) * 4 >= result["parameter_bytes"]  # norms' statistics are no parameters
    assert seen[-1] * 4 == result["parameter_bytes"]


def test_the_events_are_told_and_kept(run):
    done = run("--model", "MLP5", "--hidden", "32", "--prune_criterion", "SNAPit", "--pruning_limit", "0.5", *DURING)
    assert "pruned nodes: asked 0.5000, reached 0.5000, 64 nodes and" in done.out
    events = json.loads((done.folder / "output" / "pruning_events.json").read_text())
    assert [event["nodes_left"] for event in events] == [96, 80, 64]


# -- what a user may combine ----------------------------------------------------------------------------------------


@thorough
def test_outer_layer_pruning_changes_nothing_for_nodes_and_one_line_says_so(run):
    flags = ["--model", "MLP5", "--hidden", "32", "--prune_criterion", "SNAPit", "--epochs", "1"]
    flags += ["--pruning_limit", "0.5"]
    plain = run(*flags)
    assert "outer_layer_pruning" not in plain.err
    for switch in ("--outer_layer_pruning", "--no-outer_layer_pruning"):
        done = run(*flags, switch)
        assert done.err.count("warning: --outer_layer_pruning changes nothing") == 1
        assert all(done.result[key] == plain.result[key] for key in ("nodes_left", "weights_left", "test_accuracy"))
    assert "outer_layer_pruning" not in run(*flags[:5], "SNIP", "--epochs", "1", "--outer_layer_pruning").err


@pytest.mark.parametrize("target", few(["weights", "flops"], ["flops"]))
def test_a_limit_can_count_something_else(target, run):
    flags = ["--model", "LeNet5", "--prune_criterion", "SNAPit", "--pruning_limit", "0.7", "--epochs", "1"]
    done = run(*flags, "--target", target)
    assert done.result["target"] == target and 0.7 <= done.result["sparsity_reached"] < 0.75
    if target == "weights":
        assert done.result["sparsity_reached"] == pytest.approx(done.result["weight_sparsity"])
    else:
        ratio = done.result["flops_per_sample"] / done.result["flops_per_sample_dense"]
        assert done.result["sparsity_reached"] == pytest.approx(1 - ratio)


def test_what_cannot_be_combined_is_refused_before_anything_is_written(run):
    flags = [*TINY, "--model", "MLP5", "--hidden", "16", "--epochs", "1"]
    refused = run.commands.refused
    assert "--target flops is for nodes" in refused(*flags, "--prune_criterion", "SNIP", "--target", "flops")
    assert "--target nodes is for nodes" in refused(*flags, "--prune_criterion", "CNIPit", "--target", "nodes")
    assert "round_to must be at least 1" in refused(*flags, "--prune_criterion", "SNAP", "--round_to", "0")


def test_widths_in_multiples(run):
    flags = ["--prune_criterion", "SNAPit", "--pruning_limit", "0.6", "--round_to", "8", "--min_keep", "8"]
    done = run("--model", "MLP5", "--hidden", "64", *flags, "--epochs", "1")
    shapes = [t.shape for t in finished(done.folder)["state_dict"].values() if t.dim() == 2]
    assert all(shape[0] % 8 == 0 for shape in shapes[:-1]) and done.result["nodes_left"] == 96
    assert "widths are multiples of 8" in done.result["sparsity_reason"]


SLIMMING = ["--model", "MLP5", "--hidden", "16", "--prune_criterion", "Slimming", "--epochs", "4"]


def test_slimming_without_norms_is_one_clear_line(run):
    done = run(*SLIMMING, "--no-norm")
    assert done.code == 2
    assert not lacking(done.err, "error", "SlimmingL1", "norm scales", "MLP5")
    done = run(*SLIMMING, "--no-norm", "--loss", "CrossEntropy")
    assert done.code == 2 and "error: Slimming ranks norm scales, and MLP5 has none on its nodes." in done.err


def test_slimming_shrinks_the_scales_and_then_ranks_them(run, monkeypatch):
    penalties, penalty = [], SlimmingL1.penalty

    def watched(value):
        penalties.append(value and value.item())
        return value

    monkeypatch.setattr(SlimmingL1, "penalty", lambda *args: watched(penalty(*args)))
    done = run(*SLIMMING, "--pruning_limit", "0.5", "--slimming_reg", "0.01", "--prune_delay", "1")
    assert done.result["nodes_left"] == 32 and done.result["pruning_events"] == 1
    # Two batches an epoch; 64 scales that start at 1; the event ends epoch 2, of 0 to 3.
    assert penalties[0] == pytest.approx(0.64)
    assert all(later < sooner for sooner, later in pairwise(penalties[:6])) and penalties[6:] == [0, 0]
    scores = [float(row["score"]) for row in read_rows(done.folder / "output" / "score_curve.csv")]
    assert len(set(scores)) > 32, "scales that were alike tell nodes apart"


@pytest.mark.parametrize("control", few(["shuffle", "reinit", "invert"], ["shuffle"]))
@pytest.mark.parametrize("criterion", few(["SNAPit", "CNIPit"], ["SNAPit"]))
def test_controls_keep_the_shapes_and_change_the_rest(criterion, control, run):
    flags = ["--model", "LeNet5", "--prune_criterion", criterion, "--pruning_limit", "0.6", "--epochs", "1"]
    flags += ["--snip_steps", "0", "--score_batches", "2"]
    plain, done = finished(run(*flags).folder), finished(run(*flags, "--mask_control", control).folder)
    assert done["state_dict"].keys() == plain["state_dict"].keys()
    assert not all(torch.equal(done["state_dict"][name], tensor) for name, tensor in plain["state_dict"].items())
    if control == "reinit":
        assert all(t.shape == done["state_dict"][name].shape for name, t in plain["state_dict"].items())
    if control == "shuffle" and criterion == "SNAPit":
        # After one event of two the layers' widths may part ways; nodes in all do not.
        assert sum(len(t) for n, t in done["state_dict"].items() if n.endswith("bias")) == sum(
            len(t) for n, t in plain["state_dict"].items() if n.endswith("bias")
        )


def test_recalibration_measures_norms_anew_after_a_cut(run, monkeypatch):
    from trainers import _pruning

    calls, recalibrate = [], _pruning.recalibrate

    def watch(model, batches):
        norm = next(m for m in model.modules() if isinstance(m, nn.BatchNorm1d))
        before = norm.running_mean.clone()
        recalibrate(model, batches)
        calls.append((len(batches), torch.equal(before, norm.running_mean), norm.momentum))

    monkeypatch.setattr(_pruning, "recalibrate", watch)
    flags = ["--model", "MLP5", "--hidden", "24", "--epochs", "1", "--snip_steps", "0"]
    for criterion in ("SNAPit", "CNIPit"):
        calls.clear()
        assert run(*flags, "--prune_criterion", criterion, "--recalibrate", "2").code == 0
        assert calls == [(2, False, 0.1)] * 2
    calls.clear()
    assert run(*flags[:-2], "--prune_criterion", "SNIP", "--recalibrate", "2").code == 0
    assert not calls


# -- checkpoints ----------------------------------------------------------------------------------------------------

PLAIN = ["--model", "LeNet5", "--epochs", "1"]


def test_a_finished_network_is_trained_on_evaluated_and_pruned_again(run):
    first = run(*PLAIN, "--prune_criterion", "SNAPit", "--pruning_limit", "0.5")
    name = first.folder.name
    evaluated = run(*PLAIN, "--eval", "--checkpoint_name", name)
    for key in ("nodes_left", "nodes_total", "weights_left", "weights_total", "flops_per_sample", "test_accuracy"):
        assert evaluated.result[key] == pytest.approx(first.result[key]), key
    on = run(*PLAIN, "--checkpoint_name", name, "--prune_criterion", "EmptyCrit")
    assert on.result["nodes_left"] == first.result["nodes_left"]
    # The second limit counts from the dense network as well.
    second = run(*PLAIN, "--checkpoint_name", name, "--prune_criterion", "SNAP", "--pruning_limit", "0.8")
    total = first.result["nodes_total"]
    assert second.result["nodes_total"] == total and second.result["nodes_left"] == int(0.2 * total + 1e-6)
    assert second.result["sparsity_reached"] == pytest.approx(1 - second.result["nodes_left"] / total)
    third = run(*PLAIN, "--checkpoint_name", name, "--prune_criterion", "SNAP", "--pruning_limit", "0.3")
    assert third.result["nodes_left"] == first.result["nodes_left"]
    assert "already sparser" in third.result["sparsity_reason"]


@thorough
def test_masks_and_smaller_tensors_together(run):
    first = run(*PLAIN, "--prune_criterion", "SNIP", "--pruning_limit", "0.6")
    start = ["--checkpoint_name", first.folder.name]
    second = run(*PLAIN, *start, "--prune_criterion", "SNAPit", "--pruning_limit", "0.5")
    content = finished(second.folder)
    assert content["masks"] and second.result["nodes_left"] == second.result["nodes_total"] // 2
    left = 0
    for name, mask in content["masks"].items():
        assert mask.shape == content["state_dict"][name].shape
        assert not content["state_dict"][name][~mask].any()
        left += int(mask.sum())
    assert left == second.result["weights_left"] < 0.4 * second.result["weights_total"]
    # Weights again, on the smaller network: still counted from the dense one.
    third = run(*PLAIN, "--checkpoint_name", second.folder.name, "--prune_criterion", "SNIP", "--pruning_limit", "0.9")
    assert third.result["weight_sparsity"] == pytest.approx(0.9, abs=1e-4)
    assert third.result["nodes_left"] == second.result["nodes_left"]


@thorough
def test_one_node_left_in_a_layer_is_still_a_node_after_loading(run):
    flags = ["--model", "MLP5", "--hidden", "16", "--epochs", "1"]
    first = run(*flags, "--prune_criterion", "SNAPit", "--pruning_limit", "0.999")
    assert first.result["nodes_left"] == 4 and first.result["sparsity_reached"] == pytest.approx(60 / 64)
    again = run(*flags, "--checkpoint_name", first.folder.name, "--prune_criterion", "EmptyCrit")
    assert again.result["nodes_left"] == 4 and again.result["nodes_total"] == 64


def test_a_finished_network_is_loaded_without_the_program(run):
    done = run(*PLAIN, "--prune_criterion", "SNAPit", "--pruning_limit", "0.7")
    (file,) = (done.folder / "models").glob("*_finished")
    model = load_pruned(LeNet5(10, (1, 8, 8)), file)
    assert sum(p.numel() for p in model.parameters()) * 4 == done.result["parameter_bytes"]
    network = PrunableNetwork(model, torch.zeros(1, 1, 8, 8))
    report = network.prune(registry.find("criterions", "SNAP")(), data((1, 8, 8), classes=10), sparsity=0.3)
    assert report.reached >= 0.3 and model(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


# -- stopping and going on ------------------------------------------------------------------------------------------

NOT_COMPARED = {"seconds_training", "samples_per_second", "peak_memory_bytes"}
STOPPED = {
    "SNAPitDuring, Adam": ["--prune_criterion", "SNAPitDuring", "--model", "LeNet5"],
    "CNIPitDuring, SGD": ["--prune_criterion", "CNIPitDuring", "--optimizer", "SGD", "--dropout", "0.3"],
    "SNAPit, RMSprop": ["--prune_criterion", "SNAPit", "--optimizer", "RMSPROP", "--lr_schedule", "cosine"],
    "shuffled": ["--prune_criterion", "SNAPitDuring", "--mask_control", "shuffle", "--recalibrate", "1"],
    "to almost nothing": ["--prune_criterion", "SNAPitDuring", "--pruning_limit", "0.99"],
}


def outcome(folder: Path):
    figures = json.loads((folder / "result.json").read_text())
    content = finished(folder)
    tensors = {f"{part}.{n}": t for part in ("state_dict", "masks") for n, t in content[part].items()}
    return {key: value for key, value in figures.items() if key not in NOT_COMPARED}, tensors


@pytest.fixture(scope="module")
def undisturbed():
    """What came of runs that nothing happened to, by name."""
    return {}


@pytest.mark.parametrize("batch", few([1, 5, 8], [5]))
@pytest.mark.parametrize("name", few(STOPPED, ["SNAPitDuring, Adam", "CNIPitDuring, SGD"]))
def test_a_stopped_run_ends_like_an_undisturbed_one(name, batch, run, undisturbed, monkeypatch):
    flags = [*DURING, *STOPPED[name]]
    flags += [] if "--pruning_limit" in flags else ["--pruning_limit", "0.7"]
    flags += [] if "--model" in flags else ["--model", "MLP5", "--hidden", "24"]
    if name not in undisturbed:
        undisturbed[name] = outcome(run(*flags).folder)
    expected = undisturbed[name]
    train_batch, calls = DefaultTrainer.train_batch, iter(range(100))

    def stop(*args):
        if next(calls) == batch:
            os.kill(os.getpid(), signal.SIGINT)
        return train_batch(*args)

    monkeypatch.setattr(DefaultTrainer, "train_batch", stop)
    stopped = run(*flags)
    assert stopped.code == 130
    monkeypatch.setattr(DefaultTrainer, "train_batch", train_batch)
    assert main.main(["--resume", str(stopped.runs[-1]), "--quiet"]) == 0
    figures, tensors = outcome(stopped.runs[-1])
    assert figures == expected[0]
    assert tensors.keys() == expected[1].keys()
    assert all(torch.equal(tensor, expected[1][key]) for key, tensor in tensors.items())


@thorough
def test_killed_within_a_cut(run, monkeypatch):
    flags = [*DURING, "--prune_criterion", "SNAPitDuring", "--pruning_limit", "0.7", "--hidden", "24"]
    expected = outcome(run(*flags).folder)
    execute, calls = PruningPlan.exec, iter(range(9))

    def die(*args, **kwargs):
        if next(calls) == 1:
            raise KeyboardInterrupt
        execute(*args, **kwargs)

    monkeypatch.setattr(PruningPlan, "exec", die)
    stopped = run(*flags)
    assert stopped.code == 130
    monkeypatch.setattr(PruningPlan, "exec", execute)
    assert main.main(["--resume", str(stopped.runs[-1]), "--quiet"]) == 0
    figures, tensors = outcome(stopped.runs[-1])
    assert figures == expected[0] and all(torch.equal(tensor, expected[1][key]) for key, tensor in tensors.items())


# -- training goes on through an event ------------------------------------------------------------------------------

OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9),
    "SGD foreach": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, foreach=True),
    "SGD fused": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, fused=True),
    "Adam": lambda p: torch.optim.Adam(p, 0.01),
    "Adam amsgrad": lambda p: torch.optim.Adam(p, 0.01, amsgrad=True, foreach=True),
    "AdamW fused": lambda p: torch.optim.AdamW(p, 0.01, fused=True),
    "RMSprop": lambda p: torch.optim.RMSprop(p, 0.01, momentum=0.9, centered=True),
    "RMSprop foreach": lambda p: torch.optim.RMSprop(p, 0.01, foreach=True),
}


def trained(make_optimizer):
    torch.manual_seed(0)
    network = PrunableNetwork(LeNet5(10, (1, 8, 8)), torch.zeros(1, 1, 8, 8))
    optimizer = make_optimizer(network.model.parameters())
    for _ in range(3):
        learn(network.model, optimizer)
    return network, optimizer


def learn(model, optimizer):
    x, y = data((1, 8, 8), sizes=(16,), classes=10)[0]
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()


def cut(tensor, survivors):
    for dim, there in survivors.items():
        tensor = tensor.index_select(dim, there.nonzero().flatten())
    return tensor


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("criterion", ["SNAP", "CNIP"])
def test_an_event_leaves_the_optimizers_other_state_bit_equal(criterion, name):
    network, optimizer = trained(OPTIMIZERS[name])
    before = copy.deepcopy(optimizer.state_dict())
    values = {name: parameter.detach().clone() for name, parameter in network.model.named_parameters()}
    objects = list(network.model.parameters())
    batches = data((1, 8, 8), classes=10)
    sparsity = 0.7 if criterion == "SNAP" else 0.97
    network.prune_to(registry.find("criterions", criterion)(), sparsity, batches, optimizers=[optimizer])
    assert all(one is other for one, other in zip(objects, network.model.parameters(), strict=True))
    after, survivors, smaller = optimizer.state_dict(), network.kept_indices(), 0
    assert after["param_groups"] == before["param_groups"]
    for number, (key, parameter) in enumerate(network.model.named_parameters()):
        kept = survivors.get(key, {})
        smaller += bool(kept)
        mask = network.masks.of(key, parameter)
        assert torch.equal(parameter.detach(), cut(values[key], kept) * mask), key
        assert before["state"][number].keys() == after["state"][number].keys()
        for what, value in before["state"][number].items():
            now = after["state"][number][what]
            assert torch.equal(now, cut(value, kept) if value.dim() else value), (key, what)
    assert smaller >= 5
    learn(network.model, optimizer)
    learn(network.model, optimizer)


def test_hooks_and_retained_graphs_stay_alive():
    network, optimizer = trained(OPTIMIZERS["Adam"])
    model, (x, y) = network.model, data((1, 8, 8), sizes=(8,), classes=10)[0]
    shapes = []
    handles = [p.register_hook(lambda gradient: shapes.append(gradient.shape)) for p in model.parameters()]
    handles += [p.register_post_accumulate_grad_hook(lambda p: shapes.append(p.shape)) for p in model.parameters()]
    loss = nn.functional.cross_entropy(model(x), y)
    loss.backward(retain_graph=True)
    network.prune_to(registry.find("criterions", "SNAP")(), 0.6, [(x, y)], optimizers=[optimizer])
    assert all(p.grad is None or p.grad.shape == p.shape for p in model.parameters())
    shapes.clear()
    learn(model, optimizer)
    assert sorted(map(tuple, shapes)) == sorted([tuple(p.shape) for p in model.parameters()] * 2)
    assert loss.grad_fn is not None
    for handle in handles:
        handle.remove()


def test_what_a_method_rewinds_to_is_cut_along(run, tmp_path):
    """A criterion of nodes that rewinds: weights, norms and the optimizer's memory must fit the shapes of today."""
    folder = tmp_path / "mine" / "criterions"
    folder.mkdir(parents=True)
    (folder / "Ticket.py").write_text(
        "from criterions.SNAPitDuring import SNAPitDuring\n\n\nclass Ticket(SNAPitDuring):\n"
        '    """SNAP-it that goes back to the first epoch after each event."""\n\n    rewind_epoch = 0\n'
    )
    flags = ["--plugin_dir", str(tmp_path / "mine"), "--prune_criterion", "Ticket", *DURING, "--pruning_limit", "0.7"]
    for optimizer in ("ADAM", "SGD"):
        done = run(*flags, "--model", "MLP5", "--hidden", "24", "--optimizer", optimizer)
        assert done.code == 0, done.err
        assert done.result["status"] == "finished" and done.result["sparsity_reached"] >= 0.7


# -- a network of the user's own ------------------------------------------------------------------------------------


class TwoSides(nn.Module):
    """Two inputs by keyword, a dict as result."""

    def __init__(self):
        super().__init__()
        self.left, self.right, self.head = nn.Linear(5, 12), nn.Linear(3, 12), nn.Linear(12, 4)

    def forward(self, left, right):
        return {"scores": self.head(torch.relu(self.left(left) + self.right(right)))}


@pytest.mark.parametrize("inputs", [dict, tuple])
@pytest.mark.parametrize("name", ["SNAPit", "CNIPit", "GroupMagnitude", "FPGM", "StructuredRandom", "Taylor"])
def test_inputs_of_any_kind(name, inputs):
    torch.manual_seed(0)
    pairs = {"left": torch.randn(6, 5), "right": torch.randn(6, 3)}
    example = pairs if inputs is dict else tuple(pairs.values())
    network = PrunableNetwork(TwoSides(), example, loss=lambda out, y: nn.functional.cross_entropy(out["scores"], y))
    report = network.prune(registry.find("criterions", name)(), [(example, torch.arange(6) % 4)], keep_ratio=0.5)
    assert report.reached == pytest.approx(0.5, abs=0.01)
    assert network.model(**pairs)["scores"].shape == (6, 4)
    assert network.flops() < network.start_flops()
    if name != "CNIPit":
        assert network.model.left.out_features == network.model.right.out_features == 6


def test_size_and_flops_count_what_is_neither_masked_nor_gone():
    network = PrunableNetwork(MLP5(10, (1, 8, 8), hidden=20, norm=False), torch.zeros(1, 1, 8, 8))
    network.prune(registry.find("criterions", "EfficientConvNets")(), sparsity=0.5)
    network.prune(registry.find("criterions", "SNIP")(), data((1, 8, 8), classes=10), sparsity=0.9)
    weights = [10 * 64, 100, 100, 100, 100]
    total = 20 * 64 + 3 * 400 + 200
    assert [p.numel() for p in network.prunable().values()] == weights
    assert network.weights_left() == total - round(0.9 * total)
    assert network.size() == network.weights_left() + 4 * 10 + 10
    assert network.flops(masked=True) == 2 * sum(weights)
    assert network.flops() == pytest.approx(2 * network.weights_left())
    assert flops.parameter_bytes(network.model) == 4 * (sum(weights) + 50)
