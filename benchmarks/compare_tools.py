"""What Espalier, Torch-Pruning and torch.nn.utils.prune do with the same networks: the facts of the README's table.

    pip install -r benchmarks/requirements.txt
    python benchmarks/compare_tools.py

Half of every hidden layer goes, by group magnitude, and each tool is told what its own documentation asks for: here
nothing, in Torch-Pruning the layers that hold the classes and the number of heads. A cell is a measurement or the
error that came instead. Without Torch-Pruning its column stays empty. The networks are small and made here, so that
the script takes seconds; `benchmarks/pruning.py --coverage` asks the same of all classifiers of torchvision.
"""

from __future__ import annotations

import copy
import importlib
import importlib.metadata
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune as masks

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from criterions.GroupMagnitude import GroupMagnitude  # noqa: E402 - the path has to be set first
from pruning import PrunableNetwork, UsageError  # noqa: E402
from pruning.modules.calls import RUN_ERRORS  # noqa: E402

CLASSES = 7  # of every network below; no hidden layer is as wide
SIDE = 16  # of the pictures
CLOSE = 1e-9  # largest relative difference of outputs that rounding explains, in double precision
# Cuts a network in place; may return what it has to compute afterwards: the dense one with zeros where slices went.
Cutter = Callable[..., nn.Module | None]


# -- networks ---------------------------------------------------------------------------------------------------------


class Residual(nn.Module):
    """A shortcut, a depthwise layer, and a gate from squeezed channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.wide, self.norm = nn.Conv2d(16, 32, 1), nn.BatchNorm2d(32)
        self.depthwise = nn.Conv2d(32, 32, 3, padding=1, groups=32)
        self.squeeze, self.excite = nn.Conv2d(32, 8, 1), nn.Conv2d(8, 32, 1)
        self.narrow, self.head = nn.Conv2d(32, 16, 1), nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        inner = self.depthwise(self.norm(self.wide(x)).relu()).relu()
        gate = self.excite(self.squeeze(inner.mean((2, 3), keepdim=True)).relu()).sigmoid()
        x = x + self.narrow(inner * gate)
        return self.head(x.relu().mean((2, 3)))


class Shuffled(nn.Module):
    """Grouped convolutions whose channels are shuffled by a view, as in ShuffleNet, and a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 16, 3), nn.Conv2d(3, 8, 3)
        self.grouped, self.mix = nn.Conv2d(24, 24, 3, groups=2), nn.Conv2d(24, 12, 1)
        self.head = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.grouped(torch.cat([self.left(x), self.right(x)], 1).relu())
        batch, channels, height, width = x.shape
        x = x.view(batch, 2, channels // 2, height, width).transpose(1, 2).reshape(batch, channels, height, width)
        return self.head(self.mix(x).relu().mean((2, 3)))


class Gated(nn.Module):
    """One layer that is split in two halves, one of which opens the other (GLU), with a scale of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.both = nn.Linear(3 * SIDE, 24), nn.Linear(24, 64)
        self.leave, self.head = nn.Linear(32, 24), nn.Linear(24, CLASSES)
        self.scale = nn.Parameter(torch.rand(24))

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x.mean(2).flatten(1))
        value, gate = self.both(x).chunk(2, dim=-1)
        return self.head((x + self.scale * self.leave(value * gate.sigmoid())).relu())


class Attention(nn.Module):
    """Attention as it is written by hand: one layer for q, k and v, and a view to heads."""

    num_heads = 4

    def __init__(self) -> None:
        super().__init__()
        self.width = 32
        self.enter, self.qkv = nn.Linear(3 * SIDE, 32), nn.Linear(32, 3 * 32)
        self.out, self.head = nn.Linear(32, 32), nn.Linear(32, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x.permute(0, 2, 1, 3).flatten(2))
        batch, tokens, _ = x.shape
        heads = self.qkv(x).view(batch, tokens, 3, self.num_heads, self.width // self.num_heads)
        q, k, v = heads.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, self.width)
        return self.head((x + self.out(mixed)).relu().mean(1))


class Standardised(nn.Module):
    """Weights that are normalised before they are used, as in a network without batch norms."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 24, 3)
        self.head = nn.Linear(24, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.first, self.second):
            weight = layer.weight - layer.weight.mean((2, 3), keepdim=True)
            x = F.conv2d(x, weight, layer.bias).relu()
        return self.head(x.mean((2, 3)))


class Flattened(nn.Module):
    """A transposed convolution, and a flatten that makes many columns of one channel."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(3, 16, 4, stride=4), nn.ConvTranspose2d(16, 12, 2, stride=2)
        self.hidden, self.head = nn.Linear(12 * 8 * 8, 20), nn.Linear(20, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(self.down(x).relu()).relu()
        return self.head(self.hidden(x.flatten(1)).relu())


NETWORKS: list[type[nn.Module]] = [Residual, Shuffled, Gated, Attention, Standardised, Flattened]


def build(kind: type[nn.Module]) -> nn.Module:
    """Returns the network with random values everywhere, norms' statistics too, so that a wrong index shows."""
    torch.manual_seed(0)
    model = kind().eval().double()
    for parameter in model.parameters():
        parameter.data += 1e-6 * torch.rand_like(parameter)  # values made in single precision repeat
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.bias.data, module.running_mean, module.running_var):
                tensor.copy_(torch.rand_like(tensor) + 0.5)
    return model


