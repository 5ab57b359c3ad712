"""What a state dict leaves out: which integers and tensors a cut changed, kept beside the state dict by `extras_of`."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pruning import DependencyGraph, PrunableNetwork, UsageError, extras_of, load_pruned
from pruning.cut.reads import names_read


def half(model: nn.Module, inputs: Any) -> None:
    graph = DependencyGraph(model, inputs)
    graph.plan([node for group in graph.groups for node in group.nodes[1::2]]).exec()


def saved(content: Any) -> Any:
    """What a file gives back."""
    file = io.BytesIO()
    torch.save(content, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def with_extras(model: nn.Module) -> dict[str, Any]:
    return saved({"state_dict": model.state_dict(), "extras": extras_of(model)})


class Configuration:
    """Widths in a plain object, beside what no file of tensors could hold."""

    def __init__(self) -> None:
        self.hidden_size, self.num_heads, self.sizes, self.activation = 12, 2, {"key": [12, "wide"]}, torch.relu


class OfConfiguration(nn.Module):
    """Attention whose code reads its widths in a configuration."""

    def __init__(self) -> None:
        super().__init__()
        self.config = Configuration()
        self.first, self.last = nn.Linear(6, 12), nn.Linear(12, 3)
        self.qkv = nn.Linear(12, 36)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        config = self.config
        q, k, v = self.qkv(x).split(config.hidden_size, dim=-1)
        shape = (*x.shape[:2], config.num_heads, config.sizes["key"][0] // config.num_heads)
        q, k, v = (part.view(shape).transpose(1, 2) for part in (q, k, v))
        mixed = (q @ k.mT / shape[-1] ** 0.5).softmax(-1) @ v
        return self.last(config.activation(x + mixed.transpose(1, 2).flatten(2)))


class Noted(nn.Module):
    """Writes down what it saw: a shape, a counter, a table for it, the width of its layer."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Any = None
        self.calls, self.width, self.table = 1, None, torch.empty(0)
        self.inner, self.last = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 4, 1)
        self.register_buffer("scale", torch.ones(16, 1, 1) * 2, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.inner(x).relu() * self.scale
        self.calls, self.width = self.calls + 1, inner.shape[1]
        x = self.last(inner)
        if self.seen != x.shape:
            self.table, self.seen = torch.arange(x.shape[2] * x.shape[3]).double(), x.shape
        return x.flatten(2) + self.table


def configured() -> nn.Module:
    torch.manual_seed(0)
    return OfConfiguration().double().eval()


def noted() -> nn.Module:
    torch.manual_seed(0)
    return Noted().double().eval()


def rows() -> Tensor:
    return torch.randn(2, 5, 6, dtype=torch.float64)


def picture() -> Tensor:
    return torch.randn(2, 3, 4, 4, dtype=torch.float64)


def test_configurations_are_kept_and_several_cuts_add_up() -> None:
    model, x = configured(), rows()
    for _ in range(2):
        half(model, x)
    assert model.config.hidden_size == model.qkv.out_features // 3 < 12
    extras = extras_of(model)
    assert extras[":config"]["hidden_size"] == model.config.hidden_size
    assert "num_heads" not in extras[":config"] and "activation" not in extras[":config"]
    loaded = load_pruned(configured(), with_extras(model))
    assert torch.equal(loaded(x), model(x)) and loaded.config.activation is torch.relu
    assert extras_of(loaded) == extras


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_carry_what_was_cut(copied: Any) -> None:
    model, x = configured(), rows()
    half(model, x)
    other = copied(model)
    assert extras_of(other) == extras_of(model)
    assert torch.equal(load_pruned(configured(), with_extras(other))(x), model(x))


def test_what_a_forward_pass_wrote_down_is_left_out() -> None:
    model, x = noted(), picture()
    model(x)
    half(model, x)
    model(x)
    own = extras_of(model)[""]
    assert set(own) <= {"scale", "width"} and own["scale"].shape == (8, 1, 1)
    loaded = load_pruned(noted(), with_extras(model))
    assert (loaded.seen, loaded.calls, loaded.width) == (None, 1, None)
    assert torch.equal(loaded(x), model(x)) and loaded.scale.shape == (8, 1, 1)


def test_extras_of_former_versions_held_everything() -> None:
    model, x = noted(), picture()
    half(model, x)
    model(x)
    inner = {"in_channels": 3, "out_channels": 8, "groups": 1, "kernel_size": (1, 1)}
    former = {"": {"seen": (2, 4, 4, 4), "calls": 9, "width": 8, "scale": model.scale}, "inner": inner}
    former["last"] = {"in_channels": 8, "out_channels": 4}
    loaded = load_pruned(noted(), {"state_dict": model.state_dict(), "extras": former})
    assert torch.equal(loaded(x), model(x)) and loaded.seen == x.new_empty(2, 4, 4, 4).shape


def test_masks_change_nothing_beside_the_state_dict() -> None:
    from criterions.Magnitude import Magnitude

    model, x = noted(), picture()
    PrunableNetwork(model, x).prune(Magnitude(), sparsity=0.5)
    assert extras_of(model) == {"": {}}
    assert torch.equal(load_pruned(noted(), with_extras(model))(x), model(x))


def test_extras_of_a_cut_that_changed_nothing_else_say_so() -> None:
    class Own(nn.Module):
        """A layer of the user's own, and a width that its code may or may not read."""

        def __init__(self) -> None:
            super().__init__()
            self.width = 8
            self.one, self.two = nn.Parameter(torch.rand(6, 8)), nn.Parameter(torch.rand(8, 4))

        def forward(self, x: Tensor) -> Tensor:
            return (x @ self.one).relu() @ self.two

        def describe(self) -> str:
            return f"{self.width} channels"

    model, x = Own(), torch.randn(3, 6)
    graph = DependencyGraph(model, x)
    graph.plan(graph.groups[0].nodes[1::2]).exec()
    extras = extras_of(copy.deepcopy(model))
    assert extras[""] and "width" not in extras[""]
    content = saved({"state_dict": model.state_dict(), "extras": extras})
    assert torch.equal(load_pruned(Own(), content)(x), model(x))


def test_a_running_average_carries_what_was_cut_along() -> None:
    model, x = configured(), rows()
    average = torch.optim.swa_utils.AveragedModel(model)
    graph = DependencyGraph(model, x)
    graph.plan([node for group in graph.groups for node in group.nodes[1::2]]).exec(cut_along=average)
    content = saved({"state_dict": average.state_dict(), "extras": extras_of(average)})
    assert torch.equal(load_pruned(configured(), content)(x), model(x))


def test_two_answers_are_told_and_one_is_found() -> None:
    class Attention(nn.Module):
        """Four heads of six, or as many as there are."""

        def __init__(self, named: bool) -> None:
            super().__init__()
            self.named, self.head_dim, self.width = named, 6, 6
            self.first, self.last = nn.Linear(10, 24), nn.Linear(24, 3)
            self.q, self.k, self.v, self.out = (nn.Linear(24, 24) for _ in range(4))
            self.norm = nn.Parameter(torch.rand(6)) if named else None

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            q, k, v = (
                layer(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for layer in (self.q, self.k, self.v)
            )
            if self.norm is not None:
                q = q * self.norm
            return self.last(x + self.out(((q @ k.mT).softmax(-1) @ v).transpose(1, 2).flatten(2)))

    def made(named: bool) -> nn.Module:
        torch.manual_seed(0)
        return Attention(named).double().eval()

    x = torch.randn(2, 5, 10, dtype=torch.float64)
    for named, kept in ((False, 3), (False, 5), (True, 3)):
        model = made(named)
        graph = DependencyGraph(model, x)
        graph.plan(graph.nodes_along("q.weight", 0)[kept:6]).exec()
        assert model.head_dim == kept
        if named or kept == 5:  # a norm is as wide as a head; 20 channels are no whole heads of 6
            loaded = load_pruned(made(named), model.state_dict(), x)
            assert torch.equal(loaded(x), model(x)) and loaded.head_dim == kept
        else:
            with pytest.raises(UsageError, match="heads of 3 or 4 or 6.*extras_of"):
                load_pruned(made(named), model.state_dict(), x)


class Biased(nn.Module):
    """Attention with a bias for each of its four heads."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.width = 4, 6
        self.first, self.qkv, self.last = nn.Linear(5, 10), nn.Linear(10, 72), nn.Linear(24, 3)
        self.bias = nn.Parameter(torch.rand(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.first(x)).view(*x.shape[:2], 3, self.heads, self.width).permute(2, 0, 3, 1, 4)
        scores = q @ k.mT * self.width**-0.5 + self.bias
        return self.last((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize(("unit", "heads", "width"), [("channel", 4, 3), ("head", 2, 6)])
def test_what_each_head_has_one_of_tells_how_many_are_left(unit: Any, heads: int, width: int) -> None:
    def made() -> nn.Module:
        torch.manual_seed(0)
        return Biased().double().eval()

    model, x = made(), torch.randn(2, 5, 5, dtype=torch.float64)
    graph = DependencyGraph(model, x, unit=unit)
    graph.plan([node for group in graph.groups for node in group.nodes[1::2]]).exec()
    assert (model.heads, model.width) == (heads, width)
    loaded = load_pruned(made(), saved(model.state_dict()), x)
    assert torch.equal(loaded(x), model(x)) and (loaded.heads, loaded.width) == (heads, width)


def test_names_that_forward_reaches() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.built, self.read, self.behind, self.called = 4, 4, 4, 4
            self.layers = self.make()

        def make(self) -> nn.Module:
            return nn.Linear(self.built, 4)

        @property
        def twice(self) -> int:
            return 2 * self.behind

        def forward(self, x: Tensor) -> Tensor:
            return helper(self, self.layers(x)).view(-1, self.read, self.twice)

    names = names_read(Named())
    assert names is not None and {"read", "behind", "called"} <= names and "built" not in names

    class Dynamic(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.view(getattr(self, f"{x.dim()}_width"))

    assert names_read(Dynamic()) is None


def helper(module: Any, x: Tensor) -> Tensor:
    return x.view(module.called, -1)


class WithAPart(nn.Module):
    """A part that keeps its width, which may be compiled by itself."""

    def __init__(self, compiled: str = "") -> None:
        super().__init__()
        self.part, self.head = _Part(), nn.Linear(6, 3)
        if compiled == "part":
            self.part = torch.compile(self.part, backend="eager")

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.part(x).relu())


class _Part(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.width, self.a, self.b = 8, nn.Linear(6, 8), nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).relu().view(-1, self.width))


def _maybe_compiled(what: str) -> nn.Module:
    one = WithAPart(what)
    return torch.compile(one, backend="eager") if what == "whole" else one


@pytest.mark.parametrize("saved", ["", "part", "whole"])
def test_compiled_parts_make_no_difference_to_names(saved: str) -> None:
    x = torch.randn(4, 6)
    one = _maybe_compiled(saved)
    graph = DependencyGraph(one, x)
    graph.plan([0, 3, len(graph.nodes) - 1]).exec()
    expected = one(x)
    content = {"state_dict": one.state_dict(), "extras": extras_of(one)}
    for loaded in ("", "part", "whole"):
        torch.testing.assert_close(load_pruned(_maybe_compiled(loaded), content)(x), expected)
        bare = load_pruned(_maybe_compiled(loaded), content["state_dict"], x)
        torch.testing.assert_close(bare(x), expected)
