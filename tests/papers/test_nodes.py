"""Node criteria: every score against loops over layers coupled by hand, every selection against a plain sort."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations

from criterions.CNIP import CNIP
from criterions.CNIPit import CNIPit
from criterions.EfficientConvNets import EfficientConvNets
from criterions.SNAP import SNAP
from criterions.SNAPit import SNAPit
from criterions.StructuredRandom import StructuredRandom
from models import VGG16 as vgg16
from models.MLP5 import MLP5
from pruning import NodeCriterion, NodeRules, PrunableNetwork, UsageError
from tests.support import slow_reference
from tests.support import slow_reference_nodes as slow
from tests.support.tiers import few, thorough
from tests.support.words import lacking
from tests.support.zoo.by_hand import BY_HAND, in_groups, node_numbers
from tests.support.zoo.small import build, data, mlp
from utils.settings import registry

NODE_NAMES = [n for n in registry.names("criterions") if issubclass(registry.find("criterions", n), NodeCriterion)]
SLOW = {
    "SNAP": lambda model, batches, groups: slow.snap(model, batches, groups),
    "SNAPit": lambda model, batches, groups: slow.snap(model, batches, groups),
    "SNAPitDuring": lambda model, batches, groups: slow.snap(model, batches, groups),
    "Taylor": lambda model, batches, groups: slow.taylor(model, batches, groups),
    "EfficientConvNets": lambda model, batches, groups: slow.filter_norms(model, groups),
    "GroupMagnitude": lambda model, batches, groups: slow.group_norms(model, groups),
    "GroupHoyerSquare": lambda model, batches, groups: slow.group_hoyer(model, groups),
    "GateDecorators": lambda model, batches, groups: slow.gate_decorators(model, batches, groups),
    "Slimming": lambda model, batches, groups: slow.slimming(model, groups),
    "FPGM": lambda model, batches, groups: slow.fpgm(model, groups),
}
HAVE_NORMS = [name for name, case in BY_HAND.items() if any(group.norms for group in case.groups)]


def make(name):
    return registry.find("criterions", name)()


def close(one, other, rtol=1e-4):
    pairs = zip(one, other, strict=True)
    return all(torch.allclose(a, b, rtol=rtol, atol=rtol * float(b.abs().max())) for a, b in pairs)


# -- scores ---------------------------------------------------------------------------------------------------------


def test_the_slow_counterparts_are_of_criteria_that_are_there():
    """Others have theirs in test_provable.py and test_compared.py; what a new one must do stands in tests/contract."""
    assert set(SLOW) <= set(NODE_NAMES)


@pytest.mark.parametrize("kind", BY_HAND)
@pytest.mark.parametrize("name", SLOW)
def test_the_score_is_the_papers(name, kind):
    case = BY_HAND[kind]
    network = case.network()
    numbers = node_numbers(network, case.groups)
    if name == "Slimming" and kind not in HAVE_NORMS:
        with pytest.raises(UsageError, match="Slimming ranks norm scales, and Attention has none"):
            make(name).node_scores(network, ())
        return
    expected = SLOW[name](network.model, case.batches(), case.groups)
    assert close(in_groups(make(name).node_scores(network, case.batches()), numbers), expected)


@pytest.mark.parametrize("kind", BY_HAND)
def test_real_gates_agree_with_scaling_the_slices(kind):
    case = BY_HAND[kind]
    model = build(case.maker, dtype=torch.float64)
    gates = slow.gate_slopes(model, case.batches(), case.groups)
    assert close(gates, slow.gate_differences(model, case.batches(), case.groups), rtol=1e-6)


MUTATIONS = {
    "no biases": lambda network, batches: producers(network, batches, lambda name: not name.endswith("bias")),
    "abs before the sum": lambda network, batches: producers(network, batches, lambda name: True, torch.abs),
    "squares": lambda network, batches: producers(network, batches, lambda name: True, torch.square),
    "gradients without weights": lambda network, batches: producers(network, batches, lambda name: True, None),
    "only the first batch": lambda network, batches: SNAP().node_scores(network, batches[:1]),
    "columns instead of rows": lambda network, batches: producers(network, batches, lambda name: True, role="consumer"),
}


def producers(network, batches, chosen, change=lambda product: product, role="producer"):
    """SNAP's formula with something else in one place."""
    model = copy.deepcopy(network.model).eval()
    loss = torch.stack([nn.functional.cross_entropy(model(x), y) for x, y in batches]).mean()
    weights = {name: weight for name, weight in model.named_parameters() if chosen(name)}
    slopes = zip(weights.items(), torch.autograd.grad(loss, list(weights.values())), strict=True)
    products = {name: g if change is None else change(w * g) for (name, w), g in slopes}
    return network.graph.reduce_to_nodes(products, role=role).abs()


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_changed_formula_would_be_noticed(mutation):
    case = BY_HAND["residual"]
    network = case.network()
    numbers = node_numbers(network, case.groups)
    expected = slow.snap(network.model, case.batches(), case.groups)
    right = producers(network, case.batches(), lambda name: True)
    assert close(in_groups(right, numbers), expected)
    assert not close(in_groups(MUTATIONS[mutation](network, case.batches()), numbers), expected, rtol=1e-2)


