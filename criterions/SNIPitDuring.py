from criterions.SNIPit import SNIPit


class SNIPitDuring(SNIPit):
    """SNIP-it with its events spread over training, no rewinding (Verdenius et al. 2020, arXiv:2006.00896)."""

    moment = "during"
