"""Layers that become two smaller ones. Optional: nothing else of the engine needs it."""
