"""Networks of other libraries through the whole engine, each in a process of its own; writes docs/coverage.md.

    pip install -e ".[networks]"
    python -m tests.slow.networks_sweep [--only "transformers/*"] [--minutes 2] [--gigabytes 6] [--theirs]

Of each: the graph's time by a forward pass's, the share of hidden channels that can go, half of the nodes pruned by
magnitude and by chance, then forward, backward and a step, loading of the bare state dict and with its extras, a deep
copy, `torch.export`; and in float64 whether the smaller network equals the one whose removed slices are zero. Norms
over a dimension that shrinks are compared with norms that skip the removed entries.
"""

from __future__ import annotations

import argparse
import copy
import json
import multiprocessing
import resource
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Mapping
from fnmatch import fnmatch
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pruning import DependencyGraph, extras_of, load_pruned
from pruning.cut.plan import PruningPlan
from pruning.errors import UsageError
from pruning.modules.calls import call, tensors_in
from pruning.prune.layout import NodeSelection
from pruning.trace.labels import PRODUCER
from tests.slow.networks import LIBRARIES
from tests.support.zeroed import zero_what_goes

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "coverage.md"
CACHES = ("cache", "past_key_values", "cache_params", "mems", "state")
CLOSE = {"rtol": 1e-6, "atol": 1e-8}

# -- one network -------------------------------------------------------------------------------------------------------


def outputs_of(model: nn.Module, inputs: Any) -> list[Tensor]:
    """Returns the numbers that a network gives, caches left out."""
    torch.manual_seed(0)
    found = call(model, inputs)
    if isinstance(found, Mapping):
        found = {name: value for name, value in found.items() if name not in CACHES}
    return [tensor for tensor in tensors_in(found) if tensor.is_floating_point()]


def doubled(inputs: Any) -> Any:
    """Returns inputs in float64."""
    if isinstance(inputs, Tensor):
        return inputs.double() if inputs.is_floating_point() else inputs
    if isinstance(inputs, dict):
        return {name: doubled(value) for name, value in inputs.items()}
    return type(inputs)(doubled(value) for value in inputs) if isinstance(inputs, (tuple, list)) else inputs


def same(ones: list[Tensor], others: list[Tensor]) -> bool:
    """Says whether two networks gave the same numbers."""
    if len(ones) != len(others):
        return False
    for one, other in zip(ones, others, strict=True):
        if one.shape != other.shape or not torch.allclose(one, other, equal_nan=True, **CLOSE):
            return False
    return True


def share_prunable(graph: DependencyGraph) -> float:
    """Returns the share of produced channels that can go; those of the network's outputs don't count."""
    structure = graph.structure
    free = held = 0
    for dimension in structure.dimensions:
        labels = structure.labels_of(dimension)
        made = labels[structure.roles[labels] & PRODUCER > 0]
        is_free = structure.node_of_label[made] >= 0
        free += int(is_free.sum())
        for fact in structure.pinned_by[structure.component[made]]:
            held += int(fact >= 0 and structure.facts.pins[fact][2] != "is the network's output")
    return free / max(free + held, 1)


