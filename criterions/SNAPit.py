from criterions._halving import Halving
from criterions.SNAP import SNAP


class SNAPit(Halving, SNAP):
    """SNAP again and again, halving the distance to the limit each time (Verdenius et al. 2020, arXiv:2006.00896)."""
