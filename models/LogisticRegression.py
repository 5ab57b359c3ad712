from __future__ import annotations

from models._feedforward import FeedForward
from models._layers import check_settings


class LogisticRegression(FeedForward):
    """One linear layer from the inputs to the classes: the smallest model there is, with no hidden node."""

    def __init__(self, num_classes: int, input_shape: tuple[int, ...]) -> None:
        check_settings(num_classes, input_shape, axes=None)
        super().__init__(num_classes, input_shape, hidden=(), dropout=0.0)
