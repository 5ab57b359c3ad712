"""Masks hold through training: removed weights stay exactly zero and nothing remembers them."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from criterions.Magnitude import Magnitude
from criterions.SNIP import SNIP
from pruning import PrunableNetwork, UsageError, WeightMasks
from tests.support.zoo.small import SHAPES, Residual, bias_free, build, conv_net, data, mlp
from trainers._optimization import Optimization
from trainers.DefaultTrainer import DefaultTrainer


class Batches(list):
    """A list of batches that a trainer can go through."""

    def epoch(self, number, start=0):
        return iter(self[start:])


def trainer_of(network, batches, epochs=10, **options):
    parts = {"train_batches": Batches(batches), "test_batches": batches, "loss_function": network.loss}
    return DefaultTrainer(network=network, epochs=epochs, optimization=Optimization(**options), **parts)


@pytest.mark.parametrize("optimizer", ["ADAM", "SGD", "RMSPROP", "ADAMW"])
@pytest.mark.parametrize("maker", [mlp, Residual])
@pytest.mark.parametrize("when", ["before", "between"])
def test_after_20_steps_removed_weights_and_moments_are_zero(optimizer, maker, when):
    network = PrunableNetwork(build(maker), torch.zeros(1, *SHAPES[maker]))
    batches = data(SHAPES[maker])
    trainer = trainer_of(network, batches, optimizer=optimizer, l2_reg=0.01, grad_noise=0.1, learning_rate=0.05)
    if when == "between":
        trainer.train()
    network.prune(SNIP(), batches, sparsity=0.5)
    trainer.forget_removed()
    start = [weight.detach().clone() for weight in network.prunable().values()]
    trainer.epoch, trainer.epochs = 0, 10
    trainer.train()
    looked_at = 0
    for (name, weight), before in zip(network.prunable().items(), start, strict=True):
        gone = ~network.masks.keep[name]
        assert torch.equal(weight[gone], torch.zeros_like(weight[gone]))
        assert (weight[~gone] != before[~gone]).all(), "what stays goes on learning"
        for moment in trainer.optimizer.state[weight].values():
            if torch.is_tensor(moment) and moment.shape == weight.shape:
                assert not moment[gone].any() and moment[~gone].all()
                looked_at += 1
    assert looked_at >= len(start)


def test_gradients_of_removed_weights_do_not_feed_clipping():
    """Training a masked layer equals training the smaller layer that is left, clipped by the same norm."""
    torch.manual_seed(0)
    small, large = nn.Linear(3, 4, bias=False).double(), nn.Linear(6, 4, bias=False).double()
    with torch.no_grad():
        large.weight[:, :3].copy_(small.weight)
    keep = torch.zeros(4, 6, dtype=torch.bool)
    keep[:, :3] = True
    inputs, targets = data((6,), dtype=torch.float64)[0]
    inputs[:, 3:] *= 100  # the removed weights' gradients would fill the norm
    for model, x in ((small, inputs[:, :3]), (large, inputs)):
        network = PrunableNetwork(model, x)
        if model is large:
            network.masks.set({"weight": keep})
            network.enforce()
        trainer_of(network, [(x, targets)] * 4, epochs=5, optimizer="SGD", grad_clip=0.01, learning_rate=1.0).train()
    torch.testing.assert_close(large.weight[:, :3], small.weight)
    assert not large.weight[:, 3:].any()


def test_a_weight_shared_by_two_layers_is_masked_and_counted_once():
    torch.manual_seed(0)
    model = bias_free(5, 5, 5, 5, 3)
    model[4].weight = model[2].weight
    network = PrunableNetwork(model, torch.zeros(1, 5))
    assert list(network.prunable()) == ["0.weight", "2.weight", "6.weight"]
    assert network.weights_total() == 25 + 25 + 15
    batches = data((5,), classes=3)
    network.prune(SNIP(), batches, sparsity=0.6)
    trainer_of(network, batches).train()
    assert model[4].weight is model[2].weight
    assert int((model[4].weight == 0).sum()) == network.masks.removed("2.weight")
    # Both uses of the shared weight count in the FLOPs, dense and without the masked part.
    left = [network.prunable()[name].numel() - network.masks.removed(name) for name in network.prunable()]
    assert network.flops() == 2 * (left[0] + 2 * left[1] + left[2])
    assert network.flops(masked=True) == 2 * (25 * 3 + 15)


def normalised(kind):
    torch.manual_seed(0)
    wrap = {
        "weight_norm": parametrizations.weight_norm,
        "weight_norm_columns": lambda layer: parametrizations.weight_norm(layer, dim=1),
        "weight_norm_whole": lambda layer: parametrizations.weight_norm(layer, dim=None),
        "spectral_norm": parametrizations.spectral_norm,
        "old_weight_norm": torch.nn.utils.weight_norm,
        "old_spectral_norm": torch.nn.utils.spectral_norm,
    }[kind]
    return nn.Sequential(wrap(nn.Linear(6, 9)), nn.ReLU(), wrap(nn.Linear(9, 9)), nn.ReLU(), nn.Linear(9, 4))


KINDS = ["weight_norm", "weight_norm_columns", "weight_norm_whole", "spectral_norm"]


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize("kind", [*KINDS, "old_weight_norm", "old_spectral_norm"])
def test_reparametrised_weights_are_zero_where_they_were_removed(kind):
    model = normalised(kind)
    network = PrunableNetwork(model, torch.zeros(1, 6))
    assert network.weights_total() == 54 + 81 + 36
    batches = data((6,))
    network.prune(SNIP(), batches, sparsity=0.8)
    assert network.weights_left() == 171 - round(0.8 * 171)
    trainer_of(network, batches).train()
    model.eval()(batches[0][0])
    for layer, name in zip((model[0], model[2]), network.prunable(), strict=False):
        gone = ~network.masks.keep[name]
        assert torch.isfinite(layer.weight).all() and not layer.weight[gone].any()


@pytest.mark.parametrize("kind", ["weight_norm", "weight_norm_columns"])
def test_no_slice_under_weight_norm_is_emptied_which_would_be_nan(kind):
    model = normalised(kind)
    network = PrunableNetwork(model, torch.zeros(1, 6))
    report = network.prune(Magnitude(), sparsity=0.99)
    assert torch.isfinite(model(torch.ones(2, 6))).all()
    slices = 9 + 9 if kind == "weight_norm" else 6 + 9
    assert network.weights_left() == slices + 1
    assert "instead of 2" in report.steps[0].reason


def test_a_weight_whose_zeros_do_not_last_is_left_out():
    torch.manual_seed(0)
    model = nn.Sequential(parametrizations.orthogonal(nn.Linear(5, 5)), nn.Linear(5, 3))
    before = model[0].weight.detach().clone()
    assert list(PrunableNetwork(model).prunable()) == ["1.weight"]
    assert torch.equal(model[0].weight, before)


def test_frozen_layers_that_are_asked_for_are_pruned_and_stay_frozen():
    model = build(mlp)
    model[0].weight.requires_grad_(False)
    network = PrunableNetwork(model, torch.zeros(1, 6))
    batches = data((6,))
    network.prune(SNIP(), batches, sparsity=0.5, only="*")
    assert network.masks.removed("0.weight") > 0
    frozen = model[0].weight.clone()
    trainer_of(network, batches).train()
    assert torch.equal(model[0].weight, frozen) and not frozen[~network.masks.keep["0.weight"]].any()
    assert model[0].weight.grad is None and not model[0].weight.requires_grad


def test_parameter_objects_and_their_memory_stay():
    network = PrunableNetwork(build(conv_net).to(memory_format=torch.channels_last), torch.zeros(1, 2, 5, 5))
    before = [(weight, weight.data_ptr(), weight.stride()) for weight in network.prunable().values()]
    network.prune(Magnitude(), sparsity=0.5)
    after = [(weight, weight.data_ptr(), weight.stride()) for weight in network.prunable().values()]
    assert all(a[0] is b[0] and a[1:] == b[1:] for a, b in zip(before, after, strict=True))
    for weight, mask in zip(network.prunable().values(), network.masks.keep.values(), strict=True):
        assert torch.equal(weight != 0, mask)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_masks_follow_the_weights_precision(dtype):
    network = PrunableNetwork(build(mlp), torch.zeros(1, 6))
    network.prune(Magnitude(), sparsity=0.5)
    network.model.to(dtype)
    nn.init.ones_(network.model[0].weight)
    network.enforce()
    assert torch.equal(network.model[0].weight.bool(), network.masks.keep["0.weight"])
    assert network.model[0].weight.dtype is dtype


def test_masks_by_themselves():
    masks, weight = WeightMasks(), nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))
    assert len(masks) == 0 and masks.removed("w") == 0 and masks.of("w", weight).all()
    masks.apply_to_weights({"w": weight})
    masks.set({"w": torch.tensor([1, 0, 1])})
    assert masks.keep["w"].dtype is torch.bool and masks.removed("w") == 1
    masks.apply_to_weights({"w": weight})
    assert weight.tolist() == [1.0, 0.0, 3.0]
    weight.grad = torch.ones(3)
    masks.apply_to_gradients({"w": weight})
    assert weight.grad.tolist() == [1.0, 0.0, 1.0]
    masks.set({"w": torch.tensor([0, 0, 1])})  # the cached multiplier is replaced too
    masks.apply_to_weights({"w": weight, "another": weight})
    assert weight.tolist() == [0.0, 0.0, 3.0]


def test_masks_cut_in_place_are_used_after_a_refresh():
    masks, weight = WeightMasks(), nn.Parameter(torch.ones(3))
    masks.set({"w": torch.tensor([True, False, True])})
    masks.apply_to_weights({"w": weight})
    masks.keep["w"] = masks.keep["w"][1:]
    masks.refresh()
    shorter = nn.Parameter(torch.ones(2))
    masks.apply_to_weights({"w": shorter})
    assert shorter.tolist() == [0.0, 1.0]


def test_nan_scores_leave_network_and_masks_as_they_were():
    class Broken(Magnitude):
        def weight_scores(self, network, batches):
            scores = super().weight_scores(network, batches)
            scores["3.weight"][0, 0] = float("nan")
            return scores

    network = PrunableNetwork(build(conv_net), torch.zeros(1, 2, 5, 5))
    before = {name: tensor.clone() for name, tensor in network.model.state_dict().items()}
    with pytest.raises(UsageError, match=r"'3\.weight'"):
        network.prune(Broken(), sparsity=0.5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.model.state_dict().items())
    assert len(network.masks) == 0
