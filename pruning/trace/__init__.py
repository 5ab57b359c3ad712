"""One run that carries labels: which slices of which parameters each index stems from."""
