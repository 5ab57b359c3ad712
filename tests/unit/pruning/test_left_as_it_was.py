"""A look at a network leaves no trace, and gives what it gives of a network that was called before."""

from __future__ import annotations

import copy
import functools
import random
import types
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pruning import DependencyGraph, PrunableNetwork, extras_of
from pruning.measure.flops import flops_by_module
from tests.support.fingerprint import differences, fingerprint
from tests.support.tiers import few, thorough
from tests.support.zoo import NETWORKS
from tests.support.zoo.registry import arguments


def graph(model: nn.Module, inputs: Any) -> Any:
    return _seen(DependencyGraph(model, inputs))


def _seen(found: DependencyGraph) -> list[int]:
    """Looks at a graph, plans without doing, and returns the sizes of the groups."""
    if len(found.nodes) > 1:
        str(found.plan([0, len(found.nodes) - 1]))
    found.tree()
    return [len(group.nodes) for group in found.groups]


def handle(model: nn.Module, inputs: Any) -> Any:
    network = PrunableNetwork(model, inputs, adopt_zeros=False)
    return network.size(), network.flops(), network.flops_by_weight(), network.nodes_total(), _seen(network.graph)


def paths(model: nn.Module, inputs: Any) -> Any:
    return PrunableNetwork(model, inputs, adopt_zeros=False).effective_sparsity()


LOOKS: dict[str, Callable[[nn.Module, Any], Any]] = {
    "graph": graph,
    "handle": handle,
    "paths": paths,
    "extras": lambda model, inputs: extras_of(model),
    "flops": lambda model, inputs: flops_by_module(model, inputs),
}
"""Each look returns what it found, so that two of them can be compared."""

MOST = ("handle", "paths", "extras")  # what the others do is part of these


def call(model: nn.Module, inputs: Any) -> None:
    positional, named = arguments(inputs)
    model(*positional, **named)


def in_mixed_modes(model: nn.Module) -> nn.Module:
    """Gives modules modes of their own, a parameter a gradient, and another one none at all."""
    for number, module in enumerate(model.modules()):
        module.training = number % 3 != 1
    parameters = list(model.parameters())
    parameters[0].grad = torch.ones_like(parameters[0])
    parameters[-1].requires_grad_(False)
    return model


def changes(model: nn.Module, inputs: Any, look: Callable[[nn.Module, Any], Any]) -> list[str]:
    before = fingerprint(model, inputs)
    look(model, inputs)
    return differences(before, fingerprint(model, inputs))


QUICK = [name for number, name in enumerate(NETWORKS) if number % 40 == 0]


@pytest.mark.parametrize("name", few(NETWORKS, QUICK))
def test_a_look_leaves_no_trace(name: str) -> None:
    case = NETWORKS[name]
    model, inputs = in_mixed_modes(case.build().double()), case.inputs()
    for kind in MOST:
        assert not changes(model, inputs, LOOKS[kind]), kind


@pytest.mark.parametrize("name", few([*NETWORKS][::4], QUICK[:3]))
def test_a_network_that_was_never_called_is_seen_as_one_that_was(name: str) -> None:
    case = NETWORKS[name]
    both = []
    for _ in range(2):
        torch.manual_seed(0)
        both.append(case.build().double().eval())
    (fresh, called), inputs = both, case.inputs()
    with torch.no_grad():
        call(called, inputs)
    assert handle(fresh, inputs) == handle(called, inputs)


# -- habits of networks ------------------------------------------------------------------------------------------------


class Counted:
    """What a network takes notes in."""

    def __init__(self) -> None:
        self.calls, self.log = 0, {"widths": [0]}
        self.inner = types.SimpleNamespace(last=None, seen=set())


class Slotted:
    __slots__ = ("calls",)

    def __init__(self) -> None:
        self.calls = 0


class Notes(list[Any]):
    pass


class Base(nn.Module):
    """Two layers, and between them whatever a network may do at its first call, or at each."""

    kinds: ClassVar[list[Any]] = []
    calls = 0

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)
        self.build()

    def build(self) -> None:
        pass

    def between(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.between(self.first(x).relu()))


class TakesNotes(Base):
    def build(self) -> None:
        self.counted, self.slotted, self.notes = Counted(), Slotted(), Notes()
        self.nested = {"a": ([], {"b": deque(maxlen=2)})}
        self.times, self.order = Counter(), OrderedDict(one=1, other=2)
        kept: list[Any] = []
        self.keep = kept.append
        self.kept_by_a_function = lambda value: kept.append(value)

    def between(self, x: Tensor) -> Tensor:
        self.counted.calls += 1
        self.counted.log["widths"].append(x.shape[-1])
        self.counted.inner.last = x
        self.counted.inner.seen.add(x.shape[-1])
        self.slotted.calls += 1
        self.notes.append(x)
        self.nested["a"][0].append(x)
        self.nested["a"][1]["b"].append(x)
        self.times["calls"] += 1
        self.order.move_to_end("one")
        self.kept_by_a_function(x.shape[0])
        type(self).calls += 1
        self.kinds.append(type(x))
        return x


class DrawsNumbers(Base):
    def build(self) -> None:
        self.generator = torch.Generator()

    def between(self, x: Tensor) -> Tensor:
        drawn = random.random() + float(np.random.rand())  # noqa: NPY002
        return x * drawn * torch.rand((), generator=self.generator) * torch.rand(())


