"""Configurations in the form of transformers: from a folder or a model's type, with the user's own settings on top."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

from models._foreign import first_line
from pruning.errors import UsageError, nearest
from pruning.pretrained.files import read_json, refuse_code, transformers_for

# Names that a person types for Python's own.
WORDS = {"true": True, "false": False, "none": None, "null": None}


def config_of_folder(name: str, folder: Path, settings: dict[str, Any]) -> Any:
    """Returns the configuration that lies in a folder.

    Args:
        name: what errors call the model.
        folder: in the form of transformers.
        settings: what is changed of it.

    Raises:
        UsageError: the folder holds no model, code of its own, or one that transformers does not know.
    """
    file = folder / "config.json"
    if not file.is_file():
        raise UsageError(f"{name} is no model: {folder} holds no config.json.")
    refuse_code(folder)
    content = read_json(file)
    _refuse_kernels(file, content)
    kind = content.get("model_type")
    known = known_types(name)
    if kind not in known:
        raise UsageError(
            f"{file} is of the type {kind!r}, which transformers does not have.{nearest(str(kind), known)}"
        )
    try:
        config = known[str(kind)].from_dict(content)
    except Exception as error:
        raise UsageError(f"{file} is damaged: {first_line(error)}.") from error
    for key, value in settings.items():
        _check_key(name, config, key)
        try:
            setattr(config, key, value)
        except Exception as error:
            raise _wrong_settings(name, error) from error
    return config


def config_of_type(name: str, kind: str, settings: dict[str, Any]) -> Any:
    """Returns a fresh configuration of a model's type, such as "llama".

    Args:
        name: what errors call the model.
        kind: transformers' name for it.
        settings: what differs from that type's defaults.
    """
    known = known_types(name)
    if kind not in known:
        is_path = "/" in kind or not kind
        hint = " Networks are not downloaded." if is_path else nearest(kind, known)
        where = f"there is no folder {kind!r}"
        raise UsageError(f"{name}: {where}, and no such type among the {len(known)} of transformers.{hint}")
    default = known[kind]()
    for key in settings:
        _check_key(name, default, key)
    try:
        return known[kind](**settings)
    except Exception as error:
        raise _wrong_settings(name, error) from error


def known_types(name: str) -> dict[str, Any]:
    """Returns the class of configuration of every type of model."""
    return dict(transformers_for(f"--model {name}").CONFIG_MAPPING.items())


def parse_settings(text: str) -> dict[str, Any]:
    """Reads "hidden_size=64, hidden_act=relu, layer_types=['full_attention']".

    Raises:
        UsageError: the text is no such list, or asks to run foreign code.
    """
    how = '--hf_config takes "name=value, name=value"'
    try:
        tree = ast.parse(f"dict({text})", mode="eval").body
    except SyntaxError as error:
        raise UsageError(f"{how}; {text!r} was given.") from error
    if not isinstance(tree, ast.Call) or tree.args:
        raise UsageError(f"{how}; {text!r} was given.")
    settings = {}
    for keyword in tree.keywords:
        if keyword.arg is None:
            raise UsageError(f"{how}; {text!r} was given.")
        settings[keyword.arg] = _value(keyword, text)
    if "trust_remote_code" in settings or "auto_map" in settings:
        raise UsageError("Code that lies in a folder is never run, so trust_remote_code and auto_map are refused.")
    _refuse_kernels("--hf_config", settings)
    return settings


def _value(keyword: ast.keyword, text: str) -> Any:
    value = keyword.value
    if isinstance(value, ast.Name):  # a word without quotes
        return WORDS.get(value.id.lower(), value.id)
    try:
        return ast.literal_eval(value)
    except ValueError as error:
        raise UsageError(f"--hf_config: {keyword.arg} is no plain value in {text!r}.") from error


def _check_key(name: str, config: Any, key: str) -> None:
    """A configuration takes any name; one that it does not have is a mistake."""
    if not hasattr(config, key):
        known = [*config.to_dict(), *config.attribute_map]
        raise UsageError(f"--hf_config: {name} has no setting {key!r}.{nearest(key, known)}")


def _wrong_settings(name: str, error: BaseException) -> UsageError:
    why = " ".join(str(error).split())[:200].rstrip(" .")
    return UsageError(f"--hf_config: {name} does not take these settings: {why}.")


def _refuse_kernels(where: object, content: dict[str, Any]) -> None:
    """The name of an attention may name a repository whose code is fetched and run."""
    for key in ("attn_implementation", "_attn_implementation"):
        if "/" in str(content.get(key) or ""):
            raise UsageError(f"{where} names foreign code ({key}: {content[key]}), which is never run.")
