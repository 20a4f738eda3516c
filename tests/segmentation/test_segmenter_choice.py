"""Which segmenter a command uses: the toybox's own, what the user names, or the best on this machine; and what the record says of it."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from objtune_cli.models import registry
from objtune_cli.segmentation import segmenters
from objtune_cli.segmentation.sam3 import Sam3
from objtune_cli.segmentation.types import Proposal
from objtune_cli.store import regular_files
from objtune_cli.store.store import Store
from tests.segmentation.test_segment_stage import _box, _iou, _mask, _scene, _write
from tests.support import tiny_segmenters

pytestmark = pytest.mark.usefixtures("fast_sampling")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("segmenters")
    return {
        "sam2": tiny_segmenters.save_sam2(place / "tiny-sam2"),
        "sam3": tiny_segmenters.save_sam3(place / "tiny-sam3"),
    }


def _cache(folder: Path, repository: str, home: Path) -> None:
    """Put a folder into the hub's cache."""
    place = home / "hub" / f"models--{repository.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs/main").write_text("c0ffee")
    shutil.copytree(folder, place / "snapshots/c0ffee")


@pytest.fixture
def hub_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache/hub"))
    return tmp_path / "cache"


@pytest.fixture
def dog(cli: Any, tmp_path: Path) -> tuple[Path, np.ndarray]:
    rgb, (truth,) = _scene(6, ("dog",))
    return _write(tmp_path / "dog.png", rgb), truth


def _record(ref: str = "mask/dog") -> Any:
    store = Store.at(Path())
    return store.read_record(store.find(ref, ("mask",)))


def test_the_toybox_takes_the_embedded_model_whatever_is_here(
    cli: Any, dog: tuple[Path, np.ndarray], folders: dict[str, Path], hub_home: Path
) -> None:
    """With the identity that it always had: the same record as of an explicit `sam`."""
    _cache(folders["sam2"], "facebook/sam2.1-hiera-tiny", hub_home)
    done = cli("segment", dog[0], "--class", "dog")
    assert (done.code, done.out) == (0, "mask/dog@1\n")
    assert "segmenter" not in done.err
    record = _record()
    assert record.config["segmenter"] == "sam" and "sam_model" not in record.config
    embedded = regular_files.file_sha256(registry.TOYBOX_SEGMENTER / "model.safetensors")
    assert record.inputs["segmenter"]["sha256"] == embedded
    assert cli("segment", dog[0], "--class", "dog", "--segmenter", "sam").out == "mask/dog@1\n"


@pytest.mark.parametrize("kind", ["sam2", "sam3"])
def test_the_record_names_the_model_by_its_digest_not_by_its_path(
    cli: Any, dog: tuple[Path, np.ndarray], folders: dict[str, Path], kind: str, tmp_path: Path
) -> None:
    line = ("segment", dog[0], "--class", "dog", "--box", _box(dog[1]), "--force", "--set")
    done = cli(*line, f"segment.sam_model={folders[kind]}", "--segmenter", kind)
    assert (done.code, done.out) == (0, "mask/dog@1\n"), done.err
    record = _record()
    assert (record.config["segmenter"], record.metrics["found_by"]) == (kind, kind)
    assert record.inputs["segmenter"]["sha256"] == segmenters.digest_folder(folders[kind])
    assert str(folders[kind]) not in str(record)
    shutil.copytree(folders[kind], tmp_path / "moved")
    assert cli(*line, f"segment.sam_model={tmp_path / 'moved'}").code == 0
    again = _record()  # of `auto`, which reads the folder's kind; a forced mask is stored again
    assert (again.config, again.inputs) == (record.config, record.inputs)


