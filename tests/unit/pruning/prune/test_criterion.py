"""What a criterion says of itself: when it acts, in which steps, and words that it once used."""

from functools import partial

import pytest

from pruning import Criterion, NodeCriterion, UsageError, WeightCriterion, schedule


def two_steps(limit):
    return [limit / 2, limit]


def test_without_a_schedule_everything_goes_at_once():
    assert WeightCriterion().sparsities(0.9) == [0.9]


def test_a_schedule_is_a_class_attribute():
    class Cubic(WeightCriterion):
        moment = "during"
        schedule = schedule.cubic

    class OfItsOwn(NodeCriterion):
        schedule = two_steps

    class Lambda(NodeCriterion):
        schedule = lambda limit: [limit]  # noqa: E731

    assert Cubic().sparsities(0.8) == schedule.cubic(0.8)
    assert OfItsOwn().sparsities(0.8) == [0.4, 0.8]
    assert Lambda().sparsities(0.8) == [0.8]
    assert type("Below", (Cubic,), {})().sparsities(0.8) == schedule.cubic(0.8)


def test_a_constructor_may_have_a_say_in_the_schedule():
    class Steps(WeightCriterion):
        def __init__(self, *, steps: int = 4) -> None:
            self.schedule = partial(schedule.linear, steps=steps)

    assert Steps(steps=2).sparsities(0.8) == [0.4, 0.8]
    assert Steps().sparsities(0.8) == pytest.approx([0.2, 0.4, 0.6, 0.8])


def test_a_method_schedule_is_left_a_method():
    class Method(WeightCriterion):
        share = 0.25

        def schedule(self, limit):
            return [self.share * limit, limit]

    assert Method().sparsities(0.8) == [0.2, 0.8]


class FormerWord:
    def targets(self, limit):
        return [limit]


@pytest.mark.parametrize(
    "bases, members", [((WeightCriterion,), {"targets": two_steps}), ((FormerWord, NodeCriterion), {})]
)
def test_a_criterion_with_targets_is_told_the_new_word_in_one_line(bases, members):
    with pytest.raises(UsageError) as told:
        type("Old", bases, members)
    message = str(told.value)
    assert "Old.targets" in message and "sparsities(limit)" in message and "\n" not in message


def test_the_base_itself_has_no_former_word():
    assert not hasattr(Criterion, "targets")
