"""Every public model: it fits any sample, it trains, it is cut exactly, it has the size it is known for."""

import copy
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
from pruning import DependencyGraph
from pruning.errors import UsageError
from tests.support.tiers import few, later
from tests.support.zoo.registry import randomise
from utils.settings import registry
from utils.settings.signatures import REQUIRED, parameters_of

NAMES = registry.names("models")
# What this project promises; whatever else lies in the folder has to keep the same contract.
OURS = ["LogisticRegression", "LeNet300", "LeNet5", "MLP5", "ConvOnly", "Conv6", "AlexNet", "VGG16", "ResNet18"]
OURS += ["ResNet34", "ResNet20", "ResNet56", "ResNet110", "WRN16_8", "DenseNet22", "GPT", "TinyUNet"]
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
    return make(name, num_classes, shape, width_multiplier=1 / 8, hidden=16, layers=2, width=8)


def on_meta(name, num_classes, shape, **settings):
    with torch.device("meta"):
        return make(name, num_classes, shape, **settings)


def task(name):
    """What a model is for; one that says nothing is for classes."""
    return getattr(model_class(name), "tasks", ("classification",))[0]


def inputs_for(name, count, shape, device="cpu"):
    """Random pictures, or tokens below 3 where the model reads them."""
    if task(name) == "language":
        return torch.randint(0, 3, (count, *shape), device=device)
    return torch.randn(count, *shape, device=device)


def output_shape(name, count, num_classes, shape):
    """One row of scores for each sample, for each token, or for each pixel."""
    if task(name) == "language":
        return (count, *shape, num_classes)
    if task(name) == "segmentation":
        return (count, num_classes, *shape[1:])
    return (count, num_classes)


def loss_of(name, outputs):
    """Cross-entropy of scores with targets that go 0, 1, 2, 0, ..."""
    if task(name) == "language":
        outputs = outputs.flatten(0, 1)
    targets = torch.arange(outputs[:, 0].numel()).view_as(outputs[:, 0]) % outputs.shape[1]
    return F.cross_entropy(outputs, targets)


def with_shapes(shapes):
    """(name, shape) of every model and each of these pictures; a model of language has windows of tokens instead."""
    found = []
    for name in NAMES:
        found += [(name, shape) for shape in ([(8,)] if task(name) == "language" else shapes)]
    return found


def quick_and_later(shapes):
    """Cases of `with_shapes`, of which the quick shapes run by default."""
    quick = with_shapes(QUICK_SHAPES)
    return [*quick, *later(*(case for case in with_shapes(shapes) if case not in quick))]


def prunable(model):
    return [module for module in model.modules() if isinstance(module, (nn.Linear, nn.Conv2d))]


def test_all_promised_models_are_there():
    assert set(OURS) <= set(NAMES)


# -- the contract -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "shape"), quick_and_later([*SHAPES, *LARGE]), ids=str)
def test_full_size_fits_any_sample_in_both_modes(name, shape):
    model = on_meta(name, 7, shape)
    for mode in (True, False):
        outputs = model.train(mode)(inputs_for(name, 2, shape, "meta"))
        assert outputs.shape == output_shape(name, 2, 7, shape)


@pytest.mark.parametrize(("name", "shape"), quick_and_later(SHAPES), ids=str)
def test_one_training_step_changes_every_parameter(name, shape):
    torch.manual_seed(0)
    model = small(name, 3, shape)
    before = {key: value.clone() for key, value in model.named_parameters()}
    optimizer = torch.optim.Adam(model.parameters())
    # Sixteen samples, so that hardly a unit is off for all of them.
    loss_of(name, model(inputs_for(name, 16, shape))).backward()
    optimizer.step()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    still = [key for key, value in model.named_parameters() if torch.equal(value, before[key])]
    assert not still


@pytest.mark.parametrize("name", NAMES)
def test_the_seed_decides_everything(name):
    def outputs(seed):
        torch.manual_seed(seed)
        model = small(name, 4, shape)
        return model(torch.ones(3, *shape, dtype=dtype))

    shape, dtype = ((8,), torch.long) if task(name) == "language" else (MNIST, torch.float)
    assert torch.equal(outputs(1), outputs(1))
    assert not torch.equal(outputs(1), outputs(2))


@pytest.mark.parametrize("name", few(NAMES, set(NAMES) - set(DEEP)))
def test_a_few_steps_learn_one_batch(name):
    torch.manual_seed(0)
    shape = (8,) if task(name) == "language" else (1, 16, 16)
    model = small(name, 2 if task(name) != "language" else 3, shape)
    inputs = inputs_for(name, 16, shape)
    if task(name) != "language":
        inputs[1::2] += 0.5
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    start = loss_of(name, model.eval()(inputs)).item()
    model.train()
    for _ in range(25):
        optimizer.zero_grad()
        loss_of(name, model(inputs)).backward()
        optimizer.step()
    assert loss_of(name, model(inputs)).item() < start


