from criterions._guarantee import CUT
from criterions._sipp import Sensitivities
from pruning import WeightCriterion
from pruning.compressed import compressed_with


class SiPP(Sensitivities, WeightCriterion):
    """Sensitivity: the largest share of a weight in its output over the points of S (Baykal et al., arXiv:1910.05422).

    max over S of the mean over positions of w a / (sum of the products of its sign), ranked over all layers. Needs a
    trained network and data without labels. Promises hold for linear layers; a mean over positions has none.

    Args:
        points: samples of S; as many as the theory asks for at this delta if not given.
        delta: probability with which the theory's promise may fail, above 0 to below 1.
    """

    theorem = CUT


SiPPNet = compressed_with(SiPP)
