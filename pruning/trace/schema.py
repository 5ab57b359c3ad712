"""What torch says of an operation: its arguments, its name, its tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_SCHEMAS: dict[Any, tuple[dict[str, tuple[int, Any]], str, bool, bool]] = {}


def schema(func: Any) -> tuple[dict[str, tuple[int, Any]], str, bool, bool]:
    """Returns (argument -> position and default, name of the rule, is it pointwise, can it decompose)."""
    known = _SCHEMAS.get(func)
    if known is None:
        arguments = {
            argument.name: (place, argument.default_value if argument.has_default_value() else None)
            for place, argument in enumerate(func._schema.arguments)
        }
        composite = torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")
        known = (arguments, str(func.overloadpacket), _is_pointwise(func), composite)
        _SCHEMAS[func] = known
    return known


def _is_pointwise(func: Any) -> bool:
    """Says whether torch calls an operation pointwise; some in-place variants lack the tag that the others have."""
    name = func._schema.name.split("::")
    variants = getattr(getattr(torch.ops, name[0]), name[1].rstrip("_"), None) if name[1].endswith("_") else None
    others = [getattr(variants, overload) for overload in variants.overloads()] if variants is not None else []
    return any(torch.Tag.pointwise in other.tags for other in (func, *others))


def tensors_in(args: Sequence[Any], kwargs: dict[str, Any]) -> list[Tensor]:
    found = []
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found.extend(item for item in value if isinstance(item, Tensor))
    return found


def tensor_outputs(out: Any) -> list[Tensor]:
    if isinstance(out, Tensor):
        return [out]
    return [item for item in out if isinstance(item, Tensor)] if isinstance(out, (list, tuple)) else []
