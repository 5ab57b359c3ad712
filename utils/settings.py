"""From what the user typed to one set of checked values.

What the user typed wins over --config, that over the presets in autoconfig.json, those over what the chosen parts
want, that over defaults.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from pruning.errors import UsageError, nearest
from utils import registry
from utils.flags import REQUIRED, Flag, flags_of
from utils.registry import KINDS, ROOT

AUTOCONFIG = Path(__file__).with_name("autoconfig.json")
CORE_ALIASES = {"pruning_rate": "pruning_limit"}


@dataclass
class Core:
    """Settings that many parts share.

    Args:
        model: network to train and prune; also torchvision/NAME or timm/NAME.
        data_set: data to train and test on.
        prune_criterion: what scores the weights, and when it prunes.
        loss: what training minimises.
        train_scheme: trainer.
        test_scheme: what --eval runs.
        pruning_limit: sparsity to reach, fraction removed of what the criterion counts, 0 to below 1.
        outer_layer_pruning: rank the first and last layer too (default: on for criteria of weights, off for nodes).
        mask_control: control experiment on the mask: shuffle it within each layer, reinit all values, or invert the
            ranking (keep the worst).
        epochs: passes over the training data.
        prune_delay: events of criteria that prune during training come after this epoch.
        prune_freq: epochs between such events; one falls at the end of epoch e where e > delay and (e - delay) is a
            multiple of it, never at the end of the last epoch.
        score_batches: training batches, not augmented, on which each pruning event scores.
        batch_size: samples per batch.
        seed: of initial values, data order and draws.
        device: where to compute.
        augment: random flips and crops of training images, as the data set declares them.
        tuning: train on 80 % of the training data and evaluate on the other 20 % instead of the test set.
        limit_batches: train and evaluate on this many batches an epoch only, for trying things out.
        workers: processes that load data sets too large for memory.
        eval_freq: epochs between evaluations.
        save_freq: epochs between checkpoints.
        max_training_minutes: stop after this many minutes of training; the run can be resumed.
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
        tensorboard: write scalars, histograms and the architecture for TensorBoard.
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
    mask_control: Literal["none", "shuffle", "reinit", "invert"] = "none"
    epochs: int = 80
    prune_delay: int = 0
    prune_freq: int = 1
    score_batches: int = 5
    batch_size: int = 512
    seed: int = 333
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    augment: bool = True
    tuning: bool = False
    limit_batches: int | None = None
    workers: int | None = None
    eval_freq: int = 1
    save_freq: int = 1
    max_training_minutes: float | None = None
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
    tensorboard: bool = True
    quiet: bool = False
    list: bool = False

    def __post_init__(self) -> None:
        at_least = {"epochs": 1, "prune_delay": 0, "prune_freq": 1, "score_batches": 1, "batch_size": 1, "seed": 0}
        at_least |= {"limit_batches": 1, "workers": 0, "eval_freq": 1, "save_freq": 1}
        for name, least in at_least.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise UsageError(f"--{name} must be at least {least}; {value} was given.")
        if not 0 <= self.pruning_limit < 1:
            raise UsageError(f"--pruning_limit is a fraction removed, 0 to below 1; {self.pruning_limit} was given.")
        for name in ("results_dir", "data_dir"):
            # The defaults lie beside main.py, wherever it is called from.
            start = ROOT if getattr(self, name) == getattr(type(self), name) else Path()
            setattr(self, name, str((start / Path(getattr(self, name)).expanduser()).resolve()))
        if self.plugin_dir:
            self.plugin_dir = str(Path(self.plugin_dir).expanduser().resolve())
        if self.max_training_minutes is not None and not self.max_training_minutes > 0:
            raise UsageError(f"--max_training_minutes must be positive; {self.max_training_minutes} was given.")


@dataclass
class Settings:
    """The core settings, every value by flag name, and what to tell the user about them."""

    core: Core
    values: dict[str, Any]
    warnings: list[str] = field(default_factory=list)

    def part(self, kind: str) -> str:
        """Returns the name of the chosen plug-in of one kind."""
        return str(self.values[KINDS[kind][0]])

    def build(self, kind: str, **given: Any) -> Any:
        """Makes the chosen plug-in of one kind, handing it what its constructor names."""
        return registry.build(kind, self.part(kind), self.values, given)

    def construct(self, part: type, **given: Any) -> Any:
        """Makes an object that is no plug-in in the same way."""
        return registry.construct(part, self.values, given)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise UsageError(f"{message[0].upper()}{message[1:]}.")


