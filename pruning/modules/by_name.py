"""Layers by name: which parameters a user's patterns mean, and what is asked of the layers that they name."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from numbers import Real

from torch import nn

from pruning.errors import UsageError, nearest

Spellings = dict[str, frozenset[str]]  # parameter -> its names, and those of the modules around it

SOME = 5  # names that a message shows where none is near


@dataclass
class LayerRules:
    """Which layers are pruned, and how much of each.

    A pattern, as in `fnmatch`, names modules with all that is in them, or parameters: "layer3", "layer3.*",
    "*.in_proj_weight".

    Args:
        only: patterns of the layers that are pruned; without it all of them are, but frozen ones (requires_grad=False).
            What is named here or by `shares` is pruned even if it is frozen.
        skip: patterns of layers that are left as they are, whatever else names them.
        shares: pattern=fraction removed of each layer that it names; of several patterns that name a layer the last
            counts. The limit stays the fraction of all; the other layers make up for the difference.
        max_share: no layer loses more than this fraction of its weights, or of its nodes where nodes go.
    """

    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    shares: dict[str, float] = field(default_factory=dict)
    max_share: float | None = None

    def __post_init__(self) -> None:
        self.only = _patterns("only", self.only)
        self.skip = _patterns("skip", self.skip)
        if not isinstance(self.shares, Mapping):
            raise UsageError(f"shares maps patterns to fractions, such as {{'layer3.*': 0.3}}, not {self.shares!r}.")
        _patterns("shares", self.shares)
        self.shares = dict(self.shares)
        for pattern, share in self.shares.items():
            if not _is_number(share) or not 0 <= share < 1:
                raise UsageError(f"shares: {pattern!r} gets a fraction removed, 0 to below 1; {share!r} was given.")
        if self.max_share is None:
            return
        if not _is_number(self.max_share) or not 0 <= self.max_share <= 1:
            raise UsageError(f"max_share is a fraction removed, 0 to 1; {self.max_share!r} was given.")
        for pattern, share in self.shares.items():
            if share > self.max_share:
                raise UsageError(f"shares: {pattern!r} gets {share:g}, more than max_share, {self.max_share:g}.")

    def __bool__(self) -> bool:
        return bool(self.only or self.skip or self.shares or self.max_share is not None)

    def why_more(self) -> str:
        """Says which guard keeps more of a layer than was asked for."""
        if self.max_share is None:
            return "no layer is emptied"
        return f"no layer loses more than {self.max_share:g}, max_share"


@dataclass(frozen=True)
class Named:
    """What rules say of a network's parameters, by name.

    Args:
        only: parameters that may be pruned, None for all.
        skip: parameters that may not.
        shares: fraction removed of what a parameter's layer has.
        by_share: each pattern of the shares -> the parameters that it means.
    """

    only: frozenset[str] | None = None
    skip: frozenset[str] = frozenset()
    shares: Mapping[str, float] = field(default_factory=dict)
    by_share: Mapping[str, frozenset[str]] = field(default_factory=dict)

    def may(self, name: str) -> bool:
        """Whether a parameter may be pruned."""
        return name not in self.skip and (self.only is None or name in self.only)

    def asks_for(self, name: str) -> bool:
        """Whether a parameter is named as one that is to be pruned."""
        return name in self.shares or (self.only is not None and name in self.only)

    @cached_property
    def only_layers(self) -> frozenset[str]:
        """The paths of the layers that `only` names, if it names no more than one of their parameters."""
        return frozenset(layer_of(name) for name in self.only or ())


def named_by(rules: LayerRules, model: nn.Module, more: Mapping[str, str]) -> Named:
    """Returns what rules say of a network's parameters.

    Args:
        rules: what the user asks for.
        model: the network.
        more: parameter -> another name of it.

    Raises:
        UsageError: for a pattern that names nothing; the message has the nearest names.
    """
    if not rules:
        return Named()
    spellings = spellings_of(model)
    for name, other in more.items():
        spellings[name] |= {other}

    def meant(pattern: str, said_by: str) -> frozenset[str]:
        found = matched(pattern, spellings)
        if not found:
            raise _names_nothing(pattern, said_by, model)
        return found

    only = frozenset().union(*(meant(pattern, "only") for pattern in rules.only)) if rules.only else None
    skip = frozenset().union(*(meant(pattern, "skip") for pattern in rules.skip))
    shares: dict[str, float] = {}
    by_share = {pattern: meant(pattern, "shares") for pattern in rules.shares}
    for pattern, names in by_share.items():
        shares |= dict.fromkeys(names, float(rules.shares[pattern]))
    return Named(only, skip, shares, by_share)


def spellings_of(model: nn.Module) -> Spellings:
    """Returns the first name of each parameter -> all names by which a pattern may mean it."""
    first_name = {id(parameter): name for name, parameter in model.named_parameters()}
    found: dict[str, set[str]] = {}
    # A parameter that several modules share has several names, and each will do.
    for name, parameter in model.named_parameters(remove_duplicate=False):
        spellings = found.setdefault(first_name[id(parameter)], set())
        spellings.update(_with_modules(name))
        spellings.update(_with_modules(name.replace("_orig_mod.", "")))  # which torch.compile puts in
        owner, is_computed, source = name.partition(".parametrizations.")
        if is_computed:  # "fc.parametrizations.weight.original" is what people call fc.weight
            spellings.add(f"{owner}.{source.partition('.')[0]}")
    return {name: frozenset(spellings) for name, spellings in found.items()}


def names_table(rules: LayerRules, name: str) -> bool:
    """Whether rules ask for an embedding's weight itself: "*.wte" does, "transformer.*" means the layers around it."""
    path = layer_of(name)
    for pattern in (*rules.only, *rules.shares):
        is_broad = not pattern.rpartition(".")[2].strip("*?")
        if pattern == name or (not is_broad and fnmatchcase(path, pattern)):
            return True
    return False


