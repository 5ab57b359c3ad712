"""What it takes to run a shrunken network: new values of the integers that its modules keep, proven by a dry run."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from pruning.dry_run.couple import new_integers
from pruning.dry_run.dry_run import Failure, Report, dry_run
from pruning.modules.attributes import Attribute
from pruning.trace.components import Mask
from pruning.trace.traced import TracedNetwork

# Operations whose sizes the network's code writes down, and how they are told.
_TAKES_SIZES = {
    "view": "view to", "_unsafe_view": "view to", "_reshape_alias": "view to", "reshape": "reshape to",
    "expand": "expand to", "repeat": "repeat to", "new_zeros": "new_zeros of", "zeros": "zeros of",
    "split": "split into", "split_with_sizes": "split into", "chunk": "chunk into",
}  # fmt: skip

_MOST_SIZES = 4


@dataclass
class Adaptation:
    """What it takes to run the shrunken network, and what stands in the way.

    Args:
        attributes: (holder, name, value) to set.
        report: of the dry run; if it passed, the network goes along.
    """

    attributes: list[Attribute] = field(default_factory=list)
    report: Report = field(default_factory=Report)

    @property
    def passed(self) -> bool:
        return self.report.passed


def adapt_attributes(traced: TracedNetwork, removed: Mask) -> Adaptation:
    """Solves for the integers that change once labels are removed, and runs the network with them."""
    attributes = new_integers(traced, removed)
    return Adaptation(attributes, dry_run(traced, removed, attributes))


def blamed(traced: TracedNetwork, failures: list[Failure]) -> np.ndarray:
    """Returns the nodes around failures; whole groups, since what fails for one channel fails for its neighbours."""
    structure = traced.structure
    rows = [structure.node_of_label[failure.labels] for failure in failures]
    nodes = np.unique(np.concatenate(rows)) if rows else np.empty(0, np.int64)
    groups = np.unique(structure.group_of_node[nodes[nodes >= 0]])
    return np.flatnonzero(np.isin(structure.group_of_node, groups))


def first_message(report: Report) -> tuple[str, str, str]:
    """Returns (operation, module path, what went wrong) of what failed first."""
    if report.failures:
        failure = report.failures[0]
        return failure.entry.name, failure.entry.where, _told(failure)
    message = (str(report.error).splitlines() or [""])[0]
    return "the code", report.where, f"code that fails with fewer channels: {type(report.error).__name__}: {message}"


def _told(failure: Failure) -> str:
    """Returns what an operation does not go along with: the sizes that its code asks for, or what torch said."""
    entry = failure.entry
    word = _TAKES_SIZES.get(entry.name.removeprefix("aten."))
    if word is None:
        return f"code that fails with fewer channels: {failure.message}"
    where = f"module {entry.where}" if entry.where else "the network"
    sizes = [str(list(shape)) for shape, _, _ in entry.outs[:_MOST_SIZES]]
    if len(entry.outs) > _MOST_SIZES:
        sizes.append("...")
    return f"hard-coded width in {where}: {word} {', '.join(sizes)}"
