"""The handle on a network: what it counts, what it leaves out, and how prune() may be called."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from criterions.EmptyCrit import EmptyCrit
from criterions.Magnitude import Magnitude
from criterions.SNAP import SNAP
from criterions.SNIP import SNIP
from criterions.SNIPit import SNIPit
from pruning import PrunableNetwork, UsageError, WeightCriterion
from tests.support import slow_reference as slow
from tests.support.zoo.small import SHAPES, Residual, bias_free, build, conv_net, data, mlp


def residual(**options):
    return PrunableNetwork(build(Residual), torch.zeros(2, 2, 5, 5), **options)


def test_iterative_masks_equal_the_reference_event_by_event():
    network, batches = residual(), data(SHAPES[Residual])
    targets = slow.halving_schedule(0.8, 3)
    expected = slow.prune_in_steps(network.model, lambda model: slow.snip_gates(model, batches), targets)
    report = network.prune(SNIPit(snip_steps=3), batches, sparsity=0.8)
    assert [step.asked for step in report.steps] == pytest.approx(targets)
    assert all(torch.equal(network.masks.keep[name], mask) for name, mask in expected.items())


def test_what_is_gone_never_comes_back():
    network, batches = residual(), data(SHAPES[Residual])
    previous = network.alive()
    for target in (0.2, 0.4, 0.41, 0.8, 0.5, 0.9):
        network.prune_to(SNIP(), target, batches)
        assert all(not (mask & ~previous[name]).any() for name, mask in network.alive().items())
        previous = network.alive()
    assert network.weight_sparsity() == pytest.approx(0.9, abs=1e-2)


def test_a_target_below_the_present_sparsity_changes_nothing_and_says_so():
    network = residual()
    network.prune(Magnitude(), sparsity=0.6)
    before = network.alive()
    step = network.prune_to(Magnitude(), 0.3, ())
    assert step.removed == 0 and "already sparser" in step.reason
    assert step.reached == pytest.approx(0.6, abs=1e-2)
    assert all(torch.equal(mask, before[name]) for name, mask in network.alive().items())


def test_keep_ratio_says_the_same_as_one_minus_sparsity():
    one, other = residual(), residual()
    one.prune(Magnitude(), sparsity=0.3)
    other.prune(Magnitude(), keep_ratio=0.7)
    assert all(torch.equal(mask, other.masks.keep[name]) for name, mask in one.masks.keep.items())


@pytest.mark.parametrize("options", [{}, {"sparsity": 0.5, "keep_ratio": 0.5}])
def test_prune_takes_one_of_the_two(options):
    with pytest.raises(UsageError, match="either sparsity= or keep_ratio="):
        residual().prune(Magnitude(), **options)


@pytest.mark.parametrize("options", [{"sparsity": 1.0}, {"sparsity": -0.1}, {"keep_ratio": 0.0}, {"keep_ratio": 1.5}])
def test_prune_refuses_what_is_no_sparsity(options):
    with pytest.raises(UsageError, match="keep_ratio must" if "keep_ratio" in options else r"\[0, 1\)"):
        residual().prune(Magnitude(), **options)


def test_a_generator_of_batches_serves_every_step():
    listed, generated = residual(), residual()
    batches = data(SHAPES[Residual])
    listed.prune(SNIPit(), batches, sparsity=0.9)
    generated.prune(SNIPit(), (batch for batch in batches), sparsity=0.9)
    assert all(torch.equal(mask, generated.masks.keep[name]) for name, mask in listed.masks.keep.items())


def test_a_loader_draws_fresh_batches_for_every_step():
    """Scoring puts the random state back, but not that which the batches are drawn with."""
    draws = []

    class Loader:
        def __len__(self):
            return 1

        def __iter__(self):
            draws.append(torch.rand(6, *SHAPES[Residual]))
            yield draws[-1], torch.arange(6) % 4

    residual().prune(SNIPit(snip_steps=1), Loader(), sparsity=0.9)
    assert len(draws) == 3 and not torch.equal(draws[0], draws[1])


def test_the_report_has_asked_and_reached_side_by_side():
    network = residual()
    report = network.prune(SNIPit(snip_steps=0), data(SHAPES[Residual]), sparsity=0.8)
    total = network.weights_total()
    assert [step.left for step in report.steps] == [total - round(0.5 * total), total - round(0.8 * total)]
    assert sum(step.removed for step in report.steps) == total - network.weights_left()
    assert report.reached == network.reached() == network.weight_sparsity()
    assert "SNIPit" in str(report) and len(str(report).splitlines()) == 3
    assert "asked 0.8000" in report.steps[-1].describe("weights")
    assert network.prune(EmptyCrit(), sparsity=0.0).steps == []


def test_sizes_count_what_is_neither_masked_nor_gone():
    network = residual()
    parameters = sum(parameter.numel() for parameter in network.model.parameters())
    weights = 2 * 3 * 9 + 3 * 9 + 3 * 4
    assert network.weights_total() == network.weights_left() == weights
    assert network.size() == parameters
    network.prune(Magnitude(), sparsity=0.5)
    removed = round(0.5 * weights)
    assert network.size() == parameters - removed
    assert network.weight_sparsity() == pytest.approx(removed / weights)
    by_layer = network.layer_sparsities()
    sizes = {name: weight.numel() for name, weight in network.prunable().items()}
    assert sum(by_layer[name] * sizes[name] for name in sizes) == pytest.approx(removed)


def test_layers_are_named_in_the_order_in_which_they_run():
    assert list(residual().prunable()) == ["stem.weight", "branch.weight", "head.weight"]
    assert list(PrunableNetwork(build(Residual)).prunable()) == ["head.weight", "branch.weight", "stem.weight"]
    assert residual(outer_layers=False).ranked_names() == ["branch.weight"]


def test_leaving_the_outer_layers_out_of_two_leaves_nothing_to_prune():
    network = PrunableNetwork(bias_free(4, 3, 2), torch.zeros(1, 4), outer_layers=False)
    assert network.ranked_names() == [] and network.reached() == 0.0
    with pytest.raises(UsageError, match="outer layers left out there is nothing to prune"):
        network.prune(Magnitude(), sparsity=0.5)
    assert network.prune(EmptyCrit(), sparsity=0.0).reached == 0.0


def test_a_selection_of_the_criterions_own_is_guarded_and_reported():
    class Everything(Magnitude):
        def select(self, scores, budget):
            return {name: torch.zeros_like(score, dtype=torch.bool) for name, score in scores.items()}

    network = residual()
    report = network.prune(Everything(), sparsity=0.5)
    assert network.weights_left() == 3
    assert "own selection" in report.steps[0].reason
    best = network.model.head.weight.abs().flatten().argmax()
    assert network.masks.keep["head.weight"].flatten().nonzero().item() == best


def test_new_values_are_taken_over_under_the_masks():
    class Reweighted(Magnitude):
        def new_values(self, network, batches):
            return {"head.weight": torch.full((4, 3), 2.0)}

    network = residual()
    network.prune(Reweighted(), sparsity=0.5)
    head = network.model.head.weight
    assert torch.equal(head, 2.0 * network.masks.keep["head.weight"])


def test_invert_keeps_the_worst():
    network = residual()
    best, worst = residual(), residual()
    best.prune_to(Magnitude(), 0.5, ())
    worst.prune_to(Magnitude(), 0.5, (), invert=True)
    magnitude = slow.magnitude(network.model)
    kept = torch.cat([magnitude[name][mask] for name, mask in worst.masks.keep.items()])
    gone = torch.cat([magnitude[name][~mask] for name, mask in worst.masks.keep.items()])
    total = network.weights_total()
    # One weight of each layer stays, whatever its rank.
    assert (kept.max() <= gone.sort().values[3:].min()) and len(kept) == total - round(total / 2)
    assert sum(int((best.masks.keep[n] & m).sum()) for n, m in worst.masks.keep.items()) <= 3


def test_whole_number_scores_can_be_inverted():
    class Ranks(WeightCriterion):
        def weight_scores(self, network, batches):
            return {n: torch.arange(w.numel(), dtype=torch.uint8).view(w.shape) for n, w in network.weights()}

    network = PrunableNetwork(nn.Linear(4, 1), torch.zeros(1, 4))
    network.prune_to(Ranks(), 0.5, (), invert=True)
    assert network.masks.keep["weight"].tolist() == [[True, True, False, False]]


def test_what_cannot_be_pruned_is_refused_in_one_line():
    with pytest.raises(UsageError, match="LayerNorm has no weights that multiply"):
        PrunableNetwork(nn.LayerNorm(4))
    with pytest.raises(UsageError, match="no shape yet"):
        PrunableNetwork(nn.Sequential(nn.LazyLinear(3)))
    with pytest.raises(UsageError, match="example inputs"):
        PrunableNetwork(mlp()).flops()


def test_lazy_layers_get_their_shape_from_the_example():
    network = PrunableNetwork(
        nn.Sequential(nn.LazyConv2d(3, 3), nn.Flatten(), nn.LazyLinear(2)), torch.zeros(1, 2, 5, 5)
    )
    assert network.start_sizes == {"0.weight": 3 * 2 * 9, "2.weight": 2 * 27}
    assert network.model[0].in_channels == 2 and network.model[2].in_features == 27
    assert network.model(torch.zeros(1, 2, 5, 5)).shape == (1, 2)


@pytest.mark.parametrize("maker", [nn.Conv1d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d])
def test_every_kind_of_convolution_is_pruned(maker):
    torch.manual_seed(0)
    dimensions = int(maker.__name__[-2])
    model = nn.Sequential(maker(2, 4, 2), nn.Flatten(), nn.LazyLinear(3))
    x = torch.randn(6, 2, *[3] * dimensions)
    network = PrunableNetwork(model, x)
    network.prune(SNIP(), [(x, torch.arange(6) % 3)], sparsity=0.75)
    assert network.weights_left() == network.weights_total() - round(0.75 * network.weights_total())
    assert network.masks.removed("0.weight") > 0


def test_a_model_inside_a_wrapper_and_parameters_nobody_uses():
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = build(conv_net)
            self.idle = nn.Linear(3, 3)

        def forward(self, x):
            return self.inner(x)

    network = PrunableNetwork(Wrapped(), torch.zeros(1, 2, 5, 5))
    # What never runs is no outer layer.
    assert list(network.prunable())[-1] == "inner.6.weight"
    network.prune(SNIP(), data(SHAPES[conv_net]), sparsity=0.5)
    assert network.masks.removed("idle.weight") == 8, "no gradient, no worth, but no layer is emptied"


class Unlayered(nn.Module):
    """Parameters alone, without layers."""

    def __init__(self):
        super().__init__()
        self.weights = nn.ParameterList([nn.Parameter(torch.randn(8, 4)), nn.Parameter(torch.randn(3, 8))])
        self.bias = nn.Parameter(torch.randn(8))

    def forward(self, x):
        with torch.profiler.record_function("inner"):
            x = F.linear(x, self.weights[0], self.bias).relu()
        return F.linear(x, self.weights[1])


def test_a_network_without_layers_loses_nodes_and_weights():
    network = PrunableNetwork(build(Unlayered), torch.zeros(1, 4))
    assert network.prune(SNAP(), data((4,), classes=3), sparsity=0.5).reached == 0.5
    assert network.model.bias.shape == (4,) and network.size() == 4 * 4 + 3 * 4 + 4
    assert network.weight_sparsity() == network.effective_sparsity() == 0.5
    assert network.prune(Magnitude(), sparsity=0.75).reached == 0.75
    assert sum(int(weight.count_nonzero()) for weight in network.model.weights) == (8 * 4 + 3 * 8) / 4


class Shifted(nn.Module):
    """Its only parameter is added, so none of its weights multiplies."""

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.randn(3, 4))

    def forward(self, x):
        return (x[:, None] + self.shift).mean(1)


def test_a_network_that_multiplies_by_nothing_of_its_own_says_so():
    with pytest.raises(UsageError, match="no weights that multiply"):
        PrunableNetwork(Shifted(), torch.zeros(1, 4)).prune(Magnitude(), sparsity=0.5)


def test_what_leaves_nothing_to_prune_is_said_before_the_first_event():
    with pytest.raises(UsageError, match="outer layers left out"):
        PrunableNetwork(bias_free(4, 3, 2), torch.zeros(1, 4), outer_layers=False).counted(Magnitude())
    with pytest.raises(UsageError, match="has no node that could go"):
        PrunableNetwork(nn.Linear(4, 2), torch.zeros(1, 4)).counted(SNAP())
