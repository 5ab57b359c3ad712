"""Rules by layer: which layers are pruned, and how much of each."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from criterions.CNIP import CNIP
from criterions.GroupMagnitude import GroupMagnitude
from criterions.Magnitude import Magnitude
from criterions.PCA import PCA
from criterions.SNAPit import SNAPit
from criterions.SNIPit import SNIPit
from criterions.ThiNet import ThiNet
from pruning import CompressedNetwork, LayerRules, NodeRules, PrunableNetwork, UsageError, keep
from pruning.modules.by_name import matched, spellings_of
from pruning.prune.layout import NodeSelection
from pruning.prune.rank import Budget, keep_top_global, select_by_layer

SIZES = {"0.weight": 160, "2.weight": 600, "4.weight": 300, "6.weight": 40}  # 1100 in all
BATCHES = [(torch.randn(16, 8, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 4)]


def chain(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in zip(widths, widths[1:], strict=False):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def network(**options: Any) -> PrunableNetwork:
    return PrunableNetwork(chain(8, 20, 30, 10, 4), torch.randn(1, 8), **options)


def widths(handle: PrunableNetwork) -> list[int]:
    return [layer.out_features for layer in handle.model.modules() if isinstance(layer, nn.Linear)]


def gone(handle: PrunableNetwork) -> dict[str, int]:
    return {name: handle.masks.removed(name) for name in SIZES}


class Residual(nn.Module):
    """Two blocks on one stream, which three layers make."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(6, 12)
        self.blocks = nn.ModuleList(nn.ModuleDict({"up": nn.Linear(12, 20), "down": nn.Linear(20, 12)}) for _ in "ab")
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block["down"](block["up"](x).relu())
        return self.head(x)


def residual(**options: Any) -> PrunableNetwork:
    return PrunableNetwork(Residual(), torch.randn(1, 6), **options)


def shapes(handle: PrunableNetwork) -> tuple[int, int, int]:
    model: Any = handle.model
    return model.stem.out_features, model.blocks[0]["up"].out_features, model.blocks[1]["up"].out_features


# -- names ------------------------------------------------------------------------------------------------------------


def test_a_pattern_means_modules_with_what_is_in_them_and_parameters() -> None:
    spellings = spellings_of(Residual())
    block = {f"blocks.0.{name}" for name in ("up.weight", "up.bias", "down.weight", "down.bias")}
    assert matched("blocks.0", spellings) == matched("blocks.0.*", spellings) == block
    assert matched("*.up", spellings) == matched("blocks.?.up.*", spellings)
    assert matched("*.up.weight", spellings) == {"blocks.0.up.weight", "blocks.1.up.weight"}
    assert matched("*", spellings) == set(spellings)
    assert not matched("block", spellings) and not matched("STEM", spellings)


def test_a_shared_weight_and_a_computed_one_go_by_all_their_names() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), parametrizations.weight_norm(nn.Linear(4, 4)))
    model[1].weight = model[0].weight
    spellings = spellings_of(model)
    assert "0.weight" in matched("1.weight", spellings)
    assert matched("2.weight", spellings) == {f"2.parametrizations.weight.original{number}" for number in (0, 1)}


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ({"only": "blocs.*"}, r"only: 'blocs\.\*'.*Did you mean blocks"),
        ({"skip": ["head", "heads"]}, r"skip: 'heads'.*Did you mean head"),
        ({"shares": {"xyz*": 0.3}}, r"shares: 'xyz\*'.*There are stem, blocks"),
        ({"only": ""}, "only takes names of layers"),
        ({"only": [3]}, "only takes names of layers"),
        ({"shares": {"head": 1.0}}, "0 to below 1; 1.0"),
        ({"shares": {"head": "half"}}, "'half'"),
        ({"shares": ["head"]}, "maps patterns to fractions"),
        ({"max_share": 1.5}, "max_share.*1.5"),
        ({"max_share": 0.4, "shares": {"head": 0.5}}, "0.5, more than max_share, 0.4"),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(rules: dict[str, Any], said: str) -> None:
    handle = residual()
    for prune in (lambda: handle.prune(Magnitude(), sparsity=0.5, **rules), lambda: residual_with(rules)):
        with pytest.raises(UsageError, match=said) as told:
            prune()
        assert "\n" not in str(told.value)
    assert not handle.masks.keep and not handle.layer_rules


