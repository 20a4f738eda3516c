"""Tiny bases with and without a CLIP."""

from pathlib import Path

import pytest

from objtune_cli.families.interface import Family


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures of few steps, those that a run is judged by too: what is in them is noise."""
    from objtune_cli.method import judging

    monkeypatch.setitem(Family.sampling, "steps", 4)
    monkeypatch.setattr(judging, "STEPS", 2)


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests import tiny

    return tiny.build(tmp_path_factory.mktemp("base") / "tiny", clip=True)


@pytest.fixture(scope="session")
def bare_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests import tiny

    return tiny.build(tmp_path_factory.mktemp("base") / "bare", clip=False)
