"""Written networks: they compute the same for any batch, and what cannot be written is said in one line."""

import importlib.util

import pytest
import torch
from torch import nn

from models.LeNet5 import LeNet5
from models.ResNet20 import ResNet20
from pruning import PrunableNetwork, UsageError, shrink_dead
from pruning import export as exporting
from pruning.export import SUFFIXES, check_export, export
from pruning.modules.calls import tensors_in
from tests.support.tiers import thorough
from tests.support.zoo.small import Attention, build

# The exporter to ONNX takes seconds to try and fail.
# ONNX is an optional extra; a plain installation has not got it.
ONNX_THERE = all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript"))
NEEDS_ONNX = pytest.mark.skipif(not ONNX_THERE, reason="needs the onnx extra")
WITH_SLOW_ONNX = ["torch_export", pytest.param("onnx", marks=pytest.mark.slow)]


def read_back(path, *inputs):
    """Runs a file without the code under test."""
    if path.suffix == ".pt2":
        return tensors_in(torch.export.load(path).module()(*inputs))
    import onnx.reference

    session = onnx.reference.ReferenceEvaluator(str(path))
    values = dict(zip(session.input_names, (value.numpy() for value in inputs), strict=True))
    return [torch.as_tensor(value) for value in session.run(None, values)]


def pruned(maker, shape):
    """A network that lost nodes, and weights of those that are left."""
    model = build(maker).eval()
    network = PrunableNetwork(model, torch.randn(1, *shape))
    network.graph.plan(range(0, len(network.graph.nodes), 3)).exec()
    network.masks.set({n: torch.rand_like(w) > 0.5 for n, w in network.prunable().items()})
    shrink_dead(network)
    return model


@pytest.mark.parametrize("maker, shape, kind", [
    pytest.param(lambda: LeNet5(10, (1, 16, 16)), (1, 16, 16), "onnx", marks=NEEDS_ONNX),
    pytest.param(lambda: ResNet20(10, (3, 16, 16)), (3, 16, 16), "torch_export", marks=thorough),
    pytest.param(lambda: ResNet20(10, (3, 16, 16)), (3, 16, 16), "onnx", marks=pytest.mark.slow),
])  # fmt: skip
def test_a_pruned_network_runs_without_its_code_on_any_batch(maker, shape, kind, tmp_path):
    model, path = pruned(maker, shape), tmp_path / f"network{SUFFIXES[kind]}"
    done = export(model, torch.randn(1, *shape), path, kind)
    assert done.any_batch
    assert done.error < 1e-4
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    for size in (1, 5):
        inputs = torch.randn(size, *shape)
        torch.testing.assert_close(read_back(path, inputs)[0], model(inputs).detach(), rtol=1e-4, atol=1e-4)