def residual_with(rules: dict[str, Any]) -> PrunableNetwork:
    return residual(layer_rules=LayerRules(**rules))


# -- weights ----------------------------------------------------------------------------------------------------------


def test_a_compressed_copy_takes_rules() -> None:
    copy = CompressedNetwork(chain(8, 20, 30, 10, 4), BATCHES, Magnitude(), layer_rules=LayerRules(only="2"))
    copy.compress(0.25)
    assert gone(copy.network) == {"0.weight": 0, "2.weight": 450, "4.weight": 0, "6.weight": 0}


@pytest.mark.parametrize("rules", [{"only": ["2", "4.*"]}, {"skip": ["0", "6.weight"]}, {"only": "*", "skip": "[06]"}])
def test_weights_of_other_layers_stay_and_do_not_count(rules: dict[str, Any]) -> None:
    handle = network()
    report = handle.prune(Magnitude(), sparsity=0.5, **rules)
    assert report.reached == 0.5 and sum(gone(handle).values()) == 450
    assert gone(handle)["0.weight"] == gone(handle)["6.weight"] == 0
    assert handle.weight_sparsity() == pytest.approx(450 / 1100)
    # These rules were of one call.
    assert handle.reached() == pytest.approx(450 / 1100)


def test_rules_of_the_handle_hold_for_every_call_and_a_call_adds_its_own() -> None:
    handle = network(layer_rules=LayerRules(skip="2"))
    handle.prune(Magnitude(), sparsity=0.5, only=["2", "4"])
    assert gone(handle) == {"0.weight": 0, "2.weight": 0, "4.weight": 150, "6.weight": 0}
    handle.prune(Magnitude(), sparsity=0.8)
    assert gone(handle)["2.weight"] == 0 and handle.reached() == 0.8


def test_keep_wins_over_only() -> None:
    model = chain(8, 20, 30, 10, 4)
    keep(model[2])
    handle = PrunableNetwork(model, torch.randn(1, 8))
    handle.prune(Magnitude(), sparsity=0.5, only=["2", "4"])
    assert gone(handle) == {"0.weight": 0, "2.weight": 0, "4.weight": 150, "6.weight": 0}
    with pytest.raises(UsageError, match="layers marked keep and all but 2"):
        handle.prune(Magnitude(), sparsity=0.9, only="2")


def test_shares_are_exact_and_the_others_bring_the_whole_to_the_limit() -> None:
    handle = network()
    handle.prune(Magnitude(), sparsity=0.5, shares={"2": 0.3, "6.*": 0.125})
    removed = gone(handle)
    assert (removed["2.weight"], removed["6.weight"]) == (180, 5)
    assert removed["0.weight"] + removed["4.weight"] == 550 - 185
    # What went is the smallest of each layer with a share, and of the others together.
    others = torch.cat([weight.flatten() for weight in (handle.model[0].weight, handle.model[4].weight)]).abs()
    assert int((others == 0).sum()) == 365
    for name in ("2.weight", "6.weight"):
        kept = handle.masks.keep[name]
        assert int((~kept).sum()) == removed[name]


def test_the_ranking_of_a_layer_with_a_share_is_its_own() -> None:
    model = chain(2, 3, 2)
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 2], [3, 4], [5, 6]]))
        model[2].weight.copy_(torch.tensor([[10.0, 20, 30], [40, 50, 60]]))
    handle = PrunableNetwork(model, torch.randn(1, 2))
    handle.prune(Magnitude(), sparsity=0.5, shares={"2": 0.5})
    assert model[2].weight.tolist() == [[0, 0, 0], [40, 50, 60]]
    assert model[0].weight.tolist() == [[0, 0], [0, 4], [5, 6]]


