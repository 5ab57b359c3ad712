"""Every score equals its paper's formula, computed slowly and independently."""

import pytest
import torch
from torch import nn

from criterions.GRASP import GRASP
from criterions.LAMP import LAMP, lamp_scores
from criterions.Magnitude import Magnitude
from criterions.SNIP import SNIP
from criterions.SynFlow import SynFlow
from pruning import PrunableNetwork, UsageError
from tests.support import slow_reference as slow
from tests.support.zoo.small import SHAPES, Attention, bias_free, build, data, tokens

CASES = [(maker, dtype) for maker in SHAPES for dtype in (torch.float32, torch.float64)]
each_network = pytest.mark.parametrize(("maker", "dtype"), CASES, ids=lambda v: getattr(v, "__name__", str(v)))


def network_of(maker, dtype):
    model = build(maker, dtype=dtype)
    return PrunableNetwork(model, torch.zeros(2, *SHAPES[maker], dtype=dtype)), data(SHAPES[maker], dtype=dtype)


@each_network
def test_magnitude_is_the_absolute_weight(maker, dtype):
    network, _ = network_of(maker, dtype)
    slow.assert_same(Magnitude().weight_scores(network, ()), slow.magnitude(network.model))


@each_network
def test_lamp_divides_by_what_comes_after(maker, dtype):
    network, _ = network_of(maker, dtype)
    slow.assert_same(LAMP().weight_scores(network, ()), slow.lamp(network.model), rtol=1e-9)


@each_network
@pytest.mark.parametrize("batch_statistics", [False, True])
def test_snip_is_the_derivative_to_a_gate_on_each_connection(maker, dtype, batch_statistics):
    network, batches = network_of(maker, dtype)
    scores = SNIP(batch_statistics=batch_statistics).weight_scores(network, batches)
    slow.assert_same(scores, slow.snip_gates(network.model, batches, train=batch_statistics))


def test_snip_needs_no_derivative_to_be_checked():
    network, batches = network_of(next(iter(SHAPES)), torch.float64)
    scores = SNIP().weight_scores(network, batches)
    slow.assert_same(scores, slow.snip_differences(network.model, batches), rtol=1e-5)


@each_network
@pytest.mark.parametrize("temperature", [1.0, 200.0])
def test_grasp_is_minus_what_the_paper_removes(maker, dtype, temperature):
    network, batches = network_of(maker, dtype)
    scores = GRASP(temperature=temperature).weight_scores(network, batches)
    removed_first = slow.grasp(network.model, batches, temperature=temperature)
    slow.assert_same({name: -score for name, score in scores.items()}, removed_first, rtol=1e-3)


def test_grasp_on_a_quadratic_keeps_the_smallest_of_minus_w_a_a_w():
    """With L = w'Aw / 2 the gradient is Aw and the Hessian A, so S = -w * (A A w) (specification, test 5)."""
    torch.manual_seed(0)
    half = torch.randn(12, 12, dtype=torch.float64)
    quadratic = half @ half.T
    model = nn.Linear(12, 1, bias=False).double()

    def loss(outputs, targets):
        return model.weight[0] @ quadratic @ model.weight[0] / 2

    network = PrunableNetwork(model, loss=loss)
    removed_first = -(model.weight[0] * (quadratic @ quadratic @ model.weight[0])).detach()
    scores = GRASP(temperature=1.0).weight_scores(network, [(torch.zeros(1, 12).double(), torch.zeros(1))])
    torch.testing.assert_close(scores["weight"][0], -removed_first)
    network.prune(GRASP(temperature=1.0), [(torch.zeros(1, 12).double(), torch.zeros(1))], sparsity=0.5)
    kept = network.masks.keep["weight"][0].nonzero().flatten().tolist()
    assert kept == sorted(removed_first.argsort()[:6].tolist())


def test_grasp_where_the_loss_is_linear_has_no_curvature():
    model = nn.Linear(3, 1, bias=False)
    network = PrunableNetwork(model, loss=lambda outputs, targets: outputs.sum())
    scores = GRASP().weight_scores(network, [(torch.ones(2, 3), torch.zeros(2))])
    assert not scores["weight"].any()


@each_network
def test_synflow_is_the_flow_through_the_absolute_network(maker, dtype):
    network, _ = network_of(maker, dtype)
    slow.assert_same(SynFlow().weight_scores(network, ()), slow.synflow(network.model, SHAPES[maker]))


def test_synflow_in_closed_form_and_conserved_from_layer_to_layer():
    torch.manual_seed(0)
    model = bias_free(5, 8, 6, 3)
    scores = SynFlow().weight_scores(PrunableNetwork(model, torch.zeros(1, 5)), ())
    expected = slow.synflow_products(list(model.parameters()))
    slow.assert_same(scores, dict(zip(scores, expected, strict=True)), rtol=1e-9)
    sums = torch.stack([score.sum() for score in scores.values()])
    torch.testing.assert_close(sums, sums[0].expand(3))


@pytest.mark.parametrize("keep", [3, 4, 7, 20])
def test_synflow_empties_no_layer_while_one_weight_each_may_stay(keep):
    torch.manual_seed(1)
    network = PrunableNetwork(bias_free(6, 9, 9, 4), torch.zeros(1, 6))
    total = network.weights_total()
    network.prune(SynFlow(), sparsity=1 - keep / total)
    assert network.weights_left() == keep
    assert max(network.layer_sparsities().values()) < 1
    # A path through all layers is left: the flow is not cut.
    assert SynFlow().weight_scores(network, ())["0.weight"].any()