def half_by_magnitude(graph: DependencyGraph) -> np.ndarray:
    """Returns the weaker half of every group's nodes."""
    squares = {name: weight.detach().square() for name, weight in graph.model.named_parameters()}
    scores = graph.reduce_to_nodes(squares, role="all").double()
    keep = NodeSelection(graph.structure.group_of_node, local=True).keep(scores, len(scores) - len(scores) // 2)
    return np.flatnonzero(~keep.numpy())


def half_by_chance(graph: DependencyGraph, *, exact: bool = False) -> np.ndarray:
    """Returns half of every group's nodes, of those that change no statistic if asked."""
    random = np.random.default_rng(0)
    chosen = []
    for group in graph.groups:
        nodes = [node for node in random.permutation(group.nodes) if not (exact and graph.inexact[node])]
        chosen += nodes[: len(group.nodes) // 2]
    return np.array(sorted(chosen), dtype=np.int64)


def masked(dense: nn.Module, plan: PruningPlan) -> nn.Module:
    """Returns a copy with all slices zero that the plan removes; call before the plan is carried out."""
    other = copy.deepcopy(dense)
    zero_what_goes(other, plan)
    return other


def skip_in_norms(zeroed: nn.Module, small: nn.Module, plan: PruningPlan) -> None:
    """Lets norms over a dimension that shrinks look at what stays alone, as the smaller network's norms do."""
    for path, module in zeroed.named_modules():
        if "Norm" not in type(module).__name__ or any(module.children()):
            continue
        rows = [plan.keeps.get(f"{path}.{name}", {}).get(0) for name, _ in module.named_parameters(recurse=False)]
        kept = next((row for row in rows if row is not None), None)
        if kept is not None and not isinstance(module, (nn.modules.batchnorm._BatchNorm, nn.GroupNorm)):
            width = max(len(parameter) for parameter in module.parameters())
            module.forward = _skipping(small.get_submodule(path), kept, width)  # type: ignore[method-assign]


def _skipping(norm: nn.Module, kept: Tensor, width: int) -> Any:
    def forward(x: Tensor, *more: Any, **named: Any) -> Tensor:
        dim = -1 if x.shape[-1] == width else 1  # some norms take channels where convolutions have them
        result = norm(x.index_select(dim, kept), *more, **named)
        return torch.zeros_like(x).index_copy(dim, kept, result)

    return forward


def equality(model: nn.Module, inputs: Any) -> str:
    """Returns how far the smaller network is shown to equal the masked one in float64."""
    model, inputs = copy.deepcopy(model).double().eval(), doubled(inputs)
    dense = copy.deepcopy(model)
    graph = DependencyGraph(model, inputs)
    plan = graph.plan(half_by_chance(graph))
    zeroed = masked(dense, plan)
    is_told = bool(plan.inexact)
    plan.exec()
    found = outputs_of(model, inputs)
    if same(found, outputs_of(zeroed, inputs)):
        return "equal"
    if not is_told:
        return "WRONG"
    skip_in_norms(zeroed, model, plan)
    if same(found, outputs_of(zeroed, inputs)):
        return "equal, norms skip"
    model = dense
    graph = DependencyGraph(model, inputs)
    nodes = half_by_chance(graph, exact=True)
    if not len(nodes):
        return "told"
    dense = copy.deepcopy(model)
    plan = graph.plan(nodes)
    zeroed = masked(dense, plan)
    is_told = bool(plan.inexact)
    plan.exec()
    if same(outputs_of(model, inputs), outputs_of(zeroed, inputs)):
        return "told, exact nodes equal"
    return "told" if is_told else "WRONG"


def _equality_or_why_not(model: nn.Module, inputs: Any) -> str:
    try:
        outputs_of(copy.deepcopy(model).double(), doubled(inputs))
    except RuntimeError:  # some kernels know float32 alone, some code names it
        return "no float64"
    return equality(model, inputs)


def trains_on(model: nn.Module, inputs: Any) -> str:
    """Runs forward, backward and a step; returns what failed."""
    model.train()
    optimizer = torch.optim.SGD([parameter for parameter in model.parameters() if parameter.requires_grad], lr=1e-3)
    try:
        found = outputs_of(model, inputs)
    except ValueError:  # batch norm wants more than one value a channel
        found = outputs_of(model.eval(), inputs)
    losses = [tensor.square().mean() for tensor in found if tensor.requires_grad]
    if losses:
        torch.stack(losses).sum().backward()
        optimizer.step()
    model.eval()
    return ""


def loads(dense: nn.Module, small: nn.Module, inputs: Any, *, extras: bool = False, example: Any = None) -> str:
    """Loads the smaller network's weights into a dense one: "right", "refused", or "WRONG"."""
    saved: dict[str, Any] = {"state_dict": copy.deepcopy(small.state_dict())}
    if extras:
        saved["extras"] = extras_of(small)
    target = copy.deepcopy(dense)
    try:
        load_pruned(target, saved, example)
    except UsageError:
        return "refused"
    try:
        return "right" if same(outputs_of(target.eval(), inputs), outputs_of(small.eval(), inputs)) else "WRONG"
    except Exception:  # noqa: BLE001 - whatever it is, loading said yes and the network does not run
        return "BROKEN"


def measure(build: Any) -> dict[str, Any]:
    """Returns what becomes of one network."""
    torch.manual_seed(0)
    model, inputs = build()
    model.eval()
    with torch.no_grad():
        outputs_of(model, inputs)
        start = time.process_time()
        outputs_of(model, inputs)
        forward = time.process_time() - start
    row: dict[str, Any] = {"parameters": sum(parameter.numel() for parameter in model.parameters())}
    dense = copy.deepcopy(model)

    start = time.process_time()
    graph = DependencyGraph(model, inputs)
    row["graph_by_forward"] = (time.process_time() - start) / max(forward, 1e-4)
    row["share"] = share_prunable(graph)
    row["nodes"] = len(graph.nodes)
    with torch.no_grad():
        if not same(outputs_of(model, inputs), outputs_of(dense, inputs)):
            row["damaged"] = True
    if not row["nodes"]:
        return row | {"pruned": "no node"}

    for way, choose in (("magnitude", half_by_magnitude), ("chance", half_by_chance)):
        model = copy.deepcopy(dense)
        graph = DependencyGraph(model, inputs)
        graph.plan(choose(graph)).exec()
        with torch.no_grad():
            outputs_of(model, inputs)
        row[f"left by {way}"] = sum(parameter.numel() for parameter in model.parameters()) / row["parameters"]
    row["pruned"] = "yes"
    with torch.no_grad():
        row["bare"] = loads(dense, model, inputs)
        row["example"] = loads(dense, model, inputs, example=inputs)
        row["extras"] = loads(dense, model, inputs, extras=True)
        row["copy"] = same(outputs_of(copy.deepcopy(model), inputs), outputs_of(model, inputs))
        row["equality"] = _equality_or_why_not(dense, inputs)
    row["export"] = _exports(model, inputs)
    if row["export"] != "yes" and _exports(dense, inputs) != "yes":
        row["export"] = "nor the dense one"
    row["trains"] = trains_on(model, inputs) or "yes"
    return row


def _exports(model: nn.Module, inputs: Any) -> str:
    args, kwargs = (
        ((), inputs) if isinstance(inputs, dict) else (inputs if isinstance(inputs, tuple) else (inputs,), {})
    )
    try:
        torch.export.export(model, args, kwargs, strict=False)
    except Exception as error:  # noqa: BLE001 - whatever torch cannot export, the column says
        return type(error).__name__
    return "yes"


def measure_theirs(build: Any) -> dict[str, Any]:
    """Returns what Torch-Pruning makes of the same network: works, fails, or silently wrong."""
    tp = import_module("torch_pruning")
    torch.manual_seed(0)
    model, inputs = build()
    model = model.double().eval()
    inputs = doubled(inputs)
    given = inputs if isinstance(inputs, (Tensor, dict, list)) else list(inputs)
    heads = {module: module.num_heads for module in model.modules() if isinstance(module, nn.MultiheadAttention)}
    with torch.no_grad():
        shapes = [tensor.shape for tensor in outputs_of(model, inputs)]
    before = sum(parameter.numel() for parameter in model.parameters())
    last = [module for module in model.modules() if isinstance(module, (nn.Linear, nn.Conv2d))][-1:]
    pruner = tp.pruner.BasePruner(
        model,
        given,
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        global_pruning=False,
        pruning_ratio=0.5,
        ignored_layers=last,
        num_heads=heads,
        output_transform=lambda returned: sum(tensor.sum() for tensor in tensors_in(returned) if tensor.requires_grad),
    )
    pruner.step()
    left = sum(parameter.numel() for parameter in model.parameters()) / before
    with torch.no_grad():
        found = outputs_of(model, inputs)
    if [tensor.shape for tensor in found] != shapes:
        return {"theirs": "other outputs"}
    return {"theirs": "works" if left < 0.95 else "hardly cut", "theirs_left": left}


# -- one process each --------------------------------------------------------------------------------------------------


def _in_child(name: str, build: Any, gigabytes: float, theirs: bool, file: str) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (int(gigabytes * 2**30),) * 2)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    try:
        model, inputs = build()
        with torch.no_grad():
            outputs_of(model.eval(), inputs)
    except Exception as error:  # noqa: BLE001 - what does not run as it is built here is no network of the sweep
        _write(file, {"not built": _told(error)})
        return
    del model, inputs
    try:
        row = measure_theirs(build) if theirs else measure(build)
    except Exception as error:  # noqa: BLE001 - the sweep is there to find what fails
        row = (
            {"theirs": f"fails: {_told(error)}"}
            if theirs
            else {"failed": _told(error), "trace": traceback.format_exc()}
        )
    _write(file, row)


def _told(error: BaseException) -> str:
    lines = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:160]}"


