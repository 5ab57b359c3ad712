"""`--model hf/FOLDER` and `--model hf/TYPE`: networks in the form of transformers, which is optional."""

from __future__ import annotations

import math
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models._foreign import first_line
from models._hf_config import config_of_folder, config_of_type, parse_settings
from models._layers import check_settings
from pruning.errors import UsageError
from pruning.modules.calls import scores_of
from pruning.modules.modes import look
from pruning.pretrained.files import quiet, transformers_for

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
# What a network is for -> the class of transformers that makes it, and the table of those that it knows.
AUTO = {
    "language": ("AutoModelForCausalLM", "MODEL_FOR_CAUSAL_LM_MAPPING"),
    "pictures": ("AutoModelForImageClassification", "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING"),
    "sequences": ("AutoModelForSequenceClassification", "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING"),
    "segmentation": ("AutoModelForSemanticSegmentation", "MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING"),
}
TRIAL = 8  # tokens of the sequence that shows whether a network sees what comes later

Shape = tuple[int, ...]


def resolve(name: str) -> Callable[..., nn.Module]:
    """Returns what builds the network of a folder, or of a type of transformers such as "llama".

    With an empty name it only tells which settings there are; that needs no transformers.
    """
    if name and not Path(name).expanduser().is_dir():
        config_of_type(f"hf/{name}", name, {})  # a name that does not exist is said before anything is read

    def build(
        num_classes: int,
        input_shape: Shape,
        *,
        task: str = "classification",
        pretrained: bool | None = None,
        hf_config: str = "",
    ) -> nn.Module:
        check_settings(num_classes, input_shape, axes=None)
        return _build(name, num_classes, input_shape, task=task, pretrained=pretrained, settings=hf_config)

    build.__name__ = build.__qualname__ = f"hf/{name}"
    build.__doc__ = f"""The network {name} in the form of transformers; its head follows from the data.

    Args:
        pretrained: start from the weights in the folder (default: where there are some); a head for other classes than
            theirs is drawn anew.
        hf_config: settings that differ from the folder's or the type's, such as "hidden_size=64, num_hidden_layers=2".
    """
    return build


def _build(
    name: str, num_classes: int, input_shape: Shape, *, task: str, pretrained: bool | None, settings: str
) -> nn.Module:
    title = f"hf/{name}"
    typed = parse_settings(settings)
    folder = Path(name).expanduser()
    is_folder = bool(name) and folder.is_dir()
    has_weights = is_folder and any((folder / file).is_file() for file in WEIGHTS)
    if pretrained and not has_weights:
        where = f"{folder} holds no weights ({', '.join(WEIGHTS[:3])})" if is_folder else f"{title} names a type alone"
        raise UsageError(f"--pretrained: {where}.")
    if is_folder:
        config = config_of_folder(title, folder, typed)
    else:
        config = config_of_type(title, name, _for_the_data(title, name, num_classes, input_shape, task, typed))
    auto = _auto_class(title, config, input_shape, task)
    _fit(title, config, num_classes, input_shape, task)
    if has_weights and pretrained is not False:
        model = _loaded(title, auto, folder, config, task)
    else:
        if not is_folder:
            _check_size(title, auto, config)
        model = _drawn(title, auto, config)
    _check_output(title, model, num_classes, input_shape, task)
    return model


# -- the configuration ------------------------------------------------------------------------------------------------


def _for_the_data(
    title: str, kind: str, num_classes: int, input_shape: Shape, task: str, typed: dict[str, Any]
) -> dict[str, Any]:
    """Returns what a type's configuration is to say for these data; what was typed wins."""
    default = config_of_type(title, kind, {})
    wanted: dict[str, Any] = {}
    if len(input_shape) == 3:
        wanted = {"num_channels": input_shape[0], "image_size": input_shape[1]}
    elif task == "language":
        context = max(input_shape[0], getattr(default, "max_position_embeddings", 0) or 0)
        wanted = {"vocab_size": num_classes, "max_position_embeddings": context}
    return {key: value for key, value in wanted.items() if hasattr(default, key)} | typed


def _auto_class(title: str, config: Any, input_shape: Shape, task: str) -> Any:
    """Returns transformers' class for a task; a `UsageError` where it has no network of this type for it."""
    kind = task
    if task in ("classification", "regression"):
        kind = "pictures" if len(input_shape) == 3 else "sequences"
    transformers = transformers_for(f"--model {title}")
    auto, mapping = AUTO[kind]
    if type(config) not in getattr(transformers, mapping):
        fits = [word for word, (_, table) in AUTO.items() if type(config) in getattr(transformers, table)]
        others = f"; it has one for {' and '.join(fits)}" if fits else ""
        raise UsageError(f"{title}: transformers has no network of the type {config.model_type} for {kind}{others}.")
    return getattr(transformers, auto)


def _fit(title: str, config: Any, num_classes: int, input_shape: Shape, task: str) -> None:
    """Makes a configuration say how many classes there are; raises UsageError where it does not suit the data."""
    if task != "language":
        config.num_labels = num_classes
        if task == "regression":
            config.problem_type = "regression"
    if len(input_shape) == 3:
        channels, *sides = input_shape
        if getattr(config, "num_channels", channels) != channels:
            raise UsageError(f"{title} takes pictures of {config.num_channels} channels; the data have {channels}.")
        size = getattr(config, "image_size", None)
        expected = [size, size] if isinstance(size, int) else size
        if expected is not None and list(expected) != sides:
            found, wanted = ("x".join(map(str, pair)) for pair in (sides, expected))
            raise UsageError(f"{title} takes pictures of {wanted}; the data have {found}.")
        return
    vocabulary = getattr(config, "vocab_size", None)
    if task == "language" and vocabulary is not None and vocabulary < num_classes:
        says = f"the data have {num_classes} tokens, the vocabulary of {title} has {vocabulary}"
        raise UsageError(f"{says}: the tokenizer is not that of the model.")
    longest = getattr(config, "max_position_embeddings", None)
    if longest and input_shape[0] > longest:
        raise UsageError(f"{title} takes at most {longest} tokens at a time; --context {input_shape[0]} is longer.")


