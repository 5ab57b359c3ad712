"""The slow references are right (hand examples, derivatives by differences) and a wrong formula does not pass them."""

import math
import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.support import slow_reference as slow


class Residual(nn.Module):
    """Two convolutions whose sum is normalised, pooled and classified; small enough for a full Hessian."""

    def __init__(self):
        super().__init__()
        self.stem, self.branch = nn.Conv2d(2, 3, 3), nn.Conv2d(3, 3, 3, padding=1, groups=3)
        self.norm, self.head = nn.BatchNorm2d(3), nn.Linear(3, 4)

    def forward(self, x):
        stem = self.stem(x)
        return self.head(F.silu(self.norm(stem + self.branch(F.silu(stem)))).mean((2, 3)))


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = Residual()
    # a fresh norm is the identity in eval mode and would hide a formula that forgets it
    for tensor in (model.norm.weight, model.norm.running_var):
        nn.init.uniform_(tensor, 0.5, 2.0)
    for tensor in (model.norm.bias, model.norm.running_mean):
        nn.init.normal_(tensor)
    return model.eval()


@pytest.fixture
def batches():
    generator = torch.Generator().manual_seed(1)
    # batches of different size tell a mean over batches from a mean over samples
    return [(torch.randn(n, 2, 5, 5, generator=generator), torch.arange(n) % 4) for n in (3, 6)]


def mlp(*widths):
    torch.manual_seed(2)
    pairs = zip(widths[:-1], widths[1:], strict=True)
    return nn.Sequential(*[part for i, o in pairs for part in (nn.Linear(i, o, bias=False), nn.ReLU())][:-1])