def _write(file: str, row: dict[str, Any]) -> None:
    Path(file).write_text(json.dumps(row))


def in_a_process(name: str, build: Any, minutes: float, gigabytes: float, theirs: bool) -> dict[str, Any]:
    """Measures a network in a process of its own, within bounds of time and memory."""
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        process = multiprocessing.get_context("fork").Process(
            target=_in_child, args=(name, build, gigabytes, theirs, file.name)
        )
        process.start()
        process.join(minutes * 60)
        if process.is_alive():
            process.kill()
            process.join()
            return {"theirs" if theirs else "failed": f"took more than {minutes:g} minutes"}
        text = Path(file.name).read_text()
    if not text:
        return {"theirs" if theirs else "failed": f"the process ended with {process.exitcode} (memory is bounded)"}
    found: dict[str, Any] = json.loads(text)
    return found


# -- the page ----------------------------------------------------------------------------------------------------------

_HEAD = """# Coverage: networks of other libraries

Written by `python -m tests.slow.networks_sweep`. Networks have random weights and tiny settings. *Share* is the part of
hidden channels that can go. *Equality*: in float64 the smaller network equals the one with the removed slices zero;
"norms skip" compares layer norms with norms that leave the removed entries out; "told" means the plan says that values
change. *Bare*, *example*, *extras*: what `load_pruned` makes of the state dict alone, with example inputs, and with
`extras_of`. *Graph* is its time by that of a forward pass.

"""


