"""Every public model: it fits any picture, it trains, it has the size it is known for."""

import inspect
import re
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from models._cifar_resnet import PadShortcut
from models._convnet import POOL, conv_stack
from pruning.errors import UsageError
from tests.support.tiers import few
from utils.settings import registry
from utils.settings.signatures import REQUIRED, parameters_of

NAMES = registry.names("models")
# What this project promises; whatever else lies in the folder has to keep the same contract.
OURS = ["LogisticRegression", "LeNet300", "LeNet5", "MLP5", "ConvOnly", "Conv6", "AlexNet", "VGG16", "ResNet18"]
OURS += ["ResNet34", "ResNet20", "ResNet56", "ResNet110", "WRN16_8", "DenseNet22"]
SHAPES = [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 64, 64), (3, 9, 7), (2, 1, 1)]
LARGE = [(3, 200, 136), (3, 224, 224)]
QUICK_SHAPES = [(1, 8, 8), (3, 9, 7)]
DEEP = ["ResNet110", "ResNet56", "ResNet34", "ResNet20", "WRN16_8", "DenseNet22"]
CIFAR, MNIST = (3, 32, 32), (1, 28, 28)


def model_class(name):
    return registry.find("models", name)


def make(name, num_classes, shape, **settings):
    """The model as a run makes it: its constructor gets what it names."""
    return registry.build("models", name, settings, {"num_classes": num_classes, "input_shape": shape})


def small(name, num_classes, shape):
    """The model at an eighth of its width where it has such a parameter: every line runs, in a moment."""
    return make(name, num_classes, shape, width_multiplier=1 / 8, hidden=16)


def on_meta(name, num_classes, shape, **settings):
    with torch.device("meta"):
        return make(name, num_classes, shape, **settings)


def prunable(model):
    return [module for module in model.modules() if isinstance(module, (nn.Linear, nn.Conv2d))]


def test_all_promised_models_are_there():
    assert set(OURS) <= set(NAMES)


# -- the contract -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", few([*SHAPES, *LARGE], QUICK_SHAPES), ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_full_size_fits_any_picture_in_both_modes(name, shape):
    model = on_meta(name, 7, shape)
    for mode in (True, False):
        assert model.train(mode)(torch.zeros(2, *shape, device="meta")).shape == (2, 7)


@pytest.mark.parametrize("shape", few(SHAPES, QUICK_SHAPES), ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_one_training_step_changes_every_parameter(name, shape):
    torch.manual_seed(0)
    model = small(name, 3, shape)
    before = {key: value.clone() for key, value in model.named_parameters()}
    optimizer = torch.optim.Adam(model.parameters())
    # Sixteen samples, so that hardly a unit is off for all of them.
    loss = F.cross_entropy(model(torch.randn(16, *shape)), torch.arange(16) % 3)
    loss.backward()
    optimizer.step()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    still = [key for key, value in model.named_parameters() if torch.equal(value, before[key])]
    assert not still


@pytest.mark.parametrize("name", NAMES)
def test_the_seed_decides_everything(name):
    def outputs(seed):
        torch.manual_seed(seed)
        model = small(name, 4, MNIST)
        return model(torch.ones(3, *MNIST))

    assert torch.equal(outputs(1), outputs(1))
    assert not torch.equal(outputs(1), outputs(2))


@pytest.mark.parametrize("name", few(NAMES, set(NAMES) - set(DEEP)))
def test_a_few_steps_learn_one_batch(name):
    torch.manual_seed(0)
    model = small(name, 2, (1, 16, 16))
    pictures, classes = torch.randn(16, 1, 16, 16), torch.arange(16) % 2
    pictures[classes == 1] += 0.5
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    start = F.cross_entropy(model.eval()(pictures), classes).item()
    model.train()
    for _ in range(25):
        optimizer.zero_grad()
        F.cross_entropy(model(pictures), classes).backward()
        optimizer.step()
    assert F.cross_entropy(model(pictures), classes).item() < start


@pytest.mark.parametrize("name", NAMES)
def test_docstring_explains_every_flag_and_parameters_are_typed(name):
    cls = model_class(name)
    own = [parameter for parameter in parameters_of(cls) if parameter.name not in ("num_classes", "input_shape")]
    for parameter in own:
        assert parameter.default is not REQUIRED, f"{name} needs {parameter.name}, so it cannot be run by name"
        assert parameter.annotation in (int, float, bool)
        assert len(parameter.help) > 5, f"{name} does not explain {parameter.name} in its docstring's Args"
    documented = re.findall(r"^ {4}(\w+): ", inspect.cleandoc(cls.__doc__), re.MULTILINE)
    assert documented == [parameter.name for parameter in own]
    assert len(cls.__doc__.splitlines()[0]) <= 110


# -- facts about our own ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shape", "weights", "nodes"),
    [
        ("VGG16", CIFAR, 50_665_152, 12_928),
        ("ResNet18", CIFAR, 11_693_760, 5_056),
        ("MLP5", MNIST, 1_192_960, 2_048),
        ("LeNet5", MNIST, 142_110, 226),
        ("Conv6", CIFAR, 1_802_432, 1_408),
        ("LeNet300", MNIST, 266_200, 400),
        ("LogisticRegression", MNIST, 7_840, 0),
        # torchvision's resnet34 has 21,267,648 weights in its convolutions; the head adds 2048 * 256 + 256 * 10.
        ("ResNet34", CIFAR, 21_267_648 + 526_848, 8_768),
    ],
)
def test_sizes_of_the_reference(name, shape, weights, nodes):
    layers = prunable(on_meta(name, 10, shape))
    assert sum(layer.weight.numel() for layer in layers) == weights
    assert sum(layer.weight.shape[0] for layer in layers[:-1]) == nodes


