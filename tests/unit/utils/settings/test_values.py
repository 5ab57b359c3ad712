"""Limits of settings: which numbers a setting takes, and where that is said."""

from __future__ import annotations

import math
from typing import Annotated

import pytest

from pruning import UsageError
from tests.support.running import write_plug_in
from utils.settings import resolve
from utils.settings.flags import flags_of
from utils.settings.values import check_limits, limits_of

SHARE = {"at_least": 0, "below": 1, "words": "is a share"}


@pytest.mark.parametrize(
    ("value", "limits", "said"),
    [
        (0, {"at_least": 1}, "--thing must be at least 1; 0 was given."),
        (0, {"above": 0}, "--thing must be positive; 0 was given."),
        (2, {"above": 3}, "--thing must be above 3; 2 was given."),
        (9, {"at_least": 0, "below": 9}, "--thing must be below 9; 9 was given."),
        (math.nan, {"at_least": 0}, "--thing must be at least 0; nan was given."),
        (math.nan, {"above": 0}, "--thing must be positive; nan was given."),
        (math.nan, {"below": 0}, "--thing must be below 0; nan was given."),
        (1.0, SHARE, "--thing is a share; 1.0 was given."),
        ((0.5, 1.5), SHARE, "--thing is a share; 1.5 was given."),
        ([0.5, -1], SHARE, "--thing is a share; -1 was given."),
    ],
)
def test_what_is_out_of_limits(value, limits, said):
    with pytest.raises(UsageError) as error:
        check_limits("thing", value, limits)
    assert str(error.value) == said


@pytest.mark.parametrize("value", [None, 0, 0.5, (), [0.0, 0.999]])
def test_what_is_within(value):
    check_limits("thing", value, SHARE)


def test_limits_stand_on_the_parameter():
    def build(rate: Annotated[float, {"below": 2}] = 1.0, count: Annotated[int, "documented"] = 1, plain: int = 3): ...

    flags = {flag.name: flag for flag in flags_of(build, "part")}
    assert [flag.kind for flag in flags.values()] == [float, int, int]
    assert [flag.limits for flag in flags.values()] == [{"below": 2}, None, None]
    assert limits_of(int) == (int, None)


def test_a_plug_in_may_say_its_limits_too(tmp_path):
    source = """
        from typing import Annotated

        from criterions.Magnitude import Magnitude

        class Bounded(Magnitude):
            \"\"\"Bounded.

            Args:
                share: of something.
            \"\"\"

            def __init__(self, share: Annotated[float, {"at_least": 0, "below": 1}] = 0.5) -> None: ...
    """
    own = [
        "--plugin_dir",
        str(write_plug_in(tmp_path, "criterions", "Bounded", source)),
        "--prune_criterion",
        "Bounded",
    ]
    assert resolve.parse([*own, "--share", "0.2"]).values["share"] == 0.2
    with pytest.raises(UsageError, match="--share must be below 1; 1.0 was given"):
        resolve.parse([*own, "--share", "1"])
    resolve.parse(["--plugin_dir", ""])


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--prune_through", "0.5", "1.5"], "--prune_through is a fraction removed"),
        (["--prune_through", "0.5", "0.3"], "--prune_through rises towards --pruning_limit; 0.5 0.3 0.9 does not"),
        (["--keep_epochs", "3", "--epochs", "2"], "--keep_epochs takes numbers from 0 to --epochs, 2; 3 was given"),
        (["--hold_out", "1"], "--hold_out is a share of the training data, 0 to below 1; 1.0 was given"),
        (["--status"], "--status needs --experiment FILE"),
        (["--dry_run"], "--dry_run needs --experiment FILE"),
        (["--recalibrate", "-1"], "--recalibrate must be at least 0"),
        (["--rank_timeout", "0"], "--rank_timeout must be positive"),
        (["--seed", str(2**63)], f"--seed must be below {2**63}"),
        (
            ["--mask_control", "shufle"],
            "'shufle' was given. Did you mean shuffle",
        ),
    ],
)
def test_settings_of_parts_are_checked_before_anything_is_built(argv, said):
    with pytest.raises(UsageError) as error:
        resolve.parse(argv)
    assert said in str(error.value)


def test_the_greatest_seed_is_one():
    assert resolve.parse(["--seed", str(2**63 - 1)]).core.seed == 2**63 - 1
