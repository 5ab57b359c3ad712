"""Targets are fractions removed of what was there at the start; none passes the limit."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pruning import UsageError, schedule
from tests.support import slow_reference as slow

limits = st.floats(1e-6, 0.9999)


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (0.98, [0.5, 0.74, 0.86, 0.92, 0.95, 0.965, 0.98]),
        (0.93, [0.5, 0.715, 0.8225, 0.87625, 0.903125, 0.9165625, 0.93]),
    ],
)
def test_halving_as_published(limit, expected):
    assert schedule.halving(limit, 5) == pytest.approx(expected, abs=1e-12)


@given(limits, st.integers(0, 12))
def test_halving_equals_the_reference_and_never_passes_the_limit(limit, steps):
    targets = schedule.halving(limit, steps)
    assert targets == pytest.approx(slow.halving_schedule(limit, steps), abs=1e-12)
    assert len(targets) == steps + 2 and max(targets) == targets[-1] == limit


def test_a_limit_of_three_tenths_is_never_exceeded():
    assert max(schedule.halving(0.3)) == 0.3
    assert schedule.halving(0.3)[0] == 0.15


@given(limits, st.integers(1, 100))
def test_exponential_and_cubic_equal_the_reference(limit, n):
    assert schedule.exponential(limit, n) == pytest.approx(slow.exponential_schedule(limit, n), abs=1e-9)
    assert schedule.cubic(limit, n) == pytest.approx(slow.cubic_schedule(limit, n)[1:], abs=1e-9)


@given(limits, st.integers(1, 100))
def test_linear_steps_are_equal(limit, n):
    targets = [0.0, *schedule.linear(limit, n)]
    gaps = [b - a for a, b in zip(targets, targets[1:], strict=False)]
    assert gaps == pytest.approx([limit / n] * n)


@given(limits, st.floats(0.05, 0.9))
def test_each_round_removes_the_same_share_of_the_rest(limit, share):
    targets = [0.0, *schedule.share_of_rest(limit, share)]
    shares = [(b - a) / (1 - a) for a, b in zip(targets, targets[1:], strict=False)]
    assert shares[:-1] == pytest.approx([share] * (len(shares) - 1))
    assert 0 < shares[-1] <= share + 1e-9
    assert targets[-1] == limit


def test_lottery_tickets_after_n_rounds():
    assert schedule.share_of_rest(1 - 0.8**3) == pytest.approx([0.2, 0.36, 0.488])


ALL = [
    schedule.one_shot,
    schedule.halving,
    schedule.exponential,
    schedule.cubic,
    schedule.linear,
    schedule.share_of_rest,
]


@pytest.mark.parametrize("make", ALL)
def test_a_limit_of_zero_has_no_events(make):
    assert make(0.0) == []


@pytest.mark.parametrize("make", ALL)
@given(limit=limits)
def test_sparsities_rise_strictly_inside_the_limit(make, limit):
    sparsities = make(limit)
    assert all(0 < sparsity <= limit for sparsity in sparsities) and sparsities[-1] == limit
    assert sparsities == sorted(sparsities)


@pytest.mark.parametrize("bad", [-0.1, 1.0, 98, math.nan, math.inf])
def test_limits_out_of_range_are_refused_with_the_number(bad):
    with pytest.raises(UsageError, match=str(bad)):
        schedule.check_limit(bad)


@pytest.mark.parametrize("bad", [0, 1, -0.5, 2])
def test_shares_out_of_range_are_refused(bad):
    with pytest.raises(UsageError, match="share"):
        schedule.share_of_rest(0.9, bad)
