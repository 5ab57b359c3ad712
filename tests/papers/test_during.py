"""Criteria that prune while a network trains: when, how much, and what rewinding brings back."""

import copy

import pytest
import torch

from criterions.GMP import GMP
from criterions.IMP import IMP
from criterions.LAMP import LAMP
from criterions.SNIP import SNIP
from criterions.SNIPitDuring import SNIPitDuring
from pruning import PrunableNetwork, UsageError
from tests.support import slow_reference as slow
from tests.support.zoo.small import SHAPES, build, conv_net, data
from trainers._optimization import Optimization
from trainers._pruning import Pruning
from trainers.DefaultTrainer import DefaultTrainer


class Batches(list):
    """A list of batches that a trainer can go through."""

    def epoch(self, number, start=0):
        return iter(self[start:])


class Watched(Pruning):
    """Keeps the whole state just before and after each event."""

    def event(self, trainer):
        record = {"epoch": trainer.epoch, "before": snapshot(trainer), "masks": self.network.alive()}
        super().event(trainer)
        records = self.__dict__.setdefault("records", [])
        records.append(record | {"after": snapshot(trainer), "new": self.network.alive()})


def snapshot(trainer):
    parts = {"model": trainer.network.model, "optimizer": trainer.optimizer, "schedule": trainer.schedule}
    return {name: copy.deepcopy(part.state_dict()) for name, part in parts.items()}


def run(criterion, limit=0.8, epochs=8, control="none", **options):
    network = PrunableNetwork(build(conv_net), torch.zeros(1, *SHAPES[conv_net]))
    batches = data(SHAPES[conv_net])
    pruning = Watched(
        network=network,
        criterion=criterion,
        draw_batches=lambda event: batches,
        fresh_model=lambda: build(conv_net, seed=7),
        report=lambda line: None,
        pruning_limit=limit,
        epochs=epochs,
        mask_control=control,
        **options,
    )
    ends = {}

    def keep_ends(trainer, moment):
        if moment == "epoch_trained":
            ends.setdefault(trainer.epoch, snapshot(trainer))

    trainer = DefaultTrainer(
        network=network,
        loss_function=network.loss,
        train_batches=Batches(batches),
        test_batches=batches,
        optimization=Optimization(learning_rate=0.05, lr_schedule="multistep", milestones=(2, 4), lr_decay=0.5),
        epochs=epochs,
        callbacks=[keep_ends, pruning],
    )
    trainer.train()
    return trainer, pruning, ends