# -- the tools --------------------------------------------------------------------------------------------------------


def torch_pruning() -> ModuleType | None:
    """Returns the library if it is installed; only this script and benchmarks/pruning.py ask for it."""
    try:
        return importlib.import_module("torch_pruning")
    except ImportError:
        return None


def cut_by_espalier(model: nn.Module, example: Tensor, optimizers: Sequence[torch.optim.Optimizer] = ()) -> nn.Module:
    reference = copy.deepcopy(model)
    network = PrunableNetwork(model, example)
    worth = GroupMagnitude().node_scores(network, [])
    gone = [group.nodes[worth[group.nodes].argsort()[: len(group.nodes) // 2]] for group in network.graph.groups]
    plan = network.graph.plan(np.concatenate(gone))
    # Asked before the cut: afterwards values may differ, since a factor of attention is folded into its rows.
    tensors = reference.state_dict()
    for number in plan.nodes:
        for (name, dim), indices in network.graph.nodes[number].slices.items():
            tensors[name].index_fill_(dim, torch.tensor(indices), 0)
    plan.exec(optimizers)
    return reference


def cut_by_torch_pruning(model: nn.Module, example: Tensor, _optimizers: Sequence[torch.optim.Optimizer] = ()) -> None:
    library = torch_pruning()
    assert library is not None
    heads = {model.qkv: model.num_heads} if isinstance(model, Attention) else {}
    pruner = library.pruner.BasePruner(
        model,
        example,
        importance=library.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=0.5,
        ignored_layers=[_classes(model)],
        num_heads=heads,
    )
    pruner.step()


def mask_by_torch(model: nn.Module, _example: Tensor, _optimizers: Sequence[torch.optim.Optimizer] = ()) -> None:
    """Half of every layer's rows by L2 norm; the classes stay."""
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)) and module is not _classes(model):
            rows = 1 if isinstance(module, nn.ConvTranspose2d) else 0
            masks.ln_structured(module, "weight", amount=0.5, n=2, dim=rows)


def _classes(model: nn.Module) -> nn.Module:
    return list(model.modules())[-1]  # every network here, ResNet-18 too, declares its head last


@torch.no_grad()
def zeroed(dense: nn.Module, pruned: nn.Module) -> nn.Module:
    """Returns the dense network with zeros in the places that are gone from the pruned one.

    Which these are is read from the values: all of them differ, so every one that is left tells where it stood.
    """
    tensors = dense.state_dict()
    for name, left in pruned.state_dict().items():
        before = tensors[name]
        if left.shape != before.shape:
            stays = torch.isin(before, left)
            assert int(stays.sum()) == left.numel(), f"{name} has other values than before"
            before.mul_(stays)
    return dense


# -- what is measured -------------------------------------------------------------------------------------------------


def size(model: nn.Module) -> int:
    """Returns the number of trained values."""
    return sum(parameter.numel() for parameter in model.parameters())


def sizes(cut: Cutter) -> str:
    """Returns the parameters of a ResNet-18 that are left after the cut."""
    model = torchvision.models.resnet18().eval()
    before = size(model)
    cut(model, torch.randn(1, 3, 64, 64))
    return f"{size(model) / 1e6:.1f} of {before / 1e6:.1f} M"


def optimizer_state(cut: Cutter) -> str:
    """Returns how many of a ResNet-18's parameters Adam still holds, with moments that fit, after a cut in training."""
    model, inputs = torchvision.models.resnet18(), torch.randn(2, 3, 64, 64)
    optimizer = torch.optim.Adam(model.parameters())
    model(inputs).square().mean().backward()
    optimizer.step()
    cut(model.eval(), inputs, [optimizer])
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    parameters = list(model.parameters())
    known = [parameter for parameter in parameters if id(parameter) in held]
    moments = [optimizer.state[parameter].get("exp_avg", torch.empty(0)) for parameter in known]
    fitting = [moment for moment, parameter in zip(moments, known, strict=True) if moment.shape == parameter.shape]
    return f"{len(known)} of {len(parameters)} held, {len(fitting)} with moments that fit"


def half(cut: Cutter, kind: type[nn.Module]) -> str:
    """Returns what came of a network after the cut: "exact", the difference from the zeroed one, or the error."""
    model, inputs = build(kind), torch.randn(2, 3, SIDE, SIDE, dtype=torch.float64)
    before = size(model)
    try:
        reference = cut(model, inputs[:1])
        if size(model) == before:
            return "nothing is smaller"
        with torch.no_grad():
            if reference is None:
                reference = zeroed(build(kind), model)
            apart = ((model(inputs) - reference(inputs)).norm() / reference(inputs).norm()).item()
    except (*RUN_ERRORS, UsageError) as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0][:60]}"
    return "exact" if apart < CLOSE else f"runs; differs by {apart:.0%}"


