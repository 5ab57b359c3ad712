"""What every criterion must do, those of tomorrow included."""

import inspect
import random
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from pruning import PrunableNetwork, UsageError
from pruning.low_rank.criterion import LowRankCriterion
from pruning.prune.criterion import Criterion, NodeCriterion, WeightCriterion
from tests.support.tiers import few
from tests.support.zoo.small import SHAPES, Residual, build, conv_net, data, mlp
from utils.settings import registry
from utils.settings.signatures import REQUIRED, parameters_of

NAMES = registry.names("criterions")
MAKERS = few([mlp, conv_net, Residual], [Residual])  # with a norm, a group, a sum, and layers out of order
LIMITS = few([0.0, 0.02, 0.3, 0.5, 0.9, 0.93, 0.98, 0.999], [0.0, 0.5, 0.98])


def make(name):
    """The criterion with its defaults, or None if it removes something else than weights."""
    cls = registry.find("criterions", name)
    if cls.unit != "weights" or not issubclass(cls, WeightCriterion):
        return None
    return cls()


WEIGHT_NAMES = [name for name in NAMES if make(name) is not None]
# Of a criterion with a threshold the sparsity is an outcome: tests/papers/test_hoyer.py.
PRUNING_NAMES = [name for name in WEIGHT_NAMES if make(name).sparsities(0.9) and make(name).threshold is None]


def network_of(maker, **options):
    return PrunableNetwork(build(maker), torch.zeros(2, *SHAPES[maker]), **options), data(SHAPES[maker])


