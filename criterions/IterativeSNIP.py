from criterions.SNIP import SNIP
from pruning import schedule


class IterativeSNIP(SNIP):
    """SNIP again and again, equal shares of the rest each time (de Jorge et al. 2020, arXiv:2006.09081).

    Args:
        force_steps: pruning events, all before training; after t of T steps (1 - limit)^(t/T) is kept.
        batch_statistics: score with each batch's own norm statistics instead of the running ones.
    """

    def __init__(self, *, force_steps: int = 60, batch_statistics: bool = False) -> None:
        super().__init__(batch_statistics=batch_statistics)
        if force_steps < 1:
            raise ValueError(f"force_steps must be at least 1; {force_steps} was given")
        self.force_steps = force_steps

    def sparsities(self, limit: float) -> list[float]:
        return schedule.exponential(limit, self.force_steps)
