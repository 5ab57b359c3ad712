"""FLOPs by hand: 2 per multiply-add of convolutions and matrix products, one sample."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from criterions.Magnitude import Magnitude
from pruning import PrunableNetwork, shrink_dead
from pruning.measure import flops
from pruning.modules import calls, modes
from tests.support.zoo.small import Attention, build, conv_net, mlp


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize(
    ("layer", "shape", "expected"),
    [
        (lambda: nn.Linear(7, 5), (7,), 2 * 7 * 5),
        (lambda: nn.Linear(7, 5), (4, 7), 2 * 4 * 7 * 5),
        (lambda: nn.Conv1d(3, 4, 3), (3, 10), 2 * 8 * 4 * 3 * 3),
        (lambda: nn.Conv2d(3, 4, 3, padding=1), (3, 8, 6), 2 * 48 * 4 * 3 * 9),
        (lambda: nn.Conv2d(3, 4, 3, stride=2, bias=False), (3, 9, 9), 2 * 16 * 4 * 3 * 9),
        (lambda: nn.Conv2d(6, 4, 3, groups=2), (6, 5, 5), 2 * 9 * 4 * 3 * 9),
        (lambda: nn.Conv2d(3, 4, 3, dilation=2), (3, 7, 7), 2 * 9 * 4 * 3 * 9),
        # A transposed convolution multiplies every input value by its kernel.
        (lambda: nn.ConvTranspose2d(3, 4, 2, stride=2), (3, 5, 5), 2 * 25 * 3 * 4 * 4),
        (lambda: nn.Sequential(nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 1)), (7,), 2 * 7),
        (lambda: nn.LSTM(3, 4, batch_first=True), (5, 3), 2 * 5 * 4 * 4 * (3 + 4)),
        (lambda: nn.GRU(3, 4, batch_first=True), (5, 3), 2 * 5 * 3 * 4 * (3 + 4)),
    ],
)
def test_layers_by_hand(layer, shape, expected, samples):
    model = layer()
    counts = flops.flops_by_module(model, torch.zeros(samples, *shape))
    assert counts[""] == samples * expected


def attention_flops(tokens=6, width=8, inner=12, classes=4):
    projections = 2 * tokens * width * 3 * width + 2 * tokens * width * width
    products = 2 * 2 * tokens * tokens * width  # every query by every key, then by every value
    return projections + products + 2 * 2 * tokens * width * inner + 2 * width * classes


def test_attention_by_hand_with_its_fast_path_off():
    model = build(Attention)
    network = PrunableNetwork(model, torch.zeros(5, 6, dtype=torch.long))
    assert network.flops() == attention_flops()
    assert torch.backends.mha.get_fastpath_enabled()


def test_masked_weights_are_absent_from_nonzero_flops():
    network = PrunableNetwork(build(conv_net), torch.zeros(3, 2, 5, 5))
    positions = {"0.weight": 9, "3.weight": 1, "6.weight": 1}
    sizes = {"0.weight": 3 * 2 * 9, "3.weight": 4 * 3 * 4, "6.weight": 16}
    dense = sum(2 * positions[name] * sizes[name] for name in sizes)
    assert network.flops() == network.start_flops() == dense
    network.prune(Magnitude(), sparsity=0.6)
    left = {name: sizes[name] - network.masks.removed(name) for name in sizes}
    assert network.flops() == pytest.approx(sum(2 * positions[name] * left[name] for name in sizes))
    assert network.flops(masked=True) == network.start_flops() == dense


def test_masked_weights_of_attentions_own_output_layer_are_absent_too():
    network = PrunableNetwork(build(Attention), torch.zeros(2, 6, dtype=torch.long))
    name = "block.self_attn.out_proj.weight"
    mask = torch.ones(8, 8, dtype=torch.bool)
    mask[:, :3] = False
    network.masks.set({name: mask})
    assert network.flops() == attention_flops() - 2 * 6 * 24


@pytest.mark.parametrize("norm", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_masked_weights_under_a_norm_are_absent_too(norm):
    network = PrunableNetwork(nn.Sequential(norm(nn.Linear(6, 5)), nn.Linear(5, 2)), torch.zeros(1, 6))
    norms = network.flops(masked=True) - 2 * (30 + 10)  # spectral norm multiplies matrices of its own
    network.prune(Magnitude(), sparsity=0.5)
    assert network.flops() - norms == pytest.approx(2 * 20, abs=norms)
    assert network.flops() < network.flops(masked=True)


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        (torch.zeros(4, 3), 4),
        (torch.zeros(()), 1),
        ((torch.zeros(5, 2), 7), 5),
        ({"scale": 2.0, "x": torch.zeros(6, 1)}, 6),
        ([[torch.zeros(2)], None], 2),
        ((), 1),
    ],
)
def test_batch_size_of_anything(inputs, expected):
    assert calls.batch_size_of(inputs) == expected


class Noisy(nn.Module):
    """Draws numbers whatever its mode, and counts its calls in a buffer of training only."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.drop = nn.Dropout(0.5)
        self.norm = nn.BatchNorm1d(2)

    def forward(self, x):
        return self.norm(self.drop(self.layer(x + torch.randn_like(x))))


