"""The report of many runs: what there is, the numbers, the tables, the curves, the page."""
