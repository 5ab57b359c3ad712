"""What torch says of an operation: its arguments, its name, its tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Schema(NamedTuple):
    """What is the same in every call of an operation.

    Args:
        arguments: name -> (position, default; None where there is none).
        name: under which rules stand, "aten.relu".
        pointwise: torch says that it works element by element.
        composite: torch can take it apart into other operations.
    """

    arguments: dict[str, tuple[int, Any]]
    name: str
    pointwise: bool
    composite: bool


_SCHEMAS: dict[Any, Schema] = {}  # a network has hundreds of calls and some twenty operations


def schema(func: Any) -> Schema:
    """Returns what torch says of an overload such as `torch.ops.aten.add.Tensor`."""
    known = _SCHEMAS.get(func)
    if known is None:
        known = _SCHEMAS[func] = _read(func)
    return known


def _read(func: Any) -> Schema:
    arguments = {}
    for place, argument in enumerate(func._schema.arguments):
        default = argument.default_value if argument.has_default_value() else None
        arguments[argument.name] = (place, default)
    name = str(func.overloadpacket)
    # The kernel that calls other operations and holds for every device and for gradients.
    composite = torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")
    return Schema(arguments, name, _is_pointwise(func), composite)


def _is_pointwise(func: Any) -> bool:
    if torch.Tag.pointwise in func.tags:
        return True
    library, name = func._schema.name.split("::")
    if not name.endswith("_"):
        return False
    # Some operations in place lack the tag that the same ones out of place have.
    packet = getattr(getattr(torch.ops, library), name.rstrip("_"), None)
    if packet is None:
        return False
    overloads = [getattr(packet, overload) for overload in packet.overloads()]
    return any(torch.Tag.pointwise in overload.tags for overload in overloads)


def tensors_in(args: Sequence[Any], kwargs: dict[str, Any]) -> list[Tensor]:
    """Returns all tensors among the arguments of an operation, those in lists included."""
    found = []
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found.extend(item for item in value if isinstance(item, Tensor))
    return found


def tensor_outputs(out: Any) -> list[Tensor]:
    """Returns the tensors that an operation returned, in their order."""
    if isinstance(out, Tensor):
        return [out]
    if isinstance(out, (list, tuple)):
        return [item for item in out if isinstance(item, Tensor)]
    return []
