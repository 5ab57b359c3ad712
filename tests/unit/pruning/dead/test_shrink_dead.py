"""Dead nodes: what goes, what stays, and that the network computes what it did."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models.Conv6 import Conv6
from models.LeNet5 import LeNet5
from models.MLP5 import MLP5
from models.ResNet20 import ResNet20
from models.VGG16 import VGG16
from pruning import PrunableNetwork, UsageError, load_pruned, shrink_dead
from pruning.cut.load import extras_of
from pruning.modules.modes import look
from tests.support.tiers import later
from tests.support.zoo.small import Attention, Residual, build

DIGIT, PICTURE = (1, 28, 28), (3, 32, 32)
NETWORKS = {
    "MLP5": (lambda: MLP5(10, DIGIT), DIGIT),
    "LeNet5": (lambda: LeNet5(10, DIGIT), DIGIT),
    "Conv6": (lambda: Conv6(10, PICTURE), PICTURE),
    "VGG16": (lambda: VGG16(10, PICTURE, width_multiplier=0.25), PICTURE),
    "ResNet20": (lambda: ResNet20(10, PICTURE), PICTURE),
    "Residual": (Residual, (2, 5, 5)),
}


def network_of(maker, shape, dtype=torch.float64):
    """A network whose biases, norms and statistics are all random."""
    model = build(maker, dtype=dtype).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter)
    return PrunableNetwork(model, torch.randn(1, *shape, dtype=dtype))


def mask_at_random(network, sparsity, seed=0):
    generator = torch.Generator().manual_seed(seed)
    weights = network.prunable().items()
    network.masks.set({n: torch.rand(w.shape, generator=generator) >= sparsity for n, w in weights})
    network.enforce()


def difference(network, before, inputs):
    """The largest change of an output, relative to the largest output."""
    return float((look(network.model, inputs) - before).abs().max() / before.abs().max())


LARGE = ["VGG16", "ResNet20", "Conv6"]
CASES = [(name, 0.98) for name in NETWORKS if name not in LARGE] + [("LeNet5", 0.9), ("Residual", 0.9)]
CASES += later(*((name, 0.98) for name in LARGE))


@pytest.mark.parametrize("name, sparsity", CASES)
def test_the_shrunken_network_computes_what_the_masked_one_did(name, sparsity):
    maker, shape = NETWORKS[name]
    network = network_of(maker, shape)
    network.note_start()
    mask_at_random(network, sparsity)
    inputs = torch.randn(4, *shape, dtype=torch.float64)
    before, asked, size = look(network.model, inputs), network.weight_sparsity(), network.size()
    nodes, parameters = len(network.graph.nodes), sum(p.numel() for p in network.model.parameters())
    report = shrink_dead(network)
    assert difference(network, before, inputs) < 1e-9
    assert len(network.graph.nodes) == nodes - report.nodes
    assert sum(p.numel() for p in network.model.parameters()) == parameters - report.parameters
    assert network.weight_sparsity() >= asked
    assert network.size() <= size
    assert (network.size() < size) == (report.nodes > 0)
    assert network.size() == sum(int((p != 0).sum()) for p in network.model.parameters())
    for weight_name, weight in network.prunable().items():
        assert network.masks.keep[weight_name].shape == weight.shape
    if sparsity == 0.98 and name != "Residual":
        assert report.nodes > 0
        assert network.flops(masked=True) < network.start_flops()
    assert shrink_dead(network).nodes == 0


# -- constants ---------------------------------------------------------------------------------------------------------


def test_a_constant_goes_into_the_next_bias():
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)).double()
    network = PrunableNetwork(model, torch.randn(1, 2, dtype=torch.float64))
    with torch.no_grad():
        model[0].bias.copy_(torch.tensor([0.5, -3.0, 1.0]))
        model[2].weight.copy_(torch.tensor([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]]))
        model[2].bias.copy_(torch.tensor([0.25, 0.0]))
    network.masks.set({"0.weight": torch.tensor([[True, True], [False, False], [False, False]])})
    assert shrink_dead(network).nodes == 2
    # relu(-3) = 0 leaves nothing; relu(1) = 1 leaves the third column.
    assert model[2].bias.tolist() == [4.25, 32.0]
    assert model[2].weight.tolist() == [[1.0], [8.0]]
    assert model[0].bias.tolist() == [0.5]


def conv_pair(*, padding=0, bias=True, norm=False, shift=1.5, **more):
    """Two convolutions of which the first one's channel 1 is masked out and has a bias."""
    second = nn.Conv2d(4, 3, 3, padding=padding, bias=bias, **more)
    tail = [nn.BatchNorm2d(3)] if norm else []
    layers = [nn.Conv2d(2, 4, 3, padding=1), nn.LeakyReLU(0.1), second, *tail]
    head = [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 2)]
    network = network_of(lambda: nn.Sequential(*layers, *head), (2, 6, 6))
    keep = torch.ones(4, 2, 3, 3, dtype=torch.bool)
    keep[1] = False
    network.masks.set({"0.weight": keep})
    network.enforce()
    with torch.no_grad():
        network.model[0].bias[1] = shift
    return network