def page(rows: dict[str, dict[str, Any]], libraries: list[str]) -> str:
    """Returns the page as Markdown."""
    built = {name: row for name, row in rows.items() if "not built" not in row}
    shares = [row["share"] for row in built.values() if "share" in row]
    lines = [_HEAD, "Versions: " + ", ".join(libraries) + ".\n\n", "| | |\n| --- | --- |\n"]
    lines.append(f"| networks | {len(built)} |\n")
    runs = sum(row.get("pruned") == "yes" and row.get("trains") == "yes" for row in built.values())
    lines.append(f"| lose half of their nodes, run and train on | {runs} |\n")
    lines.append(f"| mean share of hidden channels that can go | {np.mean(shares):.3f} |\n")
    for key in ("equality", "bare", "example", "extras", "export", "theirs"):
        counts = Counter(str(row[key]).split(":")[0] for row in built.values() if key in row)
        told = ", ".join(f"{what} {count}" for what, count in counts.most_common())
        if told:
            lines.append(f"| {'Torch-Pruning' if key == 'theirs' else key} | {told} |\n")
    damaged = sum("damaged" in row for row in built.values())
    lines.append(f"| damaged by a look | {damaged} |\n\n")
    lines.append("| network | share | left | equality | bare | example | extras | export | graph | Torch-Pruning |\n")
    lines.append("|" + " --- |" * 10 + "\n")
    for name, row in built.items():
        lines.append(_line(name, row))
    return "".join(lines)


def _line(name: str, row: dict[str, Any]) -> str:
    other = str(row.get("theirs", "-")).split(":")[0]
    if "failed" in row:
        return f"| {name} | {row['failed'].replace('|', '/')} | | | | | | | | {other} |\n"
    left = row.get("left by magnitude")
    cells = [
        name,
        f"{row['share']:.3f}",
        "-" if left is None else f"{left:.2f}",
        *(str(row.get(key, "-")) for key in ("equality", "bare", "example", "extras", "export")),
        f"{row['graph_by_forward']:.0f}",
        other,
    ]
    return "| " + " | ".join(cells) + " |\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="*", help="names of networks, as in fnmatch")
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--gigabytes", type=float, default=8.0)
    parser.add_argument("--theirs", action="store_true", help="measures Torch-Pruning, beside what is recorded")
    parser.add_argument("--record", type=Path, default=ROOT / "gitignored" / "results" / "coverage.json")
    given = parser.parse_args()
    rows: dict[str, dict[str, Any]] = json.loads(given.record.read_text()) if given.record.exists() else {}
    there = [library for library in LIBRARIES if find_spec(library) is not None]
    for library in there:
        import_module(library)  # once, before the processes part
        for name, build in LIBRARIES[library]():
            if not fnmatch(name, given.only):
                continue
            row = in_a_process(name, build, given.minutes, given.gigabytes, given.theirs)
            rows[name] = {**rows.get(name, {}), **row} if given.theirs else row
            shown = {key: value for key, value in row.items() if key != "trace"}
            print(name, shown, file=sys.stderr, flush=True)
            given.record.parent.mkdir(parents=True, exist_ok=True)
            given.record.write_text(json.dumps(rows, indent=1))
    names = [name.replace("_", "-") for name in there]
    PAGE.write_text(page(rows, [f"{name} {version(name)}" for name in ["torch", *names]]))


if __name__ == "__main__":
    main()