def test_auto_takes_the_best_that_is_here_and_says_so_once(
    cli: Any, dog: tuple[Path, np.ndarray], folders: dict[str, Path], hub_home: Path, base: Path
) -> None:
    line = ("segment", dog[0], "--class", "dog", "--class", "mug", "--box", f"dog={_box(dog[1])}", "--box", "mug=0,0,60,60", "--force", "--base", base)  # fmt: skip
    first = cli(*line)
    assert first.err.count("the segmenter is the embedded model") == 1
    assert "`objtune fetch --model facebook/sam2.1-hiera-base-plus`" in first.err
    for kind, repository, title in (
        ("sam2", "facebook/sam2.1-hiera-tiny", "SAM 2.1"),
        ("sam2", "facebook/sam2.1-hiera-large", "SAM 2.1"),
        ("sam3", "facebook/sam3", "SAM 3"),
    ):
        _cache(folders[kind], repository, hub_home)
        done = cli(*line)
        assert done.err.count(f"the segmenter is {title} ({repository})") == 1, done.err
        assert _record().config["segmenter"] == kind
    assert cli(*line, "--segmenter", "grabcut").err.count("the segmenter is") == 0


def test_a_mask_of_ones_own_is_the_same_whatever_is_here(
    cli: Any, dog: tuple[Path, np.ndarray], folders: dict[str, Path], hub_home: Path, base: Path, tmp_path: Path
) -> None:
    line = ("segment", dog[0], "--class", "dog", "--mask", _write(tmp_path / "m.png", dog[1] * np.uint8(255)), "--base", base)  # fmt: skip
    assert cli(*line).out == "mask/dog@1\n"
    _cache(folders["sam2"], "facebook/sam2.1-hiera-tiny", hub_home)
    done = cli(*line)
    assert done.out == "mask/dog@1\n" and "segmenter" not in done.err


def test_sam_3_finds_the_word_at_the_stored_size(
    cli: Any, dog: tuple[Path, np.ndarray], folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random weights find nothing, so the objects are given here; the base's CLIP chooses among them."""
    asked: list[Any] = []

    def propose(self: Sam3, words: list[str]) -> list[Proposal]:
        asked.append((words, self.rgb.shape[:2]))
        corner = np.zeros(self.rgb.shape[:2], bool)
        corner[:60, :60] = True
        return [Proposal(corner, 0.9), Proposal(large, 0.8)]

    rgb, (large,) = _scene(6, ("dog",), 480)
    monkeypatch.setattr(Sam3, "propose_words", propose)
    photo = _write(dog[0].with_name("large.png"), rgb)
    line = ("segment", photo, "--class", "dog", "--set", f"segment.sam_model={folders['sam3']}")
    done = cli(*line, "--segmenter", "sam3")
    assert done.code == 0, done.err
    assert _iou(_mask("mask/dog")[0], large) > 0.9
    assert asked == [(["dog"], (480, 480))]
    monkeypatch.setattr(Sam3, "propose_words", lambda self, words: [])
    refused = cli(*line, "--segmenter", "sam3", "--name", "other")
    assert refused.code == 9 and "no usable mask of the dog" in refused.err


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--segmenter", "sam2"], 7, "SAM 2.1 is not on this machine"),
        (["--segmenter", "sam3"], 7, "SAM 3 is not on this machine"),
        (["--set", "segment.sam_model=facebook/sam2.1-hiera-small"], 7, "facebook/sam2.1-hiera-small is not on this"),
        (["--set", f"segment.sam_model={registry.TOYBOX_FOLDER / 'clip'}"], 3, "not SAM 2.1, SAM 3 or a salient"),
        (["--set", "segment.sam_model=facebook/sam3", "--segmenter", "grabcut"], 2, "`segment.sam_model`"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(
    cli: Any, dog: tuple[Path, np.ndarray], options: list[str], code: int, message: str
) -> None:
    done = cli("segment", dog[0], "--class", "dog", *options)
    assert (done.code, message in done.err) == (code, True), done.err
    assert not Path("artifacts").exists() or not list(Path("artifacts").rglob("*.safetensors"))