def shrunk(network, shape=(2, 6, 6)):
    inputs = torch.randn(3, *shape, dtype=torch.float64)
    network.enforce()
    before = look(network.model, inputs)
    report = shrink_dead(network)
    assert difference(network, before, inputs) < 1e-9
    return report


def test_without_padding_a_convolution_takes_a_constant():
    network = conv_pair()
    bias, taps = network.model[2].bias.detach().clone(), network.model[2].weight.detach()[:, 1].sum((1, 2))
    assert shrunk(network).nodes == 1
    torch.testing.assert_close(network.model[2].bias.detach(), bias + 1.5 * taps)


def test_zero_padding_keeps_a_constant_that_it_would_change_at_the_border():
    report = shrunk(conv_pair(padding=1))
    assert (report.nodes, report.constants) == (0, 1)
    assert "1 more emit a constant" in str(report)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_other_padding_hands_a_constant_on(mode):
    assert shrunk(conv_pair(padding=1, padding_mode=mode)).nodes == 1


def test_with_padding_a_constant_of_zero_goes():
    assert shrunk(conv_pair(padding=1, shift=0.0)).nodes == 1


@pytest.mark.parametrize("row, fits", [(1, True), (0, False), (2, False)])
def test_padding_harms_only_the_taps_that_meet_it(row, fits):
    network = conv_pair(padding=(1, 0))
    keep = torch.ones(3, 4, 3, 3, dtype=torch.bool)
    keep[:, 1] = False
    keep[:, 1, row] = True
    network.masks.set({"2.weight": keep})
    assert shrunk(network).nodes == fits


def test_the_mean_of_a_norm_takes_a_constant_where_there_is_no_bias():
    network = conv_pair(bias=False, norm=True)
    mean, taps = network.model[3].running_mean.clone(), network.model[2].weight.detach()[:, 1].sum((1, 2))
    assert shrunk(network).nodes == 1
    torch.testing.assert_close(network.model[3].running_mean, mean - 1.5 * taps)


def test_without_a_bias_or_a_norm_a_constant_stays():
    report = shrunk(conv_pair(bias=False))
    assert (report.nodes, report.constants) == (0, 1)


def test_grouped_and_strided_convolutions_take_constants():
    def maker():
        layers = [nn.Conv2d(2, 4, 1), nn.Tanh(), nn.Conv2d(4, 6, 2, stride=2, groups=2), nn.ReLU(), nn.Flatten()]
        return nn.Sequential(*layers, nn.Linear(54, 2))

    network = network_of(maker, (2, 6, 6))
    keep = torch.ones(4, 2, 1, 1, dtype=torch.bool)
    keep[[1, 3]] = False  # the second channel of each group, which go together
    network.masks.set({"0.weight": keep})
    assert shrunk(network).nodes == 1
    assert network.model[2].weight.shape == (6, 1, 2, 2)
    keep = torch.ones(2, 2, 1, 1, dtype=torch.bool)
    keep[1] = False
    network = network_of(maker, (2, 6, 6))
    network.masks.set({"0.weight": torch.tensor([True, False, True, True])[:, None, None, None].expand(4, 2, 1, 1)})
    assert shrunk(network).nodes == 0