class HangsHooks(Base):
    def between(self, x: Tensor) -> Tensor:
        if not getattr(self, "hooked", False):
            self.last.register_forward_pre_hook(lambda module, given: (given[0] * 2,))
            self.last.register_forward_hook(lambda module, given, out: out + 1)
            self.last.forward = functools.partial(nn.Linear.forward, self.last)  # type: ignore[method-assign]
            self.hooked = True
        return x


class WritesValues(Base):
    def build(self) -> None:
        self.register_buffer("average", torch.zeros(8))
        self.register_buffer("calls_so_far", torch.tensor(0))
        self.array, self.state = np.zeros(3), {"last": torch.zeros(3)}

    def between(self, x: Tensor) -> Tensor:
        self.average.mul_(0.9).add_(x.detach().mean(0))  # type: ignore[operator]
        self.calls_so_far += 1
        self.array += 1
        self.state["last"][1:] += 1
        with torch.no_grad():
            self.last.weight.clamp_(-0.01, 0.01)
            self.first.bias.data = self.first.bias.data * 2
        return x


class WritesToItsInput(Base):
    def forward(self, x: Tensor) -> Tensor:
        x += 1
        return super().forward(x)


class Freezes(Base):
    def between(self, x: Tensor) -> Tensor:
        self.last.requires_grad_(False)
        self.last.train(not self.last.training)
        torch.set_grad_enabled(True)
        return x


class Settings(Base):
    """Keeps its width in a small object, and writes it anew."""

    def build(self) -> None:
        self.settings = types.SimpleNamespace(width=8, inner=types.SimpleNamespace(calls=0))

    def between(self, x: Tensor) -> Tensor:
        self.settings.inner.calls += 1
        return x.reshape(-1, self.settings.width)


class MakesBuffers(Base):
    def between(self, x: Tensor) -> Tensor:
        if not hasattr(self, "scale"):
            self.register_buffer("scale", torch.full((x.shape[-1],), 2.0, dtype=x.dtype))
        return x * self.scale


HABITS = [TakesNotes, DrawsNumbers, HangsHooks, WritesValues, WritesToItsInput, Freezes, Settings, MakesBuffers]


@pytest.mark.parametrize("habit", HABITS)
def test_whatever_a_network_does_is_undone(habit: type[Base]) -> None:
    for kind, look in LOOKS.items():
        model = in_mixed_modes(habit().double())
        assert not changes(model, torch.randn(2, 6, dtype=torch.float64), look), kind


@pytest.mark.parametrize("habit", HABITS)
def test_habits_at_the_first_call_hide_nothing(habit: type[Base]) -> None:
    torch.manual_seed(0)
    fresh = habit().double().eval()
    called, x = copy.deepcopy(fresh), torch.randn(2, 6, dtype=torch.float64)
    with torch.no_grad():
        called(x.clone())
    for kind in ("graph", "handle", "flops"):
        assert LOOKS[kind](fresh, x.clone()) == LOOKS[kind](called, x.clone()), kind
    keeps_what_it_sees = habit is TakesNotes  # and what is kept stays
    assert graph(fresh, x) == ([] if keeps_what_it_sees else [8])


def test_a_version_stays_so_that_a_backward_pass_can_still_run() -> None:
    model, x = WritesValues(), torch.randn(2, 6)
    loss = nn.Sequential(model.first, nn.ReLU(), model.last)(x).square().sum()
    PrunableNetwork(model, x)
    loss.backward()
    assert model.last.weight.grad is not None


def test_what_is_made_at_the_first_call_is_told() -> None:
    class MakesALayer(Base):
        def between(self, x: Tensor) -> Tensor:
            if not hasattr(self, "extra"):
                self.extra = nn.Linear(x.shape[-1], 8)
            return self.extra(x)

    model, x = MakesALayer(), torch.randn(2, 6)
    before = DependencyGraph(model, x)
    assert "makes extra at its first call" in before.traced.notes[0] and not hasattr(model, "extra")
    model(x)
    assert graph(model, x) == [8, 8]


class Past:
    """What a decoder is given: an object that it writes to."""

    def __init__(self) -> None:
        self.keys: list[Tensor] = []
        self.count = torch.zeros(())


def test_what_the_network_is_given_stays_too() -> None:
    class Decoder(Base):
        def forward(self, x: Tensor, past: Past) -> Tensor:  # type: ignore[override]
            past.keys.append(self.first(x))
            past.count += 1
            return super().forward(x)

    inputs = {"x": torch.randn(2, 6), "past": Past()}
    for kind, look in LOOKS.items():
        assert not changes(Decoder(), inputs, look), kind


@thorough
@pytest.mark.parametrize("name", ["segformer", "llama", "bert", "mamba"])
def test_networks_of_transformers_are_left_as_they_were(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    small = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    if name == "segformer":
        small = {"hidden_sizes": [8, 16], "depths": [1, 1], "num_encoder_blocks": 2, "sr_ratios": [2, 1]}
        small |= {"patch_sizes": [3, 3], "strides": [2, 2], "num_attention_heads": [1, 2], "mlp_ratios": [2, 2]}
    config = transformers.AutoConfig.for_model(name, vocab_size=32, pad_token_id=0, **small)
    inputs: Any = {"input_ids": torch.randint(1, 32, (2, 5))}
    if name == "segformer":
        inputs = torch.randn(1, 3, 32, 32)
    model = transformers.AutoModel.from_config(config)
    for kind in ("graph", "handle", "extras", "flops"):
        assert not changes(model, inputs, LOOKS[kind]), kind
    called = copy.deepcopy(model)
    with torch.no_grad():
        call(called, inputs)
    assert graph(model, inputs) == graph(called, inputs)
