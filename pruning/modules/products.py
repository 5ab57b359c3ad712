"""Which parameters a run multiplies by: followed from where a module keeps them to the products that read them.

Views of a parameter are known by the memory that they share with it. What has memory of its own (casts, gathered
experts, weight norm, a mask times a weight) is followed from one operation to the next, as long as a zero in the
parameter stays a zero in what comes out.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from pruning.modules.kinds import Sides
from pruning.modules.sources import Source, Step, dims_along, name_of, span_of


class Entry(NamedTuple):
    """What is known of a tensor.

    Args:
        sources: parameter's name -> what is in it of that; none for constants.
        alone: whether it stems from parameters and constants alone.
    """

    sources: dict[str, Source]
    alone: bool = True


Meets = Literal["inputs", "weights", "constants"]


class Operation(NamedTuple):
    """An operation that was done: what it was called with, and what came out."""

    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Any


class Product(NamedTuple):
    """A product that reads a parameter.

    Args:
        name: of the parameter.
        source: what the factor has of it.
        place: of the factor among the operation's arguments.
        done: the operation.
        sharers: how many parameters multiply in it, this one included.
        meets: what the other factor is. Where it is made of parameters or constants alone, and no layer's input, what
            comes out is a weight that multiplies later.
    """

    name: str
    source: Source
    place: int
    done: Operation
    sharers: int
    meets: Meets

    @property
    def operation(self) -> str:
        """The operation's name."""
        return name_of(self.done.func)

    @property
    def args(self) -> tuple[Any, ...]:
        """The operation's arguments by place."""
        return self.done.args

    @property
    def factor(self) -> Tensor:
        """The parameter, or what is made of it, as it multiplies."""
        factor: Tensor = self.args[self.place]
        return factor

    def summed_dims(self) -> set[int]:
        """Returns the dimensions of the factor that the product sums over."""
        last = self.factor.dim() - 1
        if self.operation in _CONVOLUTIONS:
            is_transposed = self.operation == "convolution" and bool(self.args[6])
            outputs = 1 if is_transposed else 0
            return set(range(last + 1)) - {outputs}
        if self.operation == "_trilinear":
            # Dimensions of all factors together, of which some were inserted in this one.
            inserted, summed = self.args[3 + self.place], self.args[6]
            rank = last + 1 + len(inserted)
            own = [dim for dim in range(rank) if dim not in inserted]
            return {place for place, dim in enumerate(own) if dim in summed}
        is_left = self.place == FACTORS[self.operation][0]
        return {last} if is_left or not last else {last - 1}

    def sides(self, parameter: Tensor) -> Sides:
        """Returns how the parameter multiplies here."""
        summed: set[int] = set()
        for dim in self.summed_dims():
            summed |= dims_along(self.source, parameter, self.factor, dim)
        if self.source.view is None:  # part of a product of parameters
            return Sides((0,), None)
        outputs = tuple(dim for dim in range(parameter.dim()) if dim not in summed)
        is_convolution = self.operation in _CONVOLUTIONS
        if is_convolution and not self.source.steps and parameter.dim() == self.factor.dim():
            return Sides(outputs, 0 if 1 in outputs else 1)
        return Sides(outputs, summed.pop() if len(summed) == 1 else None)


# Operation -> places of its factors among the arguments. The weight of a convolution is always the second.
FACTORS: dict[str, tuple[int, ...]] = {
    "mm": (0, 1),
    "bmm": (0, 1),
    "addmm": (1, 2),
    "addbmm": (1, 2),
    "baddbmm": (1, 2),
    "_addmm_activation": (1, 2),
    "mv": (0, 1),
    "addmv": (1, 2),
    "dot": (0, 1),
    "vdot": (0, 1),
    "_trilinear": (0, 1, 2),
    "_grouped_mm": (0, 1),
    "grouped_mm_fallback": (0, 1),
    "convolution": (0, 1),
    "deform_conv2d": (0, 1),
}
_CONVOLUTIONS = ("convolution", "deform_conv2d")


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Entries come out as they went in, in other places.
_MOVES = _names(
    "view _unsafe_view _reshape_alias expand permute transpose t unsqueeze squeeze select slice split "
    "split_with_sizes unsafe_split unsafe_split_with_sizes unbind diagonal flip roll repeat "
    "alias detach clone _to_copy lift_fresh index index_select"
)
# These leave every entry in its place.
_COPIES = _names("alias detach clone _to_copy lift_fresh")
# A zero stays a zero: entries are multiplied, hidden, or put through a function of nought.
_SCALES = _names("mul div neg masked_fill tril triu abs relu tanh _weight_norm_interface")
_LINEAR = _names("mul div neg")
# What is added up is multiplied together with the rest.
_SUMS = _names("add sub cat stack")


@functools.cache
def _is_composite(func: Any) -> bool:
    """Says whether torch can take an operation apart into others, on every device."""
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"))


