from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from losses._fit import LEFT_OUT, divergence, misfit
from pruning.measure.measures import Sums
from pruning.modules.calls import scores_of

BLOCK = 2**24  # scores that are measured at a time: those of a large vocabulary would be held twice


class NextToken:
    """Cross-entropy of each token given those before it: scores (B, T, vocabulary), targets (B, T), the same tokens.

    Scores at place t are for the token at t + 1, as in transformers; targets of -100 count nowhere. Measured are the
    perplexity, exp of the mean over tokens, and how often the likeliest token is the next one.
    """

    def __call__(self, outputs: Any, targets: Any) -> Tensor:
        """The mean over the tokens of the batch."""
        scores, tokens = self._next(outputs, targets)
        return F.cross_entropy(scores, tokens, ignore_index=LEFT_OUT)

    def measures(self, outputs: Any, targets: Any) -> Sums:
        """Perplexity is the main one."""
        scores, tokens = self._next(outputs, targets)
        total, right = [], []
        rows = max(1, BLOCK // scores.shape[1])
        for some, true in zip(scores.split(rows), tokens.split(rows), strict=True):
            total.append(F.cross_entropy(some.float(), true, ignore_index=LEFT_OUT, reduction="sum").double())
            right.append((some.argmax(1) == true).sum())
        known = (tokens != LEFT_OUT).sum()
        return {
            "perplexity": torch.stack([torch.stack(total).sum(), known.double()]),
            "next_token_accuracy": torch.stack([torch.stack(right).sum(), known]),
        }

    def distance(self, outputs: Tensor, told: Tensor, targets: Any, temperature: float) -> Tensor:
        """How far scores are from another network's, for distillation, where a token follows that counts."""
        scores, tokens = self._next(outputs, targets)
        others, _ = self._next(told, targets)
        known = tokens != LEFT_OUT
        return divergence(scores[known], others[known], temperature)

    def _next(self, outputs: Any, targets: Any) -> tuple[Tensor, Tensor]:
        """Returns scores (n, vocabulary) and the tokens (n,) that they are for, of all windows."""
        scores = scores_of(outputs)
        are_tensors = isinstance(scores, Tensor) and isinstance(targets, Tensor)
        if not are_tensors or scores.dim() != 3 or targets.is_floating_point() or scores.shape[:2] != targets.shape:
            raise misfit(self, scores, targets, "scores (B, T, vocabulary) and tokens (B, T), the input's own")
        if targets.shape[1] < 2:
            raise misfit(self, scores, targets, "windows of two tokens or more")
        return scores[:, :-1].flatten(0, 1), targets[:, 1:].flatten()
