"""Handles whose network's tensors became other objects: they go on, or say in one line what to do."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from criterions.GroupMagnitude import GroupMagnitude
from criterions.Magnitude import Magnitude
from pruning import DependencyGraph, PrunableNetwork, UsageError, shrink_dead

INPUTS = torch.randn(2, 3, 8, 8)


def build() -> nn.Sequential:
    torch.manual_seed(0)
    features = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.ReLU()]
    return nn.Sequential(*features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))


def pruned() -> PrunableNetwork:
    network = PrunableNetwork(build(), INPUTS)
    network.prune(GroupMagnitude(), sparsity=0.25)
    return network


def assigned(network: PrunableNetwork) -> PrunableNetwork:
    state = {name: value.clone() for name, value in network.model.state_dict().items()}
    network.model.load_state_dict(state, assign=True)
    return network


def with_a_head_of_the_same_shape(network: PrunableNetwork) -> PrunableNetwork:
    head = network.model.get_submodule("7")
    head.weight = nn.Parameter(torch.randn_like(head.weight))
    return network


def pickled(network: PrunableNetwork) -> PrunableNetwork:
    found: PrunableNetwork = pickle.loads(pickle.dumps(network))
    return found


@pytest.mark.parametrize("change", [copy.deepcopy, pickled, assigned, with_a_head_of_the_same_shape])
@pytest.mark.parametrize("criterion", [GroupMagnitude, Magnitude])
def test_pruning_goes_on_with_other_tensors(change: Callable, criterion: type) -> None:
    network = change(pruned())
    wanted = pruned()
    if change is with_a_head_of_the_same_shape:
        wanted.model.load_state_dict(network.model.state_dict())
    reached = network.prune(criterion(), sparsity=0.5).reached
    assert reached == wanted.prune(criterion(), sparsity=0.5).reached
    torch.testing.assert_close(network.model(INPUTS), wanted.model(INPUTS))
    assert network.flops() == wanted.flops()


def test_a_copy_is_pruned_alone() -> None:
    network = pruned()
    copied = copy.deepcopy(network)
    copied.prune(GroupMagnitude(), sparsity=0.5)
    assert [layer.out_channels for layer in (network.model[0], network.model[3])] != [
        layer.out_channels for layer in (copied.model[0], copied.model[3])
    ]
    assert network.node_sparsity() == 0.25 and copied.node_sparsity() == 0.5


def test_a_graph_finds_assigned_and_pickled_weights() -> None:
    model = build()
    graph = DependencyGraph(model, INPUTS)
    model.load_state_dict(build().state_dict(), assign=True)
    assert graph.reduce_to_nodes({"0.weight": model[0].weight.abs()}).shape == (16,)
    graph.get_pruning_plan(model[0], idxs=[0]).exec()
    other = pickle.loads(pickle.dumps(graph))
    other.get_pruning_plan(other.model[0], idxs=[0]).exec()
    assert (model[0].out_channels, other.model[0].out_channels) == (7, 6)


@pytest.mark.parametrize("criterion", [GroupMagnitude, Magnitude])
@pytest.mark.parametrize("make", [pruned, lambda: PrunableNetwork(build(), INPUTS)], ids=["pruned", "whole"])
@pytest.mark.parametrize("head", [nn.Linear(8, 3), nn.Identity()], ids=["narrower", "none"])
def test_a_head_of_another_shape_says_what_to_do(criterion: type, make: Callable, head: nn.Module) -> None:
    network = make()
    network.model[7] = head
    with pytest.raises(UsageError, match=r"(?s)^[^\n]*replaced[^\n]*new PrunableNetwork[^\n]*$"):
        network.prune(criterion(), sparsity=0.5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("criterion", [GroupMagnitude, Magnitude])
def test_a_network_may_change_its_type(dtype: torch.dtype, criterion: type) -> None:
    network = pruned()
    flops = network.flops()
    network.model.to(dtype)
    network._counted_shapes = ()  # counted anew, which runs the example
    assert network.flops() == flops
    network.prune(criterion(), sparsity=0.5)
    assert network.model(INPUTS.to(dtype)).dtype == dtype


def test_an_average_of_the_weights_is_cut_along() -> None:
    network = pruned()
    average = AveragedModel(network.model)
    network.prune_to(GroupMagnitude(), 0.5, cut_along=[average])
    average.update_parameters(network.model)
    torch.testing.assert_close(average.eval()(INPUTS), network.model.eval()(INPUTS))


def test_an_average_of_the_weights_is_pruned_itself() -> None:
    network = PrunableNetwork(AveragedModel(build()), INPUTS)
    assert network.prune(GroupMagnitude(), sparsity=0.5).reached == 0.5
    assert network.model(INPUTS).shape == (2, 5)


@pytest.mark.parametrize("change", [copy.deepcopy, assigned])
def test_dead_nodes_of_other_tensors_are_found(change: Callable) -> None:
    network = change(pruned())
    mask = torch.ones_like(network.model[3].weight, dtype=torch.bool)
    mask[:, 1] = False  # nobody reads channel 1 of the first layer
    network.masks.set({"3.weight": mask})
    network.enforce()
    before = network.model.eval()(INPUTS)
    channels = network.model[0].out_channels
    shrink_dead(network)
    assert network.model[0].out_channels == channels - 1
    torch.testing.assert_close(network.model(INPUTS), before)