# -- the network ------------------------------------------------------------------------------------------------------


def _drawn(title: str, auto: Any, config: Any) -> nn.Module:
    """Returns a network with fresh weights."""
    try:
        with quiet():
            model: nn.Module = auto.from_config(config, dtype=torch.get_default_dtype())
    except Exception as error:  # whatever a library raises about the settings that a person chose
        raise UsageError(f"{title} cannot be built: {type(error).__name__}, {first_line(error)}.") from error
    return model


def _check_size(title: str, auto: Any, config: Any) -> None:
    """Raises UsageError for a type whose default is too large for this machine's memory."""
    with torch.device("meta"):
        model = _drawn(title, auto, config)
    numbers = sum(parameter.numel() for parameter in model.parameters())
    size = numbers * torch.get_default_dtype().itemsize
    if size > _memory():
        smaller = '--hf_config "hidden_size=64, num_hidden_layers=2, ..." makes it smaller'
        raise UsageError(
            f"{title} has {numbers:,} parameters, {size / 1e9:.0f} GB, more than fit in memory; {smaller}."
        )


def _memory() -> float:
    """Returns this machine's memory in bytes, where the system tells."""
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return math.inf
    return float(os.sysconf("SC_PAGE_SIZE")) * os.sysconf("SC_PHYS_PAGES")


def _loaded(title: str, auto: Any, folder: Path, config: Any, task: str) -> nn.Module:
    """Returns a network with the weights in a folder; only its head may be drawn anew.

    Weights come from safetensors, or from a torch file of which nothing but tensors is read.
    """
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False, "weights_only": True}
    options |= {"dtype": torch.get_default_dtype(), "ignore_mismatched_sizes": True, "output_loading_info": True}
    try:
        with quiet():
            model, report = auto.from_pretrained(folder, config=config, **options)
    except pickle.UnpicklingError as error:
        what = "hold more than tensors, or are damaged: they were refused, and nothing in them was executed"
        raise UsageError(f"The weights in {folder} {what}.") from error
    except Exception as error:  # damaged files raise whatever their reader likes
        raise UsageError(f"The weights in {folder} cannot be read: {first_line(error)}.") from error
    _check_all_there(title, folder, model, report, of_language=task == "language")
    return model


def _check_all_there(title: str, folder: Path, model: Any, report: dict[str, Any], *, of_language: bool) -> None:
    """Raises UsageError for weights that are not those of the network: what is not loaded would be drawn at random.

    A head for classes may be: a folder's has the classes of its own data, or there is none.
    """
    differing = {name for name, *_ in report["mismatched_keys"]}
    lacking = sorted(differing | set(report["missing_keys"]))
    if not of_language:
        lacking = [name for name in lacking if name.startswith(f"{model.base_model_prefix}.")]
    if lacking:
        what = "has another shape" if lacking[0] in differing else "is missing"
        more = f" ({len(lacking)} such)" if len(lacking) > 1 else ""
        raise UsageError(f"The weights in {folder} do not fit {title}: {lacking[0]} {what}{more}.")


def _check_output(title: str, model: nn.Module, num_classes: int, input_shape: Shape, task: str) -> None:
    """Raises UsageError unless the network takes a sample and returns scores for it; it is left as it was."""
    length = min(TRIAL, input_shape[0])
    sample = torch.zeros(2, *input_shape) if len(input_shape) == 3 else torch.zeros(2, length, dtype=torch.long)
    try:
        scores = scores_of(look(model, sample))
    except Exception as error:
        size = "x".join(map(str, input_shape))
        raise UsageError(f"{title} cannot take samples of {size}: {first_line(error)}.") from error
    if not isinstance(scores, Tensor):
        raise UsageError(f"{title} returns {type(scores).__name__}, which holds no scores.")
    if task == "language":
        if scores.shape[:2] != (2, length) or scores.shape[2] < num_classes:
            raise UsageError(
                f"{title} returns {tuple(scores.shape)} for tokens of {tuple(sample.shape)}: no next ones."
            )
        _check_causal(title, model, sample, scores)
    elif task != "segmentation" and scores.shape != (2, num_classes):
        raise UsageError(f"{title} returns {tuple(scores.shape)}, not scores of {num_classes} classes for two samples.")


def _check_causal(title: str, model: nn.Module, sample: Tensor, scores: Tensor) -> None:
    """Raises UsageError for a network that sees the tokens it is to predict: it would only copy them."""
    changed = sample.clone()
    changed[:, -1] = 1
    difference = scores_of(look(model, changed))[:, :-1] - scores[:, :-1]
    if sample.shape[1] > 1 and difference.abs().max() > 1e-5 * scores.abs().max():
        how = "--hf_config is_decoder=True" if hasattr(getattr(model, "config", None), "is_decoder") else "a decoder"
        raise UsageError(f"{title} sees later tokens too, so predicting the next one means nothing; {how} is needed.")
