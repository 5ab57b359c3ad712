"""Low rank: choices against every choice there is, components against a covariance by hand, bounds against norms."""

import itertools
import math

import pytest
import torch
from torch import nn

from criterions.ALDS import ALDS
from criterions.PCA import PCA
from criterions.SVD import SVD
from criterions.SVDEnergy import SVDEnergy
from models.ResNet20 import ResNet20
from pruning import LowRank, LowRankCriterion, PrunableNetwork, UsageError
from pruning.low_rank.ranks import Choice, Options, allocate
from tests.support.zoo.small import data
from utils.settings import registry

NAMES = [n for n in registry.names("criterions") if issubclass(registry.find("criterions", n), LowRankCriterion)]


def two_layers():
    torch.manual_seed(0)
    layers = nn.Conv2d(4, 6, 3, padding=1, bias=False), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(24, 9)).double()


def shapes(model):
    """(subspaces, rank) per decomposed layer."""
    return {p: (m.subspaces, m.rank) for p, m in model.named_modules() if isinstance(m, LowRank)}


def errors_of(criterion, model, batches=()):
    network = PrunableNetwork(model, torch.zeros(1, 4, 5, 5, dtype=torch.double))
    layers = {path: model.get_submodule(path) for path in network.owners().values()}
    return criterion.rank_errors(network, layers, batches)


def matrix(layer):
    return layer.weight.detach().flatten(1)


# -- what is lost at each rank --------------------------------------------------------------------------------------


def test_svd_ranks_are_the_same_rounded_share_of_every_full_rank():
    errors = errors_of(SVD(), two_layers())
    assert [len(errors[path][1]) for path in ("0", "4")] == [6, 9]
    for share in (0.05, 0.2, 0.33, 0.55, 0.61, 0.9):
        options = {path: Options(10**9, {1: 1}, found) for path, found in errors.items()}
        ranks = [options[path].at(1 - share).rank for path in ("0", "4")]
        assert ranks == [max(1, math.floor(share * full + 0.5)) for full in (6, 9)]


def test_svd_energy_is_what_the_best_matrix_of_a_rank_misses():
    model = two_layers()
    for path, found in errors_of(SVDEnergy(), model).items():
        weight = matrix(model.get_submodule(path))
        left, sizes, right = torch.svd(weight)
        for rank in range(1, len(sizes) + 1):
            nearest = left[:, :rank] @ torch.diag(sizes[:rank]) @ right[:, :rank].T
            lost = (weight - nearest).square().sum() / weight.square().sum()
            assert found[1][rank - 1] == pytest.approx(float(lost), abs=1e-12)