def gradients(model, batches, loss=F.cross_entropy):
    """{name: gradient} of every parameter in the model's own precision and mode, the fast way."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    total = sum(loss(model(x), y) for x, y in batches) / len(batches)
    return dict(zip(names, torch.autograd.grad(total, parameters), strict=True))


def elasticity(weight, slope):
    return (weight * slope).abs()


def each(formula, weights, *others):
    return {name: formula(weight, *[other[name] for other in others]) for name, weight in weights.items()}


def same(fast, reference, **options):
    try:
        slow.assert_same(fast, reference, **options)
    except AssertionError:
        return False
    return True


def test_imports_nothing_of_the_project():
    imported = set(re.findall(r"^\s*(?:from|import) (\w+)", Path(slow.__file__).read_text(), re.MULTILINE))
    assert imported == {"__future__", "collections", "copy", "math", "numpy", "torch"}


def test_scoring_leaves_the_model_alone_and_takes_its_weights(model, batches):
    assert list(slow.prunable(model)) == ["stem.weight", "branch.weight", "head.weight"]
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    slow.snip_gates(model, batches, train=True)
    slow.snap_gates(model, batches)
    slow.synflow(model, (2, 5, 5))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert model.training and all(parameter.grad is None for parameter in model.parameters())


# --- SNIP
def test_snip_gates_agree_with_differences_and_follow_the_mode(model, batches):
    gates, trained = slow.snip_gates(model, batches), slow.snip_gates(model, batches, train=True)
    slow.assert_same(gates, slow.snip_differences(model, batches), rtol=1e-7)
    assert not same(trained, gates)
    slow.assert_same(each(elasticity, slow.prunable(model), gradients(model.train(), batches)), trained)


def test_snip_with_tokens_dropout_a_tied_weight_and_an_idle_layer():
    model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3), nn.Dropout(0.9)).eval()
    model[3].weight, model[2].idle = model[1].weight, nn.Linear(3, 3)
    batches = [(torch.arange(5), torch.arange(5) % 3)]
    scores = slow.snip_gates(model, batches, train=True)
    assert [bool(score.any()) for score in scores.values()] == [True, False] and "1.weight" in scores
    slow.assert_same(scores, slow.snip_differences(model, batches), rtol=1e-7)
    slope = torch.autograd.grad(F.cross_entropy(model(batches[0][0]), batches[0][1]), model[1].weight)[0]
    slow.assert_same({"w": elasticity(model[1].weight, slope)}, {"w": scores["1.weight"]})


def snip_variants(model, batches):
    weights, gradient = slow.prunable(model), gradients(model, batches)
    one, two = (each(elasticity, weights, gradients(model, [batch])) for batch in batches)
    joined = tuple(torch.cat(part) for part in zip(*batches, strict=True))
    return {
        "right": each(elasticity, weights, gradient),
        "sign kept": each(torch.mul, weights, gradient),
        "weight forgotten": each(lambda w, g: g.abs(), weights, gradient),
        "nll of raw logits": each(elasticity, weights, gradients(model, batches, F.nll_loss)),
        "absolute value per batch": each(lambda w, a, b: (a + b) / 2, weights, one, two),
        "last batch only": two,
        "sum over batches": each(lambda w, g: 2 * elasticity(w, g), weights, gradient),
        "mean over samples": each(elasticity, weights, gradients(model, [joined])),
    }


# --- GraSP
def test_grasp_of_a_quadratic_loss_is_exact():
    torch.manual_seed(3)
    root, w = torch.randn(7, 6, dtype=torch.float64).split((6, 1))
    a, w = root @ root.T, w[0]
    score = -w * slow.hessian_times_gradient(lambda v: v @ a @ v / 2, w)
    torch.testing.assert_close(score, -w * (a @ a @ w), rtol=1e-12, atol=1e-12)
    by_hand = slow.hessian_times_gradient(lambda v: 3 * v[0] ** 2 + v[0] * v[1], torch.tensor([1.0, 2.0]))
    torch.testing.assert_close(by_hand, torch.tensor([6 * 8 + 1.0, 8.0]))


@pytest.mark.parametrize("temperature", [1.0, 5.0])
def test_grasp_is_the_change_of_gradient_flow_as_a_connection_fades(model, batches, temperature):
    double = slow.twin(model)
    weights = slow.prunable(double)

    def gradient_flow(gates):
        gated = {name: (gate * weights[name]).requires_grad_() for name, gate in gates.items()}
        slopes = torch.autograd.grad(slow.mean_loss(double, batches, gated, temperature), list(gated.values()))
        return sum(slope.square().sum() for slope in slopes) / 2

    slopes = slow.central_differences(gradient_flow, each(torch.ones_like, weights))
    # fading is a gate that goes down from 1, hence the sign
    slow.assert_same(slow.grasp(model, batches, temperature=temperature), each(torch.neg, slopes), rtol=1e-6)


def products(model, batches, temperature=200.0, names=None):
    """{name: H g} over the named parameters by double backward, the fast way."""
    names = names or list(slow.prunable(model))
    chosen = [model.get_parameter(name) for name in names]
    loss = sum(F.cross_entropy(model(x) / temperature, y) for x, y in batches) / len(batches)
    slopes = torch.autograd.grad(loss, chosen, create_graph=True)
    product = sum((slope * slope.detach()).sum() for slope in slopes)
    return dict(zip(names, torch.autograd.grad(product, chosen), strict=True))


def grasp_variants(model, batches):
    weights, right = slow.prunable(model), products(model, batches)
    one, two = (products(model, [batch]) for batch in batches)
    gradient = gradients(model, batches, lambda logits, y: F.cross_entropy(logits / 200, y))
    everything = products(model, batches, names=[name for name, _ in model.named_parameters()])
    return {
        "right": each(lambda w, hg: -w * hg, weights, right),
        "sign flipped": each(torch.mul, weights, right),
        "absolute value": each(elasticity, weights, right),
        "weight forgotten": each(lambda w, hg: -hg, weights, right),
        "Hessian forgotten": each(lambda w, g: -w * g, weights, gradient),
        "temperature forgotten": each(lambda w, hg: -w * hg, weights, products(model, batches, 1.0)),
        "H and g of the same batch": each(lambda w, a, b: -w * (a + b) / 2, weights, one, two),
        "biases and norms in g": each(lambda w, hg: -w * hg, weights, everything),
    }


# --- SynFlow
def test_synflow_agrees_with_products_of_absolute_matrices():
    model = mlp(4, 5, 3, 2)
    flows = slow.synflow_products([model[i].weight for i in (0, 2, 4)])
    slow.assert_same(slow.synflow(model, (4,)), dict(zip(slow.prunable(model), flows, strict=True)), rtol=1e-12)
    by_hand = slow.synflow_products([torch.tensor([[1.0, -2.0], [0.0, 3.0]]), torch.tensor([[-1.0, 4.0]])])
    assert [score.tolist() for score in by_hand] == [[[1, 2], [0, 12]], [[3, 12]]]


def test_synflow_is_conserved_and_keeps_every_layer_alive():
    model = mlp(6, 8, 7, 3)
    sums = torch.stack([score.sum() for score in slow.synflow(model, (6,)).values()])
    torch.testing.assert_close(sums, sums[:1].expand(3), rtol=1e-12, atol=0)
    targets = slow.exponential_schedule(0.97, 30)
    masks = slow.prune_in_steps(model, lambda network: slow.synflow(network, (6,)), targets)
    assert sum(int(mask.sum()) for mask in masks.values()) == slow.kept_of(125, 0.97) == 4
    # a path is left: the flow of the pruned network is not zero
    assert slow.positive_twin(slow.masked(model, masks))(torch.ones(1, 6, dtype=torch.float64)).sum() > 0


def synflow_variants(model, batches):
    def slopes(network):
        chosen = {name: network.get_parameter(name).requires_grad_() for name in weights}
        flow = network(torch.ones(1, 2, 5, 5, dtype=torch.float64)).sum()
        return dict(zip(chosen, torch.autograd.grad(flow, list(chosen.values())), strict=True))

    weights, positive, half = slow.prunable(model), slow.positive_twin(model), slow.positive_twin(model)
    half.norm.running_mean.copy_(model.norm.running_mean)
    return {
        "right": each(elasticity, weights, slopes(positive)),
        "sign kept": each(torch.mul, weights, slopes(positive)),
        "weight forgotten": slopes(positive),
        "parameters not made positive": each(elasticity, weights, slopes(slow.twin(model))),
        "buffers not made positive": each(elasticity, weights, slopes(half)),
    }


# --- LAMP
def test_lamp_and_magnitude_by_hand():
    layer = nn.Linear(3, 1)
    layer.weight.data = torch.tensor([[2.0, -1.0, 3.0]])
    torch.testing.assert_close(slow.lamp(layer)["weight"], torch.tensor([[4 / 13, 1 / 14, 1.0]]).double())
    assert slow.magnitude(layer)["weight"].tolist() == [[2, 1, 3]]
    # equal weights rank by position, so only the last of them has the tail to itself
    assert [slow.lamp_of(torch.full((2,), value)).tolist() for value in (1.0, 0.0)] == [[0.5, 1], [0, 0]]


def lamp_variants(model, batches):
    def tail(weight, power=2, own=True):
        values, order = weight.flatten().abs().pow(power).sort()
        sums = values.flip(0).cumsum(0).flip(0) - (0 if own else values)
        return torch.empty_like(values).scatter_(0, order, values / sums.clamp_min(1e-12)).view(weight.shape)

    weights = slow.prunable(model)
    mutants = {
        "whole layer": lambda w: w**2 / (w**2).sum(),
        "not squared": lambda w: tail(w, power=1),
        "itself left out": lambda w: tail(w, own=False),
    }
    return {"right": each(tail, weights)} | {fault: each(formula, weights) for fault, formula in mutants.items()}


# --- SNAP
def test_snap_gates_agree_with_differences(model, batches):
    double, names = slow.twin(model), ["stem", "branch", "head"]
    gates = {name: torch.ones(4 if name == "head" else 3, dtype=torch.float64) for name in names}
    moved = slow.central_differences(lambda at: slow.loss_with_output_gates(double, batches, at), gates)
    exact = slow.snap_gates(model, batches)
    slow.assert_same({f"{name}.weight": slope.abs() for name, slope in moved.items()}, exact, rtol=1e-7)


def test_snap_gate_shared_by_a_sum_adds_signed_parts(model, batches):
    alone = slow.snap_gates(model, batches, signed=True)
    shared = slow.snap_gates(model, batches, tied=[("stem", "branch")], signed=True)
    for name in ("stem.weight", "branch.weight"):
        torch.testing.assert_close(shared[name], alone["stem.weight"] + alone["branch.weight"])


def test_snap_gate_before_a_norm_on_batch_statistics_is_blind():
    torch.manual_seed(5)
    model = nn.Sequential(nn.Conv2d(1, 4, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))
    batches = [(torch.randn(8, 1, 3, 3), torch.arange(8) % 3)]
    before = slow.snap_gates(model, batches, modules=["0"], train=True)["0.weight"]
    behind = slow.snap_gates(model, batches, modules=["1"], train=True)["1.weight"]
    assert before.max() < 1e-4 < 1e-3 < behind.max()


def channel_sums(model, batches, bias=True):
    """Per channel, the sum of w * dL/dw and of the bias's share: the closed form of an output gate's gradient."""
    parts = each(torch.mul, gradients(model, batches), model.state_dict())
    return {n: parts[n].flatten(1).sum(1) + bias * parts[n.replace("weight", "bias")] for n in slow.prunable(model)}


def snap_variants(model, batches):
    right, parts = channel_sums(model, batches), each(elasticity, slow.prunable(model), gradients(model, batches))
    one, two = (channel_sums(model, [batch]) for batch in batches)
    return {
        "right": each(torch.abs, right),
        "sign kept": right,
        "bias forgotten": each(torch.abs, channel_sums(model, batches, bias=False)),
        "absolute value before the sum": each(lambda part: part.flatten(1).sum(1), parts),
        "absolute value per batch": each(lambda a, b: (a.abs() + b.abs()) / 2, one, two),
    }


REFERENCES = [
    (snip_variants, slow.snip_gates),
    (grasp_variants, slow.grasp),
    (synflow_variants, lambda model, batches: slow.synflow(model, (2, 5, 5))),
    (lamp_variants, lambda model, batches: slow.lamp(model)),
    (snap_variants, slow.snap_gates),
]


@pytest.mark.parametrize(("variants", "reference"), REFERENCES)
def test_the_fast_formula_passes_in_single_precision_and_a_wrong_one_does_not(variants, reference, model, batches):
    computed, expected = variants(model, batches), reference(model, batches)
    assert [fault for fault, scores in computed.items() if same(scores, expected)] == ["right"]
    # where only the ranking counts, a factor is forgiven, but neither a sign nor a missing term
    larger = each(lambda score: 4 * score, expected)
    passed = {fault for fault, scores in computed.items() if same(scores, larger, up_to_scale=True)}
    assert passed - {"sum over batches"} == {"right"}


def test_comparison_refuses_other_names_shapes_and_nan():
    ones = torch.ones(2, 3)
    assert same({"a": ones}, {"a": ones})
    for wrong in ({}, {"b": ones}, {"a": ones.T}, {"a": ones * math.nan}, {"a": ones * 1.001}):
        assert not same(wrong, {"a": ones})


# --- schedules
def test_schedules_as_specified():
    assert slow.halving_schedule(0.98) == pytest.approx([0.5, 0.74, 0.86, 0.92, 0.95, 0.965, 0.98])
    assert slow.halving_schedule(0.93) == pytest.approx([0.5, 0.715, 0.8225, 0.87625, 0.903125, 0.9165625, 0.93])
    assert slow.cubic_schedule(0.8, 4) == pytest.approx([0, 0.4625, 0.7, 0.7875, 0.8])
    assert slow.cubic_schedule(0.8, 2, start=0.4) == pytest.approx([0.4, 0.75, 0.8])


@pytest.mark.parametrize("limit", [0.05, 0.3, 0.5, 0.51, 0.9, 0.98, 0.999])
def test_schedules_rise_to_their_limit_and_never_beyond(limit):
    halving = slow.halving_schedule(limit)
    closed_form = [limit - (limit - halving[0]) * 2.0**-i for i in range(6)]
    assert halving == pytest.approx([*closed_form, limit])
    exponential = slow.exponential_schedule(limit, 10)
    assert exponential == pytest.approx([1 - (1 - limit) ** (i / 10) for i in range(1, 11)])
    for targets in (halving, exponential, slow.cubic_schedule(limit, 8)):
        assert targets == sorted(targets)
        assert targets[-1] == pytest.approx(limit)
        assert max(targets) <= limit + 1e-12


# --- selection
def masks_of(lists):
    return {name: mask.int().flatten().tolist() for name, mask in lists.items()}


def test_keep_top_is_exact_with_ties_and_zeros():
    scores = {"a": torch.tensor([1.0, 3.0, 3.0]), "b": torch.tensor([[3.0, 0.0], [-1.0, 3.0]])}
    assert masks_of(slow.keep_top(scores, 3)) == {"a": [0, 1, 1], "b": [1, 0, 0, 0]}
    assert masks_of(slow.keep_top(scores, 7)) == {"a": [1, 1, 1], "b": [1, 1, 1, 1]}
    zeros = {"a": torch.zeros(50), "b": torch.cat([torch.zeros(40), torch.ones(10)])}
    for kept in range(2, 101):
        assert sum(int(mask.sum()) for mask in slow.keep_top(zeros, kept).values()) == kept
    assert [slow.kept_of(100, sparsity) for sparsity in (0.0, 0.904, 0.906, 1.0)] == [100, 10, 9, 1]


def test_keep_top_guards_layers_the_dead_and_the_finite():
    scores = {"a": torch.tensor([9.0, 8.0, 7.0]), "b": torch.tensor([1.0, 2.0])}
    assert masks_of(slow.keep_top(scores, 2)) == {"a": [1, 0, 0], "b": [0, 1]}
    assert masks_of(slow.keep_top(scores, 2, min_per_layer=0)) == {"a": [1, 1, 0], "b": [0, 0]}
    assert masks_of(slow.keep_top(scores, 1)) == {"a": [1, 0, 0], "b": [0, 1]}
    alive = {"a": torch.tensor([False, True, True]), "b": torch.tensor([True, False])}
    assert masks_of(slow.keep_top(scores, 5, alive=alive)) == {"a": [0, 1, 1], "b": [1, 0]}
    with pytest.raises(ValueError, match="b has a score"):
        slow.keep_top({"a": torch.ones(2), "b": torch.tensor([math.inf])}, 1)


@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.8, 0.95])
def test_erk_densities_keep_the_budget_and_the_proportion(sparsity):
    shapes = {"first": (16, 3, 3, 3), "wide": (64, 16, 3, 3), "thin": (4, 4), "last": (10, 64)}
    densities, sizes = slow.erk_densities(shapes, sparsity), {name: math.prod(s) for name, s in shapes.items()}
    assert sum(densities[n] * sizes[n] for n in shapes) == pytest.approx((1 - sparsity) * sum(sizes.values()))
    factors = {name: densities[name] * sizes[name] / sum(shapes[name]) for name in shapes}
    # dense is only what the common factor would make denser than that
    for name in shapes:
        assert densities[name] == pytest.approx(min(1, factors["wide"] * sum(shapes[name]) / sizes[name]))
    assert densities["wide"] < 1


# --- events
def test_iterated_scoring_takes_the_masked_network_and_no_weight_returns(model, batches):
    first = slow.keep_top(slow.snip_gates(model, batches), slow.kept_of(93, 0.5))
    scores = slow.snip_gates(slow.masked(model, first), batches)
    by_hand = masks_of(slow.keep_top(scores, slow.kept_of(93, 0.8), alive=first))
    stepped = slow.prune_in_steps(model, lambda network: slow.snip_gates(network, batches), [0.5, 0.8])
    assert by_hand == masks_of(stepped)
    # ranking the first scores again gives another mask; scores that turn round would bring back what is gone
    assert by_hand != masks_of(slow.keep_top(slow.snip_gates(model, batches), slow.kept_of(93, 0.8)))
    turning = iter([slow.snip_gates(model, batches), each(torch.neg, slow.snip_gates(model, batches))])
    turned = slow.prune_in_steps(model, lambda network: next(turning), [0.5, 0.8])
    assert all((first[name] | ~turned[name]).all() for name in first)


def test_gmp_event_by_hand():
    weights = {"a": torch.tensor([-5.0, 4.0, 0.0, 3.0]), "b": torch.tensor([0.1, -0.3, 0.2, 9.0])}
    masks = {"a": torch.ones(4), "b": torch.tensor([1, 1, 1, 0])}
    assert masks_of(slow.gmp_event(weights, masks, 0.5)) == {"a": [1, 1, 0, 1], "b": [0, 1, 0, 0]}
    assert masks_of(slow.gmp_event(weights, masks, 0.5, local=True)) == {"a": [1, 1, 0, 0], "b": [0, 1, 1, 0]}


def test_imp_event_rewinds_everything_and_only_when_the_mask_changes():
    now = {"w": torch.tensor([1.0, -4.0, 3.0, 2.0]), "bias": torch.tensor([7.0]), "steps": torch.tensor(9)}
    start = {"w": torch.tensor([10.0, 20.0, 30.0, 40.0]), "bias": torch.tensor([1.0]), "steps": torch.tensor(2)}
    masks = {"w": torch.ones(4, dtype=torch.bool)}
    state, masks = slow.imp_event(now, start, masks, 0.5)
    assert {name: tensor.tolist() for name, tensor in state.items()} == {"w": [0, 20, 30, 0], "bias": [1], "steps": 2}
    again, same_masks = slow.imp_event(now, start, masks, 0.5)
    assert masks_of(same_masks) == masks_of(masks) == {"w": [0, 1, 1, 0]}
    assert all(torch.equal(again[name], now[name]) for name in now)
