"""Comparisons of many runs: their cells, the runners, the report."""
