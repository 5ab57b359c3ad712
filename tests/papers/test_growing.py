"""Masks that move: dynamic sparse training (SET, RigL), and events before training that bring weights back (FORCE)."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm
from torch.utils._pytree import tree_leaves

from criterions.FORCE import FORCE
from criterions.IterativeSNIP import IterativeSNIP
from criterions.RigL import RigL
from criterions.SET import SET
from criterions.SNIP import SNIP
from pruning import NodeCriterion, PrunableNetwork, UsageError, WeightCriterion, regrow
from tests.support import slow_reference as slow
from tests.support.tiers import few, thorough
from tests.support.zoo.small import SHAPES, Residual, build, conv_net, data, mlp
from trainers._optimization import Optimization
from trainers._pruning import Pruning
from trainers.DefaultTrainer import DefaultTrainer

MAKERS = [mlp, conv_net, Residual]


def network_of(maker, dtype=torch.float64, **options):
    model = build(maker, dtype=dtype)
    network = PrunableNetwork(model, torch.zeros(2, *SHAPES[maker], dtype=dtype), **options)
    return network, data(SHAPES[maker], dtype=dtype)


def dense_gradients(network, batches):
    """|dL/dw| of every weight, masked ones too."""
    double = slow.twin(network.model)
    weights = {name: weight.clone().requires_grad_() for name, weight in slow.prunable(double).items()}
    slopes = torch.autograd.grad(slow.mean_loss(double, batches, weights), list(weights.values()))
    return {name: slope.abs() for name, slope in zip(weights, slopes, strict=True)}


def rigl_update(weight, alive, growth, share):
    """RigL's update of one layer (arXiv:1911.11134, algorithm 1) with plain lists; returns weight and mask.

    `alive` lists the flat indices that are there; places just dropped may be chosen again, and then keep their value.
    """
    values, scores = weight.flatten().tolist(), growth.flatten().tolist()
    there = [i for i, flag in enumerate(alive.flatten().tolist()) if flag]
    count = math.floor(share * len(there) + 1e-9)
    dropped = sorted(there, key=lambda i: (abs(values[i]), -i))[:count]
    stays = [i for i in there if i not in dropped]
    free = [i for i in range(len(values)) if i not in stays]
    grown = sorted(free, key=lambda i: (-scores[i], i))[:count]
    new = [value if i in there and i in stays + grown else 0.0 for i, value in enumerate(values)]
    mask = [i in stays + grown for i in range(len(values))]
    return torch.tensor(new).view(weight.shape).double(), torch.tensor(mask).view(weight.shape)


# --- one update
@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.8])
def test_rigl_drops_the_smallest_and_grows_the_largest_gradients(maker, share):
    network, batches = network_of(maker)
    network.prune(RigL(seed=2), batches, sparsity=0.4)
    before, alive, growth = slow.prunable(network.model), network.alive(), dense_gradients(network, batches)
    before = {name: weight.clone() for name, weight in before.items()}
    replaced = regrow(network, RigL(), share, batches)
    moved = 0
    for name, weight in network.weights():
        expected, mask = rigl_update(before[name], alive[name], growth[name], share)
        assert torch.equal(network.masks.keep[name], mask)
        torch.testing.assert_close(weight.detach(), expected, rtol=0, atol=0)
        moved += int((mask & ~alive[name]).sum())
    assert replaced == moved > 0


def test_set_grows_at_random_places_and_every_free_one_has_its_chance():
    network, _ = network_of(mlp)
    network.prune(SET(seed=1), sparsity=0.7)
    start, grown = network.alive(), {name: torch.zeros_like(mask) for name, mask in network.alive().items()}
    for seed in range(60):
        network.masks.set(start)
        torch.manual_seed(seed)
        regrow(network, SET(), 0.5)
        for name, mask in network.alive().items():
            grown[name] |= mask & ~start[name]
    assert all(torch.equal(grown[name], ~start[name]) for name in start)


def test_the_scores_of_growth_are_the_dense_gradients():
    network, batches = network_of(conv_net)
    network.prune(SET(), sparsity=0.8)
    double = slow.twin(network.model)  # two evaluations of the loss per weight, and no derivative
    slopes = slow.central_differences(lambda at: slow.mean_loss(double, batches, at), slow.prunable(double))
    slow.assert_same(
        RigL().grow_scores(network, batches), {name: slope.abs() for name, slope in slopes.items()}, rtol=1e-5
    )


# --- the first mask
@pytest.mark.parametrize("criterion", [SET, RigL])
def test_first_densities_are_erdos_renyi(criterion):
    network = PrunableNetwork(nn.Sequential(nn.Linear(100, 80), nn.ReLU(), nn.Linear(80, 20)), torch.zeros(1, 100))
    network.prune(criterion(), [(torch.randn(4, 100), torch.arange(4))], sparsity=0.9)
    # density = e (outputs + inputs) / (outputs * inputs): each layer keeps e (outputs + inputs), 960 in all.
    each = 960 / (180 + 100)
    left = [network.weights_left([name]) for name in network.ranked_names()]
    assert left == [round(180 * each), round(100 * each)]
    assert sum(left) == 960


def test_kernels_count_in_convolutions_and_narrow_layers_are_dense():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 32, 3), nn.Flatten(), nn.Linear(32 * 16, 4))
    network = PrunableNetwork(model, torch.zeros(1, 1, 8, 8))
    network.prune(SET(), sparsity=0.35)
    kept = 36 + 1152 + 2048 - round(0.35 * (36 + 1152 + 2048))
    rest = kept - 36  # the first layer's (1 + 4 + 3 + 3) e would pass its 36 weights
    assert [network.weights_left([name]) for name in network.ranked_names()] == [
        36,
        round(rest * (4 + 32 + 6) / (42 + 516)),
        round(rest * 516 / (42 + 516)),
    ]


def test_uniform_means_the_same_share_of_every_layer():
    network, _ = network_of(mlp)
    network.prune(SET(distribution="uniform"), sparsity=0.5)
    assert all(abs(sparsity - 0.5) < 0.02 for sparsity in network.layer_sparsities().values())


def test_seeds_give_other_masks():
    masks = []
    for seed in (1, 2):
        network, _ = network_of(mlp)
        network.prune(SET(seed=seed), sparsity=0.5)
        masks.append(torch.cat([mask.flatten() for mask in network.alive().values()]))
    assert not torch.equal(*masks)


# --- whole trainings
class Data(list):
    def epoch(self, number, start=0):
        return iter(self[start:])


def trainer_of(criterion, *, maker=mlp, epochs=10, limit=0.6, lines=None, control="none", optimizer="ADAM", **options):
    network, batches = network_of(maker, torch.float32, **options)
    pruning = Pruning(
        network=network,
        criterion=criterion,
        draw_batches=lambda event: batches,
        fresh_model=lambda: build(maker, seed=7),
        report=(lines if lines is not None else []).append,
        pruning_limit=limit,
        epochs=epochs,
        mask_control=control,
    )
    batches = data(SHAPES[maker], sizes=(4, 5, 6, 7, 8))
    return DefaultTrainer(
        network=network,
        loss_function=network.loss,
        train_batches=Data(batches),
        test_batches=batches,
        optimization=Optimization(learning_rate=0.05, optimizer=optimizer),
        epochs=epochs,
        callbacks=[pruning],
    )


class Watch:
    """Checks the state right after every update, and remembers the steps at which masks moved."""

    def __init__(self, trainer):
        self.network, self.moves, self.old = trainer.network, {}, None

    def __call__(self, trainer, moment):
        masks = {name: mask.clone() for name, mask in self.network.masks.keep.items()}
        if moment == "batch_end" and self.old is not None:
            grown = {name: masks[name] & ~self.old[name] for name in masks}
            if any(bool(new.any()) for new in grown.values()):
                self.moves[trainer.epoch * len(trainer.train_batches) + trainer.batch] = grown
            for name, weight in self.network.weights():
                assert masks[name].sum() == self.old[name].sum()
                assert not weight[grown[name]].any() and not weight[~masks[name]].any()
                memory = trainer.optimizer.state[weight].values()
                shaped = [kept for kept in memory if torch.is_tensor(kept) and kept.shape == weight.shape]
                assert shaped and all(not kept[grown[name] | ~masks[name]].any() for kept in shaped)
        self.old = masks


@pytest.mark.parametrize("criterion", [SET, RigL])
@pytest.mark.parametrize("optimizer", few(["ADAM", "SGD", "RMSPROP", "ADAMW"], ["ADAM", "SGD"]))
def test_sparsity_of_each_layer_stays_and_what_is_new_starts_at_zero(criterion, optimizer):
    trainer = trainer_of(criterion(delta_t=2), optimizer=optimizer)
    trainer.callbacks.append(watch := Watch(trainer))
    trainer.train()
    total = trainer.network.weights_total()
    assert trainer.network.weights_left() == total - round(0.6 * total)
    assert len(watch.moves) > 5


@thorough
def test_a_thousand_updates_leave_every_density_as_it_was():
    network, batches = network_of(conv_net, torch.float32)
    optimizer = torch.optim.Adam(network.model.parameters(), lr=0.01, amsgrad=True)
    network.prune(RigL(), batches, sparsity=0.8)
    before = network.layer_sparsities()
    for number in range(1000):
        criterion = (RigL, SET)[number % 2]()
        if number % 10 == 0:
            optimizer.zero_grad()
            nn.functional.cross_entropy(network.model(batches[1][0]), batches[1][1]).backward()
            optimizer.step()  # gradients unmasked on purpose: the memory of masked weights fills up
            network.enforce()
        old = network.alive()
        regrow(network, criterion, 0.3, batches, optimizers=[optimizer])
        for name, weight in network.weights():
            new = network.masks.keep[name] & ~old[name]
            assert not weight[new].any() and not optimizer.state[weight]["max_exp_avg_sq"][new].any()
    assert network.layer_sparsities() == before


def test_rigl_replaces_a_cosine_of_its_share_until_its_end():
    trainer = trainer_of(RigL(growing_rate=0.4, delta_t=5, update_end=0.8), epochs=20)
    trainer.callbacks[0](trainer, "train_start")
    expected = {t: 0.4 / 2 * (1 + math.cos(t * math.pi / 80)) for t in range(5, 80, 5)}
    assert trainer.callbacks[0].updates == pytest.approx(expected)


def test_set_replaces_the_same_share_after_every_epoch_but_the_last():
    trainer = trainer_of(SET(growing_rate=0.2), epochs=4)
    trainer.callbacks.append(watch := Watch(trainer))
    trainer.train()
    assert trainer.callbacks[0].updates == {5: 0.2, 10: 0.2, 15: 0.2}
    assert list(watch.moves) == [5, 10, 15]


def test_a_training_too_short_for_an_update_says_so():
    lines = []
    trainer_of(RigL(delta_t=100), epochs=2, lines=lines).train()
    grows_nothing, pruned = lines
    assert "RigL grows nothing" in grows_nothing and "10 steps" in grows_nothing
    assert "asked 0.6000" in pruned and "39 weights left" in pruned  # of 97, so 58 went: 0.6 * 97 = 58.2


def test_updates_are_told_once_an_epoch():
    lines = []
    trainer_of(SET(delta_t=2), epochs=2, lines=lines).train()
    told = [line for line in lines if "replaced" in line]
    assert len(told) == 2 and all(line.endswith("in 2 updates of the masks") for line in told)


def test_the_run_s_random_numbers_do_not_feel_the_growth():
    states = []
    for criterion in (SET(delta_t=1), SET(delta_t=10**6)):
        trainer = trainer_of(criterion, maker=conv_net, epochs=2)
        torch.manual_seed(0)
        trainer.train()
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


@pytest.mark.parametrize("criterion", [SET(delta_t=2), RigL(delta_t=2)])
@pytest.mark.parametrize("stop", few([4, 7, 15], [7]))
def test_a_stopped_training_ends_with_the_same_bits(criterion, stop):
    def everything(trainer):
        kept = {"optimizer": trainer.optimizer.state_dict()["state"], "masks": trainer.network.masks.keep}
        return [torch.as_tensor(leaf) for leaf in tree_leaves([dict(trainer.network.model.state_dict()), kept])]

    whole = trainer_of(criterion)
    whole.train()

    class Stop(Exception):
        pass

    def stopping(trainer, moment):
        if moment == "batch_end" and trainer.epoch * 5 + trainer.batch == stop:
            raise Stop

    first = trainer_of(criterion)
    first.callbacks.append(stopping)
    with pytest.raises(Stop):
        first.train()
    saved = copy.deepcopy([first.network.model.state_dict(), first.state_dict(), first.callbacks[0].state_dict()])
    masks, randomness = copy.deepcopy(first.network.masks.keep), torch.get_rng_state()
    second = trainer_of(criterion)
    second.network.model.load_state_dict(saved[0])
    second.network.masks.set(masks)
    second.load_state_dict(saved[1])
    second.callbacks[0].load_state_dict(saved[2])
    torch.set_rng_state(randomness)
    second.train()
    for one, other in zip(everything(whole), everything(second), strict=True):
        assert torch.equal(one, other)


# --- edges
def test_dense_and_frozen_layers_stay_as_they_are():
    network, batches = network_of(mlp)
    full = torch.ones(7, 6, dtype=torch.bool)
    some = torch.arange(35).view(5, 7) % 3 == 0
    network.masks.set({"0.weight": full, "4.weight": some, "6.weight": torch.eye(4, 5).bool()})
    network.model[6].weight.requires_grad_(False)
    network.enforce()
    before = copy.deepcopy(network.model.state_dict())
    regrow(network, RigL(), 0.5, batches)
    assert torch.equal(network.masks.keep["6.weight"], torch.eye(4, 5).bool())
    assert torch.equal(network.model[0].weight, before["0.weight"])
    assert int(network.masks.keep["4.weight"].sum()) == 12 and not torch.equal(network.masks.keep["4.weight"], some)


def test_a_nearly_dense_layer_has_fewer_free_places_than_it_drops():
    network, batches = network_of(mlp)
    some = torch.arange(35).view(5, 7) > 0
    network.masks.set({"4.weight": some})
    network.enforce()
    assert regrow(network, RigL(), 0.9, batches) <= 1
    assert int(network.masks.keep["4.weight"].sum()) == 34


def test_outer_layers_that_are_left_out_stay_dense():
    trainer = trainer_of(RigL(delta_t=2), outer_layers=False)
    trainer.train()
    assert list(trainer.network.masks.keep) == ["4.weight"]
    assert trainer.network.layer_sparsities() == {"0.weight": 0.0, "4.weight": 21 / 35, "6.weight": 0.0}


def test_every_slice_of_a_normalised_weight_keeps_one():
    torch.manual_seed(0)
    model = nn.Sequential(weight_norm(nn.Linear(6, 8)), nn.ReLU(), nn.Linear(8, 3))
    network = PrunableNetwork(model, torch.zeros(1, 6))
    batches = [(torch.randn(5, 6), torch.arange(5) % 3)]
    network.prune(RigL(), batches, sparsity=0.8)
    for _ in range(20):
        regrow(network, RigL(), 0.5, batches)
        assert bool(network.masks.keep[network.ranked_names()[0]].any(1).all())
        assert torch.isfinite(model(batches[0][0])).all()


def test_inverted_it_drops_the_best_and_grows_the_worst():
    network, batches = network_of(mlp)
    network.prune(RigL(seed=1), batches, sparsity=0.5)
    alive = network.alive()["4.weight"]
    worth, growth = network.model[4].weight.detach().abs(), dense_gradients(network, batches)["4.weight"]
    regrow(network, RigL(), 0.2, batches, invert=True)
    count = int(0.2 * int(alive.sum()))
    stays = alive & (worth < worth[alive].sort().values[-count])
    now = network.masks.keep["4.weight"]
    assert bool(now[stays].all()) and int((now & ~stays).sum()) == count
    assert growth[now & ~stays].max() <= growth[~now].min()


def test_a_shuffled_mask_is_shuffled_when_it_has_settled():
    whole, shuffled = (trainer_of(RigL(delta_t=5), control=control) for control in ("none", "shuffle"))
    moved = {}

    def compare(trainer, moment):
        if moment == "batch_end":
            masks = {name: mask.clone() for name, mask in trainer.network.masks.keep.items()}
            moved.setdefault(trainer.epoch * 5 + trainer.batch, []).append(masks)

    for trainer in (whole, shuffled):
        trainer.callbacks.append(compare)
        torch.manual_seed(0)  # dropout
        trainer.train()
    last = max(whole.callbacks[0].updates)
    assert last == 35
    for step, (one, other) in moved.items():
        assert all(torch.equal(one[name], other[name]) for name in one) == (step < last)
        assert all(one[name].sum() == other[name].sum() for name in one)


@pytest.mark.parametrize("flags", [{"growing_rate": 0.0}, {"growing_rate": 1.5}, {"delta_t": 0}])
@pytest.mark.parametrize("criterion", [SET, RigL])
def test_wrong_settings_are_named(criterion, flags):
    with pytest.raises(ValueError, match=next(iter(flags))):
        criterion(**flags)


def test_scores_that_are_wrong_change_nothing():
    class Broken(SET):
        def grow_scores(self, network, batches):
            return {name: torch.full_like(weight, torch.nan) for name, weight in network.weights()}

    network, _ = network_of(mlp)
    network.prune(SET(), sparsity=0.5)
    before = network.alive()
    with pytest.raises(UsageError, match="scores of layer '0.weight' are not finite"):
        regrow(network, Broken(), 0.3)
    assert all(torch.equal(mask, before[name]) for name, mask in network.alive().items())


def test_only_criteria_of_weights_grow():
    class Nodes(NodeCriterion):
        def grow_scores(self, network, batches):
            return {}

    with pytest.raises(UsageError, match="only criteria of weights can grow"):
        trainer_of(Nodes())


def test_one_more_method_makes_a_criterion_grow():
    class Mine(WeightCriterion):
        def weight_scores(self, network, batches):
            return {name: weight.detach().abs() for name, weight in network.weights()}

        def grow_scores(self, network, batches):
            return {name: torch.rand_like(weight) for name, weight in network.weights()}

    trainer = trainer_of(Mine(), epochs=4)
    trainer.callbacks.append(watch := Watch(trainer))
    trainer.train()
    assert list(watch.moves) == [5, 10, 15]


# --- FORCE and iterative SNIP
def force_by_hand(model, batches, limit, steps, *, revive):
    """Algorithm 1 of arXiv:2006.09081 with derivatives from differences and a Python sort; returns masks per step."""
    dense = {name: weight.double().clone() for name, weight in slow.prunable(model).items()}
    masks = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in dense.items()}
    total, history = sum(weight.numel() for weight in dense.values()), []
    for t in range(1, steps + 1):
        pruned = slow.masked(model, masks)
        slopes = slow.central_differences(
            lambda at, net=pruned: slow.mean_loss(net, batches, at), slow.prunable(pruned)
        )
        scores = {name: (dense[name] * slopes[name]).abs() for name in dense}
        kept = slow.kept_of(total, 1 - (1 - limit) ** (t / steps))
        masks = slow.keep_top(scores, kept, alive=None if revive else masks)
        history.append({name: torch.as_tensor(mask).bool() for name, mask in masks.items()})
    return history


@pytest.mark.parametrize("maker", few(MAKERS, MAKERS[:1]))
@pytest.mark.parametrize(("criterion", "revive"), [(FORCE, True), (IterativeSNIP, False)])
def test_masks_are_those_of_the_algorithm(maker, criterion, revive):
    network, batches = network_of(maker)
    start = copy.deepcopy(network.model)
    history = force_by_hand(start, batches, 0.8, 6, revive=revive)
    values = slow.prunable(start)
    for target, expected in zip(criterion(force_steps=6).sparsities(0.8), history, strict=True):
        network.prune_to(criterion(), target, batches)
        for name, weight in network.weights():
            assert torch.equal(network.masks.of(name, weight), expected[name])
            assert torch.equal(weight.detach(), values[name] * expected[name])
    pairs = zip(history[:-1], history[1:], strict=True)
    came_back = any(bool((new[name] & ~old[name]).any()) for old, new in pairs for name in new)
    assert came_back == revive


def test_force_leaves_dense_values_behind_with_its_last_step():
    network, batches = network_of(conv_net)
    network.prune(FORCE(force_steps=5), batches, sparsity=0.8)
    assert network.pre_event_values == {}
    before = network.alive()
    network.prune(SNIP(), batches, sparsity=0.85)  # another method finds the network as it is
    assert all(not bool((mask & ~before[name]).any()) for name, mask in network.alive().items())


def test_what_was_gone_before_force_does_not_come_back():
    network, batches = network_of(mlp)
    network.prune(SNIP(), batches, sparsity=0.3)
    gone = {name: ~mask for name, mask in network.alive().items()}
    network.prune(FORCE(force_steps=10), batches, sparsity=0.6)
    assert all(not bool((mask & gone[name]).any()) for name, mask in network.alive().items())


def test_force_goes_on_in_the_middle():
    def pruned(stop):
        trainer = trainer_of(FORCE(force_steps=6), limit=0.8, maker=Residual)
        pruning = trainer.callbacks[0]
        for _ in range(stop):
            pruning.event(trainer)
        again = trainer_of(FORCE(force_steps=6), limit=0.8, maker=Residual)
        again.network.model.load_state_dict(trainer.network.model.state_dict())
        again.network.masks.set(trainer.network.masks.keep)
        again.callbacks[0].load_state_dict(copy.deepcopy(pruning.state_dict()))
        again.callbacks[0](again, "train_start")
        assert again.network.pre_event_values == {} and len(again.callbacks[0].steps) == 6
        return again.network

    whole, stopped = pruned(0), pruned(3)
    assert any(bool(mask.any()) and not bool(mask.all()) for mask in whole.alive().values())
    assert all(torch.equal(mask, stopped.masks.keep[name]) for name, mask in whole.masks.keep.items())
    assert all(torch.equal(w, stopped.model.get_parameter(n)) for n, w in whole.model.named_parameters())
