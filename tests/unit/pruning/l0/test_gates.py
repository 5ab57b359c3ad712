"""Hard-concrete gates: the paper's numbers, the penalty by its formula, and folding on every kind of network."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from pruning import LayerRules, PrunableNetwork, UsageError
from pruning.l0.gates import NodeGates, deterministic, probability_open, sampled
from pruning.modules.calls import tensors_in
from pruning.modules.modes import look
from tests.support.words import lacking
from tests.support.zoo import NETWORKS
from tests.support.zoo.registry import randomise

# Layers of other kinds read their nodes too, or weights that are computed from others.
WITHOUT = ["Recurrent", "CellByHand", "PackedSequences", "WidthFromInput", "GroupedQuery", "CrossAttention", "Mixture"]
WITHOUT += ["ByFunctions", "SumsTokens", "square_splines", "weight_norm", "spectral_norm"]
GATED = sorted(set(NETWORKS) - set(WITHOUT))
# All nodes of these have a gate.
WHOLE = ["plain", "flattened", "Residual", "OptionA", "Dense", "Unet", "C2f", "SharedTwice", "grouped", "depthwise"]
WHOLE += ["transposed", "InvertedResidual", "Shuffled", "PixelShuffled", "Gated", "group_norm", "RmsNorm", "FrozenNorm"]


def gated(model, inputs, seed=0, **how):
    torch.manual_seed(seed)
    network = PrunableNetwork(randomise(model.double()), inputs)
    return network, NodeGates(network, **how)


def named(name, **how):
    torch.manual_seed(0)
    model, inputs = NETWORKS[name].build(), NETWORKS[name].inputs()
    return gated(model, inputs, **how)


def outputs(network):
    return [t for t in tensors_in(look(network.model, network.example_inputs)) if t.is_floating_point()]


def set_gates(gates, log_alpha):
    with torch.no_grad():
        gates.log_alpha.copy_(log_alpha)


# -- the distribution --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("log_alpha", "gate", "chance"), [(0, 0.5, 0.8318), (2, 0.9570, 0.9734), (-2, 0.0430, 0.4010)])
def test_gates_and_chances(log_alpha, gate, chance):
    value = torch.tensor([float(log_alpha)])
    assert deterministic(value).item() == pytest.approx(gate, abs=1e-4)
    assert probability_open(value).item() == pytest.approx(chance, abs=1e-4)


@pytest.mark.parametrize("log_alpha", [-2.0, 0.0, 2.0])
def test_draws_follow_the_distribution(log_alpha):
    torch.manual_seed(0)
    draws = sampled(torch.full((3,), log_alpha), 100_000).numpy()
    assert draws.shape == (100_000, 3) and draws.min() >= 0 and draws.max() <= 1
    # Written out once more, over an even grid of u instead of draws.
    u = (np.arange(400_000) + 0.5) / 400_000
    s = 1 / (1 + np.exp(-(np.log(u) - np.log(1 - u) + log_alpha) / (2 / 3)))
    expected = np.minimum(1, np.maximum(0, s * 1.2 - 0.1))
    assert (draws != 0).mean() == pytest.approx(probability_open(torch.tensor(log_alpha)).item(), abs=1e-2)
    for power in (1, 2):
        assert (draws**power).mean() == pytest.approx((expected**power).mean(), abs=3e-3)
    assert (draws == 1).mean() == pytest.approx((expected == 1).mean(), abs=5e-3)
    assert np.abs(np.corrcoef(draws.T) - np.eye(3)).max() < 0.02, "each gate is drawn by itself"


def test_the_start_follows_the_droprate():
    model = nn.Sequential(nn.Linear(4, 2000), nn.ReLU(), nn.Linear(2000, 3))
    start = gated(model, torch.randn(1, 4).double(), droprate=0.2)[1].log_alpha.detach()
    assert start.mean().item() == pytest.approx(math.log(4), abs=1e-3)
    assert start.std().item() == pytest.approx(0.01, rel=0.1)
    network = PrunableNetwork(nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3)), torch.randn(1, 4))
    for droprate in (0.0, 1.0, -0.5, math.nan):
        with pytest.raises(ValueError, match="droprate must lie between 0 and 1"):
            NodeGates(network, droprate=droprate)


# -- where gates act ---------------------------------------------------------------------------------------------------


class Residual(nn.Module):
    """A stream with two producers, each behind a batch norm, and two readers."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.branch, self.inner = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.head = nn.Linear(6 * 16, 4)

    def forward(self, x, factors=None):
        factors = 1 if factors is None else factors.view(-1, 6, 1, 1)
        stream = self.norm(self.stem(x)).relu()
        stream = stream + self.inner(self.branch(stream * factors)).relu()
        return self.head((stream * factors).flatten(1))


