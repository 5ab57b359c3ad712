from pruning import WeightCriterion, schedule
from pruning.prune.schedule import Schedule


class EmptyCrit(WeightCriterion):
    """Prunes nothing: the dense baseline."""

    needs_data = False
    schedule: Schedule = schedule.no_events