def test_a_depthwise_convolution_cuts_the_path_through_its_channel():
    def maker():
        layers = [nn.Conv2d(2, 5, 1), nn.ReLU(), nn.Conv2d(5, 5, 3, padding=1, groups=5), nn.BatchNorm2d(5), nn.ReLU()]
        return nn.Sequential(*layers, nn.Conv2d(5, 3, 1), nn.Flatten(), nn.Linear(108, 2))

    network = network_of(maker, (2, 6, 6))
    keep = torch.ones(5, 1, 3, 3, dtype=torch.bool)
    keep[[0, 3]] = False
    network.masks.set({"2.weight": keep})
    assert shrunk(network).nodes == 2


def test_one_dead_node_makes_others_dead():
    network = network_of(lambda: MLP5(4, (1, 4, 4), hidden=6), (1, 4, 4))
    names = list(network.prunable())
    keep = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in network.prunable().items()}
    keep[names[0]][2] = False
    keep[names[1]][1, [0, 1, 3, 4, 5]] = False  # only hears the dead one
    keep[names[3]][:, 4] = False
    keep[names[2]][[0, 1, 2, 3, 5], 3] = False  # is only heard by the one that nobody hears
    network.masks.set(keep)
    assert shrunk(network, (1, 4, 4)).nodes == 4
    shapes = [tuple(weight.shape) for weight in network.prunable().values()]
    assert shapes == [(5, 16), (4, 5), (5, 4), (6, 5), (4, 6)]


# -- what stays --------------------------------------------------------------------------------------------------------


def test_a_dead_layer_keeps_one_node():
    network = network_of(lambda: MLP5(4, (1, 4, 4), hidden=6), (1, 4, 4))
    name = list(network.prunable())[1]
    network.masks.set({name: torch.zeros(6, 6, dtype=torch.bool)})
    shrunk(network, (1, 4, 4))
    assert min(min(weight.shape) for weight in network.prunable().values()) == 1
    assert network.effective_sparsity() == 1


def test_dead_weights_of_a_layer_normalised_over_its_channels_stay():
    def maker():
        return nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.ReLU(), nn.Linear(6, 2))

    network = network_of(maker, (4,))
    network.masks.set({"3.weight": torch.tensor([[True] * 5 + [False]] * 2)})
    assert shrunk(network, (4,)).nodes == 0


