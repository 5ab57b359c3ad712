"""Which layers of a network can be decomposed, and which rank each gets so that a limit is reached.

One level for all layers: each takes the cheapest factors whose error is at most the level. Of all choices within a
budget that has the smallest largest error, and since layers differ only in their own errors it is found by bisection.
What a budget leaves over goes to the layers of largest error, one rank at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from pruning.cut.factorize import Layer, LowRank, dense_of, factored, replace_layers, substitute
from pruning.distributed import broadcast
from pruning.errors import UsageError
from pruning.low_rank.criterion import LowRankCriterion
from pruning.modules.calls import RUN_ERRORS
from pruning.modules.modes import look
from pruning.prune.step import Event, carry_out
from pruning.state import PrunableState

NAMED = 3  # layers named with each reason before the others are only counted


@dataclass(frozen=True)
class Choice:
    """What becomes of a layer: its weights, and the factors that have so many; subspaces of 0 leave it as it is."""

    weights: int
    subspaces: int = 0
    rank: int = 0
    error: float = 0.0


class Options:
    """What can become of one layer.

    Args:
        whole: weights that it has as it is.
        prices: subspaces -> weights of one rank in each of them.
        errors: subspaces -> (ranks,) what is lost at rank 1, 2, ...
    """

    def __init__(self, whole: int, prices: Mapping[int, int], errors: Mapping[int, Tensor]) -> None:
        self.whole, self.prices = whole, prices
        self.errors: dict[int, np.ndarray] = {}
        for subspaces, by_rank in errors.items():
            # A larger rank is no worse; where a measure says so (rounding), the smaller one will do as well.
            self.errors[subspaces] = np.minimum.accumulate(by_rank.detach().cpu().double().numpy())

    def at(self, level: float) -> Choice:
        """Returns the cheapest choice with an error of at most `level`."""
        best = Choice(self.whole)
        for subspaces, errors in self.errors.items():
            # Errors fall with the rank, so those above the level are those of the smaller ranks.
            rank = int((errors > level).sum()) + 1
            weights = rank * self.prices[subspaces]
            if rank <= len(errors) and weights < best.weights:
                best = Choice(weights, subspaces, rank, float(errors[rank - 1]))
        return best

    def above(self, choice: Choice) -> Choice | None:
        """Returns the next larger choice of the same kind, None for a layer that is left as it is."""
        if not choice.subspaces:
            return None
        errors = self.errors[choice.subspaces]
        weights = choice.weights + self.prices[choice.subspaces]
        if weights >= self.whole or choice.rank == len(errors):
            return Choice(self.whole)
        return replace(choice, weights=weights, rank=choice.rank + 1, error=float(errors[choice.rank]))


def allocate(options: Mapping[str, Options], budget: int) -> dict[str, Choice]:
    """Returns a choice for each layer with at most `budget` weights in all, and the least if that is too much.

    No other choices within the budget have a smaller largest error, and no layer's next rank would fit as well.
    """
    chosen = _at_lowest_level(options, budget)
    spare = budget - sum(choice.weights for choice in chosen.values())
    # What is left over goes to the layers of largest error, one rank at a time.
    while True:
        fitting: dict[str, Choice] = {}
        for name, option in options.items():
            larger = option.above(chosen[name])
            if larger is not None and larger.weights - chosen[name].weights <= spare:
                fitting[name] = larger
        if not fitting:
            return chosen
        worst = max(fitting, key=lambda name: chosen[name].error)
        spare -= fitting[worst].weights - chosen[worst].weights
        chosen[worst] = fitting[worst]


def _at_lowest_level(options: Mapping[str, Options], budget: int) -> dict[str, Choice]:
    """Returns the choices at the lowest level of error that fits the budget, at the highest if none does."""
    errors = [by_rank for option in options.values() for by_rank in option.errors.values()]
    levels = np.unique(np.concatenate(errors))
    low, high = 0, len(levels) - 1
    while low < high:
        middle = (low + high) // 2
        weights = sum(option.at(levels[middle]).weights for option in options.values())
        if weights <= budget:
            high = middle
        else:
            low = middle + 1
    return {name: option.at(levels[low]) for name, option in options.items()}


# -- what can be decomposed --------------------------------------------------------------------------------------------


def layers_of(network: PrunableState) -> dict[str, list[str]]:
    """Returns module path -> its weights' names, of all ranked layers; the two parts of a decomposed one are one."""
    found: dict[str, list[str]] = {}
    owners = network.owners()
    for name in network.ranked_names():
        parent = owners[name].rpartition(".")[0]
        is_part = isinstance(network.model.get_submodule(parent), LowRank)
        found.setdefault(parent if is_part else owners[name], []).append(name)
    return found


