"""Shared fixtures: tiny random base models, benchmark contexts, and faster sampling and segmentation for tests of whole stages.

Heavy libraries are imported inside the fixtures: the process that hands out the tests, and quick tests, do without.
"""

import copy
import hashlib
import json
import os
import pickle
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support import quick_runs

if TYPE_CHECKING:
    from objtune_cli.models.base_model import BaseModel
    from objtune_cli.workflow.context import StageContext


def _run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The temporary folder that all processes of a run share."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


def _build_once(tmp_path_factory: pytest.TempPathFactory, name: str, build: Callable[[Path], object]) -> Path:
    """The folder `name`, built by the first process that needs it while the others wait; nobody changes it afterwards."""
    import fcntl

    folder = _run_folder(tmp_path_factory) / name
    with folder.with_name(f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            unfinished = folder.with_name(f"{name}.unfinished")
            build(unfinished)
            unfinished.rename(folder)
    return folder


def _build_tiny(tmp_path_factory: pytest.TempPathFactory, name: str, *, clip: bool) -> Path:
    from tests.support import tiny_sd1

    return _build_once(tmp_path_factory, name, lambda folder: tiny_sd1.build(folder, clip=clip))


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny SD 1 base with a CLIP."""
    return _build_tiny(tmp_path_factory, "tiny", clip=True)


@pytest.fixture
def model(tiny_base: Path) -> "BaseModel":
    """The tiny base, loaded anew for each test, since tests add layers and tokens to it."""
    import torch

    from objtune_cli.models import loading

    return loading.load(tiny_base, torch.device("cpu"), torch.float32)


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny SD 1 base with a CLIP, for command lines."""
    return _build_tiny(tmp_path_factory, "tiny", clip=True)


@pytest.fixture(scope="session")
def bare_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny SD 1 base without a CLIP."""
    return _build_tiny(tmp_path_factory, "bare", clip=False)


@pytest.fixture(scope="session")
def trained_artifacts(base: Path, dog_photo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The artifacts of <dog> and <cup>, each trained from a photo of its own by a command; to be copied, not changed."""
    from objtune_cli.cli.app import run

    settings = (*quick_runs.FAST, *quick_runs.NO_GATE, *quick_runs.set_options("train.max_steps=4", "train.rank=2"))

    def train(folder: Path) -> None:
        folder.mkdir()
        for photo, word, name in ((dog_photo, "dog", "dog"), (dog_photo.with_name("mug.jpg"), "mug", "cup")):
            command = ["train", str(photo), "--class", word, "--name", name, *settings, "--no-preview", "--quiet"]
            assert run([*command, "--base", str(base), "--project", str(folder)]) == 0

    return _build_once(tmp_path_factory, "trained", train) / "artifacts"


@pytest.fixture
def fast_sampling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sample few steps, in self-evaluation too: images of a random base are noise anyway."""
    from objtune_cli.models.families.family import Family
    from objtune_cli.training import self_evaluation

    monkeypatch.setitem(Family.sampling, "num_inference_steps", 4)
    monkeypatch.setattr(self_evaluation, "STEPS", 2)


class SegmentationCache:
    """Segmented objects by what they depend on, shared by all processes of a run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.results: dict[str, Any] = {}
        self.reads_files = True

    def get_or_compute(self, key: str, compute: Callable[[], Any]) -> Any:
        """A copy of the result of a key."""
        file = self.folder / f"{hashlib.sha256(key.encode()).hexdigest()}.pickle"
        if key not in self.results and self.reads_files and file.is_file():
            self.results[key] = pickle.loads(file.read_bytes())
        if key not in self.results:
            self.results[key] = compute()
            unfinished = file.with_suffix(f".{os.getpid()}")
            unfinished.write_bytes(pickle.dumps(self.results[key]))
            unfinished.replace(file)
        return copy.deepcopy(self.results[key])

    def clear(self) -> None:
        """Compute everything again in the rest of this test."""
        self.results.clear()
        self.reads_files = False


@pytest.fixture(scope="session")
def segmentation_cache(tmp_path_factory: pytest.TempPathFactory) -> SegmentationCache:
    """The cache of this process."""
    folder = _run_folder(tmp_path_factory) / "segmented"
    folder.mkdir(exist_ok=True)
    return SegmentationCache(folder)


@pytest.fixture
def cached_segmentation(segmentation_cache: SegmentationCache, monkeypatch: pytest.MonkeyPatch) -> SegmentationCache:
    """Segment each (photo, class words, base) once per run; a test may clear the returned cache."""
    from objtune_cli.segmentation import from_class_word

    segment = from_class_word.segment_objects
    segmentation_cache.reads_files = True

    def cached(eyes: Any, picture: Any, rgb: Any, targets: list[Any]) -> Any:
        if any(t.mask or t.rough_mask for t in targets):
            return segment(eyes, picture, rgb, targets)
        base = eyes.ctx.base
        unnamed = [replace(target, name="") for target in targets]  # a name finds nothing
        key = repr((picture.sha256, rgb.shape, unnamed, asdict(eyes.config), base.fingerprint, base.clip_model))
        return segmentation_cache.get_or_compute(key, lambda: segment(eyes, picture, rgb, targets))

    monkeypatch.setattr(from_class_word, "segment_objects", cached)
    return segmentation_cache


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

    def hyperparameters(self, values: dict[str, Any]) -> None:
        pass


@pytest.fixture(scope="session")
def world_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random base that claims to be trained on the toybox's world; its images are noise that the evaluator can read."""
    about = {
        "dial": "easy", "size": 32, "seed": 1, "pictures": 4, "captions": 1, "sampling": {"num_inference_steps": 2, "guidance_scale": 1.5},
        "training": {"max_steps": 2, "learning_rate": 1e-3, "embedding_lr": 1e-2, "target_modules": "attention"},
    }  # fmt: skip

    def build(folder: Path) -> None:
        from tests.support import tiny_sd1

        tiny_sd1.build(folder, clip=False)
        (folder / "toybox.json").write_text(json.dumps(about))

    return _build_once(tmp_path_factory, "world", build)


@pytest.fixture
def context(project: Path, world_base: Path) -> "Callable[..., StageContext]":
    """A function that makes a context whose project is `bench/work`, as for `objtune bench`."""
    from objtune_cli.config.resolve import Settings
    from objtune_cli.config.sections import Common
    from objtune_cli.store.project import find_project
    from objtune_cli.workflow.context import StageContext

    def make(**given) -> StageContext:
        work = find_project(project / "bench" / "work", create=True)
        common = Common(base=str(world_base), device="cpu", precision="fp32")
        return StageContext(work, Settings(work.settings, {}), common, Notes(), **given)

    return make
