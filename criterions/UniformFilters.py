from criterions.StructuredRandom import StructuredRandom


class UniformFilters(StructuredRandom):
    """Random filters, the same share of every layer, with a limit that counts weights: what PFP must beat.

    StructuredRandom under the name of PFP's comparison (arXiv:1911.07412).

    Args:
        seed: of the draw (the run's own seed).
    """

    counts = "weights"
