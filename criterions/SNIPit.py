from criterions.SNIP import SNIP
from pruning import schedule


class SNIPit(SNIP):
    """SNIP again and again, halving the distance to the limit each time (Verdenius et al. 2020, arXiv:2006.00896).

    Args:
        snip_steps: how often the distance to the limit is halved after the first event; makes snip_steps + 2 events.
        batch_statistics: score with each batch's own norm statistics instead of the running ones.
    """

    def __init__(self, *, snip_steps: int = 5, batch_statistics: bool = False) -> None:
        super().__init__(batch_statistics=batch_statistics)
        if snip_steps < 0:
            raise ValueError(f"snip_steps must be at least 0; {snip_steps} was given")
        self.snip_steps = snip_steps

    def targets(self, limit: float) -> list[float]:
        return schedule.halving(limit, self.snip_steps)