def test_the_last_pattern_that_names_a_layer_counts() -> None:
    handle = network()
    handle.prune(Magnitude(), shares={"*": 0.25, "4": 0.5})
    assert gone(handle) == {"0.weight": 40, "2.weight": 150, "4.weight": 150, "6.weight": 10}


@pytest.mark.parametrize("criterion", [SNIPit, Magnitude])
def test_shares_of_every_layer_need_no_limit(criterion: type) -> None:
    handle = network()
    report = handle.prune(criterion(), BATCHES, shares={"*": 0.3, "2": 0.123})
    expected = {"0.weight": 48, "2.weight": 74, "4.weight": 90, "6.weight": 12}
    assert gone(handle) == expected
    assert report.reached == pytest.approx(sum(expected.values()) / 1100)
    assert report.steps[-1].reason == ""


def test_shares_are_reached_in_proportion_over_several_events() -> None:
    handle = network()
    report = handle.prune(SNIPit(), BATCHES, sparsity=0.5, shares={"2": 0.3})
    assert len(report.steps) == 7 and gone(handle)["2.weight"] == 180
    halfway = network(layer_rules=LayerRules(shares={"2": 0.3}))
    halfway.prune_to(Magnitude(), 0.25, limit=0.5)
    assert gone(halfway)["2.weight"] == 90 and sum(gone(halfway).values()) == 275
    halfway.prune_to(Magnitude(), 0.5, limit=0.5)
    assert gone(halfway)["2.weight"] == 180 and sum(gone(halfway).values()) == 550


def test_no_layer_loses_more_than_max_share_and_others_make_up_for_it() -> None:
    free, guarded = network(), network()
    free.prune(Magnitude(), sparsity=0.8)
    guarded.prune(Magnitude(), sparsity=0.8, max_share=0.85)
    assert max(free.layer_sparsities().values()) > 0.85
    assert max(guarded.layer_sparsities().values()) <= 0.85
    assert sum(gone(guarded).values()) == sum(gone(free).values()) == 880


def test_a_limit_beyond_max_share_is_reached_as_nearly_as_possible() -> None:
    report = network().prune(Magnitude(), sparsity=0.9, max_share=0.5)
    assert report.reached == 0.5
    assert "no layer loses more than 0.5" in report.steps[-1].reason


@pytest.mark.parametrize(
    ("sparsity", "shares", "said"),
    [
        (0.9, {"2": 0.3}, r"0\.1636 to 0\.6155 of the weights"),
        (0.1, {"2": 0.3}, r"0\.1636 to 0\.6155 of the weights"),
        (0.5, {"*": 0.3}, r"take 0\.3000 of the weights; 0\.5 was asked"),
        (None, {"2": 0.3}, r"leave out some layers.*sparsity="),
        (0.5, {"1": 0.3}, "'1'.*There are 0, 2, 4, 6"),
    ],
)
def test_shares_that_do_not_fit_the_limit_are_refused_with_what_can_be_reached(
    sparsity: float | None, shares: dict[str, float], said: str
) -> None:
    handle = network()
    with pytest.raises(UsageError, match=said):
        handle.prune(Magnitude(), sparsity=sparsity, shares=shares)
    assert not handle.masks.keep


def test_a_share_of_what_other_rules_leave_out_is_an_error() -> None:
    with pytest.raises(UsageError, match=r"shares: '4' names no layer whose weights may go"):
        network().prune(Magnitude(), sparsity=0.5, only="2", shares={"4": 0.3})


def test_criteria_of_both_or_of_ranks_know_no_shares_but_skip() -> None:
    for criterion, told in ((CNIP(), "one scale"), (PCA(), "removes ranks")):
        with pytest.raises(UsageError, match=told):
            network().prune(criterion, BATCHES, sparsity=0.5, shares={"2": 0.3})
    handle = network()
    handle.prune(PCA(), BATCHES, sparsity=0.5, skip=["2.weight", "0"])
    assert handle.model[0].weight.shape == (20, 8) and handle.model[2].weight.shape == (30, 20)
    assert handle.reached() > 0.1
    handle = network()
    before = handle.model[2].weight.detach().clone()
    handle.prune(CNIP(), BATCHES, sparsity=0.5, skip="2")
    assert handle.model[2].out_features == 30
    assert len(before.unique()) >= len(handle.model[2].weight.unique()) and bool((handle.model[2].weight != 0).all())


