"""Which parameters can lose single weights, and in which order they multiply."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized

from pruning.errors import UsageError
from pruning.modules.calls import RUN_ERRORS, check_network, replaced
from pruning.modules.kinds import NORMS, TABLES, WEIGHTED, Sides, channel_dims, check_not_quantised, matrices_of
from pruning.modules.modes import look, undisturbed
from pruning.modules.products import Product, Products

# Why a parameter stays out; each goes on "..., 3.1 % of all parameters".
TABLE = "looked up, not multiplied"
HIDDEN = "computed anew before it multiplies, so that a zero in it is none there"
UNKNOWN = "in no known layer; example inputs would show whether it multiplies"
UNWATCHED = "in no known layer, and the network does not run while it is watched"
UNUSED = "multiplies nothing on the example"


@dataclass(frozen=True)
class Weight:
    """A parameter that can lose single weights: a matrix that multiplies.

    Args:
        path: of the module that it belongs to.
        sides: dimensions of its outputs and its inputs.
        of_layer: whether a layer of a known type keeps it.
    """

    path: str
    sides: Sides
    of_layer: bool = True


@dataclass
class Weights:
    """The matrices of a network.

    Args:
        found: name -> weight, in the order in which they multiply.
        left_out: name -> why, of all other parameters with more than one dimension that is longer than 1.
    """

    found: dict[str, Weight]
    left_out: dict[str, str]


@dataclass
class _Matrix:
    """A matrix of a layer of a known type.

    Args:
        path: of the layer.
        module: the layer.
        attribute: under which the layer keeps it.
        sides: dimensions of its outputs and its inputs.
    """

    path: str
    module: nn.Module
    attribute: str
    sides: Sides


@dataclass
class _Use:
    """A product by a parameter.

    Args:
        place: how many modules had been called before.
        sides: of the parameter in it.
    """

    place: int
    sides: Sides


@dataclass
class _Run:
    """What one run showed.

    Args:
        calls: module path -> how many modules were called before it for the first time.
        uses: parameter -> its first product with what depends on the inputs.
        uses_with_constants: parameter -> its first product with something that does not.
        looked_up: parameters of which rows were picked out.
        is_watched: whether products could be seen.
    """

    calls: dict[str, int] = field(default_factory=dict)
    uses: dict[str, _Use] = field(default_factory=dict)
    uses_with_constants: dict[str, _Use] = field(default_factory=dict)
    looked_up: set[str] = field(default_factory=set)
    is_watched: bool = True


def find_weights(
    model: nn.Module, example_inputs: Any = None, asked: Callable[[str], bool] = lambda name: False
) -> Weights:
    """Returns the parameters that multiply: those of known layers and, where an example is given, what one run shows.

    The order is that of execution where an example is given (first and last layer are then what they seem), else
    that of definition. A weight shared by several layers is named once, after its first owner. A layer whose weight
    is reparametrised (weight_norm, spectral_norm) is named by the parameter that its weight is computed from; it is
    left out if a zero there is no zero in the weight (orthogonal). So are tables of embeddings, unless they multiply
    somewhere else. Biases and norms are nobody's matrices.

    Args:
        model: it runs once and stays as it is.
        example_inputs: what it is called with, if anything.
        asked: says of an embedding's weight whether it shall be among them all the same.

    Raises:
        UsageError: for a lazy layer that no example has given a shape yet, and for a sparse weight.
    """
    parameters = dict(model.named_parameters())
    check_dense(parameters)
    matrices = _matrices(model, asked)
    run = None if example_inputs is None else _run_once(model, example_inputs, matrices)
    names = {id(parameter): name for name, parameter in parameters.items()}
    placed = _placed(matrices, run)
    layers: dict[str, Weight] = {}
    hidden: set[str] = set()
    for _, matrix in placed:
        source = _source_of(matrix.module, matrix.attribute)
        if isinstance(source, nn.parameter.UninitializedParameter):
            raise UsageError(f"{matrix.path!r} has no shape yet: give example inputs, or call the model once before.")
        name = names.get(id(source))
        if name is not None:
            layers.setdefault(name, Weight(matrix.path, matrix.sides))
        else:
            hidden.add(f"{matrix.path}." if matrix.path else "")
    found = _with_own(layers, placed, run, names)
    left_out = {}
    for name, parameter in parameters.items():
        if name not in found and _is_matrix(parameter):
            left_out[name] = _why_not(model, name, run, hidden)
    return Weights(found, left_out)


def prunable_weights(model: nn.Module, example_inputs: Any = None) -> dict[str, str]:
    """Returns {parameter name: module path} of what `find_weights` finds."""
    return {name: weight.path for name, weight in find_weights(model, example_inputs).found.items()}


def _matrices(model: nn.Module, asked: Callable[[str], bool]) -> list[_Matrix]:
    """Lists the matrices of all layers of a known type, and tables that are asked for, in order of definition."""
    found = []
    for path, module in model.named_modules():
        for attribute, sides in matrices_of(module):
            found.append(_Matrix(path, module, attribute, sides))
        if isinstance(module, TABLES) and asked(f"{path}.weight" if path else "weight"):
            outputs, inputs = channel_dims(module)
            found.append(_Matrix(path, module, "weight", Sides((outputs,), inputs)))
    return found


def _with_own(
    layers: dict[str, Weight], placed: list[tuple[float, _Matrix]], run: _Run | None, names: Mapping[int, str]
) -> dict[str, Weight]:
    """Returns the weights of known layers and the parameters that modules multiply by themselves, in order."""
    own = [] if run is None else [name for name in run.uses if name not in layers]
    if run is None or not own:
        return layers
    place_of: dict[str, float] = {}
    for place, matrix in placed:
        name = names.get(id(_source_of(matrix.module, matrix.attribute)))
        if name is not None:
            place_of.setdefault(name, place)
    found = dict(layers)
    for name in own:
        found[name] = Weight(_owner_of(name), run.uses[name].sides, of_layer=False)
        # After the module that was called last before, and before the next one.
        place_of[name] = run.uses[name].place - 0.5
    return dict(sorted(found.items(), key=lambda item: place_of[item[0]]))


def _owner_of(name: str) -> str:
    """Returns the path of the module that a user knows: parametrised weights belong to their layer."""
    path, _, _ = f".{name}".partition(".parametrizations.")
    if path == f".{name}":
        path = path.rpartition(".")[0]
    return path.removeprefix(".")


def _is_matrix(parameter: Tensor) -> bool:
    return not is_lazy(parameter) and sum(size > 1 for size in parameter.shape) > 1


def _why_not(model: nn.Module, name: str, run: _Run | None, hidden: set[str]) -> str:
    modules = dict(model.named_modules())
    if isinstance(modules.get(name.rpartition(".")[0]), TABLES) or (run is not None and name in run.looked_up):
        return TABLE
    if any(name.startswith(layer) for layer in hidden):
        return HIDDEN
    if run is None:
        return UNKNOWN
    return UNUSED if run.is_watched else UNWATCHED


def normalised_dimension(model: nn.Module, name: str, path: str) -> int | None:
    """Returns the dimension whose slices weight_norm divides by their length, None for any other weight.

    A slice without a single weight left would be 0 / 0, so each must keep one.
    """
    weight = model.get_parameter(name)
    module = model.get_submodule(path)
    own_name = name.removeprefix(f"{path}.")
    for other, lengths in module.named_parameters():
        is_only_matrix = isinstance(module, WEIGHTED) and "weight" in other
        if not is_only_matrix and other not in _lengths_of(own_name):
            continue
        # The lengths have the weight's dimensions, all of size 1 but the one whose slices they are of.
        if lengths.dim() != weight.dim() or lengths.shape == weight.shape:
            continue
        wide = [dim for dim in range(weight.dim()) if lengths.shape[dim] != 1]
        return wide[0] if wide else 0
    return None


def _lengths_of(name: str) -> tuple[str, ...]:
    """Returns the names under which torch's two kinds of weight norm keep the lengths of a direction's slices."""
    found = []
    if name.endswith("_v"):
        found.append(name.removesuffix("_v") + "_g")
    if name.endswith(".original1"):
        found.append(name.removesuffix("1") + "0")
    return tuple(found)


def _source_of(module: nn.Module, attribute: str) -> nn.Parameter | None:
    """Returns the parameter that a layer's matrix is, or is computed from; None if a zero there is none in it."""
    own = module._parameters.get(attribute)
    if own is not None:
        return own
    # Spectral norm would take a step of its iteration in training mode; others draw numbers or keep what they made.
    with undisturbed(module):
        weight = getattr(module, attribute, None)
    if not isinstance(weight, Tensor):
        return None
    for name, source in module.named_parameters():
        is_source = _may_be_source(name, attribute) and source.shape == weight.shape
        if is_source and _zeros_stay(module, attribute, source):
            return source
    return None


