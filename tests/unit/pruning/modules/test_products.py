"""Every matrix that multiplies is found, whatever holds it and however it is spelt."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from criterions.Magnitude import Magnitude
from pruning import PrunableNetwork
from pruning.modules.calls import call
from pruning.modules.products import Products
from pruning.modules.weights import find_weights
from tests.support.zoo.matrices import MATRICES, Conv1D, Speech


@pytest.mark.parametrize("name", MATRICES)
def test_every_matrix_is_found_and_the_others_are_named(name: str) -> None:
    case = MATRICES[name]
    model = case.make()
    weights = find_weights(model, case.inputs())
    sides = {name: weight.sides.outputs for name, weight in weights.found.items()}
    assert sides == dict(case.outputs)
    assert set(weights.left_out) == set(case.left_out)
    for left, reason in case.left_out.items():
        assert reason in weights.left_out[left]


@pytest.mark.parametrize("name", MATRICES)
def test_the_fraction_of_zeros_over_all_matrices_is_the_one_that_was_asked_for(name: str) -> None:
    case = MATRICES[name]
    model = case.make().double().eval()
    inputs = case.inputs()
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    before = case.make().double().eval()
    before.load_state_dict(model.state_dict())
    network = PrunableNetwork(model, inputs)
    report = network.prune(Magnitude(), sparsity=0.75)
    parameters = dict(model.named_parameters())
    matrices = [parameters[matrix] for matrix in case.outputs]
    total = sum(matrix.numel() for matrix in matrices)
    assert sum(int((matrix == 0).sum()) for matrix in matrices) == round(0.75 * total)
    assert network.weights_total() == total and network.weight_sparsity() == report.reached
    # The same network, masked by hand.
    with torch.no_grad():
        for name_of_matrix, other in before.named_parameters():
            if name_of_matrix in case.outputs:
                other.mul_(parameters[name_of_matrix] != 0)
    with torch.no_grad():
        assert torch.equal(call(model, inputs), call(before, inputs))
    for left in case.left_out:
        assert left in str(report) and left in report.steps[-1].describe("weights")


def test_the_order_is_that_of_execution() -> None:
    for name, first, last in (("own", "left", "causal"), ("tied", "hidden.weight", "words.weight")):
        case = MATRICES[name]
        found = list(find_weights(case.make(), case.inputs()).found)
        assert (found[0], found[-1]) == (first, last)


def test_without_example_inputs_known_layers_are_found_and_the_rest_is_told() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cells, self.linear, self.attention = Speech(), Conv1D(3, 4), nn.MultiheadAttention(4, 2)
            self.own = nn.Parameter(torch.randn(3, 4))

    network = PrunableNetwork(Mixed())
    assert {"cells.cells.weight_ih_l0", "linear.weight", "attention.in_proj_weight"} <= set(network.prunable())
    assert network.output_dim("linear.weight") == 1 and network.input_dim("linear.weight") == 0
    report = network.prune(Magnitude(), sparsity=0.5)
    assert "own (" in str(report) and "example inputs would show" in str(report)


def test_shares_are_of_all_parameters() -> None:
    case = MATRICES["tied"]
    model = case.make()
    report = PrunableNetwork(model, case.inputs()).prune(Magnitude(), sparsity=0.5)
    total = sum(tensor.numel() for tensor in model.parameters())
    share, rest = model.places.weight.numel() / total, model.hidden.bias.numel() / total
    assert f"places.weight ({share:.1%}: looked up" in str(report)
    assert f"biases and scales ({rest:.1%})" in str(report)


def test_nothing_is_said_where_only_biases_and_norms_are_left_out() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))
    report = PrunableNetwork(model, torch.zeros(1, 1, 4, 4)).prune(Magnitude(), sparsity=0.5)
    assert report.steps[-1].left_out == ""


def test_a_table_can_be_asked_for() -> None:
    case = MATRICES["own"]
    found = find_weights(case.make(), case.inputs(), asked=lambda name: name.startswith("places")).found
    assert found["places.weight"].sides.outputs == (1,)


def test_a_network_of_plain_layers_is_not_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise AssertionError("nothing is unknown here")

    monkeypatch.setattr("pruning.modules.weights.Products", fail)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.LayerNorm([2, 2, 2]), nn.Flatten(), nn.Linear(8, 3))
    assert list(find_weights(model, torch.zeros(1, 1, 4, 4)).found) == ["0.weight", "3.weight"]


@pytest.mark.parametrize("name", MATRICES)
def test_flops_belong_to_the_matrices_that_they_are_of(name: str) -> None:
    case = MATRICES[name]
    network = PrunableNetwork(case.make(), case.inputs())
    dense, by_weight = network.flops(), network.flops_by_weight()
    assert set(by_weight) == set(case.outputs) and all(by_weight.values())
    assert sum(by_weight.values()) <= dense
    network.prune(Magnitude(), sparsity=0.5)
    absent = 0.0
    for matrix, weight in network.prunable().items():
        absent += by_weight[matrix] * network.masks.removed(matrix) / weight.numel()
    assert network.flops() == pytest.approx(dense - absent)


def test_flops_of_what_is_gathered_grouped_or_bilinear_are_those_of_its_products() -> None:
    expected = {"gathered experts": ("experts", 2 * 4 * 5), "bilinear": ("pairs.weight", 2 * 5 * 4 * 4)}
    expected["cell"] = ("cell.weight_hh", 6 * 2 * 15 * 5)
    for name, (matrix, flops) in expected.items():
        case = MATRICES[name]
        assert PrunableNetwork(case.make(), case.inputs()).flops_by_weight()[matrix] == flops


class Coordinates(nn.Module):
    """A picture made of places: what forward makes by itself is the input."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Parameter(torch.randn(2, 8)), nn.Linear(8, 3)

    def forward(self, shift: torch.Tensor) -> torch.Tensor:
        grid = torch.linspace(0, 1, 10).view(5, 2)
        return self.last((grid @ self.first).relu()) + shift


