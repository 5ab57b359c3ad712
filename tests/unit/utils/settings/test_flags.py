from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Literal  # noqa: UP035 - as older code writes it

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pruning import Criterion, UsageError
from utils.settings.flags import Flag, flags_of
from utils.settings.parser import make_parser
from utils.settings.signatures import REQUIRED, parameters_of
from utils.settings.values import format_value, parse_value, typable


def flag(kind, default=None):
    return Flag("thing", kind, default, "a thing", "part")


def parsed(kind, *typed):
    return make_parser([flag(kind)], {}).parse_args(["--thing", *typed]).thing


@given(st.integers(-(10**30), 10**30))
def test_every_whole_number_comes_back_exactly(number):
    assert parse_value(int, str(number)) == parse_value(int, number) == number


@given(st.floats(allow_nan=False))
def test_every_number_comes_back_exactly(number):
    assert parse_value(float, repr(number)) == parse_value(float, number) == number


@pytest.mark.parametrize(("text", "number"), [("8e1", 80), ("80.0", 80), ("-3", -3), ("1_000", 1000)])
def test_whole_numbers_in_other_spellings(text, number):
    value = parse_value(int, text)
    assert value == number and isinstance(value, int)


@pytest.mark.parametrize("text", ["2.5", "nan", "inf", "", "x", "1e400"])
def test_what_is_no_whole_number(text):
    with pytest.raises((ValueError, OverflowError)):
        parse_value(int, text)


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        (float, "1e-3", 0.001),
        (float, 3, 3.0),
        (str, 5, "5"),
        (Path, "a/b", Path("a/b")),
        (bool, True, True),
        (list[int], ["1", 2], [1, 2]),
        (tuple[int, ...], [1, 2, 3], (1, 2, 3)),
        (tuple[float, float], [1, "2"], (1.0, 2.0)),
        (list, ["a"], ["a"]),
        (Literal["a", 2], "2", 2),
        (int | str, "5", 5),
        (str | int, "5", 5),
        (int | str, "five", "five"),
        (int | float, "0.5", 0.5),
        (list[str], "a", ["a"]),
        (dict[str, float], {"a.*": "1e-1"}, {"a.*": 0.1}),
        (dict[str, float], ["a=b=.5", "c=1"], {"a=b": 0.5, "c": 1.0}),
        (dict[str, float], "a=1", {"a": 1.0}),
    ],
)
def test_values_in_their_types(kind, value, expected):
    found = parse_value(kind, value)
    assert found == expected and type(found) is type(expected)


@pytest.mark.parametrize(
    ("kind", "value"),
    [(bool, "true"), (bool, 1), (int, True), (float, False), (float, [1.0]), (str, {"a": 1}), (list[int], 3)]
    + [(dict[str, float], value) for value in ("a", ["a=x"], ["a=1", "a=2"], ["=1"], {1: 0.5}, {"a": [1]}, 3)]
    + [(list[int], "12"), (tuple[float, float], [1.0]), (Literal["a", "b"], "c"), (int | float, "x")],
)
def test_values_that_do_not_fit(kind, value):
    with pytest.raises((TypeError, ValueError)):
        parse_value(kind, value)
    with pytest.raises(UsageError, match=r"file\.yaml: thing takes .*was given"):
        flag(kind, default=0).check(value, "file.yaml")


def test_none_fits_where_none_is_the_default():
    assert flag(int | None, 3).check(None) is None
    assert flag(int, None).check(None) is None
    with pytest.raises(UsageError, match="--thing takes a whole number; None was given"):
        flag(int, 3).check(None)


def test_what_can_be_typed():
    inside = [int, float, str, bool, Path, list[int], list, tuple[int, ...], Literal["a"], int | str, Criterion]
    assert all(typable(kind) for kind in [*inside, int | None, list[str] | None, dict[str, float]])
    outside = [dict, Callable, object, list[list[int]], list[dict], dict[str, int] | None, type(print), bytes]
    assert not any(typable(kind) for kind in outside)


