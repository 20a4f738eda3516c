"""Two sizes of one test."""

from typing import Any

import pytest


def sized(short: Any, full: Any) -> pytest.MarkDecorator:
    """The argument `size`: short in the ordinary suite, full under `-m faults`."""
    marks = [pytest.mark.faults, pytest.mark.timeout(3600)]
    return pytest.mark.parametrize("size", [pytest.param(short, id="short"), pytest.param(full, id="full", marks=marks)])