def core_flags() -> list[Flag]:
    """Returns the flags of the core settings."""
    return flags_of(Core, "core")


def parse(argv: Sequence[str]) -> Settings | None:
    """Returns the settings for a command line, or None after --help was printed.

    Raises:
        UsageError: in one line, for anything that does not fit.
    """
    typed_core = typed([arg for arg in argv if arg not in ("-h", "--help")])
    config = _read_config(typed_core.get("config", ""))
    for source in (config, typed_core):
        if source.get("plugin_dir"):
            registry.add_plugin_dir(source["plugin_dir"])
    if "-h" in argv or "--help" in argv:
        _parser(_chosen(_resolve([config, typed_core])), grouped=True).print_help()
        return None
    flags = _chosen(_resolve([config, typed_core]))
    namespace, extras = _parser(flags).parse_known_args(list(argv))
    warnings = _check_extras(extras, flags)
    values = _resolve([config, _without_aliases(vars(namespace), flags)])
    return _finish(values, flags, warnings)


def typed(argv: Sequence[str]) -> dict[str, Any]:
    """Returns the core settings that were typed."""
    return vars(_parser(core_flags()).parse_known_args(list(argv))[0])


def load(saved: Mapping[str, Any], changed: Mapping[str, Any]) -> Settings:
    """Returns the settings of a stopped run (the content of its settings.yaml), with `changed` put on top."""
    values = dict(saved) | dict(changed) | {"autoconfig": False}
    if values.get("plugin_dir"):
        registry.add_plugin_dir(values["plugin_dir"])
    return _finish(values, _chosen(values), [])


def _finish(values: dict[str, Any], flags: list[Flag], warnings: list[str]) -> Settings:
    complete = {flag.name: values.get(flag.name, flag.default) for flag in flags}
    missing = next((flag for flag in flags if complete[flag.name] is REQUIRED), None)
    if missing:
        raise UsageError(f"--{missing.name} is needed by {missing.group}: {missing.help}")
    core = Core(**{f.name: complete[f.name] for f in dataclasses.fields(Core)})
    return Settings(core, complete | dataclasses.asdict(core), warnings)


def _parser(flags: list[Flag], *, grouped: bool = False) -> argparse.ArgumentParser:
    parser = _Parser(
        prog="main.py",
        usage="python main.py [--flag value ...]",
        description="Trains a network and prunes it. Flags: the core ones, then those of the chosen parts.",
        allow_abbrev=False,
        add_help=grouped,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=32, width=110),
    )
    groups: dict[str, Any] = {}
    for flag in flags:
        group = groups.setdefault(flag.group, parser.add_argument_group(flag.group) if grouped else parser)
        flag.add_to(group)
    for alias, name in _aliases(flags).items():
        flag = next(flag for flag in flags if flag.name == name)
        help_text = f"the same as --{name}"
        dataclasses.replace(flag, name=alias, default=None, help=help_text).add_to(groups[flag.group])
    if "core" in groups:
        disable = {"action": "store_const", "const": False, "default": argparse.SUPPRESS, "help": argparse.SUPPRESS}
        groups["core"].add_argument("--disable_autoconfig", dest="autoconfig", **disable)
    return parser


def _aliases(flags: list[Flag]) -> dict[str, str]:
    """Other spellings of these flags: alias -> name."""
    names = {flag.name for flag in flags}
    return {alias: name for alias, name in (CORE_ALIASES | registry.loaded_aliases()).items() if name in names}


def _without_aliases(typed: dict[str, Any], flags: list[Flag]) -> dict[str, Any]:
    for alias, name in _aliases(flags).items():
        if alias in typed:
            value = typed.pop(alias)
            if typed.setdefault(name, value) != value:
                raise UsageError(f"--{alias} {value} and --{name} {typed[name]} say two things; they are one setting.")
    return typed


def _resolve(layers: list[dict[str, Any]]) -> dict[str, Any]:
    """Merges the user's layers over presets and wishes of the parts, which depend on the parts that are chosen."""
    users: dict[str, Any] = {}
    for layer in layers:
        users |= layer
    values: dict[str, Any] = {}
    # A preset may choose a part that has presets of its own; two rounds settle that.
    for _ in range(3):
        chosen = {setting: values.get(setting, users.get(setting)) for setting, _ in KINDS.values()}
        below = _wishes(chosen)
        if users.get("autoconfig", True):
            below |= _presets(chosen)
        values = below | users
    return values


