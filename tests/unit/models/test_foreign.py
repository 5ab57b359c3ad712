"""Networks of torchvision and timm: any picture, any class count, one clear line where that cannot be."""

import inspect
import sys
from unittest import mock
from urllib.error import URLError

import pytest
import torch
from torch import nn

from models import _timm, _torchvision
from models._foreign import check_output
from models._torchvision import fit_channels, fit_positions
from pruning.errors import UsageError
from tests.support.tiers import few

torchvision_models = pytest.importorskip("torchvision.models")


@pytest.fixture
def hub(tmp_path):
    """An empty folder in place of the user's downloaded weights, and no network."""
    folder, before = tmp_path / "checkpoints", torch.hub.get_dir()
    folder.mkdir()
    torch.hub.set_dir(tmp_path)
    with mock.patch("torch.hub.urlopen", side_effect=URLError("no network")):
        yield folder
    torch.hub.set_dir(before)


def put_weights(hub, name, model=None):
    """Puts the file that torchvision would download for `name` in place; returns the network it is from."""
    model = model or torchvision_models.get_model(name)
    torch.save(model.state_dict(), hub / torchvision_models.get_model_weights(name).DEFAULT.url.split("/")[-1])
    return model


def first_layer(model):
    return next(module for module in model.modules() if isinstance(module, nn.Conv2d))


NAMES = ["resnet18", "shufflenet_v2_x0_5", "mobilenet_v3_small", "squeezenet1_1", "googlenet", "mnasnet0_5"]


@pytest.mark.parametrize("shape", few([(1, 64, 64), (4, 64, 96), (3, 64, 64)], [(4, 64, 96)]), ids=str)
@pytest.mark.parametrize("name", few(NAMES, ["resnet18", "squeezenet1_1"]))
def test_torchvision_networks_train_on_any_picture(name, shape):
    torch.manual_seed(0)
    model = _torchvision.resolve(name)(5, shape)
    output = model(torch.randn(2, *shape))
    output.square().sum().backward()
    assert output.shape == (2, 5)
    assert first_layer(model).weight.grad.isfinite().all() and first_layer(model).weight.grad.any()


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("vit_b_16", (3, 32, 32)),
        ("maxvit_t", (1, 64, 64)),
        ("inception_v3", (3, 96, 96)),
        ("swin_t", (2, 32, 32)),
        ("densenet121", (1, 32, 32)),
    ],
)
def test_torchvision_networks_that_want_to_know_more(name, shape):
    model = _torchvision.resolve(name)(5, shape)
    assert model.eval()(torch.zeros(2, *shape)).shape == (2, 5)


def test_a_network_without_values_can_be_built():
    with torch.device("meta"):
        model = _torchvision.resolve("resnet18")(5, (1, 32, 32))
    assert all(tensor.is_meta for tensor in model.state_dict().values())


def test_every_classifier_of_torchvision_is_offered():
    assert _torchvision.names() == torchvision_models.list_models(module=torchvision_models)
    for name in _torchvision.names():
        build = _torchvision.resolve(name)
        assert build.__name__ == name and "Args:" in build.__doc__
        parameters = inspect.signature(build).parameters
        assert list(parameters) == ["num_classes", "input_shape", "pretrained"]
        assert parameters["pretrained"].default is False


def test_maxvit_is_torchvisions_own_at_its_own_size():
    with torch.device("meta"):
        ours = _torchvision._fresh("maxvit_t", 1000, (3, 224, 224), pretrained=False).state_dict()
        theirs = torchvision_models.maxvit_t().state_dict()
    assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in theirs.items()}


def test_unknown_names_get_the_nearest():
    with pytest.raises(UsageError, match="Did you mean resnet50"):
        _torchvision.resolve("resnet5O")
    with pytest.raises(UsageError, match="no model 'wxyz' among the [0-9]+ of torchvision"):
        _torchvision.resolve("wxyz")


@pytest.mark.parametrize(
    ("name", "shape", "reason"),
    [
        ("alexnet", (1, 8, 8), "Pictures of 64x64 would do"),
        ("vit_b_16", (3, 28, 28), "patch size"),
        ("vit_b_16", (3, 32, 64), "must be square"),
        ("maxvit_t", (3, 48, 48), "multiples of 32"),
        ("maxvit_t", (3, 64, 96), "must be square"),
    ],
)
def test_a_picture_that_does_not_fit_is_refused_in_one_line(name, shape, reason):
    with pytest.raises(UsageError, match=reason) as caught:
        _torchvision.resolve(name)(5, shape)
    assert "\n" not in str(caught.value)
    assert f"torchvision/{name}" in str(caught.value) and "x".join(map(str, shape)) in str(caught.value)