def test_alds_bound_holds_and_is_the_papers():
    """sqrt(k) max_i sigma_{i, j + 1} / sigma_1, and no operator norm of what is lost lies above it."""
    model, criterion = two_layers(), ALDS(max_subspaces=24)
    for path, found in errors_of(criterion, model).items():
        layer = model.get_submodule(path)
        weight, channels = matrix(layer), layer.weight.shape[1]
        assert list(found) == [k for k in range(1, channels + 1) if channels % k == 0]
        for k, errors in found.items():
            parts = weight.split(weight.shape[1] // k, dim=1)
            assert len(errors) == min(parts[0].shape)
            for rank in range(1, len(errors) + 1):
                spectra = [torch.linalg.eigvalsh(part @ part.T).clamp_min(0).sqrt().flip(0) for part in parts]
                after = max(float(s[rank]) if rank < min(parts[0].shape) else 0.0 for s in spectra)
                bound = math.sqrt(k) * after / float(torch.linalg.matrix_norm(weight, 2))
                assert errors[rank - 1] == pytest.approx(bound, abs=1e-7)
                factors = criterion.factors(path, layer, rank, k)
                product = (factors.decoder.view(len(weight), k, rank).transpose(0, 1) @ factors.encoder).transpose(0, 1)
                lost = torch.linalg.matrix_norm(weight - product.reshape(weight.shape), 2)
                assert lost / torch.linalg.matrix_norm(weight, 2) <= errors[rank - 1] + 1e-12


def outputs_on(model, path, batches):
    """Outputs of a layer on all batches, (positions of all samples, channels), by a loop over samples."""
    rows = []
    for inputs, _ in batches:
        for sample in inputs:
            x = sample[None]
            for number, layer in enumerate(model):
                x = layer(x)
                if str(number) == path:
                    rows += list(x[0].flatten(1).T) if x.dim() == 4 else list(x)
    return torch.stack(rows).detach()


@pytest.mark.parametrize("bias", [True, False])
def test_pca_projects_on_the_components_of_the_outputs(bias):
    model, batches = two_layers(), data((4, 5, 5), dtype=torch.double)
    if not bias:
        model[4].bias = None
    criterion = PCA()
    errors = errors_of(criterion, model, batches)
    worths = {}
    for path in ("0", "4"):
        layer, rows = model.get_submodule(path), outputs_on(model, path, batches)
        left, sizes, right = torch.linalg.svd(rows - rows.mean(0), full_matrices=True)
        values = torch.zeros(rows.shape[1], dtype=torch.double)
        values[: len(sizes)] = sizes.square() / len(rows)
        price = len(rows) * sum(matrix(layer).shape)
        worths[path] = [float(values[j] / values[: j + 1].sum()) / price for j in range(len(values))]
        assert errors[path][1].tolist() == pytest.approx([*worths[path][1:], 0], abs=1e-12)
        chosen = right[:3].T  # (channels, 3)
        factors = criterion.factors(path, layer, 3, 1)
        projected = rows.mean(0) + (rows - rows.mean(0)) @ chosen @ chosen.T
        # The layers have fewer outputs than inputs: outputs say what the inputs were, as far as the layer sees it.
        inputs = (rows if layer.bias is None else rows - layer.bias) @ torch.linalg.pinv(matrix(layer)).T
        computed = inputs @ factors.encoder[0].T @ factors.decoder.T + factors.bias
        assert torch.allclose(computed, projected, atol=1e-10)


def test_pca_computes_in_eval_mode_what_it_promises():
    model, batches = two_layers(), data((4, 5, 5), dtype=torch.double)
    network = PrunableNetwork(model, batches[0][0][:1])
    before = outputs_on(model, "0", batches)
    network.prune(PCA(), batches, sparsity=0.5)
    rank = model[0].rank
    chosen = torch.linalg.eigh(torch.cov(before.T, correction=0)).eigenvectors[:, -rank:]
    expected = before.mean(0) + (before - before.mean(0)) @ chosen @ chosen.T
    assert torch.allclose(outputs_on(model, "0", batches), expected, atol=1e-10)


# -- the choice ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_no_choice_within_the_budget_has_a_smaller_largest_error(seed):
    """ALDS on a tiny network, against every (subspaces, rank) of every layer."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(4, 5, bias=False), nn.Linear(5, 6, bias=False), nn.Linear(6, 4, bias=False)
    ).double()
    with torch.no_grad():  # of a low rank in parts, so that subspaces pay
        model[0].weight[:, 2:] *= 0.05
        model[1].weight.copy_(torch.rand(6, 1) @ torch.rand(1, 5) + 0.1 * torch.rand(6, 5))
    criterion, every = ALDS(), []
    layers = {str(number): layer for number, layer in enumerate(model)}
    errors = criterion.rank_errors(PrunableNetwork(model, torch.zeros(1, 4, dtype=torch.double)), layers, ())
    options = {}
    for path, layer in layers.items():
        outputs, inputs = layer.weight.shape
        prices = {k: k * outputs + inputs for k in errors[path]}
        options[path] = Options(layer.weight.numel(), prices, errors[path])
        found = [(layer.weight.numel(), 0.0)]
        for k, values in errors[path].items():
            found += [(j * prices[k], float(values[j - 1])) for j in range(1, len(values) + 1)]
        every.append([(weights, error) for weights, error in found if weights <= layer.weight.numel()])
    least = sum(min(weights for weights, _ in found) for found in every)
    for budget in range(least, sum(layer.weight.numel() for layer in model)):
        chosen = allocate(options, budget).values()
        assert sum(choice.weights for choice in chosen) <= budget
        within = [combo for combo in itertools.product(*every) if sum(weights for weights, _ in combo) <= budget]
        best = min(max(error for _, error in combo) for combo in within)
        assert max(choice.error for choice in chosen) == pytest.approx(best, abs=1e-12)


def test_what_a_budget_leaves_over_is_less_than_any_next_rank():
    options = {
        n: Options(100, {1: price}, {1: torch.linspace(0.9, 0, 9, dtype=torch.double)})
        for n, price in (("a", 11), ("b", 7))
    }
    for budget in range(18, 200):
        chosen = allocate(options, budget)
        spare = budget - sum(choice.weights for choice in chosen.values())
        steps = [options[n].above(c).weights - c.weights for n, c in chosen.items() if c.subspaces]
        assert spare >= 0 and all(step > spare for step in steps)
    assert allocate(options, 3) == {"a": Choice(11, 1, 1, 0.9), "b": Choice(7, 1, 1, 0.9)}  # as near as can be
    assert allocate(options, 200) == {"a": Choice(100), "b": Choice(100)}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("limit", [0.3, 0.6, 0.85])
def test_a_limit_is_reached_from_below_within_one_rank(name, limit):
    torch.manual_seed(0)
    model = ResNet20(num_classes=4, input_shape=(3, 8, 8), width_multiplier=0.5)
    network, batches = PrunableNetwork(model, torch.zeros(1, 3, 8, 8)), data((3, 8, 8))
    network.note_start()
    total, flops = network.weights_total(), network.flops()
    state = torch.get_rng_state()
    report = network.prune(registry.find("criterions", name)(), batches, sparsity=limit)
    assert torch.equal(state, torch.get_rng_state())
    left = sum(weight.numel() for weight in network.prunable().values())
    keep = total - round(limit * total)
    smallest = min(m.subspaces * len(m.decoder.weight) + m.encoder.weight[0].numel() * m.subspaces
                   for m in model.modules() if isinstance(m, LowRank))  # fmt: skip
    assert keep - smallest < left <= keep and network.weights_left() == left == report.steps[-1].left
    assert network.flops() < flops and network.nodes_left() == network.nodes_total() and network.node_sparsity() == 0
    assert sum(network.start_sizes.values()) == total
    assert all(0 <= sparsity < 1 for sparsity in network.layer_sparsities().values())
    assert torch.isfinite(model(batches[0][0])).all()


def test_several_events_end_at_the_same_limit_and_merge_what_was_decomposed():
    network = PrunableNetwork(two_layers(), torch.zeros(1, 4, 5, 5, dtype=torch.double))
    report = network.prune(SVDEnergy(rank_events=3), sparsity=0.6)
    assert [round(step.asked, 6) for step in report.steps] == [round(1 - 0.4 ** (i / 3), 6) for i in (1, 2, 3)]
    once = PrunableNetwork(two_layers(), torch.zeros(1, 4, 5, 5, dtype=torch.double))
    once.prune(SVDEnergy(), sparsity=0.6)
    assert shapes(network.model) == shapes(once.model)
    # Without training in between, cutting twice is cutting once.
    x = torch.randn(2, 4, 5, 5, dtype=torch.double)
    assert torch.allclose(network.model(x), once.model(x), atol=1e-10)


# -- what cannot be ------------------------------------------------------------------------------------------------


def test_errors_are_one_clear_line():
    network = PrunableNetwork(two_layers())
    with pytest.raises(UsageError, match="Low rank needs example inputs"):
        network.prune(SVD(), sparsity=0.5)
    example = torch.zeros(1, 4, 5, 5, dtype=torch.double)
    network = PrunableNetwork(two_layers(), example)
    with pytest.raises(UsageError, match="no batches"):
        network.prune(PCA(), sparsity=0.5)
    with pytest.raises(UsageError, match="'0' puts out values that are not finite"):
        network.prune(PCA(), [(example * math.nan, torch.zeros(1))], sparsity=0.5)
    with pytest.raises(UsageError, match="SVD lowers ranks: there are no masks"):
        network.prune_to(SVD(), 0.5, invert=True)
    with torch.no_grad():
        network.model[4].weight[0, 0] = math.nan
    with pytest.raises(UsageError, match="'4' holds weights that are not finite"):
        network.prune(SVD(), sparsity=0.5)
    assert not shapes(network.model)
    depthwise = PrunableNetwork(nn.Sequential(nn.Conv2d(4, 4, 3, groups=4)), torch.zeros(1, 4, 5, 5))
    with pytest.raises(UsageError, match="has no layer that SVD could decompose: 0 .groups."):
        depthwise.prune(SVD(), sparsity=0.5)
    for wrong in ({"rank_events": 0}, {"max_subspaces": 0}):
        with pytest.raises(ValueError, match="must be at least 1; 0 was given"):
            ALDS(**wrong)


def test_a_limit_out_of_reach_is_reached_as_nearly_as_possible_and_said():
    network = PrunableNetwork(two_layers(), torch.zeros(1, 4, 5, 5, dtype=torch.double))
    report = network.prune(SVD(), sparsity=0.99)
    assert set(shapes(network.model).values()) == {(1, 1)}
    assert "all layers that can be decomposed have rank 1" in report.steps[0].reason


@pytest.mark.parametrize("name", NAMES)
def test_a_layer_of_zeros_gets_no_more_than_it_needs(name):
    model, batches = two_layers(), data((4, 5, 5), dtype=torch.double)
    nn.init.zeros_(model[0].weight)
    network = PrunableNetwork(model, batches[0][0][:1])
    network.prune(registry.find("criterions", name)(), batches, sparsity=0.6)
    # All outputs are constant then, so that to PCA both layers are alike.
    assert name in ("SVD", "PCA") or model[0].rank < model[4].rank
    assert torch.isfinite(model(batches[0][0])).all()