def test_snap_equals_the_gates_of_the_reference_on_plain_networks():
    """Acceptance test 3: linear and convolution, rtol 1e-5, biases inside the gate."""
    for kind in ("plain", "dense"):
        case = BY_HAND[kind]
        network = case.network(torch.float64)
        numbers = node_numbers(network, case.groups)
        gates = slow_reference.snap_gates(network.model, case.batches())
        expected = [gates[f"{next(iter(group.producers))}.weight"] for group in case.groups]
        assert close(in_groups(SNAP().node_scores(network, case.batches(torch.float64)), numbers), expected, rtol=1e-5)


def test_a_gate_before_a_norm_in_training_mode_says_nothing_and_snap_is_not_fooled():
    """Acceptance test 4."""
    case = BY_HAND["plain"]
    network = case.network(torch.float64)
    network.model.train()
    batches = case.batches(torch.float64)
    before = slow_reference.snap_gates(network.model, batches, modules=["0"], train=True)["0.weight"]
    behind = slow_reference.snap_gates(network.model, batches, modules=["1"], train=True)["1.weight"]
    scores = in_groups(SNAP().node_scores(network, batches), node_numbers(network, case.groups))[0]
    assert before.max() < 1e-4 * behind.max()
    assert scores.max() > 100 * before.max()


REPARAMETRISED = {
    "weight_norm": parametrizations.weight_norm,
    "weight_norm_of_old": torch.nn.utils.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "spectral_norm_of_old": torch.nn.utils.spectral_norm,
}


class Standardised(nn.Conv2d):
    """Each filter is brought to mean 0 and deviation 1 before use: w dL/dw sums to nothing."""

    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(x, weight / weight.std((1, 2, 3), keepdim=True), self.bias)


# The older weight norm leaves a weight behind that no model can be copied with, and the slow reference copies.
COPIED = [kind for kind in REPARAMETRISED if kind != "weight_norm_of_old"]


@pytest.mark.parametrize("kind", [*COPIED, "standardised"])
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_where_the_weight_is_computed_a_real_gate_is_put_in(kind):
    def maker():
        first = Standardised(2, 5, 3) if kind == "standardised" else REPARAMETRISED[kind](nn.Conv2d(2, 5, 3))
        return nn.Sequential(first, nn.ReLU(), nn.Flatten(), nn.Linear(5 * 9, 4))

    network = PrunableNetwork(build(maker, dtype=torch.float64), torch.zeros(1, 2, 5, 5, dtype=torch.float64))
    batches = data((2, 5, 5), dtype=torch.float64)
    expected = slow.snap(network.model, batches, [slow.Group({"0": slow.each(5)})])
    assert close([SNAP().node_scores(network, batches)], expected, rtol=1e-6)
    assert not network.model[0]._forward_hooks, "the gate must not stay"
    if kind in REPARAMETRISED:
        weight = network.model[0].weight.detach().abs().sum((1, 2, 3))
        assert torch.allclose(EfficientConvNets().node_scores(network, ()), weight)


def test_half_precision_is_widened_before_sums():
    model = nn.Sequential(nn.Linear(4096, 3), nn.Linear(3, 2)).bfloat16()
    network = PrunableNetwork(model, torch.zeros(1, 4096).bfloat16())
    exact = network.model[0].weight.double().abs().sum(1)
    assert torch.allclose(EfficientConvNets().node_scores(network, ()).double(), exact, rtol=1e-4)