def same(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def masked_optimizer(state, masks, model):
    """The optimizer's state with moments of removed weights cleared."""
    state = copy.deepcopy(state)
    for place, (name, parameter) in enumerate(model.named_parameters()):
        for moment in state["state"][place].values():
            if name in masks and moment.shape == parameter.shape:
                moment.mul_(masks[name])
    return state


def test_rewinding_brings_everything_back_but_the_epoch():
    """After an event: theta_k under the new mask; biases, norms, optimizer and learning rate of epoch k's end."""
    trainer, pruning, ends = run(
        IMP(enable_rewinding=True, rewind_to=1, snip_steps=1), epochs=9, prune_delay=1, prune_freq=2
    )
    assert [record["epoch"] for record in pruning.records] == [3, 5, 7]
    early = ends[1]
    for record, target in zip(pruning.records, pruning.sparsities, strict=True):
        expected, masks = slow.imp_event(record["before"]["model"], early["model"], record["masks"], target)
        assert same(record["new"], masks)
        assert same(dict(record["after"]["model"]), expected)
        assert same(record["after"]["schedule"], early["schedule"])
        rewound = masked_optimizer(early["optimizer"], masks, trainer.network.model)
        assert same(record["after"]["optimizer"], rewound)
        # The state before had moved on, so that this says something.
        assert not same(dict(record["before"]["model"]), expected)
    assert trainer.epoch == 9


def test_no_rewinding_without_a_new_mask():
    class Twice(IMP):
        def sparsities(self, limit):
            return [limit, limit]

    _, pruning, _ = run(Twice(enable_rewinding=True, rewind_to=0))
    first, second = pruning.records
    assert not same(dict(first["before"]["model"]), dict(first["after"]["model"]))
    assert same(second["before"], second["after"])
    assert pruning.steps[1].removed == 0


def test_without_rewinding_the_weights_that_stay_go_on():
    _, pruning, _ = run(IMP(snip_steps=0))
    for record in pruning.records:
        before, after = record["before"]["model"], record["after"]["model"]
        expected = {n: t * record["new"][n] if n in record["new"] else t for n, t in before.items()}
        assert same(dict(after), expected)


@pytest.mark.parametrize(
    "criterion",
    [SNIPitDuring(snip_steps=2), GMP(gmp_steps=4), LAMP(), IMP(imp_schedule="rounds")],
    ids=lambda c: type(c).__name__,
)
def test_events_fall_after_the_delay_at_the_frequency_and_follow_the_targets(criterion):
    events = len(criterion.sparsities(0.7))
    trainer, pruning, _ = run(criterion, limit=0.7, epochs=2 + 2 * events + 2, prune_delay=2, prune_freq=2)
    assert [record["epoch"] for record in pruning.records] == [2 + 2 * (i + 1) for i in range(events)]
    total = trainer.network.weights_total()
    assert [step.left for step in pruning.steps] == [
        total - round(target * total) for target in criterion.sparsities(0.7)
    ]
    assert pruning.complete and trainer.network.weight_sparsity() == pytest.approx(0.7, abs=0.5 / total)


def test_each_gmp_event_is_the_references():
    _, pruning, _ = run(GMP(gmp_steps=3))
    for record, target in zip(pruning.records, pruning.sparsities, strict=True):
        weights = {name: record["before"]["model"][name] for name in record["masks"]}
        assert same(record["new"], slow.gmp_event(weights, record["masks"], target))


def test_too_few_events_are_refused_with_the_epochs_that_would_do():
    with pytest.raises(UsageError, match=r"needs 7 pruning events.*has 5.*--epochs (\d+) would do") as error:
        run(SNIPitDuring(), epochs=7)
    enough = int(str(error.value).split("--epochs ")[2].split()[0])
    _, pruning, _ = run(SNIPitDuring(), epochs=enough)
    assert pruning.complete
    with pytest.raises(UsageError, match="would do"):
        run(SNIPitDuring(), epochs=enough - 1)


def test_rewinding_to_an_epoch_after_the_first_event_is_refused():
    with pytest.raises(UsageError, match="--rewind_to 3 must come before .* epoch 1"):
        run(IMP(enable_rewinding=True, rewind_to=3, snip_steps=0))


@pytest.mark.parametrize("control", ["none", "shuffle", "reinit", "invert"])
def test_controls_keep_the_sparsity_of_each_layer_or_say_what_they_change(control):
    trainer, pruning, ends = run(SNIP(), control=control, epochs=2)
    plain, _, _ = run(SNIP(), epochs=2)
    left = [int(mask.sum()) for mask in trainer.network.masks.keep.values()]
    expected = [int(mask.sum()) for mask in plain.network.masks.keep.values()]
    assert sum(left) == sum(expected)
    assert (left == expected) == (control != "invert")
    after = pruning.records[0]["after"]["model"]
    fresh = build(conv_net, seed=7).state_dict()
    assert torch.equal(after["1.bias"], fresh["1.bias"]) == (control == "reinit")
    shuffled = any(not same(m, plain.network.masks.keep[n]) for n, m in trainer.network.masks.keep.items())
    assert shuffled == (control in ("shuffle", "invert"))


@pytest.mark.parametrize(
    ("make", "name"),
    [(lambda: IMP(rewind_to=-1), "rewind_to"), (lambda: IMP(snip_steps=-1), "snip_steps"),
     (lambda: GMP(gmp_steps=0), "gmp_steps"), (lambda: LAMP(lamp_share=1.0), "lamp_share"),
     (lambda: SNIPitDuring(snip_steps=-1), "snip_steps")],
)  # fmt: skip
def test_values_out_of_range_are_refused_by_name(make, name):
    with pytest.raises(ValueError, match=name):
        make()