@pytest.mark.parametrize("name", few(NAMES, {"GPT", "TinyUNet", "MLP5", "LeNet5"}))
def test_without_half_of_its_nodes_it_computes_what_it_does_with_zeros(name):
    shape = (8,) if task(name) == "language" else (1, 16, 16)
    model = randomise(small(name, 3, shape).double()).eval()
    inputs = inputs_for(name, 2, shape)
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    graph = DependencyGraph(model, inputs)
    removed = []
    for group in graph.groups:
        # A channel under a layer norm changes the norm's statistics, so it has no twin with zeros.
        removed += [node for node in group.nodes[: len(group.nodes) // 2] if not graph.inexact[node]]
    if not removed:
        assert not graph.groups, f"nothing of {name} can go exactly"
        return
    with_zeros = copy.deepcopy(model)
    tensors = dict(with_zeros.named_parameters()) | dict(with_zeros.named_buffers())
    plan = graph.plan(removed)
    for tensor, keeps in plan.keeps.items():
        for dim, kept in keeps.items():
            gone = torch.ones(tensors[tensor].shape[dim], dtype=torch.bool)
            gone[kept] = False
            tensors[tensor].data.index_fill_(dim, gone.nonzero().flatten(), 0)
    plan.exec()
    torch.testing.assert_close(model(inputs), with_zeros(inputs), rtol=1e-6, atol=1e-9)


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


def test_a_gpt_has_the_parameters_of_gpt2s_blocks_and_heads_that_can_go():
    layers, width, vocabulary, context = 4, 128, 256, 256
    of_a_block = 4 * width * (width + 1) + 8 * width * width + 5 * width + 4 * width  # attention, MLP, two norms
    by_hand = (vocabulary + context) * width + layers * of_a_block + 2 * width
    model = on_meta("GPT", vocabulary, (context,))
    assert sum(parameter.numel() for parameter in model.parameters()) == by_hand == 858_880
    graph = DependencyGraph(make("GPT", 5, (8,), layers=3, heads=4, width=8), torch.zeros(1, 8, dtype=torch.long))
    assert sorted(len(group.nodes) for group in graph.groups) == [4, 4, 4, 8, 32, 32, 32]


def test_a_gpt_sees_no_later_token():
    model = make("GPT", 5, (8,), layers=2, heads=2, width=8).double()
    tokens = torch.randint(5, (1, 8))
    outputs = model(tokens)
    tokens[0, 5] = (tokens[0, 5] + 1) % 5
    changed = (model(tokens) - outputs).abs().sum(2)[0]
    assert (changed[:5] == 0).all() and (changed[5:] > 0).all()
    torch.testing.assert_close(model(tokens[:, :3]), outputs[:, :3])


def test_a_tiny_unet_has_the_size_it_says():
    assert sum(parameter.numel() for parameter in on_meta("TinyUNet", 2, CIFAR).parameters()) == 118_610


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


@pytest.mark.parametrize("name", ["LogisticRegression", "LeNet300", "MLP5"])
def test_feed_forward_networks_take_rows_of_a_table(name):
    assert small(name, 1, (10,))(torch.randn(4, 10)).shape == (4, 1)


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
        ("GPT", {"input_shape": (8,), "heads": 3}, "width 128 is no multiple of heads 3"),
        ("GPT", {}, "input_shape is (3, 32, 32); it must be (tokens of a window), each at least 1."),
        ("TinyUNet", {"input_shape": (8,)}, "input_shape is (8,); it must be (channels, height, width)"),
        ("Conv6", {"num_classes": 0}, "num_classes is 0; it must be at least 1."),
        ("LeNet5", {"input_shape": (1, 0, 8)}, "input_shape is (1, 0, 8);"),
    ],
)
def test_settings_out_of_range_are_refused_in_one_line(name, settings, message):
    arguments = {"num_classes": 10, "input_shape": CIFAR, **settings}
    with pytest.raises(UsageError, match=re.escape(message)) as caught:
        registry.build("models", name, settings, arguments)
    assert "\n" not in str(caught.value)


def test_importing_a_model_needs_torch_alone():
    code = (
        "import sys, torch; before = set(sys.modules)\n"
        f"import {', '.join(f'models.{name}' for name in OURS)}\n"
        "print(*sorted({m.split('.')[0] for m in set(sys.modules) - before}))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=registry.ROOT, capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) <= {"models", "torch"}
