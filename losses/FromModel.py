import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pruning import UsageError
from pruning.measure.measures import Sums, class_measures

# What networks that compute their own loss call the targets: those of transformers, and torchvision's detectors.
NAMES = ("labels", "targets")


class FromModel:
    """The loss that the network returns itself: transformers given `labels`, torchvision's detectors given `targets`.

    Several losses in a dict are added up. Detectors give theirs in training mode only; they are then scored and tested
    in it, with norms and dropout as in eval mode.
    """

    def inputs_for(self, model: nn.Module, inputs: Any, targets: Any) -> dict[str, Any]:
        """Returns the keyword arguments of a call that has the targets among them."""
        names = list(inspect.signature(model.forward).parameters)
        place = _place_of_targets(model, names)
        arguments: dict[str, Any] = {}
        if isinstance(inputs, Mapping):
            arguments.update(inputs)
        elif isinstance(inputs, (tuple, list)):
            arguments.update(zip(names, inputs, strict=False))
        else:
            arguments[names[0]] = inputs
        arguments[place] = _one_by_one(targets) if place == "targets" else targets
        return arguments

    def needs_training(self, model: nn.Module) -> bool:
        """Says whether the network gives its loss in training mode only."""
        return _place_of_targets(model, list(inspect.signature(model.forward).parameters)) == "targets"

    def __call__(self, outputs: Any, targets: Any) -> Tensor:
        """The network's own number, or the sum of several."""
        found = outputs.get("loss") if isinstance(outputs, Mapping) else getattr(outputs, "loss", None)
        if isinstance(found, Tensor):
            return found.mean()  # of several processors each has its own
        parts = list(outputs.values()) if isinstance(outputs, Mapping) else []
        if parts and all(isinstance(part, Tensor) and part.numel() == 1 for part in parts):
            return torch.stack([part.reshape(()) for part in parts]).sum()
        if isinstance(outputs, (tuple, list)) and outputs and _is_number(outputs[0]):
            return outputs[0].reshape(())
        given = tuple(outputs.shape) if isinstance(outputs, Tensor) else f"a {type(outputs).__name__}"
        shape = tuple(targets.shape) if isinstance(targets, Tensor) else f"a {type(targets).__name__}"
        what = f"outputs are {given} and targets {shape}"
        raise UsageError(f"FromModel takes a network that returns its own loss (`loss`, or a dict of losses); {what}.")

    def measures(self, outputs: Any, targets: Any) -> Sums:
        """The accuracy, where there is one class per sample; else the loss is all there is."""
        is_class = isinstance(targets, Tensor) and targets.dim() == 1
        return class_measures(outputs, targets) if is_class else {}


def _place_of_targets(model: nn.Module, names: list[str]) -> str:
    for name in NAMES:
        if name in names:
            return name
    takes_any = inspect.signature(model.forward).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in takes_any):
        return "labels"  # a wrapper hands on what it does not name
    kind = type(model).__name__
    raise UsageError(
        f"FromModel gives a network its targets as `labels` or `targets`; {kind}.forward takes {', '.join(names)}."
    )


def _one_by_one(targets: Any) -> Any:
    """Returns a dict of boxes (N, k, 4), labels (N, k), ... as the list of dicts that detectors take."""
    if not isinstance(targets, Mapping):
        return targets
    count = len(next(iter(targets.values())))
    return [{name: values[number] for name, values in targets.items()} for number in range(count)]


def _is_number(value: Any) -> bool:
    return isinstance(value, Tensor) and value.numel() == 1 and value.is_floating_point()
