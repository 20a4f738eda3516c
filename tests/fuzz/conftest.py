"""Time for thousands of inputs."""

import pytest

from tests.support.fuzzing import FULL

SECONDS = 3600


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """They run with `make properties` alone, which gives each an hour."""
    for item in items:
        if item.path.parent.name == "fuzz":
            item.add_marker("fuzz")
            if FULL:
                item.add_marker(pytest.mark.timeout(SECONDS))
