"""Paths from input to output, against products of boolean matrices and against the flow through positive weights."""

from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pruning import PrunableNetwork
from pruning.dead.reach import Paths, UnknownOperation, effective_weights
from pruning.modules.weights import prunable_weights
from tests.support.zoo.small import Attention, Residual, bias_free, build, conv_net, mlp


def random_masks(model, sparsity, seed, example=None):
    generator = torch.Generator().manual_seed(seed)
    names = prunable_weights(model, example)
    return {n: torch.rand(model.get_parameter(n).shape, generator=generator) >= sparsity for n in names}


def by_matrices(masks):
    """What lies on a path through a stack of dense layers, by reachability from both ends."""
    reached = [torch.ones(masks[0].shape[1], dtype=torch.bool)]
    heard = [torch.ones(masks[-1].shape[0], dtype=torch.bool)]
    for mask in masks:
        reached.append((mask & reached[-1]).any(1))
    for mask in masks[::-1]:
        heard.append((mask & heard[-1][:, None]).any(0))
    return [m & r & h[:, None] for m, r, h in zip(masks, reached, heard[-2::-1], strict=False)]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), sparsity=st.sampled_from([0.0, 0.5, 0.8, 0.95, 1.0]))
def test_dense_layers_agree_with_boolean_matrices(seed, sparsity):
    model = build(mlp)
    masks = random_masks(model, sparsity, seed)
    found = effective_weights(model, torch.randn(2, 6), masks)
    for (name, flags), slow in zip(found.items(), by_matrices(list(masks.values())), strict=True):
        assert torch.equal(flags, slow), name


def positive_flow(model, example, masks):
    """The slow definition, for networks that let positive numbers pass: positive weights and inputs, no biases."""
    state = {}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        scale = 1.0 if "running_var" in name or (tensor.dim() == 1 and name.endswith("weight")) else 0.0
        state[name] = torch.full_like(tensor, scale, dtype=torch.float64)
    weights = {name: (torch.rand(mask.shape, dtype=torch.float64) + 0.5) * mask for name, mask in masks.items()}
    weights = {name: weight.requires_grad_() for name, weight in weights.items()}
    outputs = torch.func.functional_call(model.eval(), state | weights, torch.ones_like(example).double())
    gradients = torch.autograd.grad(outputs.sum(), list(weights.values()), allow_unused=True)
    return {name: mask & (gradient > 0) for (name, mask), gradient in zip(masks.items(), gradients, strict=True)}