@pytest.mark.parametrize("kind", BY_HAND)
def test_joint_scores_are_elasticities_of_one_pass(kind):
    case = BY_HAND[kind]
    network = case.network()
    numbers = node_numbers(network, case.groups)
    weights, nodes = CNIP().joint_scores(network, case.batches())
    expected_weights, expected_nodes = slow.elasticities(network.model, case.batches(), case.groups)
    assert close(in_groups(nodes, numbers), expected_nodes)
    slow_reference.assert_same(weights, {name: expected_weights[name] for name in weights})


def test_random_nodes_come_from_the_seed_alone():
    network = BY_HAND["plain"].network()
    first, again, other = (StructuredRandom(seed=s).node_scores(network, ()) for s in (1, 1, 2))
    torch.manual_seed(0)
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize("name", ["SNAP", "Taylor", "GateDecorators", "CNIP"])
def test_no_signal_and_no_data_are_clear_errors(name):
    score = "joint_scores" if name == "CNIP" else "node_scores"
    network = BY_HAND["plain"].network()
    with pytest.raises(UsageError, match="no batches"):
        getattr(make(name), score)(network, [])
    nn.init.zeros_(network.model[7].weight)
    nn.init.zeros_(network.model[7].bias)
    nn.init.zeros_(network.model[5].weight)
    with pytest.raises(UsageError, match="zero"):
        getattr(make(name), score)(network, BY_HAND["plain"].batches())


# -- what an event removes ------------------------------------------------------------------------------------------


class Given(NodeCriterion):
    """Scores that a test writes down."""

    needs_data = False

    def __init__(self, scores):
        self.scores = torch.as_tensor(scores, dtype=torch.float64)

    def node_scores(self, network, batches):
        return self.scores


@pytest.mark.parametrize("sparsity", few([0.2, 0.5, 0.8], [0.5]))
@pytest.mark.parametrize("kind", BY_HAND)
def test_the_worst_nodes_go_and_nothing_else(kind, sparsity):
    case = BY_HAND[kind]
    network = case.network(node_rules=NodeRules(min_keep=2))
    numbers = node_numbers(network, case.groups)
    dense = copy.deepcopy(network.model)
    scores = in_groups(SNAP().node_scores(network, case.batches()), numbers)
    total = sum(map(len, case.groups))
    kept = slow.keep_nodes(scores, int((1 - sparsity) * total + 1e-9), least=2)
    report = network.prune(SNAP(), case.batches(), sparsity=sparsity)
    assert report.steps[-1].nodes_left == sum(map(len, kept)) == len(network.graph.nodes)
    for group, nodes in zip(case.groups, kept, strict=True):
        for path, rows in group.producers.items():
            left = sorted(index for node in nodes for index in rows[node])
            small = network.model.get_submodule(path).weight
            expected = dense.get_submodule(path).weight[left]
            assert small.shape[0] == len(left)
            # Columns may have gone as well: what is left of each row is part of it, in order.
            assert small.flatten(1).shape[1] <= expected.flatten(1).shape[1]
            bias = network.model.get_submodule(path).bias
            assert bias is None or torch.equal(bias, dense.get_submodule(path).bias[left])


