"""Tiny bases with and without a CLIP; what a word means in a photo is found once in a process."""

import copy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from objtune_cli.families.interface import Family


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures of few steps, those that a run is judged by too: what is in them is noise."""
    from objtune_cli.method import judging

    monkeypatch.setitem(Family.sampling, "steps", 4)
    monkeypatch.setattr(judging, "STEPS", 2)


FOUND: dict[str, Any] = {}


@pytest.fixture(autouse=True)
def looked_once(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The same words of the same photo to the same base find the same masks again; `test_segment.py` looks each time. What is known may be cleared."""
    from objtune_cli.stages import locate

    look = locate.all_of

    def again(eyes: Any, picture: Any, rgb: Any, targets: list[Any]) -> Any:
        if any(t.mask or t.rough for t in targets):
            return look(eyes, picture, rgb, targets)
        base = eyes.ctx.base
        key = repr((picture.sha256, rgb.shape, targets, asdict(eyes.config), base.fingerprint, base.tower))
        if key not in FOUND:
            FOUND[key] = look(eyes, picture, rgb, targets)
        return copy.deepcopy(FOUND[key])

    monkeypatch.setattr(locate, "all_of", again)
    return FOUND


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests import tiny

    return tiny.build(tmp_path_factory.mktemp("base") / "tiny", clip=True)


@pytest.fixture(scope="session")
def bare_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests import tiny

    return tiny.build(tmp_path_factory.mktemp("base") / "bare", clip=False)
