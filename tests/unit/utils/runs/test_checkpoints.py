import random

import numpy as np
import pytest
import torch
from torch import nn

from criterions.StructuredRandom import StructuredRandom
from pruning import PrunableNetwork, UsageError
from tests.support.zoo import NETWORKS
from utils.runs import checkpoints


def network(width=6):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 3))
    return PrunableNetwork(model, torch.zeros(2, 4))


def test_values_and_masks_come_back(tmp_path):
    pruned, fresh = network(), network()
    mask = torch.rand(6, 4) > 0.5
    pruned.masks.set({"0.weight": mask})
    pruned.enforce()
    pruned.model[1].running_mean.fill_(3.0)
    checkpoints.save(tmp_path / "a", checkpoints.network_state(pruned))
    checkpoints.load_network(fresh, checkpoints.read(tmp_path / "a"), tmp_path / "a")
    assert torch.equal(fresh.masks.keep["0.weight"], mask)
    assert fresh.weight_sparsity() == pruned.weight_sparsity() > 0
    for name, value in pruned.model.state_dict().items():
        assert torch.equal(fresh.model.state_dict()[name], value), name


def test_masks_of_before_do_not_stay(tmp_path):
    pruned = network()
    pruned.masks.set({"0.weight": torch.zeros(6, 4, dtype=torch.bool)})
    checkpoints.load_network(pruned, network().model.state_dict(), tmp_path)
    assert pruned.weight_sparsity() == 0


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("key", [None, "state_dict", "model"])
def test_forms_of_a_state_dict(tmp_path, prefix, key):
    other = network()
    with torch.no_grad():
        other.model[0].weight.fill_(0.25)
    state = {prefix + name: value for name, value in other.model.state_dict().items()}
    fresh = network()
    checkpoints.load_network(fresh, state if key is None else {key: state, "epoch": 3}, tmp_path)
    assert torch.equal(fresh.model[0].weight, other.model[0].weight)


def test_what_does_not_fit_leaves_the_network_as_it_was(tmp_path):
    fresh = network()
    before = {name: value.clone() for name, value in fresh.model.state_dict().items()}
    good = dict(network(width=6).model.state_dict())
    wrong = [
        dict(list(good.items())[:-1]),
        good | {"extra.weight": torch.zeros(1)},
        good | {"3.weight": "text"},
        good | {"3.weight": torch.zeros(3, 5)},
        {},
        [good],
        None,
    ]
    for content in wrong:
        with pytest.raises(UsageError, match=str(tmp_path)):
            checkpoints.load_network(fresh, content, tmp_path)
        for name, value in fresh.model.state_dict().items():
            assert torch.equal(value, before[name])


def test_random_numbers_go_on_where_they_were():
    checkpoints.seed_everything(5)
    state = checkpoints.random_state()
    drawn = torch.rand(3), np.random.rand(3), random.random()
    random.gauss(0, 1)
    checkpoints.set_random_state(state)
    again = torch.rand(3), np.random.rand(3), random.random()
    assert torch.equal(drawn[0], again[0]) and np.array_equal(drawn[1], again[1]) and drawn[2] == again[2]


def test_random_state_can_be_saved_without_pickled_code(tmp_path):
    checkpoints.save(tmp_path / "a", {"random": checkpoints.random_state()})
    drawn = torch.rand(3), np.random.rand(3), random.random()
    checkpoints.set_random_state(checkpoints.read(tmp_path / "a")["random"])
    again = torch.rand(3), np.random.rand(3), random.random()
    assert all(np.array_equal(first, second) for first, second in zip(drawn, again, strict=True))


def test_seeds_beyond_numpys_range():
    checkpoints.seed_everything(2**40 + 1)
    first = np.random.rand()
    checkpoints.seed_everything(2**40 + 1)
    assert np.random.rand() == first


def test_buffers_that_no_state_dict_holds_are_cut_along(tmp_path):
    case = NETWORKS["Rotary"]
    torch.manual_seed(0)
    pruned, fresh = (PrunableNetwork(case.build().double(), case.inputs()) for _ in range(2))
    fresh.note_start()
    pruned.prune(StructuredRandom(), sparsity=0.5)
    assert pruned.model.cos.shape == (8, 2)
    checkpoints.save(tmp_path / "a", checkpoints.network_state(pruned))
    checkpoints.load_network(fresh, checkpoints.read(tmp_path / "a"), tmp_path / "a")
    words = case.inputs()
    assert torch.equal(fresh.model.eval()(words), pruned.model.eval()(words))
    assert fresh.node_sparsity() == pruned.node_sparsity() > 0


def test_a_bare_sparse_file_is_taken_as_sparse_and_saved_masks_as_they_are(tmp_path):
    sparse, taken, told = network(), network(), network()
    gone = torch.zeros(6, 4, dtype=torch.bool)
    gone[:, 1:] = True
    sparse.model[0].weight.data[gone] = 0
    with pytest.warns(UserWarning, match="18 weights .* exactly zero"):
        checkpoints.load_network(taken, sparse.model.state_dict(), tmp_path)
    assert torch.equal(~taken.masks.keep["0.weight"], gone)
    # What a handle saved says itself what is masked.
    checkpoints.load_network(told, checkpoints.network_state(sparse), tmp_path)
    assert not told.masks.keep
