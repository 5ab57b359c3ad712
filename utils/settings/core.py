"""The core settings: what many parts share, and their flags."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from pruning import Criterion, WeightCriterion
from pruning.errors import UsageError
from pruning.export import check_export
from pruning.state import NodeRules
from utils.settings.flags import Flag, flags_of
from utils.settings.registry import ROOT

# A field of NodeRules -> the flag that fills it, where they are not called the same.
FLAG_OF_RULE = {"counted": "target"}

CORE_ALIASES = {"pruning_rate": "pruning_limit", "keep_ratio": "pruning_limit"}


@dataclass
class Core:
    """Settings that many parts share.

    Args:
        model: network to train and prune; also torchvision/NAME or timm/NAME.
        data_set: data to train and test on.
        prune_criterion: what scores the weights, and when it prunes.
        loss: what training minimises.
        train_scheme: trainer, which runs the training loop.
        test_scheme: what --eval runs.
        pruning_limit: sparsity to reach, fraction removed of what the criterion counts, 0 to below 1; --keep_ratio k
            says 1 - k.
        outer_layer_pruning: rank the first and last layer too (default: on for criteria of weights, off for nodes).
        recalibrate: training batches on which norm statistics are measured anew after each cut of nodes.
        mask_control: control experiment on the mask: shuffle it within each layer, reinit all values, or invert the
            ranking (keep the worst).
        prune_through: sparsities that are pruned to on the way to pruning_limit, with scores taken anew at each.
        rewind_from: file with early weights of this network (see keep_epochs) to which those that stay go back after
            the last pruning event; training that has not begun by then begins with the epoch after them.
        epochs: passes over the training data; 0 prunes and tests without any training.
        prune_delay: events of criteria that prune during training come after this epoch.
        prune_freq: epochs between such events; one falls at the end of epoch e where e > delay and (e - delay) is a
            multiple of it, never at the end of the last epoch.
        score_batches: training batches, not augmented, on which each pruning event scores.
        batch_size: samples per batch.
        seed: of initial values, data order and draws.
        device: where to compute.
        augment: random flips and crops of training images, as the data set declares them.
        tuning: train on 80 % of the training data and evaluate on the other 20 % instead of the test set.
        hold_out: share of the training data that is not trained on but scored on, the same samples for every seed.
        random_shuffle_labels: train on labels permuted among the training samples, which tells what a network can learn
            by heart; the test data stay as they are.
        limit_batches: train and evaluate on this many batches an epoch only, for trying things out.
        workers: processes that load data sets too large for memory.
        eval_freq: epochs between evaluations.
        save_freq: epochs between checkpoints.
        keep_epochs: numbers of epochs after which the network is also kept as models/<Model>_epoch_<number>; 0 keeps
            that of the start.
        max_training_minutes: stop after this many minutes of training in one session; the run can be resumed.
        rank_timeout: minutes after which a run in several processes (torchrun) ends if one of them no longer answers.
        eval: evaluate a checkpoint instead of training.
        checkpoint_name: run folder (or its name under the results) to load a network from.
        checkpoint_model: file in its models/ folder (default: the finished model).
        weights: file with a state dict of one's own to start from (.pt or .safetensors).
        run_name: name in the run folder's name (default: criterion, model and data set).
        results_dir: where run folders are made.
        data_dir: where data sets lie, and are downloaded to.
        plugin_dir: folder with plug-ins of one's own, in sub-folders such as criterions/.
        config: YAML file with settings; what is typed wins over it.
        resume: run folder of a stopped run to go on with; all other settings come from there.
        autoconfig: use the presets in utils/autoconfig.json (--disable_autoconfig is --no-autoconfig).
        shrink_dead: after training, remove the nodes that masked weights leave dead; what is computed stays the same.
        track_weights: after every epoch write each layer's sign flips, mean and variance to output/weights.csv and
            TensorBoard.
        measure_latency: measure the forward pass of one sample on this device, dense and pruned.
        export: also write the pruned network in this format, and check that it computes the same.
        tensorboard: write scalars, histograms and the architecture for TensorBoard.
        experiment: YAML file that says what to compare; --workers is then the number of runs at a time.
        status: with --experiment, print what is finished, running, failed and left, and the time left.
        dry_run: with --experiment, print every run that the file stands for, and an estimate of the time.
        ray: with --experiment, make the runs on a Ray cluster: auto for the one that this machine belongs to, or
            HOST:PORT, or ray://HOST:PORT.
        report: make a report of the finished runs whose folders match this pattern.
        quiet: print warnings and the result only.
        list: print every plug-in with one line each.
    """

    model: str = "MLP5"
    data_set: str = "DIGITS"
    prune_criterion: str = "SNIPit"
    loss: str = "CrossEntropy"
    train_scheme: str = "DefaultTrainer"
    test_scheme: str = "Accuracy"
    pruning_limit: float = 0.9
    outer_layer_pruning: bool | None = None
    recalibrate: int = 0
    mask_control: Literal["none", "shuffle", "reinit", "invert"] = "none"
    prune_through: tuple[float, ...] = ()
    rewind_from: str = ""
    epochs: int = 80
    prune_delay: int = 0
    prune_freq: int = 1
    score_batches: int = 5
    batch_size: int = 512
    seed: int = 333
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    augment: bool = True
    tuning: bool = False
    hold_out: float = 0.0
    random_shuffle_labels: bool = False
    limit_batches: int | None = None
    workers: int | None = None
    eval_freq: int = 1
    save_freq: int = 1
    keep_epochs: tuple[int, ...] = ()
    max_training_minutes: float | None = None
    rank_timeout: float = 10.0
    eval: bool = False
    checkpoint_name: str = ""
    checkpoint_model: str = ""
    weights: str = ""
    run_name: str = ""
    results_dir: str = "gitignored/results"
    data_dir: str = "gitignored/data"
    plugin_dir: str = ""
    config: str = ""
    resume: str = ""
    autoconfig: bool = True
    shrink_dead: bool = False
    track_weights: bool = False
    measure_latency: bool = False
    export: Literal["none", "onnx", "torch_export"] = "none"
    tensorboard: bool = True
    experiment: str = ""
    status: bool = False
    dry_run: bool = False
    ray: str = ""
    report: str = ""
    quiet: bool = False
    list: bool = False

    def __post_init__(self) -> None:
        at_least = {"epochs": 0, "prune_delay": 0, "prune_freq": 1, "score_batches": 1, "batch_size": 1, "seed": 0}
        at_least |= {"recalibrate": 0, "limit_batches": 1, "workers": 0, "eval_freq": 1, "save_freq": 1}
        if self.seed >= 2**63:
            raise UsageError(f"--seed must be below 2**63; {self.seed} was given.")
        for name, least in at_least.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise UsageError(f"--{name} must be at least {least}; {value} was given.")
        for name, limits in (("pruning_limit", [self.pruning_limit]), ("prune_through", self.prune_through)):
            wrong = next((limit for limit in limits if not 0 <= limit < 1), None)
            if wrong is not None:
                raise UsageError(f"--{name} is a fraction removed, 0 to below 1; {wrong} was given.")
        steps = [*self.prune_through, self.pruning_limit]
        if steps != sorted(set(steps)):
            raise UsageError(f"--prune_through rises towards --pruning_limit; {' '.join(map(str, steps))} does not.")
        never = next((epoch for epoch in self.keep_epochs if not 0 <= epoch <= self.epochs), None)
        if never is not None:
            raise UsageError(f"--keep_epochs takes numbers from 0 to --epochs, {self.epochs}; {never} was given.")
        if self.checkpoint_model and not self.checkpoint_name:
            raise UsageError(f"--checkpoint_model {self.checkpoint_model} is of a run; add --checkpoint_name RUN.")
        if not 0 <= self.hold_out < 1:
            raise UsageError(f"--hold_out is a share of the training data, 0 to below 1; {self.hold_out} was given.")
        alone = next((name for name in ("status", "dry_run", "ray") if getattr(self, name)), None)
        if alone and not self.experiment:
            raise UsageError(f"--{alone} needs --experiment FILE.")
        if self.ray and self.workers is not None:
            raise UsageError("--ray and --workers both say where the runs of an experiment are made; give one.")
        if self.export != "none":
            check_export(self.export)
        for name in ("results_dir", "data_dir"):
            # The defaults lie beside main.py, wherever it is called from.
            start = ROOT if getattr(self, name) == getattr(type(self), name) else Path()
            setattr(self, name, str((start / Path(getattr(self, name)).expanduser()).resolve()))
        if self.plugin_dir:
            self.plugin_dir = str(Path(self.plugin_dir).expanduser().resolve())
        for name, minutes in (("max_training_minutes", self.max_training_minutes), ("rank_timeout", self.rank_timeout)):
            if minutes is not None and not minutes > 0:
                raise UsageError(f"--{name} must be positive; {minutes} was given.")


def core_flags() -> list[Flag]:
    """Returns the flags of the core settings."""
    rules = [replace(flag, name=FLAG_OF_RULE.get(flag.name, flag.name)) for flag in flags_of(NodeRules, "nodes")]
    return flags_of(Core, "core") + rules + flags_of(Plots, "pictures")


def node_rules(values: Mapping[str, Any]) -> NodeRules:
    """Returns the rules for shapes that the user's settings ask for."""
    return NodeRules(**{rule.name: values[FLAG_OF_RULE.get(rule.name, rule.name)] for rule in fields(NodeRules)})


