"""Tables of values that modules keep as plain attributes, which neither parameters nor buffers know of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

_MOST_TABLES = 1000  # in one list


def plain_tables(model: nn.Module) -> dict[str, Tensor]:
    """Returns tables that modules keep as plain attributes, or in lists and dicts, each once by name.

    These are tensors of floating point that are neither trained nor share memory with what is: sinusoids, frequencies,
    masks. Names are "path.attribute", "path.attribute[place]" in a list or dict.
    """
    memories = {_memory(tensor) for tensor in (*model.parameters(), *model.buffers())}
    found: dict[str, Tensor] = {}
    known: set[int] = set()
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            for own_name, table in _tables_in(name, value):
                if id(table) not in known and _memory(table) not in memories:
                    known.add(id(table))
                    found[f"{path}.{own_name}" if path else own_name] = table
    return found


def _tables_in(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    """Yields (name, table) of an attribute that holds one, or a list or dict of them."""
    parts: list[tuple[str, Any]] = [(name, value)]
    if type(value) in (list, tuple) and len(value) <= _MOST_TABLES:
        parts = [(f"{name}[{place}]", item) for place, item in enumerate(value)]
    elif type(value) is dict and not name.startswith("_"):
        parts = [(f"{name}[{key}]", item) for key, item in value.items() if "." not in str(key)]
    for own_name, item in parts:
        if type(item) is not Tensor or item.requires_grad or item.layout != torch.strided:
            continue
        # One that has a single index left is still one.
        if item.dim() and (item.is_floating_point() or item.is_complex()):
            yield own_name, item


def _memory(tensor: Tensor) -> int:
    if is_lazy(tensor) or tensor.layout != torch.strided or tensor.is_meta:
        return id(tensor)
    return tensor.untyped_storage().data_ptr()