class Joined(nn.Module):
    """Grouped, depthwise, strided and transposed convolutions, a concatenation and a shortcut."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.grouped, self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=3), nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.down, self.up = nn.Conv2d(12, 5, 2, stride=2), nn.ConvTranspose2d(5, 6, 2, stride=2)
        self.head = nn.Linear(54, 4)

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        y = torch.cat([F.relu(self.grouped(x)), self.depthwise(x)], 1)
        x = x + F.relu(self.up(F.relu(self.down(y))))
        return self.head(F.max_pool2d(x, 2).flatten(1))


@pytest.mark.parametrize("sparsity", [0.0, 0.6, 0.9])
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("maker, shape", [(Joined, (2, 6, 6)), (conv_net, (2, 5, 5))])
def test_convolutions_agree_with_the_flow_of_positive_weights(maker, shape, seed, sparsity):
    model, example = build(maker), torch.randn(2, *shape)
    masks = random_masks(model, sparsity, seed)
    found = effective_weights(model, example, masks)
    # The largest entry alone gets a pooling's gradient; any of them may be the largest for some input.
    with mock.patch.object(F, "max_pool2d", F.avg_pool2d):
        slow = positive_flow(model, example, masks)
    for name, flags in found.items():
        assert torch.equal(flags, slow[name]), name


class Gate(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.gate, self.head = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.body(x) * torch.sigmoid(self.gate(x)))


def test_a_gate_matters_even_where_what_it_gates_is_constant():
    model = Gate()
    masks = {name: torch.ones_like(model.get_parameter(name), dtype=torch.bool) for name in prunable_weights(model)}
    masks["body.weight"][0] = False  # emits its bias, which the gate still modulates
    masks["gate.weight"][1] = False
    masks["head.weight"][:, 2] = False
    flags = effective_weights(model, torch.randn(2, 3), masks)
    assert flags["gate.weight"][[0, 3]].all()
    assert flags["body.weight"][[1, 3]].all()
    assert flags["head.weight"][:, :2].all()
    assert not flags["body.weight"][2].any()
    assert not flags["gate.weight"][2].any()


@pytest.mark.parametrize("maker, example", [
    (Attention, torch.randint(20, (2, 6))), (Residual, torch.randn(2, 2, 5, 5)), (mlp, torch.randn(2, 6)),
])  # fmt: skip
def test_every_weight_of_a_dense_network_is_on_a_path(maker, example):
    network = PrunableNetwork(build(maker), example)
    assert network.effective_sparsity() == 0


def test_attention_loses_what_no_head_reads():
    model = build(Attention)
    masks = random_masks(model, 0.0, 0, torch.randint(20, (2, 6)))
    masks["head.weight"][:, 3] = False
    masks["block.linear2.weight"][:, 5] = False
    flags = effective_weights(model, torch.randint(20, (2, 6)), masks)
    assert not flags["block.linear1.weight"][5].any()
    assert flags["block.linear1.weight"][4].all()
    assert not flags["block.linear2.weight"][3].any()  # the last place of this channel, which nobody reads now
    assert flags["block.self_attn.out_proj.weight"][3].all()  # it goes on into the block's own layers


def test_recurrent_layers_and_weight_norm_are_followed():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.enter = nn.utils.parametrizations.weight_norm(nn.Linear(3, 4))
            self.cell, self.leave = nn.LSTM(4, 5, batch_first=True), nn.Linear(5, 2)

        def forward(self, x):
            return self.leave(self.cell(self.enter(x))[0][:, -1])

    model, example = Both(), torch.randn(2, 3, 3)
    masks = random_masks(model, 0.0, 0, example)
    source = next(name for name in masks if name.startswith("enter"))
    assert all(flags.all() for flags in effective_weights(model, example, masks).values())
    masks["leave.weight"][:] = False
    assert not any(flags.any() for flags in effective_weights(model, example, masks).values())
    masks["leave.weight"][:] = True
    masks[source][2] = False
    assert not effective_weights(model, example, masks)[source][2].any()


def test_no_depth_makes_paths_vanish():
    model = bias_free(*[4] * 150)
    names = list(prunable_weights(model))
    masks = {name: torch.eye(4, dtype=torch.bool) for name in names}
    masks[names[80]] = torch.zeros(4, 4, dtype=torch.bool)
    masks[names[80]][1, 2] = True
    flags = effective_weights(model, torch.randn(1, 4), masks)
    assert all(int(flag.sum()) == 1 for flag in flags.values())
    assert flags[names[0]][2, 2]
    assert flags[names[-1]][1, 1]


def test_heads_that_only_train_count_as_they_are():
    class Auxiliary(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head, self.extra = nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(4, 2)

        def forward(self, x):
            x = self.body(x)
            return (self.head(x), self.extra(x)) if self.training else self.head(x)

    network = PrunableNetwork(Auxiliary(), torch.randn(2, 3))
    assert network.effective_sparsity() == 0
    network.masks.set({"extra.weight": torch.tensor([[True] * 4, [False] * 4])})
    assert network.effective_sparsity() == pytest.approx(4 / 28)


class Sorts(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.two(self.one(x).sort().values)


class Branches(Sorts):
    def forward(self, x):
        x = self.one(x)
        return self.two(x if x.sum().item() > 0 else -x)


class WritesToAView(Sorts):
    """Channel 1 is overwritten by channel 0, and channel 3 by a constant."""

    def forward(self, x):
        x = self.one(x)
        x[:, 1:2].copy_(x[:, :1])
        x[:, 3:].fill_(2.0)
        return self.two(x)


def test_what_is_written_over_is_on_no_path():
    masks = random_masks(WritesToAView(), 0.0, 0)
    flags = effective_weights(WritesToAView(), torch.randn(2, 3), masks)
    assert flags["one.weight"].any(1).tolist() == [True, False, True, False]
    assert flags["two.weight"].any(0).tolist() == [True, True, True, False]


def test_circular_padding_hands_paths_on():
    model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.Conv2d(3, 2, 3, padding=1, padding_mode="circular"))
    masks = random_masks(model, 0.0, 0)
    masks["0.weight"][1] = False
    flags = effective_weights(model, torch.randn(2, 2, 4, 4), masks)
    assert flags["0.weight"].flatten(1).any(1).tolist() == [True, False, True]
    assert flags["1.weight"].any(0).flatten(1).all(1).tolist() == [True, False, True]


@pytest.mark.parametrize("maker", [Sorts, Branches])
def test_what_cannot_be_followed_has_no_answer(maker):
    with pytest.raises(UnknownOperation):
        Paths(maker(), torch.randn(2, 3), {}).effective()
    assert PrunableNetwork(maker(), torch.randn(2, 3)).effective_sparsity() is None
    assert PrunableNetwork(mlp()).effective_sparsity() is None


def test_masks_and_dead_ends_both_count_as_removed():
    network = PrunableNetwork(bias_free(2, 3, 2), torch.randn(1, 2))
    network.masks.set({"2.weight": torch.tensor([[True, True, False], [True, True, False]])})
    # Two masked weights, and the two of the first layer that led to them: four of twelve.
    assert network.weight_sparsity() == pytest.approx(2 / 12)
    assert network.effective_sparsity() == pytest.approx(4 / 12)


def test_looking_leaves_the_network_as_it_was():
    class Keeps(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.norm, self.head, self.features = nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2), None

        def forward(self, x):
            self.features = self.norm(self.body(x))
            return self.head(self.features)

    model = Keeps().train()
    state, random = {name: value.clone() for name, value in model.state_dict().items()}, torch.get_rng_state()
    paths = Paths(model, torch.zeros(2, 3), {"body.weight": torch.ones(4, 3, dtype=torch.bool)})
    assert paths.effective()["body.weight"].all()
    assert torch.equal(torch.get_rng_state(), random)
    assert model.features is None
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