def _wishes(chosen: Mapping[str, Any]) -> dict[str, Any]:
    wishes: dict[str, Any] = {}
    for kind, name in _parts(chosen):
        wishes |= dict(getattr(registry.find(kind, name), "wants", {}))
    return wishes


def _presets(chosen: Mapping[str, Any]) -> dict[str, Any]:
    presets: dict[str, Any] = {}
    table = _read_autoconfig()
    for kind, name in _parts(chosen):
        presets |= table.get(KINDS[kind][0], {}).get(name, {})
    return presets


def _parts(chosen: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    defaults = {f.name: f.default for f in dataclasses.fields(Core)}
    for kind, (setting, _) in KINDS.items():
        yield kind, str(chosen.get(setting) or defaults[setting])


def _chosen(values: Mapping[str, Any]) -> list[Flag]:
    """The core flags and those of the chosen parts; a flag that two parts name is one flag."""
    by_name = {flag.name: flag for flag in core_flags()}
    for kind, name in _parts(values):
        for flag in registry.flags(kind, name):
            by_name.setdefault(flag.name, flag)
    for flag in [flag for flag in by_name.values() if flag.nested and values.get(flag.name)]:
        for inner in registry.flags("criterions", values[flag.name]):
            by_name.setdefault(inner.name, inner)
    return list(by_name.values())


def every_flag() -> dict[str, Flag]:
    """Returns the flags of the core and of every plug-in that can be imported."""
    known = {flag.name: flag for flag in core_flags()}
    for kind in KINDS:
        for name in registry.names(kind):
            try:
                found = registry.flags(kind, name)
            except UsageError:
                # A broken file harms only those who ask for it.
                continue
            for flag in found:
                known.setdefault(flag.name, flag)
    return known


def _check_extras(extras: list[str], flags: list[Flag]) -> list[str]:
    """Warns of flags that no chosen part uses, and refuses those that nothing uses."""
    warnings, known, follows = [], None, False
    for extra in extras:
        if not extra.startswith("--"):
            if not follows:
                raise UsageError(f"Unexpected argument {extra!r}; settings are given as --flag value.")
            continue
        known = known or every_flag()
        name = extra.removeprefix("--").split("=")[0]
        aliases = _aliases(list(known.values()))
        owner = known.get(aliases.get(name, name.removeprefix("no-")))
        if owner is None:
            close = nearest(name, [*known, *aliases, *(flag.name for flag in flags)])
            raise UsageError(f"There is no flag --{name}.{close} See --help.")
        follows = True
        warnings.append(f"--{name} is not used: it belongs to {owner.group}.")
    return warnings


def _read_config(path: str) -> dict[str, Any]:
    if not path:
        return {}
    try:
        text = Path(path).read_text(encoding="utf-8")
        content = yaml.safe_load(text) or {}
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--config {path} cannot be read: {error}.") from error
    except yaml.YAMLError as error:
        raise UsageError(f"--config {path} is no valid YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(content, dict):
        raise UsageError(f"--config {path} must hold `name: value` lines.")
    lines = {line.split(":")[0].strip(): number for number, line in enumerate(text.splitlines(), start=1)}
    return _checked(content, lambda name: f"{path}, line {lines.get(name, '?')}")


def _read_autoconfig() -> dict[str, dict[str, dict[str, Any]]]:
    try:
        return json.loads(AUTOCONFIG.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{AUTOCONFIG} cannot be read: {error}. --disable_autoconfig goes without it.") from error


def _checked(content: Mapping[Any, Any], where: Any) -> dict[str, Any]:
    """Returns the values of a file in their flags' types."""
    known = {flag.name: flag for flag in core_flags()}
    if not set(content) <= set(known):
        if content.get("plugin_dir"):
            registry.add_plugin_dir(content["plugin_dir"])
        known = every_flag()
        known |= {alias: known[name] for alias, name in _aliases(list(known.values())).items()}
    checked = {}
    for name, value in content.items():
        if name not in known:
            raise UsageError(f"{where(name)}: there is no setting {name!r}.{nearest(str(name), known)}")
        checked[known[name].name] = known[name].check(value, where(name))
    return checked