def test_counting_leaves_modes_statistics_and_random_state_alone():
    model = Noisy().train()
    model.drop.eval()
    torch.manual_seed(3)
    state = torch.get_rng_state()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    PrunableNetwork(model, torch.zeros(4, 3)).flops()
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == [True, True, False, True]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_modes_come_back_after_an_error():
    model = mlp().train()
    with pytest.raises(RuntimeError), modes.eval_mode(model):
        model(torch.zeros(1, 99))
    assert all(module.training for module in model.modules())


def test_bytes_of_parameters_as_stored():
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2, bias=False).half())
    assert flops.parameter_bytes(model) == 4 * (6 + 2) + 2 * 4


def test_mapped_keeps_the_form():
    class Entries(dict):
        @property
        def logits(self):
            return self["logits"]

    doubled = calls.mapped(Entries(logits=(torch.ones(1), [2, torch.ones(1)])), lambda tensor: 2 * tensor)
    assert doubled.logits[0].item() == 2 and doubled["logits"][1][0] == 2 and doubled["logits"][1][1].item() == 2


def test_a_model_on_the_meta_device_is_counted_without_computing():
    with torch.device("meta"):
        model, example = nn.Sequential(nn.Linear(10_000, 10_000), nn.Linear(10_000, 10)), torch.zeros(1, 10_000)
    assert PrunableNetwork(model, example).flops() == 2 * (10_000**2 + 10 * 10_000)


@pytest.mark.parametrize("wrap", [nn.Sequential, nn.DataParallel])
def test_call_with_other_tensors_leaves_modules_that_stand_twice_as_they_were(wrap):
    block = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    model = nn.Sequential(block, nn.ReLU(), block).eval()
    wrapped = wrap(model)
    held = dict(model.named_parameters())
    zeros = {name: torch.zeros_like(tensor) for name, tensor in wrapped.named_parameters()}
    assert not calls.call_with(wrapped, zeros, torch.ones(2, 3)).any()
    assert all(model.get_parameter(name) is tensor for name, tensor in held.items())


def test_a_block_that_stands_twice_survives_every_look_at_its_paths():
    block = nn.Sequential(nn.Linear(6, 6), nn.ReLU())
    network = PrunableNetwork(nn.Sequential(nn.Linear(4, 6), block, block, nn.Linear(6, 2)), torch.ones(1, 4))
    network.prune(Magnitude(), sparsity=0.9)
    outputs = network.model(torch.ones(2, 4))
    assert network.effective_sparsity() >= network.weight_sparsity()
    shrink_dead(network)
    assert torch.allclose(network.model(torch.ones(2, 4)), outputs)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_deformable_convolutions_are_counted(groups: int, device: str) -> None:
    torchvision = pytest.importorskip("torchvision")

    class Deformed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.places, self.strengths = nn.Conv2d(4, 18, 3, padding=1), nn.Conv2d(4, 9, 3, padding=1)
            self.layer = torchvision.ops.DeformConv2d(4, 6, 3, padding=1, groups=groups)

        def forward(self, x):
            return self.layer(x, self.places(x), self.strengths(x).sigmoid())

    network = PrunableNetwork(Deformed().to(device), torch.zeros(2, 4, 7, 5, device=device))
    assert network.flops() == 2 * 35 * 9 * (4 * 18 + 4 * 9 + 4 // groups * 6)


class LooksUpPositions(nn.Module):
    """A layer called with a view of a parameter, as DeBERTa does with relative positions and DETR with queries."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.randn(6, 8))
        self.project, self.out = nn.Linear(8, 16), nn.Linear(16, 3)

    def forward(self, x):
        return self.out(x @ self.project(self.positions[1:5].unsqueeze(0)))


def test_a_module_called_with_a_view_of_a_parameter_is_counted() -> None:
    model = LooksUpPositions()
    model.out.bias.requires_grad_(False)
    wanted = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    network = PrunableNetwork(model, torch.randn(1, 5, 4))
    # 4 positions through the projection, 5 tokens times 4 positions, 5 tokens through the output.
    assert network.flops() == 2 * (4 * 8 * 16 + 5 * 4 * 16 + 5 * 16 * 3)
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == wanted
