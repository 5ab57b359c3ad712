"""Which tests run when: by default what shows every promise once, with `-m thorough` whole families of cases."""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import Any

import pytest

thorough = pytest.mark.thorough


def few(cases: Iterable[Any], quick: Container[Any]) -> list[Any]:
    """Returns the values of one parameter for `parametrize`; all but the quick ones wait for `-m thorough`."""
    chosen = list(cases)
    assert any(case in quick for case in chosen), "a family without a quick case would not run by default"
    return [case if case in quick else pytest.param(case, marks=thorough) for case in chosen]


def later(*cases: tuple[Any, ...]) -> list[Any]:
    """Returns cases of several parameters that wait for `-m thorough`, to stand beside the quick ones."""
    return [pytest.param(*case, marks=thorough) for case in cases]
