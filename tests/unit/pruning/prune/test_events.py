"""One event: how nodes may be chosen, what a limit counts, and what is carried over to another copy."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from criterions.EfficientConvNets import EfficientConvNets
from criterions.SNAP import SNAP
from criterions.StructuredRandom import StructuredRandom
from pruning import NodeCriterion, PrunableNetwork, UsageError
from pruning.cut.load import extras_of, resize_like
from pruning.graph.history import cut_like, cut_state, kept_indices_of
from pruning.prune import limit
from pruning.prune.bounds import node_selection_of
from pruning.prune.criterion import Criterion
from pruning.prune.joint import joint_threshold
from pruning.prune.layout import NodeSelection
from pruning.prune.limit import nodes_to_keep
from pruning.prune.step import weight_budget
from pruning.state import NodeRules
from tests.support.words import lacking
from tests.support.zoo.by_hand import BY_HAND
from tests.support.zoo.small import build, data

sizes_of = st.lists(st.integers(1, 9), min_size=1, max_size=5)


def layout(sizes, **rules):
    return NodeSelection(np.repeat(np.arange(len(sizes)), sizes), **rules)


def test_equal_scores_are_spread_over_the_layers_by_their_sizes():
    scores = torch.zeros(14, dtype=torch.float64)
    for n_keep, counts in ((7, [2, 4, 1]), (13, [4, 7, 2]), (3, [1, 1, 1]), (14, [4, 8, 2])):
        keep = layout([4, 8, 2]).keep(scores, n_keep)
        assert layout([4, 8, 2]).counts(keep).tolist() == counts
    assert layout([4, 8, 2]).keep(scores, 7).nonzero().flatten().tolist() == [0, 1, 4, 5, 6, 7, 12], "the first ones"
    scores[:4] = 1
    assert layout([4, 8, 2]).counts(layout([4, 8, 2]).keep(scores, 9)).tolist() == [4, 4, 1], "only equals share"


def random_scores(count, seed=0):
    return torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# -- choosing -------------------------------------------------------------------------------------------------------


@given(sizes_of, st.integers(0, 50), st.integers(1, 4), st.booleans(), st.integers(0, 99))
@settings(max_examples=200)
def test_the_count_is_exact_where_the_guards_allow_it(sizes, n_keep, min_keep, local, seed):
    count = sum(sizes)
    chosen = layout(sizes, min_keep=min_keep, local=local)
    kept = chosen.keep(random_scores(count, seed), n_keep)
    least = np.minimum(sizes, min_keep)
    assert (chosen.counts(kept) >= least).all()
    assert kept.count_nonzero() == min(max(n_keep, least.sum()), count)


@given(sizes_of, st.integers(1, 50), st.integers(0, 99))
def test_a_local_choice_is_fair_to_one_node(sizes, n_keep, seed):
    scores, chosen = random_scores(sum(sizes), seed), layout(sizes, local=True)
    kept = chosen.keep(scores, n_keep)
    share = min(n_keep, sum(sizes)) / sum(sizes)
    counts = chosen.counts(kept)
    guarded = (share * np.array(sizes) < 1).any()  # what one group keeps beyond its share, others give
    for group, size in enumerate(sizes):
        assert guarded or abs(counts[group] - share * size) < 1
        own, here = scores[chosen.groups == group], kept[chosen.groups == group]
        assert here.all() or own[here].min() >= own[~here].max()


@given(sizes_of, st.integers(0, 50), st.integers(2, 4), st.integers(0, 99))
def test_multiples(sizes, n_keep, multiple, seed):
    chosen = layout(sizes, multiples=np.full(len(sizes), multiple))
    counts = chosen.counts(chosen.keep(random_scores(sum(sizes), seed), n_keep))
    assert all(count % multiple == 0 or count == size for count, size in zip(counts, sizes, strict=True))
    assert counts.sum() <= max(n_keep, sum(min(multiple, size) for size in sizes))


def test_two_of_each_group_where_there_are_two():
    once = layout([4, 1, 3], local=True)
    twice = once.with_two_each()
    assert twice.counts(twice.keep(random_scores(8), 0)).tolist() == [2, 1, 2] and twice.local
    assert once.counts(once.keep(random_scores(8), 0)).tolist() == [1, 1, 1], "the rules themselves stay"
    more = layout([4, 4], min_keep=np.array([1, 3])).with_two_each()
    assert more.counts(more.keep(random_scores(8), 0)).tolist() == [2, 3]


def test_a_layout_of_nothing():
    assert layout([]).keep(torch.empty(0), 3).shape == (0,)
    assert layout([]).keep_above(torch.empty(0), 0.0).shape == (0,)


# -- what a limit counts --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("total", "sparsity", "wanted"), [(10, 0.9, 1), (10, 0.7, 3), (12_928, 0.93, 904), (7, 0.0, 7), (3, 0.999, 0)]
)
def test_nodes_to_keep_is_not_misled_by_rounding_errors(total, sparsity, wanted):
    assert nodes_to_keep(total, sparsity) == wanted


@given(st.integers(1, 60), st.integers(0, 60), st.one_of(st.none(), st.integers(-5, 70)))
def test_the_search_finds_the_border_wherever_it_starts(top, border, guess):
    asked = []

    def holds(number):
        asked.append(number)
        return number <= border

    assert limit._largest(holds, top, guess) == min(border, top - 1)
    assert all(0 < number < top for number in asked)


@pytest.mark.parametrize("kind", BY_HAND)
def test_forecasts_equal_what_comes(kind):
    network = BY_HAND[kind].network()
    network.note_start()
    gone = random_scores(network.nodes_total()) < 0.4
    layout_now = node_selection_of(network)
    gone &= ~layout_now.best(random_scores(network.nodes_total()), 2)
    weights = limit.weights_after(network, gone)
    flops = limit._flops_after(network, gone)
    network.graph.plan(gone.numpy()).exec()
    assert weights == pytest.approx(network.weight_sparsity(), abs=1e-12)
    assert flops == pytest.approx(1 - network.flops() / network.start_flops(), abs=1e-12)


# -- one threshold --------------------------------------------------------------------------------------------------


def test_a_weight_goes_with_the_first_of_its_nodes():
    network = PrunableNetwork(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2)), torch.zeros(1, 2))
    weights = {"0.weight": torch.full((3, 2), 9.0), "1.weight": torch.full((2, 3), 8.0)}
    nodes = torch.tensor([1.0, 5.0, torch.inf])
    # Ends: four weights with node 0 at 1, four with node 1 at 5, two at 9, two at 8.
    for keep, threshold in [(12, 1), (9, 1), (8, 5), (5, 5), (4, 8), (3, 8), (2, 9), (0, 9)]:
        budget = weight_budget(network, network.alive(), 1 - keep / 12)
        assert budget.keep == keep
        assert joint_threshold(network, weights, nodes, budget) == threshold


# -- carrying cuts over ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", BY_HAND)
def test_a_loaded_copy_knows_the_same_nodes(kind):
    case = BY_HAND[kind]
    network = case.network()
    network.prune(SNAP(), case.batches(), sparsity=0.4)
    other = case.network()
    other.note_start()
    state = network.model.state_dict()
    resize_like(other.model, state, extras_of(network.model))
    other.reshaped(network.kept_indices())
    other.model.load_state_dict(state)
    assert other.nodes_total() == network.nodes_total()
    assert [node.slices for node in other.graph.nodes] == [node.slices for node in network.graph.nodes]
    for copied in (network, other):
        copied.prune(SNAP(), case.batches(), sparsity=0.6)
    pairs = zip(network.model.parameters(), other.model.parameters(), strict=True)
    assert all(torch.equal(one, two) for one, two in pairs)


def test_cuts_that_do_not_fit_change_nothing():
    network, other = BY_HAND["plain"].network(), BY_HAND["dense"].network()
    network.prune(EfficientConvNets(), sparsity=0.5)
    before = other.graph.structure.alive.copy()
    assert not cut_like(other.graph, network.kept_indices())
    assert np.array_equal(other.graph.structure.alive, before) and other.kept_indices() == {}
    half = {"0.weight": {0: torch.tensor([True] * 4 + [False] * 3)}}  # without the bias and the norm that go along
    assert not cut_like(other.graph, half)
    assert kept_indices_of(other.graph) == {}


def test_a_dense_state_is_cut_like_the_network_with_tied_names_as_well():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.first, self.second = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 6)
            self.head = nn.Linear(6, 3)
            self.second.weight = self.first.weight

        def forward(self, x):
            return self.head(torch.relu(self.second(torch.relu(self.first(torch.relu(self.stem(x)))))))

    network = PrunableNetwork(Tied(), torch.zeros(2, 5))
    assert network.nodes_total() == 6
    dense = copy.deepcopy(network.model).state_dict()
    network.prune(EfficientConvNets(), sparsity=0.3)
    smaller = cut_state(dense, network.kept_indices())
    assert {n: t.shape for n, t in smaller.items()} == {n: t.shape for n, t in network.model.state_dict().items()}


# -- errors ---------------------------------------------------------------------------------------------------------


def test_a_node_that_takes_much_more_than_was_asked_is_said():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    network = PrunableNetwork(model, torch.randn(1, 4), node_rules=NodeRules(counted="weights"))
    step = network.prune(StructuredRandom(), sparsity=0.01).steps[0]
    assert step.reached == 0.25  # one of four nodes
    assert not lacking(step.reason, "0.2500", "weights", "0.0100", "one node more")
    assert not network.prune(StructuredRandom(), sparsity=0.4999).steps[0].reason


def test_a_criterion_of_neither_kind_is_refused():
    network = BY_HAND["plain"].network()
    with pytest.raises(UsageError, match="scores neither weights nor nodes"):
        network.prune(Criterion(), sparsity=0.5)


def test_a_node_criterion_needs_example_inputs():
    network = PrunableNetwork(build(BY_HAND["plain"].maker))
    with pytest.raises(UsageError, match="needs example inputs"):
        network.prune(SNAP(), data((2, 6, 6)), sparsity=0.5)


def test_an_optimizer_that_cannot_be_cut_leaves_everything_as_it_was():
    network = BY_HAND["plain"].network()
    optimizer = torch.optim.LBFGS(network.model.parameters())
    x, y = BY_HAND["plain"].batches()[0]

    def closure():
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(network.model(x), y)
        loss.backward()
        return loss

    optimizer.step(closure)
    before = [parameter.clone() for parameter in network.model.parameters()]
    with pytest.raises(UsageError, match="LBFGS keeps"):
        network.prune_to(EfficientConvNets(), 0.5, optimizers=[optimizer])
    assert all(torch.equal(one, two) for one, two in zip(before, network.model.parameters(), strict=True))
    assert len(network.graph.nodes) == network.nodes_total()


def test_an_event_that_is_inverted_or_shuffled_keeps_the_same_widths_or_count():
    class Given(NodeCriterion):
        def node_scores(self, network, batches):
            return torch.arange(float(len(network.graph.nodes)))

    shapes = []
    for how in ({}, {"shuffle": torch.Generator().manual_seed(1)}, {"invert": True}):
        network = BY_HAND["plain"].network()
        network.prune_to(Given(), 0.5, **how)
        assert len(network.graph.nodes) == 5
        shapes.append(([p.shape for p in network.model.parameters()], network.model[0].weight.detach().clone()))
    assert shapes[0][0] == shapes[1][0] != shapes[2][0]
