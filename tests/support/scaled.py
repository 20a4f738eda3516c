"""Two sizes of one test."""

from typing import Any

import pytest


def sized(short: Any, full: Any) -> pytest.MarkDecorator:
    """The argument `size`: short in the ordinary suite, or not there at all (None); full under `-m faults`."""
    marks = [pytest.mark.faults, pytest.mark.timeout(3600)]
    ordinary = [] if short is None else [pytest.param(short, id="short")]
    return pytest.mark.parametrize("size", [*ordinary, pytest.param(full, id="full", marks=marks)])