def refused_layers(network: PrunableState, paths: list[str]) -> dict[str, str]:
    """Returns layers that have to stay as they are, and why."""
    model = network.model
    uses: dict[int, int] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            uses[id(parameter)] = uses.get(id(parameter), 0) + 1
    refused: dict[str, str] = {}
    able: list[str] = []
    for path in paths:
        layer = model.get_submodule(path)
        why = _why_not(path, layer, uses)
        if why:
            refused[path] = why
        elif not isinstance(layer, LowRank):
            able.append(path)
    # One run for all layers mostly does; only where it fails each is tried by itself.
    if not _goes_along(network, able):
        for path in able:
            if not _goes_along(network, [path]):
                refused[path] = "not used by calling it, or not on the example"
    return refused


def _why_not(path: str, layer: nn.Module, uses: Mapping[int, int]) -> str:
    if isinstance(layer, LowRank):
        return ""
    # By the method, not the class: classes that inherit may well compute something else.
    kind: Any = type(layer)
    is_linear = kind.forward is nn.Linear.forward
    is_convolution = kind.forward is nn.Conv2d.forward and kind._conv_forward is nn.Conv2d._conv_forward
    if not (is_linear or is_convolution):
        return kind.__name__
    if not path:
        return "the network itself"
    if getattr(layer, "groups", 1) > 1:
        return "groups"
    own = set(layer._parameters) | set(layer._modules)
    if not own <= {"weight", "bias"} and layer._parameters.get("weight") is not None:
        return "parameters of its own"
    weight = layer._parameters.get("weight")
    if weight is None or is_parametrized(layer) or layer._forward_pre_hooks or layer._forward_hooks:
        return "weight is computed, or hooks"
    return "shared weight" if uses[id(weight)] > 1 else ""


def _goes_along(network: PrunableState, paths: list[str]) -> bool:
    """Whether the network's code runs, and gets to every layer, with other modules in these places."""
    layers = [dense_of(network.model.get_submodule(path)) for path in paths]
    changes: dict[nn.Module, nn.Module] = {}
    for layer in layers:
        changes[layer] = LowRank(layer, 1)
        for parameter in changes[layer].parameters():
            nn.init.zeros_(parameter)
    called: set[nn.Module] = set()

    def note_call(module: nn.Module, _: Any) -> None:
        called.add(module)

    # Both: a layer that the code also keeps in a list of its own would go on there as it was.
    hooks = [module.register_forward_pre_hook(note_call) for module in (*changes, *changes.values())]
    substitute(network.model, changes)
    try:
        look(network.model, network.example_inputs)
    except RUN_ERRORS:
        return False
    finally:
        substitute(network.model, {new: old for old, new in changes.items()})
        for hook in hooks:
            hook.remove()
    return called == set(changes.values())


# -- one event ---------------------------------------------------------------------------------------------------------


