from pruning import WeightCriterion, schedule


class EmptyCrit(WeightCriterion):
    """Prunes nothing: the dense baseline."""

    needs_data = False
    schedule = schedule.no_events