def test_vgg16_takes_the_reference_number_of_multiply_adds():
    model = on_meta("VGG16", 10, CIFAR)
    with FlopCounterMode(display=False) as counter:
        model.eval()(torch.zeros(1, *CIFAR, device="meta"))
    assert round(counter.get_total_flops() / 2 / 1e6, 1) == 356.2


def cifar_resnet_parameters(blocks):
    """He et al.'s table 6 by hand: weights of 6n + 1 convolutions, two norm vectors each, one linear layer."""
    total, inputs = 0, 3
    for stage, width in enumerate((16, 32, 64)):
        for layer in range(2 * blocks + (stage == 0)):
            total += 9 * (inputs if layer == 0 else width) * width + 2 * width
        inputs = width
    return total + 64 * 10 + 10


@pytest.mark.parametrize(
    ("name", "blocks", "parameters"), [("ResNet20", 3, 269_722), ("ResNet56", 9, 853_018), ("ResNet110", 18, 1_727_962)]
)
def test_cifar_resnets_have_the_parameters_of_the_paper(name, blocks, parameters):
    model = on_meta(name, 10, CIFAR)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters == cifar_resnet_parameters(blocks)


def test_wide_and_dense_networks_have_the_parameters_of_their_papers():
    # Of convolutions by hand; norms have two values a channel.
    widths = [(16, 128), (128, 128), (128, 256), (256, 256), (256, 512), (512, 512)]
    wide = 27 * 16 + 2 * 512 + 5130 + sum(9 * (i * o + o * o) + 2 * (i + o) + (i != o) * i * o for i, o in widths)
    dense, width = 27 * 16, 16
    for block in range(3):
        dense += (width * width + 2 * width) * (block > 0)
        dense += sum(9 * 12 * inputs + 2 * inputs for inputs in range(width, width + 72, 12))
        width += 72
    dense += 2 * width + 10 * width + 10
    found = [sum(p.numel() for p in on_meta(name, 10, CIFAR).parameters()) for name in ("WRN16_8", "DenseNet22")]
    assert found == [wide, dense] == [10_961_370, 270_706]


def test_resnet18_becomes_the_usual_cifar_network():
    model = on_meta("ResNet18", 10, CIFAR, hidden=0, small_stem=True)
    assert sum(parameter.numel() for parameter in model.parameters()) == 11_173_962
    assert model.stem(torch.zeros(1, *CIFAR, device="meta")).shape == (1, 64, 32, 32)


@pytest.mark.parametrize("size", [(8, 8), (9, 7), (1, 1)])
def test_pad_shortcut_equals_slicing_and_zero_padding(size):
    x = torch.randn(2, 5, *size)
    expected = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, 3))
    assert torch.equal(PadShortcut(5, 8)(x), expected)


def test_pad_shortcut_is_saved_but_not_trained():
    shortcut = PadShortcut(4, 8)
    assert list(shortcut.state_dict()) == ["pick"]
    assert not list(shortcut.parameters())