def test_the_folder_holds_the_criteria_of_this_project():
    before = {"EmptyCrit", "UnstructuredRandom", "Magnitude", "SNIP", "SNIPit", "GRASP", "SynFlow"}
    assert before | {"SNIPitDuring", "IMP", "LAMP", "GMP"} <= set(WEIGHT_NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_it_says_what_it_is_and_explains_every_parameter(name):
    cls = registry.find("criterions", name)
    first_line = inspect.getdoc(cls).splitlines()[0]
    assert first_line.endswith((".", ":")) and 15 < len(first_line) <= 120
    assert cls.unit in ("weights", "nodes", "ranks")
    assert cls.moment in ("before", "during", "after")
    for parameter in parameters_of(cls):
        assert len(parameter.help) > 10, f"{name} does not explain {parameter.name} in its docstring's Args"
        assert parameter.default is not REQUIRED, f"{name} needs {parameter.name}, so it cannot be run by name"


def depth(cls):
    """How many classes lie above each other in the longest line down to `object`, the class itself included."""
    if cls is object:
        return 0
    return 1 + max(depth(base) for base in cls.__bases__)


@pytest.mark.parametrize("name", NAMES)
def test_what_it_does_is_read_in_three_classes_at_most(name):
    assert depth(registry.find("criterions", name)) <= 3


def test_depth_counts_the_longest_line():
    class Mixin:
        pass

    class Further(Mixin, WeightCriterion):
        pass

    assert depth(Criterion) == 1 and depth(Mixin) == 1
    assert depth(Further) == 3 and depth(type("Deeper", (Further,), {})) == 4


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("limit", LIMITS)
def test_sparsities_rise_to_the_limit_and_never_pass_it(name, limit):
    sparsities = registry.find("criterions", name)().sparsities(limit)
    assert sparsities == sorted(sparsities)
    assert all(0 < sparsity <= limit for sparsity in sparsities)
    assert not sparsities or sparsities[-1] == limit
    assert sparsities or limit == 0 or name == "EmptyCrit"


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("name", PRUNING_NAMES)
def test_it_reaches_the_asked_sparsity_exactly(name, maker):
    network, batches = network_of(maker)
    total = network.weights_total()
    report = network.prune(make(name), batches, sparsity=0.7)
    assert network.weights_left() == total - round(0.7 * total)
    assert report.reached == pytest.approx(1 - network.weights_left() / total)
    assert not any(step.reason for step in report.steps)
    zeros = sum(int((weight == 0).sum()) for weight in network.prunable().values())
    assert zeros == total - network.weights_left()


@pytest.mark.parametrize("name", PRUNING_NAMES)
def test_it_is_deterministic(name):
    first, second = network_of(conv_net), network_of(conv_net)
    for seed, (network, batches) in enumerate((first, second)):
        torch.manual_seed(seed)  # whatever the global state: it must not matter
        network.prune(make(name), batches, sparsity=0.8)
    assert all(torch.equal(mask, second[0].masks.keep[key]) for key, mask in first[0].masks.keep.items())


def everything_of(model):
    """All that scoring could disturb."""
    return {
        "state": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "modes": [module.training for module in model.modules()],
        "gradients": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "trained": [p.requires_grad for p in model.parameters()],
        "random": [torch.get_rng_state(), random.getstate(), [str(part) for part in np.random.get_state()]],
        "versions": [p._version for p in model.parameters()],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
    }


def same(before, after):
    if isinstance(before, torch.Tensor):
        return torch.equal(before, after)
    if isinstance(before, dict):
        return before.keys() == after.keys() and all(same(before[key], after[key]) for key in before)
    if isinstance(before, (list, tuple)):
        return len(before) == len(after) and all(map(same, before, after))
    return before == after


def scores_of(criterion, network, batches):
    """Scores by parameter name, of whatever kind the criterion gives; values per node come as "nodes"."""
    if isinstance(criterion, WeightCriterion):
        return criterion.weight_scores(network, batches) if criterion.sparsities(0.9) else {}
    if isinstance(criterion, NodeCriterion):
        return {"nodes": criterion.node_scores(network, batches)}
    if isinstance(criterion, LowRankCriterion):
        layers = {path: network.model.get_submodule(path) for path in network.owners().values()}
        criterion.rank_errors(network, layers, batches)
        return {}
    weights, nodes = criterion.joint_scores(network, batches)
    return weights | {"nodes": nodes}


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("name", NAMES)
def test_scoring_leaves_no_trace(name, maker):
    network, batches = network_of(maker)
    model = network.model.train()
    next(iter(model.children())).eval()  # a module that the user froze in eval mode
    nn.functional.cross_entropy(model(batches[0][0]), batches[0][1]).backward()
    list(model.parameters())[1].requires_grad_(False)
    list(model.parameters())[2].grad = None
    before = everything_of(model)
    scores = scores_of(registry.find("criterions", name)(), network, batches)
    assert same(before, everything_of(model))
    assert len(network.masks) == 0
    for key, score in scores.items():
        shape = (len(network.graph.nodes),) if key == "nodes" else model.get_parameter(key).shape
        assert score.shape == shape and torch.isfinite(score).all()


@pytest.mark.parametrize("name", PRUNING_NAMES)
def test_outer_layers_stay_whole_where_they_are_left_out(name):
    network, batches = network_of(mlp, outer_layers=False)
    network.prune(make(name), batches, sparsity=0.6)
    assert network.layer_sparsities() == {"0.weight": 0.0, "4.weight": 21 / 35, "6.weight": 0.0}
    # The asked fraction is of what is ranked, the network's sparsity of everything.
    assert network.reached() == pytest.approx(21 / 35)
    assert network.weight_sparsity() == pytest.approx(21 / (42 + 35 + 20))


@pytest.mark.parametrize("name", PRUNING_NAMES)
def test_a_limit_beyond_one_weight_a_layer_stops_there_and_says_why(name):
    network, batches = network_of(mlp)
    report = network.prune(make(name), batches, sparsity=0.995)
    assert network.weights_left() == 3
    assert "no layer is emptied" in report.steps[-1].reason


# -- batches of any form -----------------------------------------------------------------------------------------------


@dataclass
class Said:
    """What libraries return: scores among other things."""

    logits: torch.Tensor
    values: torch.Tensor


class Library(nn.Module):
    """Called with keywords and answering in a data class, as transformers are; the mask changes what is said."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(6, 12), nn.BatchNorm1d(12), nn.Linear(12, 5)

    def forward(self, values, mask=None, labels=None):
        assert labels is None, "targets are for the loss"
        if mask is not None:
            values = values * mask
        hidden = torch.relu(self.norm(self.first(values)))
        return Said(self.last(hidden), values)


class Plain(Library):
    """The same network as everybody writes it."""

    def forward(self, values):
        return super().forward(values).logits


ASKED = {name: registry.find("criterions", name)() for name in NAMES if name != "EmptyCrit"}
QUICK_FORMS = {"SNIP", "SNAP", "Wanda", "GRASP", "PFP"}


@pytest.mark.parametrize("name", few(ASKED, QUICK_FORMS))
def test_it_takes_dicts_with_labels_and_networks_that_return_a_data_class(name):
    values, labels = torch.randn(40, 6), torch.arange(40) % 5
    mask = (torch.rand(40, 6) > 0.3).float()
    plain = [(values[part] * mask[part], labels[part]) for part in (slice(0, 20), slice(20, 40))]
    dicts = [
        {"values": values[part], "mask": mask[part], "labels": labels[part]} for part in (slice(0, 20), slice(20, 40))
    ]
    pairs = [({"values": batch["values"], "mask": batch["mask"]}, batch["labels"]) for batch in dicts]
    outcomes = []
    for kind, batches in ((Plain, plain), (Library, dicts), (Library, pairs)):
        torch.manual_seed(3)
        example = batches[0]["values"][:1] if isinstance(batches[0], dict) else batches[0][0]
        example = {"values": values[:1], "mask": mask[:1]} if kind is Library else example[:1]
        network = PrunableNetwork(kind(), example)
        criterion = registry.find("criterions", name)()
        network.prune_to(criterion, 0.5, batches)
        outcomes.append([*network.model.state_dict().values(), *network.masks.keep.values()])
    for others in outcomes[1:]:
        assert len(others) == len(outcomes[0])
        assert all(torch.equal(one, other) for one, other in zip(outcomes[0], others, strict=True))


def test_a_dict_without_labels_is_said_in_one_line():
    network = PrunableNetwork(Library(), {"values": torch.zeros(1, 6)})
    for criterion in ("SNIP", "Wanda", "SNAP"):
        with pytest.raises(UsageError, match="values, mask.*labels") as refused:
            batch = {"values": torch.zeros(4, 6), "mask": torch.ones(4, 6)}
            network.prune(registry.find("criterions", criterion)(), [batch], sparsity=0.5)
        assert "\n" not in str(refused.value)
