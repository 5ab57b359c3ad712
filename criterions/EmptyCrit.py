from pruning import WeightCriterion


class EmptyCrit(WeightCriterion):
    """Prunes nothing: the dense baseline."""

    needs_data = False

    def sparsities(self, limit: float) -> list[float]:
        return []