def test_what_meets_constants_alone_multiplies_too() -> None:
    assert list(find_weights(Coordinates(), torch.zeros(1)).found) == ["first", "last.weight"]


class Learned(nn.Module):
    """A learned query that a layer is given is an input of it; so is what chance makes."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.layer = nn.Parameter(torch.randn(3, 4)), nn.Linear(4, 5)
        self.noise = nn.Parameter(torch.ones(4, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(self.query) @ (x + torch.randn(1, 4) @ self.noise).t()


def test_a_learned_input_of_a_layer_is_no_matrix() -> None:
    weights = find_weights(Learned(), torch.randn(2, 5))
    assert list(weights.found) == ["layer.weight", "noise"] and list(weights.left_out) == ["query"]


class Flat(nn.Module):
    """Parameters that are parts of one piece of memory, as those of an LSTM on a GPU."""

    def __init__(self) -> None:
        super().__init__()
        memory = torch.randn(4 * 5 + 5 * 3)
        self.first = nn.Parameter(memory[:20].view(4, 5))
        self.last = nn.Parameter(memory[20:].view(5, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x @ self.first).relu() @ self.last[:, :2]


def test_parameters_that_share_memory_are_told_apart() -> None:
    found = find_weights(Flat(), torch.randn(2, 4)).found
    assert {name: weight.sides.outputs for name, weight in found.items()} == {"first": (1,), "last": (1,)}
    network = PrunableNetwork(Flat(), torch.randn(2, 4))
    assert network.flops_by_weight() == {"first": 40.0, "last": 20.0}


class Spectral(nn.Module):
    """Frequencies are mixed by complex matrices, one kept as such, one as pairs of numbers (Fourier operators)."""

    def __init__(self) -> None:
        super().__init__()
        self.complex = nn.Parameter(torch.randn(4, 5, 3, dtype=torch.cfloat))
        self.pairs = nn.Parameter(torch.randn(5, 2, 3, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        waves = torch.fft.rfft(x.transpose(1, 2))[..., :3]
        waves = torch.einsum("bif,iof->bof", waves, self.complex)
        waves = torch.einsum("bif,iof->bof", waves, torch.view_as_complex(self.pairs))
        return torch.fft.irfft(waves)


def test_complex_matrices_count() -> None:
    model, x = Spectral(), torch.randn(2, 6, 4)
    network = PrunableNetwork(model, x)
    assert list(network.prunable()) == ["complex", "pairs"] and network.output_dims("complex") == (1, 2)
    network.prune(Magnitude(), sparsity=0.5)
    assert sum(int((weight == 0).sum()) for weight in model.parameters()) == 60


class Unwatched(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.own, self.head = nn.Parameter(torch.randn(4, 4)), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if any(isinstance(mode, Products) for mode in _get_current_dispatch_mode_stack()):
            raise RuntimeError("no")
        return self.head(x @ self.own)


def test_a_network_that_cannot_be_watched_has_its_known_layers() -> None:
    weights = find_weights(Unwatched(), torch.randn(2, 4))
    assert list(weights.found) == ["head.weight"] and "watched" in weights.left_out["own"]