def test_a_selection_by_layer_by_hand() -> None:
    scores = {"a": torch.tensor([5.0, 1, 2, 9]), "b": torch.tensor([3.0, 4, 8]), "c": torch.tensor([0.1, 0.2, 0.3])}
    alive = {name: torch.ones_like(score, dtype=torch.bool) for name, score in scores.items()}
    budget = Budget(6, alive, fixed={"b": 1}, least={"c": 2})
    kept = select_by_layer(keep_top_global, scores, budget)
    assert {name: mask.int().tolist() for name, mask in kept.items()} == {
        "a": [1, 0, 1, 1],
        "b": [0, 0, 1],
        "c": [0, 1, 1],
    }


# -- frozen layers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("criterion", [Magnitude, GroupMagnitude])
def test_frozen_layers_are_pruned_only_if_they_are_named(criterion: type) -> None:
    model = chain(8, 20, 30, 10, 4)
    model[2].requires_grad_(False)
    handle = PrunableNetwork(model, torch.randn(1, 8))
    before = model[2].weight.detach().clone()
    report = handle.prune(criterion(), sparsity=0.5)
    assert widths(handle)[1] == 30 and bool((model[2].weight != 0).all())
    assert "frozen" in str(report) and "2 (" in report.steps[-1].describe("weights")
    assert report.reached == pytest.approx(0.5)
    again = PrunableNetwork(model, torch.randn(1, 8), adopt_zeros=False)
    told = again.prune(criterion(), sparsity=0.5, only="2").steps[-1]
    assert "pruned although frozen: 2" in told.protected
    assert model[2].weight.shape != before.shape or bool((model[2].weight == 0).any())
    assert not model[2].weight.requires_grad


def test_a_network_that_is_frozen_as_a_whole_is_pruned_and_that_is_said() -> None:
    model = chain(8, 20, 30, 10, 4).requires_grad_(False)
    report = PrunableNetwork(model, torch.randn(1, 8)).prune(Magnitude(), sparsity=0.5)
    assert report.reached == 0.5 and "every layer is frozen" in str(report)


# -- embeddings and layers of several matrices -----------------------------------------------------------------------