def without_effect(values: Mapping[str, Any], criterion: Criterion) -> str:
    """Returns a line on settings that mean nothing to a criterion of this kind, "" if there are none."""
    if criterion.unit == "nodes":
        idle = ["outer_layer_pruning"] if values["outer_layer_pruning"] is not None else []
        why = "of nodes, the network's inputs and outputs always stay"
    elif isinstance(criterion, WeightCriterion) and criterion.sparsities(values["pruning_limit"]):
        plain = {FLAG_OF_RULE.get(rule.name, rule.name): rule.default for rule in fields(NodeRules)}
        plain |= {"recalibrate": 0}
        # A target that does not fit is an error.
        idle = [name for name, default in plain.items() if values[name] != default and name != "target"]
        why = f"{type(criterion).__name__} removes weights, not nodes"
    else:
        return ""
    return f"{', '.join(f'--{name}' for name in idle)} changes nothing: {why}." if idle else ""


@dataclass
class Plots:
    """Which pictures a run draws at its end, beside overview.png.

    Args:
        pictures: any at all; drawing takes about a second.
        weightplot: the sparsity of each layer (in layers.png).
        netplot: the nodes that each layer has kept, drawn as the network's outline (in layers.png).
        confusion: which class of the test data is taken for which, and how far to trust the network's confidence
            (confusion.png).
        saliency: which pixels of six test pictures the loss hangs on (saliency.png).
        histograms: the weights of each layer before and after training (in TensorBoard).
    """

    pictures: bool = True
    weightplot: bool = True
    netplot: bool = True
    confusion: bool = True
    saliency: bool = True
    histograms: bool = True
