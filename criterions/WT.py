from criterions.Magnitude import Magnitude


class WT(Magnitude):
    """Global weight thresholding, the name under which SiPP's papers compare with Magnitude (arXiv:1506.02626)."""
