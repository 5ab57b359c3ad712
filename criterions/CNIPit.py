from criterions._halving import Halving
from criterions.CNIP import CNIP


class CNIPit(Halving, CNIP):
    """CNIP again and again, halving the distance to the limit each time (Verdenius et al. 2020, arXiv:2006.00896)."""