def _may_be_source(name: str, attribute: str) -> bool:
    """Says whether a matrix may be computed from a parameter of this name."""
    if attribute == "weight":  # the only one of its layer
        return "weight" in name
    # An LSTM has many, whose names begin alike.
    older = (f"{attribute}_v", f"{attribute}_orig")
    return name in older or name.startswith(f"parametrizations.{attribute}.")


@torch.no_grad()
def _zeros_stay(module: nn.Module, attribute: str, source: nn.Parameter) -> bool:
    """Whether zeros in the source of a reparametrised weight are zeros in the weight."""
    if not is_parametrized(module, attribute) or source.is_meta:
        # The older hooks of weight_norm, spectral_norm and torch's own pruning only scale.
        return True
    # Like a chess board, so that no slice loses all its weights, which weight norm cannot bear.
    positions = torch.arange(source.numel(), device=source.device)
    coordinates = torch.stack(torch.unravel_index(positions, source.shape))
    gone = (coordinates.sum(0) % 2 == 1).view_as(source)
    with undisturbed(module), replaced(module, {id(source): source.masked_fill(gone, 0)}):
        weight: Tensor = getattr(module, attribute)
        return not bool(weight[gone].any())


# -- one run -----------------------------------------------------------------------------------------------------------


def _run_once(model: nn.Module, example_inputs: Any, matrices: list[_Matrix]) -> _Run:
    """Runs the model once on its example and watches which modules are called, and what multiplies."""
    run = _Run()

    def record(path: str, module: nn.Module, inputs: Any) -> None:
        run.calls.setdefault(path, len(run.calls))

    hooks = []
    for path, module in model.named_modules():
        if not isinstance(module, torch.jit.ScriptModule):  # which refuse hooks, and hold no layer that counts
            hooks.append(module.register_forward_pre_hook(partial(record, path)))
    try:
        products = _products(model, matrices, run)
        run.is_watched = products is None or _is_seen(products, model, example_inputs)
        if products is None or not run.is_watched:
            look(model, example_inputs)
        else:
            run.looked_up = products.looked_up
            # Coordinates that forward makes are inputs, where nothing else is.
            run.uses = run.uses_with_constants | run.uses
    except RUN_ERRORS as error:
        first_line = (str(error).splitlines() or [""])[0]
        raise UsageError(
            f"{type(model).__name__} does not run on its example inputs: {type(error).__name__}: {first_line}"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    return run


def _is_seen(products: Products, model: nn.Module, example_inputs: Any) -> bool:
    """Runs the model and says whether its products could be watched: code compiled by others may not let it."""
    try:
        with products:
            look(model, example_inputs)
    except RUN_ERRORS:
        return False
    return True


def _products(model: nn.Module, matrices: list[_Matrix], run: _Run) -> Products | None:
    """Returns what watches for parameters that modules multiply by themselves; None where every one is known."""
    parameters = {name: parameter for name, parameter in model.named_parameters() if not is_lazy(parameter)}
    for path, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):  # whose tensors nobody may change
            inside = f"{path}." if path else ""
            parameters = {name: tensor for name, tensor in parameters.items() if not name.startswith(inside)}
    names = {id(parameter): name for name, parameter in parameters.items()}
    layers = set()
    for matrix in matrices:
        layers.add(names.get(id(_source_of(matrix.module, matrix.attribute)), ""))
    scales = {id(scale) for module in model.modules() if isinstance(module, NORMS) for scale in module.parameters()}
    unknown = set()
    for name, parameter in parameters.items():
        if name not in layers and parameter.dim() > 1 and id(parameter) not in scales:
            unknown.add(name)
    if not unknown:
        return None

    def take(product: Product) -> None:
        name = product.name
        if name not in unknown or product.meets == "weights" or not product.source.zeros_stay:
            return
        uses = run.uses if product.meets == "inputs" else run.uses_with_constants
        if name not in uses:
            uses[name] = _Use(len(run.calls), product.sides(parameters[name]))

    return Products(parameters, model.buffers(), layers, take)