class Products(TorchDispatchMode):
    """Hands on every product by a parameter while a network runs, or by what is computed from one.

    Args:
        parameters: name -> parameter that is followed.
        constants: buffers; they are no inputs of the network.
        layers: names of the parameters that layers of a known type multiply by. What such a parameter is multiplied
            with is its input, even if that is a parameter too: learned queries, the first state.
        take: gets each product, once the operation is done.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        constants: Iterable[Tensor],
        layers: Iterable[str],
        take: Callable[[Product], None],
    ) -> None:
        super().__init__()
        self.take = take
        self.layers = frozenset(layers)
        self.looked_up: set[str] = set()  # parameters of which rows were picked out
        self._known: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        for constant in constants:
            self._known[constant] = Entry({})
        # Memory -> (first, last place, name); parameters of an LSTM share one piece on a GPU.
        self._memory: dict[int, list[tuple[int, int, str]]] = {}
        self._kinds = {name: parameter.dtype for name, parameter in parameters.items()}
        for name, parameter in parameters.items():
            start = int(parameter.storage_offset())
            places = self._memory.setdefault(_memory_of(parameter), [])
            places.append((start, start + span_of(parameter), name))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        operation = name_of(func)
        if _is_composite(func) and operation not in FACTORS:
            with self:  # what it is made of arrives one by one
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        out = func(*args, **kwargs)
        if operation in FACTORS:
            self._note_product(Operation(func, args, kwargs, out))
        else:
            self._note(func, operation, args, kwargs, out)
        return out

    # -- what is known of a tensor ---------------------------------------------------------------------------------

    def entry_of(self, tensor: Any) -> Entry | None:
        """Returns what is known of a tensor; None of one that depends on the network's inputs."""
        if not isinstance(tensor, Tensor):
            return Entry({})  # a number
        known: Entry | None = self._known.get(tensor)
        if known is not None:
            return known
        offset = int(tensor.storage_offset())
        for start, end, name in self._memory.get(_memory_of(tensor), ()):
            if tensor.dtype != self._kinds[name]:  # pairs of numbers seen as complex ones: places are counted otherwise
                return Entry({name: Source(None)})
            if start <= offset <= end:
                return Entry({name: Source((tensor.shape, tensor.stride(), offset - start))})
        return None

    def _store(self, out: Any, entry: Entry | None) -> None:
        for tensor in _tensors(out):
            if entry is not None:
                self._known[tensor] = entry
            elif tensor in self._known:  # written over in place
                del self._known[tensor]

    # -- operations ------------------------------------------------------------------------------------------------

    def _note(self, func: Any, operation: str, args: Any, kwargs: Any, out: Any) -> None:
        """Follows what a tensor that stems from parameters becomes."""
        given = _tensors((args, kwargs))
        entries = [self.entry_of(tensor) for tensor in given]
        has_sources = any(entry is not None and entry.sources for entry in entries)
        is_alone = all(entry is not None and entry.alone for entry in entries)
        if not has_sources:
            # What chance has a part in is a value like any input.
            is_constant = is_alone and torch.Tag.nondeterministic_seeded not in func.tags
            self._store(out, Entry({}) if is_constant else None)
            return
        if operation in ("index", "index_select", "embedding", "gather") and self._looks_up(operation, args):
            self._store(out, None)
            return
        if operation in _MOVES:
            self._move(func, operation, args, kwargs, out)
        elif operation in _SCALES:
            scaled = _scaled(operation, entries, given, out)
            self._store(out, Entry(scaled, is_alone) if scaled else None)
        elif operation in _SUMS:
            summed = _summed(entries, given, out)
            self._store(out, Entry(summed) if is_alone else None)
        elif is_alone:
            names = {name for entry in entries if entry is not None for name in entry.sources}
            self._store(out, Entry({name: Source(None, zeros_stay=False) for name in names}))
        else:
            self._store(out, None)

    def _move(self, func: Any, operation: str, args: Any, kwargs: Any, out: Any) -> None:
        entry = self.entry_of(args[0])
        if entry is None:
            self._store(out, None)
            return
        outs = _tensors(out)
        for place, tensor in enumerate(outs):
            if self._is_parameters_memory(tensor):
                continue  # known by what it shares
            step = Step(func, tuple(args[1:]), dict(kwargs), place if isinstance(out, (list, tuple)) else None)
            moved = {}
            for name, source in entry.sources.items():
                is_moved = source.view is not None and operation not in _COPIES
                moved[name] = source._replace(steps=(*source.steps, step)) if is_moved else source
            self._known[tensor] = entry._replace(sources=moved)

    def _is_parameters_memory(self, tensor: Tensor) -> bool:
        return _memory_of(tensor) in self._memory

    def _looks_up(self, operation: str, args: Any) -> bool:
        """Says whether rows of a table are picked out, and notes the table; whole matrices of experts are none."""
        table = args[0]
        if operation == "index":
            picked = [place for place, index in enumerate(args[1]) if index is not None]
            is_experts = not picked or picked[-1] < table.dim() - 2
        else:
            is_experts = operation == "index_select" and args[1] % max(table.dim(), 1) < table.dim() - 2
        entry = self.entry_of(table)
        if not is_experts and entry is not None:
            self.looked_up.update(entry.sources)
        return not is_experts

    def _note_product(self, done: Operation) -> None:
        operation = name_of(done.func)
        factors = [(place, self.entry_of(done.args[place])) for place in FACTORS[operation]]
        if operation in _CONVOLUTIONS:
            self._store(done.out, None)
            # The second factor is the weight, even if it was scaled by something of the inputs.
            weight = factors[1][1]
            if weight is not None:
                self._hand_on(done, 1, weight, "inputs")
            return
        weights = {place: entry for place, entry in factors if entry is not None and entry.alone and entry.sources}
        of_layers = {place: entry for place, entry in weights.items() if self.layers & set(entry.sources)}
        if len(of_layers) == len(factors):
            of_layers = {}  # merged weights of two layers: neither is the other's input
        is_alone = all(entry is not None and entry.alone for _, entry in factors)
        if not is_alone or of_layers:
            # What a layer multiplies is its input, even if it is a parameter; what comes out, a value like any other.
            self._store(done.out, Entry({}) if is_alone else None)
            meets: Meets = "inputs"
        else:
            # A product of weights is a weight, which multiplies where it meets an input.
            self._store(done.out, Entry(_product_of(weights.values())))
            meets = "weights" if len(weights) == len(factors) else "constants"
        chosen = of_layers if is_alone and of_layers else weights
        sharers = 1 if meets == "inputs" else sum(len(entry.sources) for entry in chosen.values())
        for place, entry in chosen.items():
            self._hand_on(done, place, entry, meets, sharers)

    def _hand_on(self, done: Operation, place: int, entry: Entry, meets: Meets, sharers: int = 1) -> None:
        # Lengths that a weight is divided by have no part of their own in it.
        multiplying = [name for name, source in entry.sources.items() if source.zeros_stay]
        sharers = max(sharers, len(multiplying))
        for name, source in entry.sources.items():
            self.take(Product(name, source, place, done, sharers, meets))


