"""Faults in two sizes: a short form with every run of the suite, the full one with `make faults`, which prints its figures."""

from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The tiny base in SD 1.5's layout."""
    from tests import tiny

    yield tiny.build(tmp_path_factory.mktemp("base") / "tiny", clip=True)
