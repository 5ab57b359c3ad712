"""`NodeRules(uniform=True)`: layers whose names differ in numbers alone keep as many nodes."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from criterions.GroupMagnitude import GroupMagnitude
from models.GPT import GPT
from pruning import NodeRules, PrunableNetwork
from pruning.prune.bounds import kinds_of
from pruning.prune.layout import NodeSelection
from tests.support.tiers import few


@pytest.mark.parametrize("seed", few(range(30), range(4)))
@pytest.mark.parametrize("multiple", [1, 3])
def test_groups_of_a_kind_keep_as_many_and_no_more_than_asked_for(seed, multiple):
    random = np.random.default_rng(seed)
    kinds = np.array([0, 1, 0, 1, 1, 2])
    sizes = np.array([9, 12, 9, 12, 12, 6])
    groups = np.repeat(np.arange(6), sizes)
    multiples = np.full(6, multiple) if multiple > 1 else None
    selection = NodeSelection(groups, 1, multiples, kinds=kinds)
    scores = torch.from_numpy(random.random(len(groups)) * (1 + groups))
    for n_keep in range(0, len(groups) + 1, 5):
        keep = selection.keep(scores, n_keep)
        counts = selection.counts(keep)
        for kind in range(3):
            (count,) = set(counts[kinds == kind])
            assert count >= 1 and (count % multiple == 0 or count == sizes[kinds == kind][0])
        least = sum(min(multiple, size) for size in sizes)
        assert int(keep.sum()) <= max(n_keep, least)
        # Nothing more would fit: each kind grows by a step of all its members.
        for kind in range(3):
            step = multiple * int((kinds == kind).sum())
            is_whole = counts[kinds == kind][0] == sizes[kinds == kind][0]
            if n_keep - int(keep.sum()) >= 3 * multiple:
                assert is_whole or step > n_keep - int(keep.sum())
        # Of each group the best stay.
        for group in range(6):
            inside = torch.from_numpy(groups == group)
            best = scores[inside].sort(descending=True).values[: counts[group]]
            assert torch.equal(scores[inside & keep].sort(descending=True).values, best)


def test_a_kind_is_told_by_names_without_numbers_and_by_size():
    def group(size, *names):
        return SimpleNamespace(layers=tuple((name, 0) for name in names), nodes=range(size))

    groups = [group(4, "blocks.0.mlp.weight"), group(4, "blocks.11.mlp.weight"), group(4, "blocks.0.out.weight")]
    groups += [group(5, "blocks.2.mlp.weight"), group(4, "0.weight", "1.bias"), group(4, "3.weight", "4.bias")]
    groups += [group(4, "layer1.weight"), group(4, "layer2.weight")]
    assert kinds_of(groups).tolist() == [0, 0, 1, 2, 3, 3, 4, 5]


@pytest.mark.parametrize("rules", [{"unit": "head"}, {"counted": "weights"}, {"round_to": 4}])
def test_every_block_of_a_decoder_has_the_same_widths(rules):
    torch.manual_seed(0)
    model = GPT(20, (8,), layers=3, heads=4, width=16)
    with torch.no_grad():
        model.blocks[0].mlp.hidden.weight.mul_(3)  # a ranking over all would leave this block more than the others
    tokens = torch.randint(0, 20, (2, 8))
    network = PrunableNetwork(model, tokens, node_rules=NodeRules(uniform=True, **rules))
    report = network.prune(GroupMagnitude(), sparsity=0.4)
    widths = [(block.mlp.hidden.out_features, block.attention.query.out_features) for block in model.blocks]
    assert len(set(widths)) == 1 and widths[0] != (64, 16)
    assert model(tokens).shape == (2, 8, 20)
    # It goes on from there, alike again.
    network.prune(GroupMagnitude(), sparsity=0.6)
    assert len({block.mlp.hidden.out_features for block in model.blocks}) == 1
    assert "0.4" in str(report)


def test_without_it_the_ranking_alone_decides():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    with torch.no_grad():
        model[0].weight.mul_(9)
    widths = []
    for uniform in (False, True):
        copy = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
        copy.load_state_dict(model.state_dict())
        network = PrunableNetwork(copy, torch.randn(2, 4), node_rules=NodeRules(uniform=uniform))
        network.prune(GroupMagnitude(), sparsity=0.5)
        widths.append((copy[0].out_features, copy[2].out_features))
    assert widths[0][0] != widths[0][1] and sum(widths[0]) == 8 == sum(widths[1])