def test_switches_and_lists_on_the_command_line():
    parser = make_parser([flag(bool, True)], {})
    assert parser.parse_args(["--no-thing"]).thing is False
    assert parser.parse_args(["--thing"]).thing is True
    assert not hasattr(parser.parse_args([]), "thing"), "what is not typed leaves no trace"
    assert parsed(list[float], "1", "2e-1") == [1.0, 0.2]
    assert parsed(tuple[int, ...]) == []
    assert parsed(float, "-0.5") == -0.5


def test_percent_signs_in_help_are_harmless(capsys):
    made = Flag("share", str, "50%", "20 % of the rest, %(prog)s, 100%", "part")
    make_parser([made], {}, grouped=True).print_help()
    assert "20 % of the rest, %(prog)s, 100% (default: 50%)" in " ".join(capsys.readouterr().out.split())


def test_short_names_are_not_guessed():
    # `--thin` must not become `--thing`: what one means should not hang on which flags there are.
    with pytest.raises(UsageError, match="unrecognized arguments: --thin"):
        make_parser([flag(int)], {}).parse_args(["--thin", "3"])


@dataclass
class Ways:
    """Ways.

    Args:
        depth: how deep.
    """

    depth: int = 2


class Base:
    """Base.

    Args:
        width: how wide.
        shared: of the base.
    """

    def __init__(self, ways: Ways, width: int = 3, shared: str = "base") -> None: ...


class Child(Base):
    """Child.

    Args:
        shared: of the child.
    """

    def __init__(self, network: object, needed, *, shared: str = "child", extra=0.5, **others) -> None: ...


def test_flags_come_from_the_constructor_and_those_it_passes_on_to():
    found = {made.name: made for made in flags_of(Child, "part", handed_over=["network"])}
    assert set(found) == {"needed", "shared", "extra", "depth", "width"}
    assert found["needed"].default is REQUIRED
    assert found["shared"].default == "child" and found["shared"].help == "of the child."
    assert found["extra"].annotation is float
    assert found["width"].default == 3 and found["width"].help == "how wide."
    assert found["depth"].help == "how deep."


def test_parameters_stop_where_nothing_is_passed_on():
    class Alone(Base):
        def __init__(self, own: int = 1) -> None: ...

    assert [parameter.name for parameter in parameters_of(Alone)] == ["own"]


def test_functions_have_flags_too():
    def build(num_classes: int, pretrained: bool = False):
        """Builds.

        Args:
            pretrained: start from learned weights.
        """

    [made] = flags_of(build, "model", handed_over=["num_classes"])
    assert (made.name, made.kind, made.default, made.help) == (
        "pretrained",
        bool,
        False,
        "start from learned weights.",
    )


@pytest.mark.parametrize(
    "docstring",
    [
        None,
        "",
        "Args:\n    alpha 0.3",
        "Args:",
        ":param: x",
        "Args:\n  (int): y\n\nReturns",
        "\n\n   Ragged\n Args:\n a:",
    ],
)
def test_odd_docstrings_do_no_harm(docstring):
    class Odd:
        def __init__(self, alpha: float = 0.3) -> None: ...

    Odd.__doc__ = docstring
    [made] = flags_of(Odd, "part")
    assert made.name == "alpha"


def test_sphinx_and_numpy_docstrings_are_read():
    class Sphinx:
        """Sphinx.

        :param alpha: how much.
        """

        def __init__(self, alpha: float = 0.3) -> None: ...

    class Numpy:
        """Numpy.

        Parameters
        ----------
        alpha : float
            how much.
        """

        def __init__(self, alpha: float = 0.3) -> None: ...

    assert flags_of(Sphinx, "part")[0].help == flags_of(Numpy, "part")[0].help == "how much."


def test_defaults_are_shown_as_typed():
    shown = [format_value(value) for value in (True, False, [1, 2], (), 0.002, "ADAM")]
    assert shown == ["on", "off", "1 2", "none", "0.002", "ADAM"]
    assert math.isclose(float(format_value(5e-05)), 5e-05)


def test_help_of_argparse_is_what_the_flag_says():
    parser = argparse.ArgumentParser()
    flag(Literal["a", "b"], "a").add_to(parser)
    assert "--thing {a,b}" in parser.format_help() and "a thing (default: a)" in parser.format_help()