class Words(nn.Module):
    """An embedding, two layers of an LSTM in one module, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(20, 8)
        self.rnn = nn.LSTM(8, 12, 2, batch_first=True)
        self.head = nn.Linear(12, 20)

    def forward(self, ids: Tensor) -> Tensor:
        states, _ = self.rnn(self.words(ids))
        return self.head(states)


IDS = torch.zeros(2, 6, dtype=torch.long)


def test_matrices_of_one_module_have_names_of_their_own() -> None:
    handle = PrunableNetwork(Words(), IDS)
    handle.prune(Magnitude(), sparsity=0.3, only="rnn", shares={"*.weight_hh_l?": 0.25})
    removed = {name: handle.masks.removed(name) for name in handle.prunable()}
    assert removed["rnn.weight_hh_l0"] == removed["rnn.weight_hh_l1"] == 48 * 12 // 4
    assert removed["head.weight"] == 0 and sum(removed.values()) == round(0.3 * (48 * 8 + 3 * 48 * 12))


def test_a_table_of_an_embedding_is_ranked_if_a_handle_names_it() -> None:
    handle = PrunableNetwork(Words(), IDS, layer_rules=LayerRules(only=["words"]))
    handle.prune(Magnitude(), sparsity=0.25)
    assert handle.masks.removed("words.weight") == 40 and len(handle.masks) == 1
    assert "words.weight" not in PrunableNetwork(Words(), IDS, layer_rules=LayerRules(only="*")).prunable()
    with pytest.raises(UsageError, match=r"words\.weight is looked up.*layer_rules=LayerRules"):
        PrunableNetwork(Words(), IDS).prune(Magnitude(), sparsity=0.25, only=["words", "head"])
    # The nodes that it makes need no matrix that multiplies.
    cut = PrunableNetwork(Words(), IDS)
    cut.prune(GroupMagnitude(), sparsity=0.5, only="words")
    assert cut.model.words.weight.shape == (20, 4) and cut.model.rnn.hidden_size == 12


# -- nodes ------------------------------------------------------------------------------------------------------------


def test_nodes_of_other_layers_stay_and_do_not_count() -> None:
    for rules in ({"only": "2"}, {"skip": ["0", "4"]}):
        handle = network()
        report = handle.prune(SNAPit(), BATCHES, sparsity=0.5, **rules)
        assert widths(handle) == [20, 15, 10, 4]
        assert report.reached == 0.5 and report.steps[-1].nodes_left == 15
        assert handle.node_sparsity() == pytest.approx(15 / 60)


def test_a_layer_that_reads_may_be_skipped_and_is_looked_at_all_the_same() -> None:
    free, skipped = network(), network()
    skipped.model.load_state_dict(free.model.state_dict())
    # ThiNet scores a node by the layer that reads it.
    scores = ThiNet().node_scores(free, BATCHES)
    skipped.layer_rules = LayerRules(skip="6")
    skipped.counted(ThiNet())
    assert torch.equal(ThiNet().node_scores(skipped, BATCHES), scores)


def test_channels_that_several_layers_make_go_only_if_all_of_them_may() -> None:
    handle = residual()
    report = handle.prune(GroupMagnitude(), sparsity=0.5, only="blocks.*")
    assert "named, but stay with others that make the same channels: blocks.0.down, blocks.1.down" in str(report)
    assert shapes(handle)[0] == 12 and sum(shapes(handle)[1:]) == 20
    handle = residual()
    handle.prune(GroupMagnitude(), sparsity=0.5, skip="blocks.1.down")
    assert shapes(handle)[0] == 12 and sum(shapes(handle)[1:]) == 20
    with pytest.raises(UsageError, match="same channels as .*, which only does not name"):
        residual().prune(GroupMagnitude(), sparsity=0.5, only="*.down")
    handle = residual()
    report = handle.prune(GroupMagnitude(), sparsity=0.5, only=["stem", "*.down"])
    assert shapes(handle) == (6, 20, 20) and report.steps[-1].protected == ""


def test_shares_of_nodes_are_exact_and_a_stream_has_one() -> None:
    handle = residual()
    report = handle.prune(GroupMagnitude(), sparsity=0.5, shares={"blocks.0.up": 0.25, "stem": 0.5})
    assert shapes(handle) == (6, 15, 5) and report.reached == 0.5
    handle = residual()
    handle.prune(GroupMagnitude(), shares={"*": 0.25, "*.1.up": 0.5})
    assert shapes(handle) == (9, 15, 10)
    with pytest.raises(UsageError, match=r"one share.*stem 0\.5 and blocks\.0\.down 0\.2"):
        residual().prune(GroupMagnitude(), sparsity=0.5, shares={"blocks": 0.2, "stem": 0.5})


def test_shares_of_nodes_over_several_events_and_calls() -> None:
    handle = network()
    handle.prune(SNAPit(), BATCHES, sparsity=0.5, shares={"2": 0.3})
    assert widths(handle)[1] == 21 and sum(widths(handle)[:3]) == 30
    first, _, third, _ = widths(handle)
    # Counted from the start, whatever went before; what went does not come back.
    handle.prune(GroupMagnitude(), shares={"0": 0.75, "2": 0.5, "4": 0.8})
    assert widths(handle) == [min(first, 5), 15, min(third, 2), 4]


@pytest.mark.parametrize("ranking", ["global", "local"])
def test_max_share_of_nodes(ranking: Any) -> None:
    handle = network(node_rules=NodeRules(ranking=ranking))
    handle.prune(GroupMagnitude(), sparsity=0.5, max_share=0.55)
    assert sum(widths(handle)[:3]) == 30
    assert all(width >= size - int(0.55 * size) for width, size in zip(widths(handle), (20, 30, 10), strict=False))
    report = handle.prune(GroupMagnitude(), sparsity=0.9, max_share=0.6)
    assert widths(handle) == [8, 12, 4, 4] and "no layer loses more than 0.6" in report.steps[-1].reason


@pytest.mark.parametrize("counted", ["weights", "flops"])
def test_shares_of_nodes_under_a_limit_of_weights_or_flops(counted: Any) -> None:
    handle = network(node_rules=NodeRules(counted=counted))
    report = handle.prune(GroupMagnitude(), sparsity=0.6, shares={"2": 0.3})
    assert widths(handle)[1] == 21 and 0.6 <= report.reached < 0.65
    with pytest.raises(UsageError, match=f"to .* of the {counted} can be reached; 0.99"):
        network(node_rules=NodeRules(counted=counted)).prune(GroupMagnitude(), sparsity=0.99, shares={"2": 0.3})
    handle = network(node_rules=NodeRules(counted=counted))
    handle.prune(GroupMagnitude(), shares={"*": 0.5})
    assert widths(handle) == [10, 15, 5, 4]


def test_a_limit_of_weights_counts_those_that_the_rules_leave() -> None:
    handle = network(node_rules=NodeRules(counted="weights"))
    report = handle.prune(GroupMagnitude(), sparsity=0.5, only="0")
    # The first layer's 160 weights and the 600 that read it.
    left = 8 * widths(handle)[0] + widths(handle)[0] * 30
    assert report.reached == pytest.approx(1 - left / 760) and widths(handle)[1:] == [30, 10, 4]


def test_round_to_and_min_keep_win_over_shares_and_that_is_said() -> None:
    handle = network(node_rules=NodeRules(round_to=4, min_keep=6))
    report = handle.prune(GroupMagnitude(), sparsity=0.4, shares={"2": 0.3, "4": 0.7})
    assert widths(handle)[1:3] == [24, 8]
    assert "2 keeps 24 nodes instead of 21 (and 1 more layers): widths are multiples of 4" in report.steps[-1].reason
    handle = network(node_rules=NodeRules(min_keep=6))
    report = handle.prune(GroupMagnitude(), sparsity=0.4, shares={"4": 0.7})
    assert widths(handle)[2] == 6 and report.reached == 0.4
    assert report.steps[-1].reason == "4 keeps 6 nodes instead of 3: every layer keeps 6"


def test_what_guards_keep_is_said_of_the_guard_that_keeps_it() -> None:
    report = network().prune(GroupMagnitude(), sparsity=0.99, only=["2", "4"])
    assert "2 nodes stay instead of 0: no layer is emptied" in report.steps[-1].reason
    report = network().prune(Magnitude(), shares={"*": 0.5, "6": 0.99})
    assert "6.weight keeps 1 weights instead of 0" in report.steps[-1].reason


def test_the_rules_by_layer_are_bounds_of_a_selection() -> None:
    groups = np.array([0] * 4 + [1] * 4 + [2] * 4)
    selection = NodeSelection(groups, np.array([1, 2, 4]), None, False, np.array([4, 2, 4]))
    scores = torch.arange(12, dtype=torch.float64)
    assert selection.counts(selection.keep(scores, 9)).tolist() == [3, 2, 4]
    assert selection.counts(selection.keep(scores, 12)).tolist() == [4, 2, 4]
    assert selection.counts(selection.keep(scores, 0)).tolist() == [1, 2, 4]
    local = NodeSelection(groups, np.array([1, 2, 4]), None, True, np.array([4, 2, 4]))
    assert local.counts(local.keep(scores, 8)).tolist() == [2, 2, 4]
    assert selection.keep_above(scores, 5.0).tolist() == [*[False] * 3, True, *[False] * 2, True, True, *[True] * 4]