@pytest.mark.parametrize("arguments", [(0, (3, 32, 32)), (5, (3, 0, 32))])
def test_sizes_out_of_range_are_refused(arguments):
    with pytest.raises(UsageError, match="must be"):
        _torchvision.resolve("resnet18")(*arguments)


def test_the_first_layer_keeps_the_variance_of_its_outputs():
    torch.manual_seed(0)
    build = _torchvision.resolve("resnet18")
    spread = {c: first_layer(build(5, (c, 32, 32))).weight.std().item() * c**0.5 for c in (1, 3, 6)}
    assert spread[1] == pytest.approx(spread[3], rel=0.1) and spread[6] == pytest.approx(spread[3], rel=0.1)


def test_pretrained_weights_arrive_whole_where_classes_agree(hub):
    theirs = put_weights(hub, "shufflenet_v2_x0_5")
    ours = _torchvision.resolve("shufflenet_v2_x0_5")(1000, (3, 32, 32), pretrained=True)
    assert all(torch.equal(value, theirs.state_dict()[key]) for key, value in ours.state_dict().items())


@pytest.mark.parametrize(
    ("name", "head"),
    [("shufflenet_v2_x0_5", "fc."), ("squeezenet1_1", "classifier.1."), ("mnasnet0_5", "classifier.1.")],
)
def test_pretrained_weights_of_all_but_the_head_where_classes_differ(hub, name, head):
    theirs = put_weights(hub, name).state_dict()
    ours = _torchvision.resolve(name)(7, (3, 64, 64), pretrained=True).state_dict()
    assert list(ours) == list(theirs)
    for key, value in ours.items():
        assert value.shape[0] == 7 if key.startswith(head) else torch.equal(value, theirs[key])


def test_pretrained_on_grey_pictures_sees_what_it_saw_in_colour(hub):
    theirs = put_weights(hub, "shufflenet_v2_x0_5").eval()
    ours = _torchvision.resolve("shufflenet_v2_x0_5")(1000, (1, 32, 32), pretrained=True).eval()
    grey = torch.randn(2, 1, 32, 32)
    torch.testing.assert_close(ours(grey), theirs(grey.expand(-1, 3, -1, -1)), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_pretrained_without_the_auxiliary_heads_of_the_file(hub, name):
    with_heads = torchvision_models.get_model(name, aux_logits=True, init_weights=False)
    theirs = put_weights(hub, name, with_heads).state_dict()
    ours = _torchvision.resolve(name)(6, (3, 96, 96), pretrained=True)
    assert ours.transform_input
    assert not any("aux" in key.lower() for key in ours.state_dict())
    assert all(torch.equal(value, theirs[key]) for key, value in ours.state_dict().items() if not key.startswith("fc"))


def test_pretrained_densenet_is_read_by_its_old_names(hub):
    theirs = torchvision_models.densenet121()
    old = {key.replace("norm1.", "norm.1.").replace("conv2.", "conv.2."): v for key, v in theirs.state_dict().items()}
    assert old.keys() != theirs.state_dict().keys()
    url = torchvision_models.get_model_weights("densenet121").DEFAULT.url
    torch.save(old, hub / url.split("/")[-1])
    ours = _torchvision.resolve("densenet121")(1000, (3, 32, 32), pretrained=True).state_dict()
    assert all(torch.equal(ours[key], value) for key, value in theirs.state_dict().items())


def test_missing_weights_name_the_file_and_the_folder(hub):
    with pytest.raises(UsageError, match=r"put resnet18-f37072fd.pth from https://\S+ into ") as caught:
        _torchvision.resolve("resnet18")(10, (3, 32, 32), pretrained=True)
    assert str(hub) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"no weights", "other", "pickle"], ids=str)
def test_weights_that_cannot_be_used_name_their_file(hub, content):
    file = hub / "resnet18-f37072fd.pth"
    if content == "other":
        torch.save(torchvision_models.shufflenet_v2_x0_5().state_dict(), file)
    elif content == "pickle":
        torch.save(nn.Linear(2, 2), file)
    else:
        file.write_bytes(content)
    with pytest.raises(UsageError, match="resnet18-f37072fd.pth does not hold the weights") as caught:
        _torchvision.resolve("resnet18")(10, (1, 32, 32), pretrained=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 6])