def test_synflow_survives_what_overflows_single_precision():
    torch.manual_seed(0)
    model = bias_free(*[64] * 60, 4)
    for weight in model.parameters():
        nn.init.normal_(weight)
    scores = SynFlow().weight_scores(PrunableNetwork(model, torch.zeros(1, 64)), ())
    assert all(torch.isfinite(score).all() and score.any() for score in scores.values())
    assert max(float(score.max()) for score in scores.values()) > torch.finfo(torch.float32).max


def test_lamp_by_hand_and_its_largest_weight_scores_one():
    torch.testing.assert_close(lamp_scores(torch.tensor([1.0, -2.0, 3.0])).tolist(), [1 / 14, 4 / 13, 1.0])
    assert lamp_scores(torch.zeros(4)).tolist() == [0.0] * 4
    network, _ = network_of(next(iter(SHAPES)), torch.float32)
    assert all(float(score.max()) == 1 for score in LAMP().weight_scores(network, ()).values())


@pytest.mark.parametrize("criterion", [SNIP(), GRASP(temperature=1.0), SynFlow()], ids=lambda c: type(c).__name__)
def test_attention_on_tokens_is_scored_in_every_layer(criterion):
    network = PrunableNetwork(build(Attention), tokens()[0][0])
    scores = criterion.weight_scores(network, tokens())
    assert "block.self_attn.out_proj.weight" in scores
    assert all(score.any() for score in scores.values())


def test_snip_through_attention_equals_the_gates():
    network = PrunableNetwork(build(Attention, dtype=torch.float64), tokens()[0][0])
    slow.assert_same(SNIP().weight_scores(network, tokens()), slow.snip_gates(network.model, tokens()))


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_gradients_add_up_in_single(half):
    network, batches = network_of(next(iter(SHAPES)), half)
    scores = SNIP().weight_scores(network, batches * 3)
    assert {score.dtype for score in scores.values()} == {torch.float32}
    # Half precision has about 3 digits in each pass.
    slow.assert_same(scores, slow.snip_gates(network.model, batches), rtol=0.1)


def test_a_network_cut_in_two_is_said_so_instead_of_ranked():
    torch.manual_seed(0)
    model = bias_free(4, 5, 5, 3)
    batches = data((4,), classes=3)
    model[2].weight.data.zero_()
    network = PrunableNetwork(model, torch.zeros(1, 4))
    for criterion in (SNIP(), GRASP(), SynFlow()):
        with pytest.raises(UsageError, match="cut in two"):
            network.prune(criterion, batches, sparsity=0.5)
    assert len(network.masks) == 0


def test_biases_that_bypass_the_cut_do_not_hide_it():
    """The gradient of a removed weight may be there while that of every remaining one is zero."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3))
    model[1].weight.data.zero_()
    with pytest.raises(UsageError, match="Every score is zero"):
        SNIP().weight_scores(PrunableNetwork(model), data((4,), classes=3))


def test_no_batches_odd_batches_and_a_loss_that_is_no_number():
    network, batches = network_of(next(iter(SHAPES)), torch.float32)
    with pytest.raises(UsageError, match="no batches"):
        SNIP().weight_scores(network, [])
    with pytest.raises(UsageError, match="pair"):
        SNIP().weight_scores(network, [(*batches[0], torch.arange(3))])
    network.loss = nn.CrossEntropyLoss(reduction="none")
    with pytest.raises(UsageError, match="one number"):
        SNIP().weight_scores(network, batches)
    network.loss = lambda outputs, targets: outputs.sum() * float("nan")
    with pytest.raises(UsageError, match="nan"):
        SNIP().weight_scores(network, batches)


def test_synflow_says_what_it_needs():
    with pytest.raises(UsageError, match="example inputs"):
        SynFlow().weight_scores(PrunableNetwork(bias_free(3, 4)), ())


class Distance(nn.Module):
    """Two inputs, two outputs."""

    def __init__(self):
        super().__init__()
        self.left, self.right, self.unused = nn.Linear(3, 4), nn.Linear(5, 4), nn.Linear(2, 2)

    def forward(self, a, b):
        return self.left(a), {"right": self.right(b)}


@pytest.mark.parametrize("form", ["tuple", "list", "dict"])
def test_networks_of_several_inputs_and_outputs(form):
    torch.manual_seed(0)
    pair = (torch.randn(6, 3), torch.randn(6, 5))
    inputs = {"tuple": pair, "list": list(pair), "dict": dict(zip("ab", pair, strict=True))}[form]

    def loss(outputs, targets):
        return (outputs[0] - outputs[1]["right"] - targets).square().mean()

    for criterion in (SNIP(), GRASP(), SynFlow(), Magnitude()):
        torch.manual_seed(0)
        network = PrunableNetwork(Distance(), inputs, loss=loss)
        network.prune(criterion, [(inputs, torch.zeros(6, 4))], sparsity=0.5)
        assert network.weights_left() == 18
        assert network.flops(masked=True) == 2 * (12 + 20)
