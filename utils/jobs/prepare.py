"""Builds what a run is made of: data, network, loss and criterion; for training also the events and the trainer."""

from __future__ import annotations

from torch import nn

from data_sets._batches import Batches, make_batches
from pruning.modules.calls import mapped
from pruning.network import PrunableNetwork
from trainers._pruning import Pruning
from utils.console import Console
from utils.jobs.parts import Parts, ScoreBatches, early_model, task_of
from utils.jobs.preflight import check_fit, check_task
from utils.runs.checkpoints import seed_everything
from utils.runs.environment import forget_peak_memory, pick_device
from utils.runs.run_folder import RunFolder
from utils.runs.saving import other_run, teacher
from utils.runs.start import started_from
from utils.settings import registry
from utils.settings.core import layer_rules, node_rules, without_effect
from utils.settings.resolve import Settings
from utils.trainer import PruningCallback, Trainer


def prepare(chosen: Settings) -> Parts:
    """Builds data, network, loss and criterion: what constructors of trainers and testers name."""
    core = chosen.core
    device = pick_device(core.device)
    seed_everything(core.seed)
    forget_peak_memory(device)
    data_set = chosen.build("data_sets")
    check_task(registry.find("models", chosen.part("models")), data_set)
    # What every model's constructor may name; nothing else of the data is its business.
    shapes = {"num_classes": data_set.num_classes, "input_shape": data_set.input_shape, "task": task_of(data_set)}

    def batches(part: str) -> Batches:
        made: Batches = chosen.construct(
            make_batches, data_set=data_set, part=part, device=device, limit=core.limit_batches
        )
        return made

    def fresh_model() -> nn.Module:
        model: nn.Module = chosen.build("models", **shapes)
        return model.to(device)

    test_batches = batches("test")
    first_inputs, _ = next(iter(test_batches))
    # In this order: models draw their initial values from the seed.
    model = fresh_model()
    criterion = chosen.build("criterions")
    network = PrunableNetwork(
        model,
        mapped(first_inputs, lambda tensor: tensor[:1]),
        # Where nodes go, inputs and outputs of the network are protected anyway.
        outer_layers=criterion.unit == "nodes" or core.outer_layer_pruning is not False,
        node_rules=node_rules(chosen.values),
        layer_rules=layer_rules(chosen.values),
    )
    loss_function = chosen.build(
        "losses",
        load_teacher=lambda run: teacher(run, chosen, network, shapes),
        make_loss=lambda name: registry.build("losses", name, chosen.values),
    )
    network.loss = loss_function
    network.note_start(latency=core.measure_latency)  # dense, before anything is loaded into it
    return Parts(
        network=network,
        loss_function=loss_function,
        criterion=criterion,
        device=device,
        data_set=data_set,
        batches=batches,
        test_batches=test_batches,
        fresh_model=fresh_model,
        load_run=lambda run: other_run(run, chosen, network, shapes),
    )


def assemble(
    chosen: Settings, console: Console, stopped: RunFolder | None = None
) -> tuple[Parts, PruningCallback, Trainer]:
    """Builds everything that training needs, and loads what it starts from.

    Args:
        chosen: the settings.
        console: told what the criterion does.
        stopped: the folder of the run to go on with, if any.

    Returns:
        The parts, the callback that prunes, and the trainer.
    """
    parts = prepare(chosen)
    for note in getattr(parts.data_set, "notes", ()):
        console.info(note)
    idle = without_effect(chosen.values, parts.criterion)
    if idle:
        console.warn(idle)
    given = parts.by_name()
    given["draw_batches"] = chosen.construct(ScoreBatches, batches=parts.batches("score"))
    given["report"] = console.info
    early = chosen.construct(early_model, network=parts.network, fresh_model=parts.fresh_model)
    pruning: PruningCallback = chosen.construct(Pruning, **given, early_model=early)
    # After the events are planned: what does not fit is said before a checkpoint is read.
    with started_from(parts.network, chosen.core, stopped, console.warn):
        train_batches = parts.batches("train")
        check_fit(parts.network, parts.data_set, train_batches, parts.test_batches)
        trainer: Trainer = chosen.build("trainers", **given, train_batches=train_batches)
    return parts, pruning, trainer