def _placed(matrices: list[_Matrix], run: _Run | None) -> list[tuple[float, _Matrix]]:
    """Matrices by the first call of their layer, with the number of modules called before.

    Attention reads the weight of its output layer without calling it: such a layer stands where its parent runs. What
    the example never reaches (auxiliary heads) follows its neighbour and cannot pass for the first or the last layer.
    """
    if run is None:
        return [(0.0, matrix) for matrix in matrices]
    calls = run.calls
    paths = [matrix.path for matrix in matrices]
    called = [calls[path] for path in paths if path in calls]
    # Between the first and the last layer that ran, half a place away from either.
    after_first = min(called, default=0) + 0.5
    before_last = max(called, default=0) - 0.5
    placed: list[tuple[float, _Matrix]] = []
    previous = after_first
    for matrix in matrices:
        parent = _silent_parent(matrix.path, paths, calls)
        if matrix.path in calls:
            place: float = calls[matrix.path]
        elif parent is not None:
            place = calls[parent]
        else:
            place = max(min(previous, before_last), min(after_first, before_last))
        placed.append((place, matrix))
        previous = place
    return sorted(placed, key=lambda pair: pair[0])


def _silent_parent(path: str, layers: list[str], calls: Mapping[str, int]) -> str | None:
    """The innermost module around a layer that ran, if it called none of the layers inside it."""
    parent = path.rpartition(".")[0]
    while parent and parent not in calls:
        parent = parent.rpartition(".")[0]
    if not parent:
        return None
    inside = [layer for layer in layers if layer.startswith(parent + ".")]
    return None if any(layer in calls for layer in inside) else parent