def at_most(share: float, total: int) -> int:
    """Returns the largest whole number that is no more than a share of a total."""
    return math.floor(share * total + 1e-9)  # 0.3 * 10 is a little less than 3


def layer_of(name: str) -> str:
    """Returns the path of the module that a user knows a parameter by."""
    owner, is_computed, _ = name.partition(".parametrizations.")
    return owner if is_computed else name.rpartition(".")[0]


def matched(pattern: str, spellings: Spellings) -> frozenset[str]:
    """Returns the parameters that a pattern means."""
    found = set()
    for name, others in spellings.items():
        if any(fnmatchcase(other, pattern) for other in others):
            found.add(name)
    return frozenset(found)


def _with_modules(name: str) -> list[str]:
    """Returns a parameter's name and those of the modules that it is in: a, a.b, a.b.weight."""
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts) + 1)]


def _names_nothing(pattern: str, said_by: str, model: nn.Module) -> UsageError:
    modules = [path for path, module in model.named_modules() if path and any(True for _ in module.parameters())]
    parameters = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    plain = re.sub(r"[*?\[\]]", "", pattern).strip(".")
    hint = nearest(plain, [*modules, *parameters]) if plain else ""
    if not hint:
        some = modules[:SOME] or parameters[:SOME]
        more = ", ..." if len(modules) > SOME else ""
        hint = f" There are {', '.join(some)}{more}."
    return UsageError(f"{said_by}: {pattern!r} names no layer of {type(model).__name__}.{hint}")


def _patterns(said_by: str, given: str | Iterable[str]) -> tuple[str, ...]:
    """Returns one or several patterns as a tuple."""
    patterns = (given,) if isinstance(given, str) else tuple(given)
    for pattern in patterns:
        if not isinstance(pattern, str) or not pattern:
            raise UsageError(f"{said_by} takes names of layers, such as 'layer3.*', not {pattern!r}.")
    return patterns


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
