"""Plans: what they say, what they do to optimizers and companions, and that a refused one changes nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import Tensor, nn

from criterions.StructuredRandom import StructuredRandom
from pruning import PrunableNetwork, prune_conv, prune_related_conv
from pruning.errors import UsageError
from pruning.graph.graph import DependencyGraph
from tests.support.zoo.joins import Residual
from tests.support.zoo.plain import plain

X = torch.randn(2, 3, 8, 8)


def build(make: Callable[[], nn.Module] = plain) -> tuple[nn.Module, DependencyGraph]:
    torch.manual_seed(0)
    model = make()
    return model, DependencyGraph(model, X)


def test_resnet18_first_layer() -> None:
    model = torchvision.models.resnet18()
    graph = DependencyGraph(model, torch.randn(1, 3, 64, 64))
    plan = graph.get_pruning_plan(model.conv1, prune_conv, idxs=[2, 6, 9])
    assert plan.parameters_removed == 11_211
    lines = {(line.path, line.dim): line for line in plan.lines()}
    assert set(lines) == {
        ("conv1", 0), ("bn1", 0), ("layer1.0.conv1", 1), ("layer1.0.conv2", 0), ("layer1.0.bn2", 0),
        ("layer1.1.conv1", 1), ("layer1.1.conv2", 0), ("layer1.1.bn2", 0),
        ("layer2.0.conv1", 1), ("layer2.0.downsample.0", 1),
    }  # fmt: skip
    assert str(lines["conv1", 0]).startswith("prune_conv on conv1 (Conv2d) dim 0, Indexs=[2, 6, 9], NumPruned=441")
    assert lines["layer2.0.conv1", 1].function == "prune_related_conv"
    assert "add" in lines["layer1.0.conv2", 0].reason
    text = str(plan)
    assert "11211 parameters will be pruned" in text and text.count("prune_batchnorm") == 3
    before = sum(parameter.numel() for parameter in model.parameters())
    plan.exec()
    assert before - sum(parameter.numel() for parameter in model.parameters()) == 11_211
    assert (model.conv1.out_channels, model.bn1.num_features, model.layer2[0].conv1.in_channels) == (61, 61, 61)


@pytest.mark.parametrize(
    "make",
    [
        lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
        lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, foreach=True),
        lambda parameters: torch.optim.Adam(parameters, amsgrad=True),
        lambda parameters: torch.optim.Adam(parameters, fused=True),
        lambda parameters: torch.optim.AdamW(parameters, foreach=True),
        lambda parameters: torch.optim.RMSprop(parameters, momentum=0.9, centered=True),
        lambda parameters: torch.optim.Adagrad(parameters),
        lambda parameters: torch.optim.Adafactor(parameters),
    ],
)
def test_optimizers_go_on(make: Callable[..., torch.optim.Optimizer]) -> None:
    """Training after a cut equals training of a network that was small, with that state, all along."""
    model, graph = build()
    optimizer = make(list(model.parameters()))
    for _ in range(2):
        optimizer.zero_grad()
        model(X).square().sum().backward()
        optimizer.step()
    state = {name: optimizer.state[parameter] for name, parameter in model.named_parameters()}
    steps = {name: values["step"].clone() for name, values in state.items() if isinstance(values.get("step"), Tensor)}
    moment = {key: value.clone() for key, value in state["0.0.weight"].items() if isinstance(value, Tensor)}
    gradient = model[0][0].weight.grad.clone()
    identities = [id(parameter) for parameter in model.parameters()]
    graph.get_pruning_plan(model[0][0], idxs=[0, 3]).exec(optimizers=[optimizer])
    assert identities == [id(parameter) for parameter in model.parameters()]
    kept = torch.tensor([1, 2, 4, 5])
    assert torch.equal(model[0][0].weight.grad, gradient[kept])
    for key, value in state["0.0.weight"].items():
        if isinstance(value, Tensor) and moment[key].dim() == 4:
            wanted = moment[key][kept] if moment[key].shape[0] == 6 else moment[key]
            assert torch.equal(value, wanted)
    assert all(torch.equal(state[name]["step"], step) for name, step in steps.items())
    model(X).square().sum().backward()
    optimizer.step()


def test_an_optimizer_that_cannot_be_cut_changes_nothing() -> None:
    model, graph = build()
    optimizer = torch.optim.LBFGS(model.parameters())

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = model(X).square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(UsageError, match="LBFGS"):
        graph.get_pruning_plan(model[0][0], idxs=[0]).exec(optimizers=optimizer)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert len(graph.nodes) == 14


def test_companions_are_cut_along() -> None:
    model, graph = build(Residual)
    average = torch.optim.swa_utils.AveragedModel(model)
    masks = {name: torch.rand_like(parameter) > 0.5 for name, parameter in model.named_parameters()}
    rewind = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    plan = graph.plan([0, 1, 7])
    wanted = {name: mask.clone() for name, mask in masks.items()}
    for name, keep in plan.keeps.items():
        for dim, indices in keep.items():
            if name in wanted:
                wanted[name] = wanted[name].index_select(dim, indices)
    plan.exec(cut_along=[masks, rewind, average.module])
    for name, parameter in model.named_parameters():
        assert torch.equal(masks[name], wanted[name]) and masks[name].shape == parameter.shape
        assert torch.equal(rewind[name], parameter)
    torch.testing.assert_close(average.module.eval()(X), model.eval()(X))


def test_hooks_and_retained_graphs_stay_alive() -> None:
    model, graph = build()
    calls: list[tuple[int, ...]] = []
    model[1][0].weight.register_hook(lambda gradient: calls.append(tuple(gradient.shape)))
    model[1][0].weight.register_post_accumulate_grad_hook(lambda parameter: calls.append(tuple(parameter.shape)))
    loss = model(X).sum()
    loss.backward(retain_graph=True)
    graph.get_pruning_plan(model[0][0], idxs=[1]).exec()
    model(X).sum().backward()
    assert calls == [(8, 6, 3, 3), (8, 6, 3, 3), (8, 5, 3, 3), (8, 5, 3, 3)]
    assert loss.isfinite()


def test_requires_grad_and_modes_stay() -> None:
    model, graph = build()
    model[0][0].weight.requires_grad_(False)
    model[1].eval()
    graph.plan([0, 8]).exec()
    assert not model[0][0].weight.requires_grad and model[1][0].weight.requires_grad
    assert model[0].training and not model[1].training


def test_a_graph_goes_on_after_its_plan() -> None:
    model, graph = build()
    late = graph.plan([0])
    graph.plan([2, 3]).exec()
    assert len(graph.nodes) == 12
    with pytest.raises(UsageError, match="pruned after this plan"):
        late.exec()
    again = graph.get_pruning_plan(model[0][0], idxs=[3])
    assert again.lines()[0].indices == [3]
    again.exec()
    assert model[0][0].out_channels == 3
    with pytest.raises(UsageError, match="executed already"):
        again.exec()
    fresh = DependencyGraph(model, X)
    assert [len(group.nodes) for group in fresh.groups] == [len(group.nodes) for group in graph.groups]


def unchanged(model: nn.Module, before: dict[str, Tensor]) -> bool:
    return all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("idxs", [[], [6], [-1], [0, 1, 2, 3, 4, 5]])
def test_wrong_positions(idxs: list[int]) -> None:
    model, graph = build()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(UsageError) as told:
        graph.get_pruning_plan(model[0][0], idxs=idxs)
    assert "\n" not in str(told.value) and unchanged(model, before)


def test_other_refusals() -> None:
    model, graph = build()
    with pytest.raises(UsageError, match="not a module of the network"):
        graph.get_pruning_plan(nn.Conv2d(3, 6, 3), idxs=[0])
    with pytest.raises(UsageError, match="have to stay.*output"):
        graph.get_pruning_plan(model[2].fc, idxs=[0])
    with pytest.raises(UsageError, match="have to stay"):
        graph.get_pruning_plan(model[0][0], prune_related_conv, idxs=[0])
    with pytest.raises(UsageError, match="no weight"):
        graph.get_pruning_plan(model[0][2], idxs=[0])
    for nodes in ([], [14], [-1], torch.ones(3, dtype=torch.bool)):
        with pytest.raises(UsageError):
            graph.plan(nodes)
    with pytest.raises(UsageError, match="leave nothing of 0.0.weight"):
        graph.plan(range(6))


def test_ways_to_name_nodes() -> None:
    _, graph = build()
    mask = torch.zeros(14, dtype=torch.bool)
    mask[[1, 9]] = True
    for given in ([1, 9], (9, 1), torch.tensor([1, 9]), mask, mask.numpy(), [graph.nodes[1], graph.nodes[9]], {1, 9}):
        assert graph.plan(given).nodes.tolist() == [1, 9]
    assert graph.plan(3).nodes.tolist() == graph.plan(graph.nodes[3]).nodes.tolist() == [3]


def test_a_changed_network_is_noticed() -> None:
    model, graph = build()
    plan = graph.plan([0])
    model[2].fc = nn.Linear(7, 4)
    with pytest.raises(UsageError, match="changed"):
        plan.exec()
    assert model[0][0].out_channels == 6


def test_a_network_that_moved_is_the_same() -> None:
    model, graph = build()
    model.double()  # makes new buffers
    graph.plan([0]).exec()
    assert model(X.double()).shape == (2, 4)


def test_what_fails_later_restores_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    model, graph = build()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(X).sum().backward()
    optimizer.step()
    before, state = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    plan = graph.plan([0, 7])
    from pruning.cut import tensors

    put, count = tensors.replace, []

    def failing(tensor: Tensor, smaller: Tensor) -> None:
        count.append(1)
        if len(count) == 4:
            raise RuntimeError("out of memory")
        put(tensor, smaller)

    monkeypatch.setattr(tensors, "replace", failing)
    with pytest.raises(UsageError, match="nothing was changed"):
        plan.exec(optimizers=optimizer)
    assert unchanged(model, before) and model[0][0].out_channels == 6
    for key, values in optimizer.state_dict()["state"].items():
        assert torch.equal(values["momentum_buffer"], state["state"][key]["momentum_buffer"])
    assert model[0][0].weight.grad is not None
    monkeypatch.undo()
    plan.exec(optimizers=optimizer)
    assert model[0][0].out_channels == 5


def test_the_former_keyword_names_the_new_one() -> None:
    model, graph = build()
    before = copy.deepcopy(model.state_dict())
    plan = graph.plan([0])
    with pytest.raises(UsageError, match="companions= is called cut_along="):
        plan.exec(companions=[{}])
    assert unchanged(model, before) and not plan.executed
    network = PrunableNetwork(model, X)
    with pytest.raises(UsageError, match="companions= is called cut_along="):
        network.prune_to(StructuredRandom(), 0.5, companions=[{}])
    assert unchanged(model, before) and network.events == 0


class Picky(nn.Module):
    """Code that takes some widths only."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.body(x).relu()
        if hidden.shape[1] < 3:
            raise RuntimeError("that is too narrow for me")
        return self.head(hidden)


def test_a_plan_that_does_not_run_is_one_error_that_names_operation_and_module() -> None:
    model = nn.Sequential(Picky())
    graph = DependencyGraph(model, torch.randn(2, 4))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(UsageError, match="too narrow for me.*the code in 0") as told:
        graph.plan(range(6))
    assert "\n" not in str(told.value) and unchanged(model, before)
    graph.plan(range(5)).exec()
    assert model[0].body.out_features == 3


def test_a_width_in_the_code_is_told_with_its_sizes() -> None:
    class HardCoded(Picky):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(x).view(len(x), 2, 4).flatten(1))

    graph = DependencyGraph(nn.Sequential(HardCoded()), torch.randn(1, 4))
    assert not len(graph.nodes)
    reasons = [pin for pin in graph.pinned if "hard-coded" in pin.reason]
    assert [pin.reason for pin in reasons] == ["hard-coded width in module 0: view to [1, 2, 4]"]
    assert (reasons[0].operation, reasons[0].module) == ("aten.view", "0")
    with pytest.raises(UsageError, match=r"hard-coded width in module 0: view to \[1, 2, 4\]"):
        graph.get_pruning_plan(graph.model[0].body, idxs=[1])