def _product_of(factors: Iterable[Entry]) -> dict[str, Source]:
    """Returns what a product of parameters, or of parameters and constants, has of them."""
    found = {}
    for entry in factors:
        for name, source in entry.sources.items():
            found[name] = Source(None, (), source.zeros_stay)
    return found


def _scaled(operation: str, entries: list[Entry | None], given: list[Tensor], out: Any) -> dict[str, Source]:
    """Returns what a tensor has of parameters once it was scaled; the result has the shape of one of them."""
    shape = _tensors(out)[0].shape
    from_parameters = [entry for entry in entries if entry is not None and entry.sources]
    found: dict[str, Source] = {}
    for place, (entry, tensor) in enumerate(zip(entries, given, strict=True)):
        if entry is None:
            continue
        is_whole = tensor.shape == shape
        # Of two parameters one that is repeated is a scale, such as the lengths in weight norm.
        is_scaled = (operation == "mul" or place == 0) and (is_whole or len(from_parameters) == 1)
        for name, source in entry.sources.items():
            if name in found and found[name].zeros_stay:
                continue
            in_place = source if is_whole else Source(None, (), source.zeros_stay)
            # Of a product of parameters only a multiple is one, too; of entries any function of nought will do.
            is_linear = operation in _LINEAR or in_place.view is not None
            found[name] = in_place._replace(zeros_stay=source.zeros_stay and is_scaled and is_linear)
    return found


def _summed(entries: list[Entry | None], given: list[Tensor], out: Any) -> dict[str, Source]:
    """Returns what a sum has of parameters: less their own mean, a zero of them is none any more."""
    shape = _tensors(out)[0].shape
    found: dict[str, Source] = {}
    for entry, tensor in zip(entries, given, strict=True):
        for name, source in entry.sources.items() if entry is not None else ():
            is_in_place = tensor.shape == shape and name not in found
            stays = source.zeros_stay and (name not in found or found[name].zeros_stay)
            summed = source if is_in_place else Source(None)
            found[name] = summed._replace(zeros_stay=stays)
    return found


def _memory_of(tensor: Tensor) -> int:
    try:
        return tensor.untyped_storage()._cdata
    except (RuntimeError, NotImplementedError):  # sparse tensors have none
        return 0


def _tensors(value: Any) -> list[Tensor]:
    """Returns the tensors among arguments or results, those in lists included."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        return []
    return [tensor for item in value for tensor in _tensors(item)]