def test_one_gate_per_node_multiplies_what_all_its_readers_see():
    network, gates = gated(Residual(), torch.randn(2, 3, 4, 4).double())
    assert len(gates.nodes) == 6 == network.nodes_total()
    set_gates(gates, torch.randn(6))
    found = outputs(network)[0]
    factors = deterministic(gates.log_alpha).detach()
    gates.take_off()
    with torch.no_grad():
        assert torch.allclose(found, network.model.eval()(network.example_inputs, factors), rtol=1e-12)


def test_gates_are_drawn_per_batch_or_per_sample_and_learn_behind_batch_norms():
    for per_sample in (False, True):
        network, gates = gated(Residual(), torch.randn(8, 3, 4, 4).double(), per_sample=per_sample)
        network.model.train()
        torch.manual_seed(5)
        found = network.model(network.example_inputs)
        (slopes,) = torch.autograd.grad(found.square().sum(), gates.log_alpha)
        # Some may be drawn as 0 or 1, where they have no slope; before a batch norm none would have any.
        assert (slopes.abs() > 1e-3).sum() > 3
        torch.manual_seed(5)
        drawn = sampled(gates.log_alpha, 8 if per_sample else None).detach()
        gates.take_off()
        with torch.no_grad():
            assert torch.allclose(found, network.model(network.example_inputs, drawn), rtol=1e-9)


def test_one_draw_per_sample_needs_one_row_per_sample():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.down = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x):
            return self.down(self.up(x.flatten(0, 1)).relu()).view(*x.shape[:2], 3).mean(1)

    network, _ = gated(Tokens(), torch.randn(2, 5, 4).double(), per_sample=True)
    with pytest.raises(UsageError, match=r"--local_rep needs .*; down sees \(10, 6\) for 2 samples"):
        network.model.train()(network.example_inputs)