def commands(name: str) -> str:
    """Returns the command that trains, resumes and compares, if there is one."""
    if name == "Espalier":
        return "main.py"
    entry_points = importlib.metadata.distribution(name.lower()).entry_points if name == "Torch-Pruning" else ()
    return ", ".join(entry.name for entry in entry_points) or "none"


TOOLS: dict[str, Cutter] = {
    "Espalier": cut_by_espalier,
    "Torch-Pruning": cut_by_torch_pruning,
    "torch.nn.utils.prune": mask_by_torch,
}


def table() -> list[list[str]]:
    """Returns the rows: a heading, then one question per row and one tool per column."""
    tools = {name: cut for name, cut in TOOLS.items() if name != "Torch-Pruning" or torch_pruning() is not None}
    rows = [
        ["", *tools],
        ["ResNet-18, parameters left", *(sizes(cut) for cut in tools.values())],
        ["ResNet-18, in Adam afterwards", *(optimizer_state(cut) for cut in tools.values())],
    ]
    for kind in NETWORKS:
        rows.append([f"{kind.__name__}, half cut", *(half(cut, kind) for cut in tools.values())])
    rows.append(["command line", *(commands(name) for name in tools)])
    return rows


def main() -> int:
    warnings.simplefilter("ignore", UserWarning)
    versions = [f"torch {torch.__version__}"]
    if torch_pruning() is None:
        print("torch-pruning is missing (pip install -r benchmarks/requirements.txt): its column is left out")
    else:
        versions.append(f"torch-pruning {importlib.metadata.version('torch-pruning')}")
    print(", ".join(versions))
    for row in table():
        print(f"| {' | '.join(row)} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