def check_dense(parameters: Mapping[str, Tensor]) -> None:
    """Raises UsageError for a parameter that is not stored value by value (sparse CSR, COO): nothing can be cut."""
    for name, parameter in parameters.items():
        if parameter.layout != torch.strided:
            kind = str(parameter.layout).removeprefix("torch.")
            raise UsageError(f"{name} is stored as {kind}; give it dense, by to_dense(). Zeros can become masks.")


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Returns every parameter and buffer once, by its first name."""
    check_network(model)
    modules = dict(model.named_modules())
    parameters = _once(modules, "_parameters")
    check_dense(parameters)
    check_not_quantised(modules)
    found = {**parameters, **_once(modules, "_buffers")}
    for name, tensor in found.items():
        if is_lazy(tensor):
            raise UsageError(f"{name} has no shape yet (a lazy module); run the network once, then build the graph.")
    for name, module in modules.items():
        if isinstance(module, torch.jit.ScriptModule):
            raise UsageError(
                f"{name or 'the model'} is a scripted module, whose tensors cannot be cut; give the original."
            )
        if isinstance(module, nn.parallel.DistributedDataParallel):
            raise UsageError(
                "DistributedDataParallel keeps buffers of its parameters' sizes; give its .module, and wrap it again "
                "after pruning."
            )
    return found


def _once(modules: dict[str, nn.Module], registry: str) -> dict[str, Tensor]:
    """Returns the tensors of one of the modules' registries, each by its first name."""
    found = {}
    known = set()
    for path, module in modules.items():
        for name, tensor in getattr(module, registry).items():
            if tensor is not None and id(tensor) not in known:
                known.add(id(tensor))
                found[f"{path}.{name}" if path else name] = tensor
    return found