def test_a_pooling_that_would_empty_the_picture_is_left_out():
    layers, shape = conv_stack((1, 5, 2), [4, POOL, 6, POOL, POOL], norm=False, pool_kernel=2, width_multiplier=1.0)
    assert sum(isinstance(layer, nn.MaxPool2d) for layer in layers) == 1
    assert shape == (6, 2, 1) == layers(torch.zeros(1, 1, 5, 2)).shape[1:]


@pytest.mark.parametrize("name", ["LeNet5", "VGG16", "ConvOnly", "MLP5", "ResNet18"])
def test_start_is_orthogonal_with_the_gain_of_leaky_relu(name):
    torch.manual_seed(0)
    for layer in prunable(small(name, 10, CIFAR)):
        matrix = layer.weight.detach().flatten(1).double()
        short = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
        expected = 2 / (1 + 0.05**2) * torch.eye(len(short), dtype=torch.double)
        torch.testing.assert_close(short @ short.T, expected, atol=1e-5, rtol=0)
        if layer.bias is not None:
            assert layer.bias.abs().max() <= matrix.shape[1] ** -0.5


@pytest.mark.parametrize("name", few(["MLP5", "LeNet300", "Conv6", "ResNet18"], ["MLP5", "Conv6"]))
def test_dropout_acts_in_training_alone_and_leaves_the_names_alone(name):
    torch.manual_seed(0)
    model = model_class(name)(5, (1, 8, 8), dropout=0.5)
    x = torch.randn(4, 1, 8, 8)
    model.eval()
    assert torch.equal(model(x), model(x))
    for module in model.modules():
        module.training = isinstance(module, nn.Dropout)
    assert not torch.equal(model(x), model(x))
    assert list(model.state_dict()) == list(model_class(name)(5, (1, 8, 8), dropout=0.0).state_dict())


@pytest.mark.parametrize("name", ["LeNet300", "LeNet5", "MLP5", "Conv6", "AlexNet", "VGG16", "ResNet18", "ResNet34"])
def test_forward_keeps_no_sizes(name):
    """The last hidden layer cut in half by hand: the network runs on, so nothing counts on a width."""
    model = small(name, 3, CIFAR)
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    first, second = linears[-2:]
    half = first.out_features // 2
    first.weight, first.bias = nn.Parameter(first.weight[:half].detach()), nn.Parameter(first.bias[:half].detach())
    second.weight = nn.Parameter(second.weight[:, :half].detach())
    for norm in [module for module in model.modules() if isinstance(module, nn.BatchNorm1d)][-1:]:
        norm.weight, norm.bias = nn.Parameter(norm.weight[:half].detach()), nn.Parameter(norm.bias[:half].detach())
        norm.running_mean, norm.running_var = norm.running_mean[:half], norm.running_var[:half]
    assert model(torch.zeros(2, *CIFAR)).shape == (2, 3)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("MLP5", {"hidden": 0}, "hidden is 0; it must be at least 1."),
        ("MLP5", {"dropout": 1.0}, "dropout is 1.0; it must be at least 0 and below 1."),
        ("VGG16", {"width_multiplier": 0.0}, "width_multiplier is 0.0; it must be above 0."),
        ("ResNet20", {"width_multiplier": float("nan")}, "width_multiplier is nan; it must be above 0."),
        ("ResNet18", {"hidden": -1}, "hidden is -1; it must be at least 1."),
        ("Conv6", {"num_classes": 0}, "num_classes is 0; it must be at least 1."),
        ("LeNet5", {"input_shape": (1, 0, 8)}, "input_shape is (1, 0, 8);"),
    ],
)
def test_settings_out_of_range_are_refused_in_one_line(name, settings, message):
    arguments = {"num_classes": 10, "input_shape": CIFAR, **settings}
    with pytest.raises(UsageError, match=re.escape(message)) as caught:
        model_class(name)(**arguments)
    assert "\n" not in str(caught.value)


def test_importing_a_model_needs_torch_alone():
    code = (
        "import sys, torch; before = set(sys.modules)\n"
        f"import {', '.join(f'models.{name}' for name in OURS)}\n"
        "print(*sorted({m.split('.')[0] for m in set(sys.modules) - before}))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=registry.ROOT, capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) <= {"models", "torch"}
