from pruning import schedule


class Halving:
    """SNIP-it's steps (arXiv:2006.00896): each halves what is left of the way to the limit.

    Args:
        snip_steps: how often the distance to the limit is halved after the first event; makes snip_steps + 2 events.
    """

    def __init__(self, *, snip_steps: int = 5) -> None:
        if snip_steps < 0:
            raise ValueError(f"snip_steps must be at least 0; {snip_steps} was given")
        self.snip_steps = snip_steps

    def sparsities(self, limit: float) -> list[float]:
        return schedule.halving(limit, self.snip_steps)
