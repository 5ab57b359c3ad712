"""Saves pruned networks of transformers so that its own loader takes them where it can, and loads them back."""

from __future__ import annotations

import copy
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pruning.cut.load import extras_of, load_pruned
from pruning.errors import UsageError
from pruning.modules.calls import device_of, mapped, tensors_in
from pruning.modules.modes import eval_mode, undisturbed
from pruning.pretrained.configuration import fitting_configs
from pruning.pretrained.files import quiet, read_json, refuse_code, transformers_for

PRUNED = "pruned_network.pt"  # no name that transformers looks for: it must not load what it cannot understand
COPIED: tuple[str, ...] = (
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "*.model",
)
COPIED += ("chat_template*", "preprocessor_config.json", "processor_config.json", "generation_config.json")
NEW_TOKENS = 10
TOLERANCE = 1e-4  # of the largest output: two processes may add up in another order

# What a process of its own does: nothing of this project is there.
STOCK_LOADER = f"""
import sys, torch, transformers
transformers.utils.logging.set_verbosity_error()
folder, kind, place = sys.argv[1:]
model = getattr(transformers, kind).from_pretrained(folder, local_files_only=True).eval()
given = torch.load(place + "/inputs.pt", weights_only=True)
with torch.no_grad():
    outputs = model(**given["inputs"])
found = {{"scores": outputs["logits"] if "logits" in outputs else outputs[0], "tokens": None}}
if given["generate"]:
    settings = dict(max_new_tokens={NEW_TOKENS}, do_sample=False)
    found["tokens"] = model.generate(given["inputs"]["input_ids"], **settings)
torch.save(found, place + "/outputs.pt")
"""


@dataclass
class Saved:
    """What `save_pretrained` wrote.

    Args:
        path: the folder.
        stock: whether transformers' own loader takes it.
        reason: why it does not, "" where it does.
    """

    path: Path
    stock: bool
    reason: str = ""

    def __str__(self) -> str:
        if self.stock:
            return f"wrote {self.path}; transformers loads it by itself, and it computes the same"
        load = "pruning.from_pretrained(folder) does"
        return f"wrote {self.path}; transformers cannot load it by itself, {load}: {self.reason}"


def save_pretrained(
    model: Any, folder: str | Path, *, example_inputs: Any = None, copy_from: str | Path | None = None
) -> Saved:
    """Saves a network of transformers, pruned or masked, as its own `from_pretrained` loads it, if that is possible.

    It is where every layer of a kind has the same width (`NodeRules(uniform=True)`): the configuration can say that.
    That is checked: a process of its own loads the folder without this project, and outputs and ten generated tokens
    are compared. Otherwise the folder holds the dense configuration and the pruned network, for our `from_pretrained`.

    Args:
        model: it is left as it is.
        folder: it must be empty, or not there yet.
        example_inputs: tokens, pictures or a dict of inputs to compare on (default: made up by the configuration).
        copy_from: folder whose tokenizer and generation settings are copied along (default: where the model is from).

    Raises:
        UsageError: the model is none of transformers, or the folder cannot be written to.
    """
    transformers = transformers_for("save_pretrained")
    if not isinstance(model, transformers.PreTrainedModel):
        raise UsageError(f"save_pretrained is for networks of transformers, not for a {type(model).__name__}.")
    path = Path(folder).expanduser()
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UsageError(f"{path} is there already and not empty; name a folder that is not.")
    inputs = _inputs_for(model, example_inputs)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as place:
        made = Path(place) / "folder"
        reason = _save_stock(model, made, inputs, Path(place))
        if reason:
            _save_pruned(model, made, inputs)
        _copy_files(Path(copy_from or model.name_or_path or "").expanduser(), made)
        if path.exists():
            path.rmdir()
        made.replace(path)
    return Saved(path, not reason, reason)


def from_pretrained(folder: str | Path) -> nn.Module:
    """Loads what `save_pretrained` saved, whether transformers' own loader takes it or not; code in it is never run.

    Args:
        folder: where it is.

    Returns:
        The network, in eval mode.

    Raises:
        UsageError: the folder holds no network, or one that does not fit.
    """
    path = Path(folder).expanduser()
    if not (path / "config.json").is_file():
        raise UsageError(f"{path} holds no config.json, so it is no network in the form of transformers.")
    refuse_code(path)
    transformers = transformers_for("from_pretrained")
    names = read_json(path / "config.json").get("architectures") or [""]
    kind: Any = getattr(transformers, str(names[0]), None)
    is_network = isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)
    if not is_network:
        raise UsageError(f"{path / 'config.json'} names {names[0]!r}, which is no network of transformers.")
    with quiet():
        if (path / PRUNED).is_file():
            return _load_pruned(kind, path).eval()
        try:
            model: nn.Module = kind.from_pretrained(
                path, local_files_only=True, trust_remote_code=False, weights_only=True
            )
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise UsageError(f"The network in {path} cannot be loaded: {_line(error)}.") from error
    return model.eval()


# -- both ways to save ------------------------------------------------------------------------------------------------


def _save_stock(model: Any, folder: Path, inputs: dict[str, Any], place: Path) -> str:
    """Saves a network with a configuration that explains it, and says what transformers' loader makes wrong of it."""
    configs, reason = fitting_configs(model)
    if reason:
        return reason
    config, reason = _first_that_computes_the_same(model, configs, inputs)
    if reason:
        return f"with a configuration that fits, {reason}"
    dense = model.config
    model.config = config
    try:
        with quiet():
            model.save_pretrained(folder)
    except Exception as error:  # noqa: BLE001 - it checks settings when it saves, and raises what its checks like
        return f"transformers refuses the configuration that fits: {_line(error)}"
    finally:
        model.config = dense
    return _difference_when_loaded(model, folder, inputs, place)


