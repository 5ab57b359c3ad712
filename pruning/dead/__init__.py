"""Nodes that masked weights leave dead, and their removal."""

from pruning.dead.shrink import ShrinkReport, shrink_dead

__all__ = ["ShrinkReport", "shrink_dead"]
