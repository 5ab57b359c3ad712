import torch
from torch import Tensor

from criterions._sampling import draws_for
from criterions.PFPRand import PFPRand


class PFPTop(PFPRand):
    """PFPRand, but filters that a draw would hit anyway stay for certain; the others are drawn (arXiv:1911.07412).

    The k filters with a probability of at least 1 / m stay as they are, m being the number of draws that hit as many
    filters as stay; the rest is drawn among the others and re-weighted. Trained network, data without labels.

    Args:
        points: samples of S; as many as the theory asks for at this delta if not given.
        delta: probability with which the theory's promise may fail, above 0 to below 1.
        channel_reduce: a channel's share is that of its largest kernel entry ("max") or of all together ("sum").
        seed: of the draw (the run's own seed).
    """

    theorem = ""

    def _chances(self, sizes: Tensor, count: int) -> Tensor:
        shares = sizes / sizes.sum()
        draws = draws_for(shares, torch.tensor([float(count)], dtype=torch.float64)).exp()
        order = torch.sort(-shares, stable=True).indices
        sure = min(int((shares * draws >= 1).sum()), count)
        chances, rest = torch.ones_like(shares), order[sure:]
        chances[rest] = super()._chances(sizes[rest], count - sure) if sure < count else 0.0
        return chances