def _first_that_computes_the_same(model: Any, configs: list[Any], inputs: dict[str, Any]) -> tuple[Any, str]:
    """Returns the first configuration whose network computes what the pruned one does, and "" or how the best differs.

    What a network keeps besides whole numbers (a scale by the width of a head, frequencies of positions) shows here.
    """
    wanted, state = _scores(model, inputs), model.state_dict()
    reason = ""
    for config in configs:
        with torch.random.fork_rng():
            built = type(model)(copy.deepcopy(config))
        built.to(device_of(model), model.dtype).load_state_dict(state)
        difference = _difference(_scores(built, inputs), wanted)
        if not difference:
            return config, ""
        reason = reason or difference
    return configs[0], reason


def _save_pruned(model: Any, folder: Path, inputs: dict[str, Any]) -> None:
    """Saves the dense configuration and, under a name of our own, the network; checks that it loads back equal."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    config = model.config
    before = config.architectures
    config.architectures = [type(model).__name__]
    try:
        config.save_pretrained(folder)
    finally:
        config.architectures = before
    if model.can_generate():
        model.generation_config.save_pretrained(folder)
    torch.save({"state_dict": model.state_dict(), "extras": extras_of(model)}, folder / PRUNED)
    loaded = from_pretrained(folder).to(device_of(model))
    difference = _difference(_scores(loaded, inputs), _scores(model, inputs))
    if difference:
        raise UsageError(f"The network cannot be saved: loaded back, {difference}.")


def _load_pruned(kind: Any, folder: Path) -> nn.Module:
    content = torch.load(folder / PRUNED, map_location="cpu", weights_only=True)
    model: nn.Module = kind(kind.config_class.from_pretrained(folder, local_files_only=True))
    state = content["state_dict"]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.data = parameter.data.to(state[name].dtype)  # half precision, if it was saved so
    return load_pruned(model, content)


def _copy_files(source: Path, folder: Path) -> None:
    """Copies the tokenizer and what else belongs to a model but is not of the network."""
    if not str(source) or not source.is_dir():
        return
    for pattern in COPIED:
        for file in sorted(source.glob(pattern)):
            if file.is_file() and not (folder / file.name).exists():
                shutil.copy(file, folder / file.name)


# -- comparing --------------------------------------------------------------------------------------------------------


def _difference_when_loaded(model: Any, folder: Path, inputs: dict[str, Any], place: Path) -> str:
    """Returns what differs once a process of its own has loaded a folder, "" if nothing does."""
    generates = model.can_generate() and set(inputs) == {"input_ids"} and not model.config.is_encoder_decoder
    given = {"inputs": mapped(inputs, Tensor.cpu), "generate": generates}
    torch.save(given, place / "inputs.pt")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, "-c", STOCK_LOADER, str(folder), type(model).__name__, str(place)]
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        return f"its loader stops: {_line(lines[-1] if lines else 'without a message')}"
    loaded = torch.load(place / "outputs.pt", weights_only=True)
    difference = _difference(loaded["scores"], _scores(model, inputs))
    if difference or not generates:
        return difference
    with eval_mode(model), torch.no_grad(), quiet():
        tokens = model.generate(inputs["input_ids"], max_new_tokens=NEW_TOKENS, do_sample=False).cpu()
    return "" if torch.equal(tokens, loaded["tokens"]) else "it generates other tokens"


def _scores(model: Any, inputs: dict[str, Any]) -> Tensor:
    with undisturbed(model):
        outputs = model(**mapped(inputs, lambda tensor: tensor.to(device_of(model))))
    scores: Tensor = outputs["logits"] if "logits" in outputs else tensors_in(outputs)[0]
    return scores.cpu()


def _difference(found: Tensor, wanted: Tensor) -> str:
    if found.shape != wanted.shape:
        return f"it returns {tuple(found.shape)}, not {tuple(wanted.shape)}"
    largest = float(wanted.abs().max())
    difference = float((found.double() - wanted.double()).abs().max())
    # Half precision is as exact as its numbers are.
    tolerance = max(TOLERANCE, 4 * torch.finfo(wanted.dtype).eps)
    if difference <= tolerance * largest:
        return ""
    return f"its outputs differ by {difference:.1e} where the largest is {largest:.1e}"


def _inputs_for(model: Any, example_inputs: Any) -> dict[str, Any]:
    """Returns inputs by keyword, on the model's device: those that were given, or some that suit the configuration."""
    device, name = device_of(model), model.main_input_name
    if isinstance(example_inputs, dict):
        return dict(mapped(example_inputs, lambda tensor: tensor.to(device)))
    if isinstance(example_inputs, Tensor):
        return {name: example_inputs.to(device)}
    config = model.config
    generator = torch.Generator().manual_seed(0)
    if name == "pixel_values":
        size = config.image_size
        sides = [size, size] if isinstance(size, int) else list(size)
        inputs = {name: torch.randn(1, config.num_channels, *sides, generator=generator)}
    elif name == "input_features":  # of speech: two frames for each place of the encoder
        frames = 2 * config.max_source_positions
        inputs = {name: torch.randn(1, config.num_mel_bins, frames, generator=generator)}
    else:
        inputs = {name: torch.randint(0, config.vocab_size, (1, 8), generator=generator)}
    if config.is_encoder_decoder:
        inputs["decoder_input_ids"] = torch.randint(0, config.vocab_size, (1, 4), generator=generator)
    dtype = next(model.parameters()).dtype
    return {key: value.to(device, dtype if value.is_floating_point() else None) for key, value in inputs.items()}


def _line(error: BaseException | str) -> str:
    return " ".join(str(error).split())[:200].rstrip(" .:")
