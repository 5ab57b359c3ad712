"""What main.py starts: training, evaluation, and the checks before either."""
