"""A second run with the smaller shapes, which proves a plan."""
