"""How labels pass through each operation: one file per kind of operation. Importing this package fills the table."""

from pruning.trace.rules import attention, conv, index, join, matmul, norm, pointwise, reduce, slice, spatial, view
from pruning.trace.rules.table import RULES

__all__ = [
    "RULES",
    "attention",
    "conv",
    "index",
    "join",
    "matmul",
    "norm",
    "pointwise",
    "reduce",
    "slice",
    "spatial",
    "view",
]