class TwoInTwoOut(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two, self.norm = nn.Linear(3, 4), nn.Linear(2, 4), nn.BatchNorm1d(4)

    def forward(self, one, two):
        joined = self.norm(self.one(one) + self.two(two))
        return {"sum": joined, "largest": joined.amax(1)}


@pytest.mark.parametrize(
    "kind, form",
    [pytest.param("onnx", tuple, marks=[NEEDS_ONNX, thorough]), ("torch_export", tuple), ("torch_export", dict)],
)
def test_several_inputs_and_outputs(kind, form, tmp_path):
    model, one, two = build(TwoInTwoOut), torch.randn(2, 3), torch.randn(2, 2)
    path = tmp_path / f"both{SUFFIXES[kind]}"
    done = export(model, (one, two) if form is tuple else {"one": one, "two": two}, path, kind)
    assert done.any_batch
    assert model.training, "it was in training mode before"
    if form is tuple:
        one, two = torch.randn(4, 3), torch.randn(4, 2)
        for found, expected in zip(read_back(path, one, two), model.eval()(one, two).values(), strict=True):
            torch.testing.assert_close(found, expected.detach(), rtol=1e-4, atol=1e-5)


def test_tokens_go_in_too(tmp_path):
    model, tokens = build(Attention), torch.randint(20, (1, 6))
    done = export(model, tokens, tmp_path / "tokens.pt2", "torch_export")
    assert done.any_batch
    other = torch.randint(20, (3, 6))
    torch.testing.assert_close(read_back(done.path, other)[0], model.eval()(other).detach(), rtol=1e-4, atol=1e-5)


class FixedBatch(nn.Module):
    def __init__(self):
        super().__init__()
        self.one = nn.Linear(6, 2)

    def forward(self, x):
        return self.one(x.reshape(4, 6))


@pytest.mark.parametrize("kind", WITH_SLOW_ONNX)
def test_code_with_a_fixed_batch_is_written_for_that_one(kind, tmp_path):
    done = export(FixedBatch(), torch.randn(4, 2, 3), tmp_path / f"fixed{SUFFIXES[kind]}", kind)
    assert (done.any_batch, done.batch_size) == (False, 4)
    assert "for batches of 4" in str(done)


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.one = nn.Linear(3, 2)

    def forward(self, x):
        return self.one(x if x.sum().item() > 0 else -x)


@pytest.mark.parametrize("kind", WITH_SLOW_ONNX)
def test_what_cannot_be_written_is_said_in_one_line(kind, tmp_path):
    with pytest.raises(UsageError, match=f"^Branches cannot be written as {kind}: ") as error:
        export(Branches(), torch.randn(2, 3), tmp_path / f"branches{SUFFIXES[kind]}", kind)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("wrong, message", [
    (lambda outputs: [outputs[0] + 0.01], "differ by"),
    (lambda outputs: [outputs[0] * torch.nan], "differ by nan"),
    (lambda outputs: [outputs[0][:-1]], "other shapes"),
    (lambda outputs: [], "other shapes"),
])  # fmt: skip
def test_a_file_that_computes_something_else_is_an_error_and_goes(wrong, message, tmp_path, monkeypatch):
    right = exporting._run_program
    monkeypatch.setattr(exporting, "_run_program", lambda path: lambda inputs: wrong(right(path)(inputs)))
    with pytest.raises(UsageError, match=message):
        export(nn.Linear(3, 2), torch.randn(1, 3), tmp_path / "linear.pt2", "torch_export")
    assert not list(tmp_path.iterdir())


def test_a_failure_leaves_the_file_of_before(tmp_path):
    path = tmp_path / "network.pt2"
    path.write_bytes(b"before")
    with pytest.raises(UsageError):
        export(Branches(), torch.randn(2, 3), path, "torch_export")
    assert path.read_bytes() == b"before"


def test_missing_packages_are_named_with_the_command(monkeypatch):
    there = {"onnx": True, "onnxscript": None}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: there[name])
    with pytest.raises(UsageError, match="needs onnxscript, which is not installed: pip install onnxscript$"):
        check_export("onnx")
    check_export("torch_export")
    with pytest.raises(UsageError, match="onnx and torch_export"):
        check_export("tensorflow")


@pytest.mark.parametrize("kind", [pytest.param("onnx", marks=NEEDS_ONNX), "torch_export"])
def test_a_folder_that_is_not_there_is_named(kind, tmp_path):
    with pytest.raises(UsageError, match="no folder .*not"):
        export(nn.Linear(2, 2), torch.randn(1, 2), tmp_path / "not" / "there", kind)


@NEEDS_ONNX
def test_types_that_onnx_cannot_check_are_named(tmp_path):
    model, inputs = nn.Linear(2, 2).bfloat16(), torch.randn(1, 2).bfloat16()
    with pytest.raises(UsageError, match="bfloat16 cannot be checked"):
        export(model, inputs, tmp_path / "a.onnx", "onnx")
    assert not list(tmp_path.iterdir())
    assert export(model, inputs, tmp_path / "a.pt2", "torch_export").path.is_file()
