from criterions._guarantee import CUT
from criterions._pfp import FilterSensitivities
from pruning import NodeCriterion
from pruning.compressed import compressed_with


class PFP(FilterSensitivities, NodeCriterion):
    """Filters by the largest share they have in any output that reads them (Liebenwein et al. 2020, arXiv:1911.07412).

    A node's sensitivity is the largest over all layers that read it. One error level for all layers says how many each
    keeps: as many as draws in proportion to the sensitivities would hit on average. The limit counts weights. Needs a
    trained network and data without labels.

    Args:
        points: samples of S; as many as the theory asks for at this delta if not given.
        delta: probability with which the theory's promise may fail, above 0 to below 1.
        channel_reduce: a channel's share is that of its largest kernel entry ("max") or of all together ("sum").
    """

    counts = "weights"
    theorem = CUT


PFPNet = compressed_with(PFP)
