"""Faults in two sizes: a short form with every run of the suite, the full one with `make faults`, which prints its numbers."""

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Print one line of numbers to the terminal, at full size."""

    def line(text: str) -> None:
        if request.node.get_closest_marker("faults"):
            with capsys.disabled():
                print(f"\n{text}", end="")

    return line


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny base in SD 1.5's layout."""
    from tests import tiny

    return tiny.build(tmp_path_factory.mktemp("base") / "tiny", clip=True)
