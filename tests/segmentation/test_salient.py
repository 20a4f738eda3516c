"""Salient-object networks in ONNX: what stands out is the object, in the whole photo, in a box, or at a point."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from objtune_cli.errors import InputError
from objtune_cli.numerics.masks import iou
from objtune_cli.segmentation.salient import SalientSegmenter
from objtune_cli.segmentation.types import Hints
from tests.segmentation.test_photographs_without_model import mask_of
from tests.segmentation.test_segmenter_choice import _cache, hub_home  # noqa: F401  (a fixture)
from tests.support import tiny_segmenters

REPOSITORY = "onnx-community/BiRefNet_lite-ONNX"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_segmenters.save_salient(tmp_path_factory.mktemp("salient") / "model")


@pytest.fixture(scope="module")
def scene() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A noisy grey photograph (240, 320, 3) with a red disc and a blue square; their masks."""
    y, x = np.mgrid[:240, :320]
    rgb = np.random.default_rng(0).normal(128, 6, (240, 320, 3))
    disc, square = (x - 110) ** 2 + (y - 120) ** 2 < 70**2, (abs(x - 250) < 45) & (abs(y - 90) < 45)
    rgb[disc] += (90, -80, -80)
    rgb[square] += (-90, -80, 90)
    return rgb.clip(0, 255).astype(np.uint8), disc, square


@pytest.fixture
def photograph(project: Path, scene: tuple[np.ndarray, np.ndarray, np.ndarray]) -> Path:
    Image.fromarray(scene[0]).save("photo.png")
    return Path("photo.png")


def segmenter(folder: Path, rgb: np.ndarray) -> SalientSegmenter:
    loaded = SalientSegmenter(folder)
    loaded.set_image(rgb)
    return loaded


def test_pieces_and_their_union_are_proposed(folder: Path, scene: tuple[np.ndarray, ...]) -> None:
    rgb, disc, square = scene
    proposals = segmenter(folder, rgb).propose_all()
    assert [max(iou(p.mask, truth) for p in proposals) > 0.95 for truth in (disc, square, disc | square)] == [True] * 3
    assert all(0.5 < p.quality <= 1 for p in proposals)


def test_hints_say_where_to_look(folder: Path, scene: tuple[np.ndarray, ...]) -> None:
    rgb, disc, square = scene
    cut = segmenter(folder, rgb)
    assert iou(cut.predict(Hints(box_xyxy=(200, 40, 300, 140))).mask, square) > 0.9
    assert iou(cut.predict(Hints(points=((250, 90),))).mask, square) > 0.9
    assert iou(cut.predict(Hints(points=((110, 120),), negative_points=((250, 90),))).mask, disc) > 0.95
    assert iou(cut.predict(Hints(rough_mask=square.astype(np.float32))).mask, square) > 0.9
    assert not cut.predict(Hints(points=((5, 5),))).mask.any()
    assert not cut.predict(Hints(box_xyxy=(0, 0, 1, 1))).mask.any()


def test_logits_and_probabilities_give_the_same_mask(
    folder: Path, scene: tuple[np.ndarray, ...], tmp_path: Path
) -> None:
    probabilities = tiny_segmenters.save_salient(tmp_path / "sigmoid", ends_in_sigmoid=True)
    maps = [segmenter(place, scene[0]).network.predict(scene[0]) for place in (folder, probabilities)]
    assert np.allclose(*maps, atol=1e-5)
    assert maps[0].min() >= 0 and maps[0].max() <= 1 and maps[0].shape == scene[0].shape[:2]


def test_the_network_sees_normalised_pixels_at_its_size(folder: Path, scene: tuple[np.ndarray, ...]) -> None:
    """Against onnxruntime on an array that this test makes itself."""
    import cv2
    import onnxruntime

    small = np.asarray(Image.fromarray(scene[0]).resize((256, 256), Image.Resampling.BILINEAR), np.float64) / 255
    array = ((small - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]).transpose(2, 0, 1)[None].astype(np.float32)
    session = onnxruntime.InferenceSession(str(folder / "onnx/model.onnx"), providers=["CPUExecutionProvider"])
    logits = session.run(None, {"image": array})[0][0, 0]
    expected = cv2.resize(1 / (1 + np.exp(-logits)), (320, 240), interpolation=cv2.INTER_LINEAR)
    assert np.abs(segmenter(folder, scene[0]).network.predict(scene[0]) - expected).max() < 1e-4


def test_auto_takes_it_for_a_class_word_in_a_photograph(
    cli: Any,
    photograph: Path,
    scene: tuple[np.ndarray, ...],
    folder: Path,
    hub_home: Path,  # noqa: F811
) -> None:
    line = ("segment", photograph, "--class", "mug")
    assert cli(*line).code == 9
    _cache(folder, REPOSITORY, hub_home)
    done = cli(*line, "--select", "largest")
    assert done.code == 0, done.err
    assert f"the segmenter is a salient-object network ({REPOSITORY}): it selects what stands out" in done.err
    assert iou(mask_of("mug"), scene[1]) > 0.95
    shown = json.loads(cli("show", "mask/mug", "--json").out)["artifacts"][0]
    assert shown["config"]["segmenter"] == "salient" and "likeness" not in shown["metrics"]
    assert "mask/mug@1 is up to date" in cli(*line, "--select", "largest").err
    point = cli(*line, "--point", "250,90", "--name", "square")
    assert point.code == 0 and iou(mask_of("square"), scene[2]) > 0.9, point.err
    assert "the segmenter is GrabCut" in cli(*line, "--box", "30,40,190,200", "--name", "disc").err


def test_the_option_takes_a_folder(cli: Any, photograph: Path, scene: tuple[np.ndarray, ...], folder: Path) -> None:
    line = ("segment", photograph, "--class", "mug", "--segmenter", "salient", "--box", "30,40,190,200")
    missing = cli(*line)
    assert missing.code == 7 and f"`objtune fetch --model {REPOSITORY}` downloads it" in missing.err
    done = cli(*line, "--set", f"segment.sam_model={folder}")
    assert done.code == 0 and iou(mask_of("mug"), scene[1]) > 0.95, done.err


def test_damaged_networks_are_refused_by_name(folder: Path, tmp_path: Path, scene: tuple[np.ndarray, ...]) -> None:
    several = tiny_segmenters.save_salient(tmp_path / "several", channels=2)
    with pytest.raises(InputError, match=r"several is not a salient-object network: its output has the shape \(1, 2, "):
        segmenter(several, scene[0]).propose_all()
    for name, content, message in (
        ("onnx/model.onnx", b"rubbish", "model.onnx cannot be opened"),
        ("preprocessor_config.json", b"{}", "does not describe the network's input"),
        (
            "preprocessor_config.json",
            b'{"image_mean": [1], "image_std": [1], "size": 9}',
            "does not describe",
        ),
    ):
        damaged = tmp_path / f"damaged-{len(message)}"
        shutil.copytree(folder, damaged)
        (damaged / name).write_bytes(content)
        with pytest.raises(InputError, match=message):
            SalientSegmenter(damaged)
    (damaged / "onnx/model.onnx").unlink()


def test_without_onnxruntime_one_line_says_what_to_install(
    cli: Any, photograph: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    done = cli(
        "segment", photograph, "--class", "mug", "--segmenter", "salient", "--set", f"segment.sam_model={folder}"
    )
    assert (done.code, done.out) == (7, "")
    assert "`pip install 'objtune[salient]'`" in done.err