@carry_out.register(LowRankCriterion)
def lower_ranks(criterion: LowRankCriterion, network: PrunableState, event: Event) -> str:
    """Decomposes layers until the event's target is reached, from below; returns why not exactly, "" if so."""
    name = type(criterion).__name__
    if event.invert or event.shuffle is not None:
        raise UsageError(f"{name} lowers ranks: there are no masks or nodes to invert or to shuffle.")
    if network.example_inputs is None:
        raise UsageError("Low rank needs example inputs: PrunableNetwork(model, example_inputs).")
    parts = layers_of(network)
    ranked = network.ranked_names()
    left = network.weights_left(ranked)
    total = sum(network.start_sizes[name] for name in ranked)
    keep = total - round(event.sparsity * total)
    if keep >= left:
        return "" if keep == left else "the network is already sparser than that"
    refused = refused_layers(network, list(parts))
    owners = network.owners()
    refused |= {owners[name]: "protected" for name in sorted(network.kept_names())}  # never ranked, but named
    network.enforce()  # masked weights are zeros from here on
    layers = {path: dense_of(network.model.get_submodule(path)) for path in parts if path not in refused}
    for path, layer in layers.items():
        if not torch.isfinite(layer.weight).all():
            raise UsageError(f"{path!r} holds weights that are not finite; nothing was decomposed.")
    if not layers:
        model = type(network.model).__name__
        raise UsageError(f"{model} has no layer that {name} could decompose: {_reasons(refused)}.")

    errors = _checked(criterion.rank_errors(network, layers, event.batches), layers)
    whole = {path: network.weights_left(parts[path]) for path in layers}
    weights_elsewhere = left - sum(whole.values())
    choices = allocate(_options(layers, whole, errors), keep - weights_elsewhere)

    pairs: dict[str, LowRank] = {}
    facts: dict[str, dict[str, Any]] = {}
    for path, choice in choices.items():
        if choice.subspaces:  # 0 where a layer is left as it is
            factors = criterion.factors(path, layers[path], choice.rank, choice.subspaces)
            pairs[path] = factored(layers[path], factors)
            facts[path] = {"subspaces": choice.subspaces, "rank": choice.rank, "error": choice.error}
    criterion.chosen = facts

    sizes = _start_sizes(network, parts, pairs)
    optimizers, cut_along = list(event.optimizers), list(event.cut_along)
    network.replace_layers(lambda: replace_layers(network.model, pairs, optimizers, cut_along), sizes)
    return _shortfall(network.weights_left(network.ranked_names()), keep, _reasons(refused))


def _reasons(refused: Mapping[str, str]) -> str:
    """Returns the names of layers by reason, the first few of each."""
    found = []
    for why in dict.fromkeys(refused.values()):
        paths = [path or "it" for path, other in refused.items() if other == why]
        more = f" and {len(paths) - NAMED} more" if len(paths) > NAMED else ""
        found.append(f"{', '.join(paths[:NAMED])}{more} ({why})")
    return "; ".join(found)


def _checked(errors: Mapping[str, Mapping[int, Tensor]], layers: Mapping[str, Layer]) -> dict[str, dict[int, Tensor]]:
    checked: dict[str, dict[int, Tensor]] = {}
    for path in layers:
        by_subspaces = errors.get(path, {})
        finite = [bool(torch.isfinite(values).all()) for values in by_subspaces.values()]
        if path not in errors or not all(finite):
            raise UsageError(f"The errors of {path!r} are missing or not finite; nothing was decomposed.")
        checked[path] = {subspaces: broadcast(values) for subspaces, values in by_subspaces.items()}
    return checked


def _options(
    layers: Mapping[str, Layer], whole: Mapping[str, int], errors: Mapping[str, Mapping[int, Tensor]]
) -> dict[str, Options]:
    found = {}
    for path, layer in layers.items():
        outputs, entries = layer.weight.flatten(1).shape
        # One rank in each of k subspaces: k columns of the decoder, and one row of the encoder shared out among them.
        prices = {subspaces: subspaces * outputs + entries for subspaces in errors[path]}
        found[path] = Options(whole[path], prices, errors[path])
    return found


def _start_sizes(
    network: PrunableState, parts: Mapping[str, list[str]], pairs: Mapping[str, LowRank]
) -> dict[str, int]:
    """Returns the counts at the start by today's names: of a decomposed layer, in proportion to its two parts."""
    sizes = dict(network.start_sizes)
    for path, pair in pairs.items():
        total = sum(sizes.pop(name) for name in parts[path])
        encoder, decoder = pair.encoder.weight.numel(), pair.decoder.weight.numel()
        share = total * encoder // (encoder + decoder)
        sizes[f"{path}.encoder.weight"] = share
        sizes[f"{path}.decoder.weight"] = total - share
    return sizes


def _shortfall(left: int, keep: int, whys: str) -> str:
    if left == keep:
        return ""
    why = "the next rank would be too much" if left < keep else "all layers that can be decomposed have rank 1"
    stay = f"; left as they are: {whys}" if whys else ""
    return f"{left:,} weights stay instead of {keep:,}: {why}{stay}"