@pytest.mark.parametrize("kind", [name for name in BY_HAND if name != "attention"])
def test_the_smaller_network_equals_the_masked_one(kind):
    """Acceptance test 10, through a whole event: zeroed channels, shifts of norms included."""
    case = BY_HAND[kind]
    network = case.network(torch.float64)
    numbers, masked = node_numbers(network, case.groups), copy.deepcopy(network.model).eval()
    scores = in_groups(SNAP().node_scores(network, case.batches(torch.float64)), numbers)
    total = sum(map(len, case.groups))
    kept = slow.keep_nodes(scores, total - total // 2)
    network.prune(SNAP(), case.batches(torch.float64), sparsity=(total // 2) / total)
    with torch.no_grad():
        for group, nodes in zip(case.groups, kept, strict=True):
            gone = sorted(set(range(len(group))) - nodes)
            for path, rows in [*group.producers.items(), *group.norms.items()]:
                layer = masked.get_submodule(path)
                for tensor in filter(lambda t: t is not None, (layer.weight, layer.bias)):
                    tensor[[index for node in gone for index in rows[node]]] = 0
    x = case.batches(torch.float64)[1][0]
    assert torch.allclose(network.model.eval()(x), masked(x), rtol=1e-9, atol=1e-12)


@given(st.lists(st.sampled_from([0.0, 1.0, 2.0]), min_size=128, max_size=128), st.floats(0.01, 0.99))
@settings(max_examples=25, deadline=None)
def test_ties_are_spread_over_the_layers_and_the_count_is_exact(scores, sparsity):
    network = PrunableNetwork(MLP5(4, (1, 2, 3), hidden=32), torch.zeros(1, 1, 2, 3))
    step = network.prune_to(Given(scores), sparsity)
    asked = int((1 - sparsity) * 128 + 1e-6)
    wanted = max(4, asked)
    assert step.nodes_left == wanted and bool(step.reason) == (asked < 4)
    kept = slow.keep_nodes(list(torch.tensor(scores).view(4, 32)), wanted)
    alive = network.kept_indices()
    for layer, nodes in enumerate(kept):
        name = [n for n, p in network.model.named_parameters() if p.dim() == 2][layer]
        mask = alive.get(name, {}).get(0, torch.ones(32, dtype=torch.bool))
        assert set(mask.nonzero().flatten().tolist()) == nodes


@thorough
def test_vgg16_passes_through_the_counts_of_the_specification(monkeypatch):
    """Acceptance test 11, with every score computed for real."""
    monkeypatch.setattr(nn.init, "orthogonal_", lambda tensor, gain=1.0: tensor)  # ten seconds of decompositions
    network = PrunableNetwork(vgg16.VGG16(10, (3, 32, 32)), torch.zeros(1, 3, 32, 32))
    assert network.nodes_total() == 12_928
    report = network.prune(SNAPit(), data((3, 32, 32), sizes=(2,)), sparsity=0.93)
    assert [step.nodes_left for step in report.steps] == [6464, 3684, 2294, 1599, 1252, 1078, 904]
    assert report.reached == pytest.approx(0.93007, abs=1e-5) and not any(step.reason for step in report.steps)
    assert sum(p.numel() for n, p in network.model.named_parameters()) < 0.02 * 50_665_152


def test_a_limit_beyond_one_node_a_layer_stops_there_and_says_so():
    """Acceptance test 12."""
    network = PrunableNetwork(MLP5(10, (1, 8, 8), hidden=64), torch.zeros(1, 1, 8, 8))
    report = network.prune(SNAPit(), data((1, 8, 8)), sparsity=0.999)
    assert report.steps[-1].nodes_left == 4
    assert report.reached == pytest.approx(0.984375)
    assert not lacking(report.steps[-1].reason, "4 nodes", "instead of 0", "no layer is emptied")
    assert network.model(torch.zeros(3, 1, 8, 8)).shape == (3, 10)


@pytest.mark.parametrize("name", [name for name in NODE_NAMES if make(name).threshold is None])
@pytest.mark.parametrize("limit", few([0.3, 0.77, 0.93], [0.77]))
def test_no_event_passes_its_target_by_more_than_the_rounding_of_one_node(name, limit):
    if name == "Slimming":
        network = BY_HAND["residual"].network(torch.float64)
    else:
        model = build(lambda: MLP5(4, (1, 2, 3), hidden=33), dtype=torch.float64)
        network = PrunableNetwork(model, torch.zeros(1, 1, 2, 3).double())
    shape = network.example_inputs.shape[1:]
    total = network.nodes_total()
    report = network.prune(make(name), data(tuple(shape), dtype=torch.float64), sparsity=limit)
    one = 1 / total if report.unit == "nodes" else 2 * 33 / network.weights_total()
    for step in report.steps:
        assert 0 <= step.reached - step.asked < one or step.reason


def test_a_target_behind_the_network_is_left_alone():
    network = BY_HAND["plain"].network()
    network.prune_to(EfficientConvNets(), 0.5)
    before = [p.clone() for p in network.model.parameters()]
    step = network.prune_to(EfficientConvNets(), 0.2)
    assert step.reason == "the network is already sparser than that" and step.removed == 0
    again = network.prune_to(EfficientConvNets(), 0.5)
    assert not again.reason and again.removed == 0
    assert all(torch.equal(one, other) for one, other in zip(before, network.model.parameters(), strict=True))


def test_scores_that_make_no_sense_change_nothing():
    network = BY_HAND["plain"].network()
    before = [p.clone() for p in network.model.parameters()]
    for scores, message in [
        (torch.zeros(3), "scores of shape"),
        (torch.full((11,), torch.nan), "is not finite"),
        (torch.zeros(11, dtype=torch.complex64), "complex"),
    ]:
        criterion = Given(torch.zeros(11))
        criterion.scores = scores
        with pytest.raises(UsageError, match=message):
            network.prune_to(criterion, 0.5)
    assert all(torch.equal(one, other) for one, other in zip(before, network.model.parameters(), strict=True))


def test_a_network_without_nodes_is_refused():
    network = PrunableNetwork(nn.Sequential(nn.Flatten(), nn.Linear(6, 4)), torch.zeros(1, 2, 3))
    with pytest.raises(UsageError, match="Sequential has no node that could go"):
        network.prune(SNAP(), data((2, 3)), sparsity=0.5)


# -- rules of the user ----------------------------------------------------------------------------------------------


def widths(network):
    return [m.out_features for m in network.model.modules() if isinstance(m, nn.Linear)][:-1]


def four_by_32(**rules):
    torch.manual_seed(0)
    return PrunableNetwork(MLP5(10, (1, 8, 8), hidden=32), torch.zeros(1, 1, 8, 8), node_rules=NodeRules(**rules))


def test_local_ranking_takes_the_same_share_of_every_layer_and_global_does_not():
    layered = torch.arange(128.0)  # the first layers have the smallest scores
    for ranking, expected in (("local", [13, 13, 13, 12]), ("global", [1, 1, 17, 32])):
        network = four_by_32(ranking=ranking)
        assert network.prune_to(Given(layered), 0.6).nodes_left == 51
        assert widths(network) == expected


def test_the_users_ranking_wins_over_the_criterions():
    assert StructuredRandom.ranking == EfficientConvNets.ranking == "local"
    network = four_by_32(ranking="global")
    network.prune_to(StructuredRandom(), 0.5)
    assert len(set(widths(network))) > 1
    network = four_by_32()
    network.prune_to(StructuredRandom(), 0.5)
    assert widths(network) == [16] * 4


@given(st.floats(0.05, 0.97), st.booleans(), st.sampled_from([4, 8, 16]), st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_rounded_widths(sparsity, local, round_to, seed):
    network = four_by_32(round_to=round_to, ranking="local" if local else "global")
    scores = torch.rand(128, generator=torch.Generator().manual_seed(seed))
    step = network.prune_to(Given(scores), sparsity)
    wanted = int((1 - sparsity) * 128 + 1e-6)
    assert all(width % round_to == 0 and width for width in widths(network))
    # As many as fit under what was asked, and at least one multiple per layer.
    assert step.nodes_left == max(wanted // round_to * round_to, 4 * round_to)
    assert ("widths are multiples" in step.reason) == (step.nodes_left != wanted)


def test_rounding_counts_channels_not_nodes():
    """A node of this grouped convolution is two channels, so widths of 4 are two nodes."""
    network = BY_HAND["grouped"].network(node_rules=NodeRules(round_to=4, ranking="local"))
    network.prune_to(EfficientConvNets(), 0.5)
    assert network.model.stem.out_channels % 4 == 0 and network.model.groups.out_channels in (4, 6)
    assert network.model.stem.out_channels == 4


def test_every_layer_keeps_at_least_as_many_as_asked():
    network = four_by_32(min_keep=5)
    step = network.prune_to(Given(torch.arange(128.0)), 0.9)
    assert widths(network) == [5] * 4
    assert not lacking(step.reason, "20 nodes", "instead of 12", "keeps 5")
    network = four_by_32(min_keep=5)
    assert not network.prune_to(Given(torch.arange(128.0)), 0.7).reason
    assert widths(network) == [5, 5, 5, 23]


@pytest.mark.parametrize("rules", [{"min_keep": 0}, {"round_to": -8}])
def test_impossible_rules_are_refused(rules):
    with pytest.raises(UsageError, match="must be at least 1"):
        NodeRules(**rules)


@pytest.mark.parametrize("round_to", few([1, 2], [1]))
@pytest.mark.parametrize("ranking", few(["global", "local"], ["global"]))
@pytest.mark.parametrize("target", ["weights", "flops"])
@pytest.mark.parametrize("kind", ["mlp", "attention"])
def test_a_limit_on_weights_or_flops_is_met_with_as_few_nodes_as_possible(kind, target, ranking, round_to):
    rules = NodeRules(counted=target, ranking=ranking, round_to=round_to)
    network = four_by_32() if kind == "mlp" else BY_HAND[kind].network()
    network.node_rules = rules
    scores = torch.rand(network.nodes_total(), generator=torch.Generator().manual_seed(0))
    step = network.prune_to(Given(scores), 0.6)
    assert step.reached >= 0.6 and step.reached == network.reached(target)
    why = "widths are multiples of 2" if round_to == 2 else "with one node more it would be less"
    assert step.reason.endswith(why) if step.reached > 0.605 else not step.reason
    if round_to == 1:
        # With one node more the limit would not have been met.
        fewer = four_by_32() if kind == "mlp" else BY_HAND[kind].network()
        fewer.node_rules = NodeRules(ranking=ranking)
        total = fewer.nodes_total()
        fewer.prune_to(Given(scores), 1 - (step.nodes_left + 1) / total)
        assert len(fewer.graph.nodes) == step.nodes_left + 1
        assert fewer.reached(target) < 0.6


def test_weights_that_are_masked_count_as_gone():
    network = four_by_32(counted="weights")
    network.prune(make("SNIP"), data((1, 8, 8)), sparsity=0.5)
    assert network.reached("weights") == pytest.approx(0.5, abs=1e-4)
    step = network.prune_to(SNAP(), 0.8, data((1, 8, 8)))
    assert 0.8 <= step.reached < 0.84
    assert step.reached == pytest.approx(1 - network.weights_left() / network.weights_total())
    assert all(mask.shape == network.model.get_parameter(name).shape for name, mask in network.masks.keep.items())


def test_a_limit_on_flops_that_cannot_be_reached_says_so():
    network = four_by_32(counted="flops")
    step = network.prune_to(Given(torch.arange(128.0)), 0.999)
    assert widths(network) == [1] * 4
    assert "of the flops went instead of 0.9990: no layer is emptied" in step.reason


def test_a_limit_on_latency_removes_nodes_until_the_clock_agrees(monkeypatch):
    """Time itself is never measured in a test: the clock here counts weights."""

    def latency(model, inputs):
        return sum(p.numel() for p in model.parameters()) / 1e6

    monkeypatch.setattr("pruning.prune.limit.latency", latency)
    monkeypatch.setattr("pruning.state.latency", latency)
    network = four_by_32(counted="latency")
    step = network.prune_to(Given(torch.arange(128.0)), 0.5)
    assert 0.5 <= step.reached < 0.55 and not step.reason
    again = network.prune_to(Given(torch.arange(float(step.nodes_left))), 0.4)
    assert again.reason == "the network is already sparser than that"


def test_a_weight_criterion_has_no_other_target_and_neither_has_cnip():
    for name in ("SNIP", "CNIP"):
        network = four_by_32(counted="flops")
        with pytest.raises(UsageError, match="its limit counts weights; --target flops is for nodes"):
            network.prune(make(name), data((1, 8, 8)), sparsity=0.5)


class Particular(nn.Module):
    """Its own code takes only some widths of `first`, which nobody can know before trying."""

    def __init__(self, allowed):
        super().__init__()
        self.first, self.second, self.third = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 4)
        self.allowed = allowed

    def forward(self, x):
        x = torch.relu(self.first(x))
        if not self.allowed(x.shape[1]):
            raise RuntimeError(f"a width of {x.shape[1]} does not suit me")
        return self.third(torch.relu(self.second(x)))


def particular(least):
    torch.manual_seed(0)
    return PrunableNetwork(Particular(lambda width: width >= least), torch.zeros(2, 6))


@pytest.mark.parametrize("invert", [False, True])
def test_where_one_node_of_a_layer_fails_two_of_every_layer_are_tried(invert):
    network = particular(least=2)
    step = network.prune_to(Given(torch.arange(32.0)), 0.5, invert=invert)  # asks for all but one of a layer
    assert step.nodes_left == 16 and not step.reason
    widths_left = [network.model.first.out_features, network.model.second.out_features]
    assert widths_left == ([15, 1] if invert else [2, 14])  # it is the first layer that fails
    assert network.model(torch.zeros(3, 6)).shape == (3, 4)


def test_fewer_than_two_of_every_layer_are_reported_with_the_reason():
    network = particular(least=2)
    step = network.prune_to(Given(torch.arange(32.0)), 0.95)
    assert (network.model.first.out_features, network.model.second.out_features) == (2, 2)
    assert step.reason.startswith("4 nodes stay instead of 1: every layer keeps 2")
    assert "a width of 1 does not suit me" in step.reason


def test_a_plan_that_cannot_be_carried_out_is_one_error_and_changes_nothing():
    network = particular(least=8)
    optimizer = torch.optim.SGD(network.model.parameters(), lr=0.1, momentum=0.9)
    network.model(torch.ones(2, 6)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    before = {name: value.clone() for name, value in network.model.state_dict().items()}
    told = []

    class Telling(Given):
        def before_cut(self, network, keep):
            told.append(keep)

    with pytest.raises(UsageError, match="cannot be removed.*a width of 1 does not suit me.*second") as error:
        network.prune_to(Telling(torch.arange(32.0)), 0.5, optimizers=[optimizer])
    assert "\n" not in str(error.value) and not told
    state = network.model.state_dict()
    assert all(torch.equal(value, before[name]) for name, value in state.items())
    assert optimizer.state[network.model.first.weight]["momentum_buffer"].shape == (16, 6)
    assert len(network.graph.nodes) == 32 and network.node_sparsity() == 0
    network.prune_to(Given(torch.arange(32.0).flip(0)), 0.5)  # what it can do, it still does
    assert network.model.first.out_features == 15


# -- weights and nodes together -------------------------------------------------------------------------------------


@pytest.mark.parametrize("sparsity", few([0.3, 0.6, 0.9], [0.6]))
@pytest.mark.parametrize("kind", ["plain", "dense", "residual", "concatenated"])
def test_cnip_equals_trying_every_threshold(kind, sparsity):
    case = BY_HAND[kind]
    network = case.network(torch.float64)
    numbers = node_numbers(network, case.groups)
    weights, nodes = CNIP().joint_scores(network, case.batches(torch.float64))
    total = network.weights_total()
    gone, masks = slow.joint_selection(weights, in_groups(nodes, numbers), case.groups, total - round(sparsity * total))
    network.prune(CNIP(), case.batches(torch.float64), sparsity=sparsity)
    assert len(network.graph.nodes) == sum(map(len, case.groups)) - sum(map(len, gone))
    alive = network.kept_indices()
    for name, mask in masks.items():
        small = mask
        for dim, there in alive.get(name, {}).items():
            small = small.index_select(dim, there.nonzero().flatten())
        assert torch.equal(network.masks.of(name, network.model.get_parameter(name)), small), name


@pytest.mark.parametrize("name", ["CNIP", "CNIPit"])
@pytest.mark.parametrize("kind", few(BY_HAND, ["residual", "attention"]))
def test_cnip_reaches_the_weight_sparsity_to_the_weight(kind, name):
    case = BY_HAND[kind]
    for sparsity in (0.25, 0.5, 0.8):
        network = case.network()
        report = network.prune(make(name), case.batches(), sparsity=sparsity)
        total = network.weights_total()
        assert network.weights_left() == total - round(sparsity * total)
        assert not any(step.reason for step in report.steps)
        zeros = sum(int((weight != 0).sum()) for weight in network.prunable().values())
        assert zeros == network.weights_left()


def test_cnip_takes_nodes_and_weights_and_goes_on_where_it_stopped():
    network = PrunableNetwork(build(lambda: MLP5(10, (1, 8, 8), hidden=64)), torch.zeros(1, 1, 8, 8))
    report = network.prune(CNIPit(), data((1, 8, 8), sizes=(30, 30), classes=10), sparsity=0.95)
    nodes = [step.nodes_left for step in report.steps]
    assert nodes == sorted(nodes, reverse=True) and 4 < nodes[-1] < nodes[0] <= 256
    assert sum(network.masks.removed(name) for name in network.masks.keep) > 0
    assert network.weight_sparsity() == pytest.approx(0.95, abs=1e-4)


def test_cnip_with_only_ties_still_reaches_the_count():
    class Flat(CNIP):
        def joint_scores(self, network, batches):
            weights = {name: torch.ones_like(weight) for name, weight in network.weights()}
            return weights, torch.ones(len(network.graph.nodes))

    network = four_by_32()
    network.prune(Flat(), (), sparsity=0.7)
    total = network.weights_total()
    assert network.weights_left() == total - round(0.7 * total)
    assert len(network.graph.nodes) == 128  # of equal worth: no node has to go for a weight


def test_cnip_beyond_what_the_guards_allow_says_so():
    network = PrunableNetwork(build(mlp), torch.zeros(1, 6))
    report = network.prune(CNIP(), data((6,)), sparsity=0.995)
    assert network.weights_left() == 3 and len(network.graph.nodes) >= 2
    assert "no layer is emptied" in report.steps[-1].reason
