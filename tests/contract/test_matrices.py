"""Every criterion of weights takes matrices of every kind, whatever layer keeps them."""

from __future__ import annotations

import pytest
import torch

from pruning import PrunableNetwork, UsageError, regrow
from pruning.modules.calls import call
from pruning.prune.regrow import grows
from tests.contract.test_criterions import PRUNING_NAMES, make
from tests.support.zoo.matrices import MATRICES, Mixture, sequence

BATCHES = [(sequence(), torch.tensor([0, 2]))]


@pytest.mark.parametrize("name", PRUNING_NAMES)
def test_it_masks_every_kind_of_matrix(name: str) -> None:
    criterion = make(name)
    model = Mixture().eval()
    network = PrunableNetwork(model, sequence())
    assert set(network.prunable()) == set(MATRICES["mixture"].outputs)
    sparsity = criterion.sparsities(0.6)[-1]
    step = network.prune_to(criterion, sparsity, BATCHES)
    total = sum(weight.numel() for weight in network.prunable().values())
    zeros = sum(int((weight == 0).sum()) for weight in network.prunable().values())
    assert not network.unscored
    assert zeros == round(0.6 * total) or step.reason
    assert zeros == total - network.weights_left()


@pytest.mark.parametrize("name", [name for name in PRUNING_NAMES if grows(make(name))])
def test_what_grows_grows_in_every_kind_of_matrix(name: str) -> None:
    criterion = make(name)
    network = PrunableNetwork(Mixture().eval(), sequence())
    network.prune_to(criterion, 0.6, BATCHES)
    before = {matrix: int(mask.sum()) for matrix, mask in network.masks.keep.items()}
    regrow(network, criterion, 0.5, BATCHES)
    network.enforce()
    assert {matrix: int(mask.sum()) for matrix, mask in network.masks.keep.items()} == before
    with torch.no_grad():
        assert bool(call(network.model, sequence()).isfinite().all())


def test_low_rank_names_the_layers_that_it_leaves() -> None:
    from criterions.SVD import SVD

    with pytest.raises(UsageError, match=r"no layer that SVD could decompose.*LSTM.*Conv1D"):
        PrunableNetwork(Mixture(), sequence()).prune(SVD(), sparsity=0.5)