class ReadElsewhere(nn.Module):
    """The sum over channels reads what the weights of `two` no longer do."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x):
        x = F.relu(self.one(x))
        return self.two(x) + x.sum(1, keepdim=True)


def test_nodes_that_something_besides_weights_reads_stay():
    network = network_of(ReadElsewhere, (4,))
    network.masks.set({"two.weight": torch.tensor([[False] + [True] * 5] * 2)})
    assert shrunk(network, (4,)).nodes == 0
    keep = torch.ones(6, 4, dtype=torch.bool)
    keep[3] = False
    network.masks.set({"one.weight": keep})
    with torch.no_grad():
        network.model.one.bias[3] = 2.0
    report = shrunk(network, (4,))
    assert report.nodes == 0
    assert "made a difference" in report.reason


def test_a_network_that_no_table_can_follow_loses_what_its_own_weights_show():
    class Sorts(ReadElsewhere):
        def forward(self, x):
            return self.two(F.relu(self.one(x))).sort().values

    network = network_of(Sorts, (4,))
    keep = torch.ones(6, 4, dtype=torch.bool)
    keep[[1, 2]] = False
    network.masks.set({"one.weight": keep, "two.weight": torch.tensor([[False] + [True] * 5] * 2)})
    assert network.effective_sparsity() is None
    assert shrunk(network, (4,)).nodes == 3


def test_attention_loses_the_hidden_units_of_its_own_layers():
    network = PrunableNetwork(build(Attention, dtype=torch.float64).eval(), torch.randint(20, (2, 6)))
    keep = torch.ones(12, 8, dtype=torch.bool)
    keep[[0, 7]] = False
    network.masks.set({"block.linear1.weight": keep})
    network.enforce()
    tokens = torch.randint(20, (3, 6))
    before = look(network.model, tokens)
    assert shrink_dead(network).nodes == 2
    assert difference(network, before, tokens) < 1e-9


# -- what goes along ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_training_goes_on(dtype):
    network = network_of(NETWORKS["LeNet5"][0], DIGIT, dtype)
    model, inputs = network.model, torch.randn(4, *DIGIT, dtype=dtype)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    copy = {name: weight.detach().clone() for name, weight in network.prunable().items()}
    mask_at_random(network, 0.98)

    def step():
        model.train()
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), torch.arange(4)).backward()
        optimizer.step()
        network.enforce()

    step()
    before = look(model, inputs)
    report = shrink_dead(network, optimizers=optimizer, cut_along=copy)
    assert report.nodes > 0
    assert model.training
    assert difference(network, before, inputs) < (1e-5 if dtype == torch.float32 else 1e-9)
    for name, weight in network.prunable().items():
        assert optimizer.state[weight]["exp_avg"].shape == copy[name].shape == weight.shape
    step()
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
    assert network.weights_left() == sum(int((weight != 0).sum()) for weight in network.prunable().values())


def test_weights_that_are_zero_count_without_a_mask():
    network = network_of(lambda: MLP5(4, (1, 4, 4), hidden=6), (1, 4, 4))
    with torch.no_grad():
        next(iter(network.prunable().values()))[2].zero_()
    assert shrunk(network, (1, 4, 4)).nodes == 1


def test_a_network_that_insists_on_single_precision():
    class Insists(ReadElsewhere):
        def forward(self, x):
            return self.two(F.relu(self.one(x)).float())

    network = network_of(Insists, (4,), torch.float32)
    keep = torch.ones(6, 4, dtype=torch.bool)
    keep[[1, 2]] = False
    network.masks.set({"one.weight": keep})
    inputs = torch.randn(3, 4)
    network.enforce()
    before = look(network.model, inputs)
    assert shrink_dead(network).nodes == 2
    assert difference(network, before, inputs) < 1e-6


def test_the_shrunken_network_comes_back_from_its_state_dict():
    network = network_of(*NETWORKS["LeNet5"])
    mask_at_random(network, 0.98)
    shrink_dead(network)
    saved = {"state_dict": network.model.state_dict(), "extras": extras_of(network.model)}
    loaded = load_pruned(LeNet5(10, DIGIT).double(), saved).eval()
    inputs = torch.randn(2, *DIGIT, dtype=torch.float64)
    torch.testing.assert_close(loaded(inputs), look(network.model, inputs), rtol=0, atol=0)


class Picky(nn.Module):
    """Code that fails on a single hidden channel."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x):
        hidden = self.body(x).relu()
        if hidden.shape[1] == 1:
            raise RuntimeError("one channel does not suit me")
        return self.head(hidden)


def test_where_one_channel_alone_fails_two_stay():
    network = PrunableNetwork(Picky().eval(), torch.randn(2, 4))
    keep = torch.zeros(3, 8, dtype=torch.bool)
    keep[:, 5] = True
    network.masks.set({"head.weight": keep})
    network.enforce()
    inputs = torch.randn(4, 4)
    before = look(network.model, inputs)
    report = shrink_dead(network)
    assert report.nodes == 6 and network.model.body.out_features == 2
    assert "one channel does not suit me" in report.reason
    torch.testing.assert_close(look(network.model, inputs), before)


# -- errors ------------------------------------------------------------------------------------------------------------


def test_what_cannot_be_cut_along_changes_nothing():
    network = network_of(lambda: MLP5(4, (1, 4, 4), hidden=6), (1, 4, 4))
    name, weight = next(iter(network.prunable().items()))
    keep = torch.ones_like(weight, dtype=torch.bool)
    keep[2] = False
    network.masks.set({name: keep})
    network.enforce()
    before = {key: value.clone() for key, value in network.model.state_dict().items()}
    with pytest.raises(UsageError, match="companion"):
        shrink_dead(network, cut_along={name: torch.ones(3, 3)})
    after = network.model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert network.masks.keep[name].shape == weight.shape
    assert shrink_dead(network).nodes == 1


def test_what_it_is_given_must_fit():
    with pytest.raises(UsageError, match="PrunableNetwork, not a Sequential"):
        shrink_dead(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(UsageError, match="example inputs"):
        shrink_dead(PrunableNetwork(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))))
