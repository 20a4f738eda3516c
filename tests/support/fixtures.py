"""Shared fixtures: tiny random base models, benchmark contexts, and faster sampling and segmentation for tests of whole stages."""

import copy
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from objtune_cli.config.resolve import Settings
from objtune_cli.config.sections import Common
from objtune_cli.models import loading
from objtune_cli.models.base_model import BaseModel
from objtune_cli.models.families.family import Family
from objtune_cli.store.project import find_project
from objtune_cli.workflow.context import StageContext
from tests.support import quick_runs, tiny_sd1


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny SD 1 base with a CLIP."""
    return tiny_sd1.build(tmp_path_factory.mktemp("tiny"), clip=True)


@pytest.fixture
def model(tiny_base: Path) -> BaseModel:
    """The tiny base, loaded anew for each test, since tests add layers and tokens to it."""
    return loading.load(tiny_base, torch.device("cpu"), torch.float32)


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny SD 1 base with a CLIP, for command lines."""
    return tiny_sd1.build(tmp_path_factory.mktemp("base") / "tiny", clip=True)


@pytest.fixture(scope="session")
def bare_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny SD 1 base without a CLIP."""
    return tiny_sd1.build(tmp_path_factory.mktemp("base") / "bare", clip=False)


@pytest.fixture(scope="session")
def trained_artifacts(base: Path, dog_photo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The artifacts of <dog> and <cup>, each trained from a photo of its own by a command; to be copied, not changed."""
    from objtune_cli.cli.app import run

    folder = tmp_path_factory.mktemp("trained")
    settings = (*quick_runs.FAST, *quick_runs.NO_GATE, *quick_runs.set_options("train.max_steps=4", "train.rank=2"))
    for photo, word, name in ((dog_photo, "dog", "dog"), (dog_photo.with_name("mug.jpg"), "mug", "cup")):
        command = ["train", str(photo), "--class", word, "--name", name, *settings, "--no-preview", "--quiet"]
        assert run([*command, "--base", str(base), "--project", str(folder)]) == 0
    return folder / "artifacts"


@pytest.fixture
def fast_sampling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sample few steps, in self-evaluation too: images of a random base are noise anyway."""
    from objtune_cli.training import self_evaluation

    monkeypatch.setitem(Family.sampling, "num_inference_steps", 4)
    monkeypatch.setattr(self_evaluation, "STEPS", 2)


FOUND: dict[str, Any] = {}


@pytest.fixture
def cached_segmentation(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Segment each (photo, class words, base) once per process; a test may clear the returned cache."""
    from objtune_cli.segmentation import from_class_word

    segment = from_class_word.segment_objects

    def cached(eyes: Any, picture: Any, rgb: Any, targets: list[Any]) -> Any:
        if any(t.mask or t.rough_mask for t in targets):
            return segment(eyes, picture, rgb, targets)
        base = eyes.ctx.base
        key = repr((picture.sha256, rgb.shape, targets, asdict(eyes.config), base.fingerprint, base.clip_model))
        if key not in FOUND:
            FOUND[key] = segment(eyes, picture, rgb, targets)
        return copy.deepcopy(FOUND[key])

    monkeypatch.setattr(from_class_word, "segment_objects", cached)
    return FOUND


CALIBRATIONS: dict[str, Any] = {}


@pytest.fixture
def cached_calibrations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calibrate each benchmark object once per process; it renders and reads 96 images."""
    from objtune_cli.evaluation import rendering

    calibrate = rendering.calibrate

    def cached(network: Any, case: Any, dial: Any, seed: int) -> Any:
        key = repr((case, dial, seed, rendering.REFERENCES, rendering.OTHER_INSTANCES, rendering.SIDE))
        if key not in CALIBRATIONS:
            CALIBRATIONS[key] = calibrate(network, case, dial, seed)
        return CALIBRATIONS[key]

    monkeypatch.setattr(rendering, "calibrate", cached)


class Notes:
    """A report that records its notes."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)

    def step(self, stage: str, done: int, total: int, **values: float) -> None:
        pass


@pytest.fixture(scope="session")
def world_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random base that claims to be trained on the toybox's world; its images are noise that the evaluator can read."""
    folder = tiny_sd1.build(tmp_path_factory.mktemp("world") / "tiny", clip=False)
    about = {
        "dial": "easy", "size": 32, "seed": 1, "pictures": 4, "captions": 1, "sampling": {"num_inference_steps": 2, "guidance_scale": 1.5},
        "training": {"max_steps": 2, "learning_rate": 1e-3, "embedding_lr": 1e-2, "target_modules": "attention"},
    }  # fmt: skip
    (folder / "toybox.json").write_text(json.dumps(about))
    return folder


@pytest.fixture
def context(project: Path, world_base: Path) -> Callable[..., StageContext]:
    """A function that makes a context whose project is `bench/work`, as for `objtune bench`."""

    def make(**given) -> StageContext:
        work = find_project(project / "bench" / "work", create=True)
        common = Common(base=str(world_base), device="cpu", precision="fp32")
        return StageContext(work, Settings(work.settings, {}), common, Notes(), **given)

    return make
