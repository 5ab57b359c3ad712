"""Folders that transformers' own loader takes, of pruned networks. Optional: nothing else of the engine needs it."""
