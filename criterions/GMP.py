from criterions.Magnitude import Magnitude
from pruning import schedule


class GMP(Magnitude):
    """Gradual magnitude pruning |w| with a cubic schedule during training (Zhu and Gupta 2017, arXiv:1710.01878).

    Removed weights stay removed (the paper lets masked weights drift on; a hard mask is simpler and close to it).

    Args:
        gmp_steps: pruning events; most is removed in the first ones.
    """

    moment = "during"

    def __init__(self, *, gmp_steps: int = 10) -> None:
        if gmp_steps < 1:
            raise ValueError(f"gmp_steps must be at least 1; {gmp_steps} was given")
        self.gmp_steps = gmp_steps

    def sparsities(self, limit: float) -> list[float]:
        return schedule.cubic(limit, self.gmp_steps)
