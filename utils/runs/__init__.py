"""One run on disk: its folder, checkpoints, result."""
