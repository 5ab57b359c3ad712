"""From scores to what stays to one pruning event."""
