"""Nodes of a network, their groups, what has to stay, and plans to remove them."""

from pruning.graph.graph import DependencyGraph
from pruning.graph.marks import keep, tie

__all__ = ["DependencyGraph", "keep", "tie"]
