from criterions.SNAPit import SNAPit


class SNAPitDuring(SNAPit):
    """SNAP-it with its events spread over training (Verdenius et al. 2020, arXiv:2006.00896)."""

    moment = "during"
