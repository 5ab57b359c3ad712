from criterions._halving import Halving
from criterions.SNIP import SNIP


class SNIPit(Halving, SNIP):
    """SNIP again and again, halving the distance to the limit each time (Verdenius et al. 2020, arXiv:2006.00896)."""

    def __init__(self, *, snip_steps: int = 5, batch_statistics: bool = False) -> None:
        Halving.__init__(self, snip_steps=snip_steps)
        SNIP.__init__(self, batch_statistics=batch_statistics)