def test_fit_channels_keeps_the_answer_to_a_constant_picture(channels):
    weight = torch.randn(8, 1, 3, 3).expand(-1, 3, -1, -1)  # no colour preferred: then the sum stays exactly
    torch.testing.assert_close(fit_channels(weight, channels).sum(1), weight.sum(1))


def test_fit_positions_keeps_the_class_token_and_the_corners():
    given = torch.randn(1, 1 + 16, 6)
    result = fit_positions(given, torch.zeros(1, 1 + 49, 6))
    assert result.shape == (1, 50, 6)
    for there, here in ((0, 0), (1, 1), (7, 4), (43, 13), (49, 16)):
        torch.testing.assert_close(result[:, there], given[:, here])
    assert fit_positions(given, given) is given


class Remembers(nn.Module):
    """Keeps its last input, as some networks keep masks for a size, and refuses meta tensors."""

    def __init__(self):
        super().__init__()
        self.last = None
        self.linear = nn.Linear(4, 2)
        self.drop = nn.BatchNorm1d(2)

    def forward(self, x):
        self.last = x
        return self.drop(self.linear(x.flatten(1))) * float(x.sum() == 0)


def test_check_output_leaves_the_network_as_it_was():
    model = Remembers()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    check_output(model, "it", 2, (1, 2, 2))
    assert model.last is None and model.training and model.drop.training
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_check_output_refuses_what_is_no_classifier():
    with pytest.raises(UsageError, match=r"it returns \(1, 4, 4\), not \(1, 2\)"):
        check_output(nn.Flatten(0, 1), "it", 2, (1, 4, 4))


def test_timm_missing_says_how_to_install_it():
    with mock.patch.dict(sys.modules, {"timm": None}), pytest.raises(UsageError, match="pip install timm"):
        _timm.resolve("resnet18")


@pytest.fixture
def timm():
    return pytest.importorskip("timm")


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("convnext_atto", (1, 32, 32)),
        ("test_vit", (4, 32, 48)),
        ("test_resnet", (3, 8, 8)),
        ("test_efficientnet.r160_in1k", (2, 9, 7)),
        ("swin_s3_tiny_224", (1, 64, 64)),
    ],
)
def test_timm_networks_train_on_any_picture(timm, name, shape):
    model = _timm.resolve(name)(5, shape)
    output = model(torch.randn(2, *shape))
    output.square().sum().backward()
    assert output.shape == (2, 5)


def test_timm_refusals_are_one_line(timm, hub):
    with pytest.raises(UsageError, match="Did you mean convnext_"):
        _timm.resolve("convnext_ato")
    for name, shape, pretrained, reason in [
        ("test_vit", (3, 30, 30), False, "cannot take pictures of 3x30x30"),
        ("inception_v4", (1, 64, 64), False, "Pictures of 96x96 would do"),
        ("efficientnet_b8", (3, 64, 64), True, "no pretrained weights"),
    ]:
        with pytest.raises(UsageError, match=reason) as caught:
            _timm.resolve(name)(5, shape, pretrained=pretrained)
        assert "\n" not in str(caught.value)


def test_timm_weights_come_from_the_folder_or_name_it(timm, hub):
    save_file = pytest.importorskip("safetensors.torch").save_file
    theirs = timm.create_model("test_resnet")
    file = hub / f"test_resnet.{timm.get_pretrained_cfg('test_resnet').tag}.safetensors"
    build = _timm.resolve("test_resnet")
    with (
        mock.patch("timm.models._builder.load_state_dict_from_hf", side_effect=OSError("no network")),
        pytest.raises(UsageError, match=f"put {file.name} from https://huggingface.co/timm/") as caught,
    ):
        build(5, (1, 32, 32), pretrained=True)
    assert str(hub) in str(caught.value)

    save_file(theirs.state_dict(), file)
    ours = build(5, (1, 32, 32), pretrained=True)
    assert torch.equal(ours.state_dict()["layer1.0.conv1.weight"], theirs.state_dict()["layer1.0.conv1.weight"])
    assert first_layer(ours).weight.shape[1] == 1 and "state_dict" not in ours.pretrained_cfg

    file.write_bytes(b"no weights")
    with pytest.raises(UsageError, match="does not hold the weights"):
        build(5, (1, 32, 32), pretrained=True)
