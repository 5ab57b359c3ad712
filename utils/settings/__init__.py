"""From what the user typed to one set of checked values."""