class Unseen(nn.Module):
    """Reads a weight without calling its layer, and multiplies a node with itself."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.three, self.out = nn.Linear(4, 5), nn.Linear(5, 6), nn.Linear(6, 7), nn.Linear(7, 3)

    def forward(self, x):
        x = F.linear(self.one(x).relu(), self.two.weight).relu()
        x = x + 0.01 * (x @ x.mT) @ x
        return self.out(self.three(x).relu())


def test_what_cannot_be_folded_has_no_gate():
    _, gates = gated(Unseen(), torch.randn(2, 5, 4).double())
    assert [reader.path for reader in gates.readers] == ["out"]
    line = "; more than linear and convolutional layers read those of one.weight, two.weight"
    assert gates.describe().startswith("7 of 18 nodes have a gate; l0_reg is ") and gates.describe().endswith(line)


@pytest.mark.parametrize("name", sorted(WITHOUT))
def test_networks_without_a_place_for_gates(name):
    with pytest.raises(UsageError, match="no node that a gate could close"):
        gated(NETWORKS[name].build(), NETWORKS[name].inputs())


@pytest.mark.parametrize("name", WHOLE)
def test_networks_whose_nodes_all_have_a_gate(name):
    network, gates = named(name)
    assert len(gates.nodes) == network.nodes_total()


# -- penalty -----------------------------------------------------------------------------------------------------------


def test_the_penalty_is_the_papers():
    network, gates = gated(Residual(), torch.randn(2, 3, 4, 4).double(), samples=50)
    set_gates(gates, torch.randn(6))
    model, total = network.model, 0.0
    l0_reg, l2_reg = 0.7, 0.03
    for node in range(6):
        chance = 1 / (1 + math.exp(-(gates.log_alpha[node].item() - 2 / 3 * math.log(0.1 / 1.1))))
        columns = [model.branch.weight[:, node], model.head.weight[:, 16 * node : 16 * (node + 1)]]
        for column in columns:
            for weight in column.flatten().tolist():
                total += chance * (l0_reg + 50 * l2_reg / 2 * weight**2) / 50
    ungated = set(model.parameters()) - {model.branch.weight, model.head.weight}
    total += sum(l2_reg / 2 * value**2 for p in ungated for value in p.flatten().tolist())
    assert gates.penalty(l0_reg, l2_reg).item() == pytest.approx(total, rel=1e-12)


def test_by_default_the_penalty_starts_at_a_half():
    for droprate, samples in ((0.5, 50), (0.1, 7)):
        network = PrunableNetwork(Residual().double(), torch.randn(2, 3, 4, 4).double())
        gates = NodeGates(network, droprate=droprate, samples=samples)
        assert gates.penalty(None, 0.0).item() == pytest.approx(0.5, rel=0.02)  # gates start with a little noise
        assert gates.penalty(gates.price, 0.0).item() == gates.penalty(None, 0.0).item()


@pytest.mark.parametrize("name", GATED)
def test_every_weight_is_priced_once_at_most(name):
    network, gates = named(name)
    set_gates(gates, torch.full_like(gates.log_alpha, 40.0))  # surely open
    priced = sum(
        int((r.nodes >= 0).sum()) * network.model.get_parameter(r.name).numel() // len(r.nodes)
        for r in {reader.name: reader for reader in gates.readers}.values()
    )
    assert gates.penalty(1.0, 0.0).item() == pytest.approx(priced)
    assert priced <= network.weights_total()


# -- folding -----------------------------------------------------------------------------------------------------------


# With one channel left torch multiplies that attention in another way, so one more stays than was foretold.
@pytest.mark.parametrize("name", [name for name in GATED if name != "attention_by_hand"])
def test_folding_leaves_the_outputs_as_they_were(name):
    network, gates = named(name)
    set_gates(gates, 4 * torch.randn_like(gates.log_alpha) - 2)
    total = network.nodes_total()
    before = outputs(network)
    gates.note_closed()
    expected = network.weights_left(), network.nodes_left(), network.layer_sparsities()
    assert int(gates.closed.sum()) > 0 or len(gates.nodes) < 7
    gates.fold()
    after = outputs(network)
    for one, other in zip(before, after, strict=True):
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-12)
    assert (network.weights_left(), network.nodes_left(), network.layer_sparsities()) == expected
    assert len(network.graph.nodes) == total - int(gates.gone.sum())
    assert network.gates is None and not network.model._forward_pre_hooks


def test_layers_that_are_skipped_or_frozen_get_no_gate():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 7), nn.ReLU())
    model.append(nn.Linear(7, 3))
    model[0].requires_grad_(False)
    rules = LayerRules(skip="4")
    network = PrunableNetwork(model.double(), torch.randn(7, 4).double(), layer_rules=rules)
    gates = NodeGates(network)
    assert len(gates.nodes) == 5
    set_gates(gates, torch.tensor([-4.0, -4.0, 1.0, 2.0, 3.0]))
    (before,) = outputs(network)
    gates.fold()
    assert (model[0].out_features, model[2].out_features, model[4].out_features) == (6, 3, 7)
    assert torch.allclose(before, outputs(network)[0], rtol=1e-12)


def test_folding_a_torchvision_network():
    torch.manual_seed(0)
    network, gates = gated(torchvision.models.mobilenet_v3_small(num_classes=5), torch.randn(1, 3, 32, 32).double())
    assert len(gates.nodes) == network.nodes_total()
    set_gates(gates, 4 * torch.randn_like(gates.log_alpha) - 2)
    (before,) = outputs(network)
    assert gates.fold().startswith(f"{int(gates.closed.sum()):,} of {len(gates.nodes):,} gates closed, ")
    assert torch.allclose(before, outputs(network)[0], rtol=1e-9, atol=1e-12)
    assert network.node_sparsity() > 0.3


def test_a_layer_of_closed_gates_keeps_its_most_open_one():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    network, gates = gated(model, torch.randn(7, 4).double())
    set_gates(gates, torch.tensor([*[-4.0] * 3, -3.0, -4.0, -4.0, 1.0, -4.0, 2.0, 3.0, -4.0]))
    row = model[0].weight[3].clone()
    (before,) = outputs(network)
    line = gates.fold()
    assert not lacking(line, "8 of 11 gates", "7 of 11 nodes", "1 closed", "no layer is emptied")
    assert (model[0].out_features, model[2].out_features) == (1, 3) and torch.equal(model[0].weight[0], row)
    assert torch.allclose(before, outputs(network)[0], rtol=1e-12)
    assert torch.allclose(before, before[:1].expand_as(before)), "what is left of it is its bias"


def test_where_removal_is_not_exact_columns_are_masked():
    model = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.ReLU(), nn.Linear(6, 3))
    network, gates = gated(model, torch.randn(7, 4).double())
    set_gates(gates, torch.tensor([-4.0, 1.0, -4.0, 2.0, 3.0, -4.0]))
    (before,) = outputs(network)
    assert "0 of 6 nodes removed; 3 closed ones stay: removing them would change" in gates.fold()
    assert torch.allclose(before, outputs(network)[0], rtol=1e-12)
    assert network.masks.keep["3.weight"].any(0).tolist() == [False, True, False, True, True, False]
    assert network.weights_left() == 24 + 9


def test_clamping_and_coming_back_from_disk():
    network, gates = named("Residual")
    set_gates(gates, torch.linspace(-9, 9, len(gates.nodes)))
    gates.clamp()
    assert gates.log_alpha.min().item() == pytest.approx(math.log(1e-2))
    assert gates.log_alpha.max().item() == pytest.approx(math.log(1e2))
    gates.note_closed()
    other, fresh = named("Residual")
    fresh.load_state_dict(gates.state_dict())
    assert torch.equal(fresh.log_alpha, gates.log_alpha) and other.weights_left() == network.weights_left()
    with pytest.raises(ValueError, match="gates are of other nodes"):
        named("plain")[1].load_state_dict(gates.state_dict())
