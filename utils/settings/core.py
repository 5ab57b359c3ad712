"""The core settings: what many parts share, and their flags."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from pruning.errors import UsageError
from pruning.modules.by_name import LayerRules
from pruning.prune.criterion import Criterion, WeightCriterion
from pruning.state import NodeRules
from utils.settings.registry import ROOT
from utils.settings.values import Limits

# A field of NodeRules -> the flag that fills it, where they are not called the same.
FLAG_OF_RULE = {"counted": "target"}

# Other spellings -> the flag.
CORE_ALIASES = {"pruning_rate": "pruning_limit", "keep_ratio": "pruning_limit"}

AT_LEAST_0: Limits = {"at_least": 0}
AT_LEAST_1: Limits = {"at_least": 1}
POSITIVE: Limits = {"above": 0}
REMOVED: Limits = {"at_least": 0, "below": 1, "words": "is a fraction removed, 0 to below 1"}
Task = Literal["classification", "language", "regression", "segmentation"]

SEEDS: Limits = {"at_least": 0, "below": 2**63}  # what torch's generators take


@dataclass
class Core:
    """Settings that many parts share.

    Args:
        model: network to train and prune; also torchvision/NAME, timm/NAME, hf/FOLDER or hf/TYPE.
        data_set: data to train and test on.
        prune_criterion: what scores the weights, and when it prunes.
        loss: what training minimises, and what is measured.
        task: stands for a data set, a model and a loss that fit each other; what is given beside it wins.
        train_scheme: trainer, which runs the training loop.
        test_scheme: what --eval runs.
        pruning_limit: sparsity to reach, fraction removed of what the criterion counts, 0 to below 1; --keep_ratio k
            says 1 - k.
        outer_layer_pruning: rank the first and last layer too (default: on for criteria of weights, off for nodes).
        epochs: passes over the training data; 0 prunes and tests without any training.
        seed: of initial values, data order and draws.
        device: where to compute.
        limit_batches: train and evaluate on this many batches an epoch only, for trying things out.
        eval_freq: epochs between evaluations.
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
        export: also write the pruned network in this format, and check that it computes the same; hf is a folder that
            transformers loads.
        tensorboard: write scalars, histograms and the architecture for TensorBoard.
        quiet: print warnings and the result only.
        list: print every plug-in with one line each.
    """

    model: str = "MLP5"
    data_set: str = "DIGITS"
    prune_criterion: str = "SNIPit"
    loss: str = "CrossEntropy"
    task: Task | None = None
    train_scheme: str = "DefaultTrainer"
    test_scheme: str = "Accuracy"
    pruning_limit: Annotated[float, REMOVED] = 0.9
    outer_layer_pruning: bool | None = None
    epochs: Annotated[int, AT_LEAST_0] = 80
    seed: Annotated[int, SEEDS] = 333
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    limit_batches: Annotated[int | None, AT_LEAST_1] = None
    eval_freq: Annotated[int, AT_LEAST_1] = 1
    max_training_minutes: Annotated[float | None, POSITIVE] = None
    rank_timeout: Annotated[float, POSITIVE] = 10.0
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
    export: Literal["none", "onnx", "torch_export", "hf"] = "none"
    tensorboard: bool = True
    quiet: bool = False
    list: bool = False

    def __post_init__(self) -> None:
        # The defaults lie beside main.py, wherever it is called from.
        if self.results_dir == Core.results_dir:
            self.results_dir = str(ROOT / self.results_dir)
        if self.data_dir == Core.data_dir:
            self.data_dir = str(ROOT / self.data_dir)
        self.results_dir = _absolute(self.results_dir)
        self.data_dir = _absolute(self.data_dir)
        if self.plugin_dir:
            self.plugin_dir = _absolute(self.plugin_dir)
        folder = model_folder(self.model)
        if folder:
            self.model = f"hf/{_absolute(folder)}"


def model_folder(model: str) -> str:
    """Returns the folder that a model is read from, "" for a model with a name of its own."""
    library, _, place = model.partition("/")
    return place if library == "hf" and Path(place).expanduser().is_dir() else ""


def model_stem(model: str) -> str:
    """Returns a model's name as a part of a file's: those of libraries hold a slash, and some are whole paths."""
    library, slash, place = model.partition("/")
    return f"{library}-{Path(place).name}" if slash else model


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().resolve())


def check_together(values: Mapping[str, Any]) -> None:
    """Checks what relates several settings, each of which has its own type and limits already.

    Raises:
        UsageError: in one line, for two that do not go together.
    """
    steps = [*values["prune_through"], values["pruning_limit"]]
    if steps != sorted(set(steps)):
        raise UsageError(f"--prune_through rises towards --pruning_limit; {' '.join(map(str, steps))} does not.")
    epochs = values["epochs"]
    for epoch in values["keep_epochs"]:
        if not 0 <= epoch <= epochs:
            raise UsageError(f"--keep_epochs takes numbers from 0 to --epochs, {epochs}; {epoch} was given.")
    if values["task"] and not values["autoconfig"]:
        raise UsageError("--task stands for presets of utils/autoconfig.json, which --disable_autoconfig goes without.")
    if values["checkpoint_model"] and not values["checkpoint_name"]:
        model = values["checkpoint_model"]
        raise UsageError(f"--checkpoint_model {model} is of a run; add --checkpoint_name RUN.")
    for name in ("status", "dry_run", "ray"):
        if values[name] and not values["experiment"]:
            raise UsageError(f"--{name} needs --experiment FILE.")
    if values["ray"] and values["workers"] is not None:
        raise UsageError("--ray and --workers both say where the runs of an experiment are made; give one.")
    layer_rules(values)
    if values["export"] == "hf":
        if not str(values["model"]).startswith("hf/"):
            raise UsageError(f"--export hf is for --model hf/FOLDER or hf/TYPE, not for {values['model']}.")
    elif values["export"] != "none":
        from pruning.export import check_export  # which few need

        check_export(values["export"])


def node_rules(values: Mapping[str, Any]) -> NodeRules:
    """Returns the rules for shapes that the user's settings ask for."""
    given = {rule.name: values[_flag_of(rule.name)] for rule in fields(NodeRules)}
    return NodeRules(**given)


def layer_rules(values: Mapping[str, Any]) -> LayerRules:
    """Returns the rules by layer that the user's settings ask for."""
    return LayerRules(**{rule.name: values[rule.name] for rule in fields(LayerRules)})


def _flag_of(rule: str) -> str:
    return FLAG_OF_RULE.get(rule, rule)


def without_effect(values: Mapping[str, Any], criterion: Criterion) -> str:
    """Returns a line on settings that mean nothing to a criterion of this kind, "" if there are none."""
    if criterion.unit == "nodes":
        idle = ["outer_layer_pruning"] if values["outer_layer_pruning"] is not None else []
        why = "of nodes, the network's inputs and outputs always stay"
    elif isinstance(criterion, WeightCriterion) and criterion.sparsities(values["pruning_limit"]):
        plain = {_flag_of(rule.name): rule.default for rule in fields(NodeRules)}
        plain["recalibrate"] = 0
        del plain["target"]  # one that does not fit is an error
        idle = [name for name, default in plain.items() if values[name] != default]
        why = f"{type(criterion).__name__} removes weights, not nodes"
    else:
        return ""
    if not idle:
        return ""
    typed = ", ".join(f"--{name}" for name in idle)
    return f"{typed} changes nothing: {why}."


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
