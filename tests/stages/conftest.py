"""Tiny bases with and without a CLIP."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests import tiny

    return tiny.build(tmp_path_factory.mktemp("base") / "tiny", clip=True)


@pytest.fixture(scope="session")
def bare_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests import tiny

    return tiny.build(tmp_path_factory.mktemp("base") / "bare", clip=False)
