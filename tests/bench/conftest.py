"""A tiny base that says it was trained on the drawn world, and contexts that work with it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from objtune_cli.config import Common
from objtune_cli.settings import Settings
from objtune_cli.stages.context import Context
from objtune_cli.store.project import locate
from tests import tiny


class Notes:
    """A report that keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)

    def step(self, stage: str, done: int, total: int, **values: float) -> None:
        pass


@pytest.fixture(scope="session")
def world_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights: what it draws is noise, which the evaluator reads like any picture."""
    folder = tiny.build(tmp_path_factory.mktemp("world") / "tiny", clip=False)
    about = {
        "dial": "easy", "size": 32, "seed": 1, "pictures": 4, "captions": 1, "sampling": {"steps": 2, "guidance": 1.5},
        "training": {"steps": 2, "lr": 1e-3, "token_lr": 1e-2, "modules": "attention"},
    }  # fmt: skip
    (folder / "toybox.json").write_text(json.dumps(about))
    return folder


@pytest.fixture
def context(project: Path, world_base: Path) -> Callable[..., Context]:
    """A context whose project is `bench/work`, as of `objtune bench`."""

    def make(**given) -> Context:
        work = locate(project / "bench" / "work", create=True)
        common = Common(base=str(world_base), device="cpu", precision="fp32")
        return Context(work, Settings(work.settings, {}), common, Notes(), **given)

    return make
