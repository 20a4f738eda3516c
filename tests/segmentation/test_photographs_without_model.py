"""Photographs without a segmenter for photographs: a box takes GrabCut, a class word or a point alone is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from objtune_cli.bench import labelled_photos
from objtune_cli.models import segmenter_lookup
from objtune_cli.numerics.masks import iou
from objtune_cli.segmentation import segmenters
from objtune_cli.segmentation.from_hints import Target
from objtune_cli.segmentation.grabcut import GrabCut
from objtune_cli.segmentation.types import Hints
from objtune_cli.store.kinds.mask import MaskArtifact
from objtune_cli.store.refs import Ref
from objtune_cli.store.store import Store

Cli = Callable[..., Any]


@pytest.fixture
def saucer(project: Path) -> np.ndarray:
    """The photograph `coffee.png` in the working folder; the mask (H, W) of its saucer."""
    sample = next(each for each in labelled_photos.load_photos() if each.class_word == "saucer")
    Image.fromarray(sample.rgb).save("coffee.png")
    Image.fromarray(sample.cover).save("rough.png")
    return sample.cover > 127


def mask_of(name: str) -> np.ndarray:
    found: np.ndarray = MaskArtifact.from_tensors(Store.at(Path()).read(Ref("mask", name, 1))[1]).mask > 127
    return found


@pytest.mark.parametrize("hint", [("--box", "77,18,480,389"), ("--refine-mask", "rough.png")])
def test_a_box_or_rough_mask_takes_grabcut(cli: Cli, saucer: np.ndarray, hint: tuple[str, str]) -> None:
    done = cli("segment", "coffee.png", "--class", "mug", *hint)
    assert done.code == 0, done.err
    assert "the segmenter is GrabCut, because the embedded model knows only drawings" in done.err
    assert iou(mask_of("mug"), saucer) > 0.9
    shown = json.loads(cli("show", "mask/mug", "--json").out)
    assert shown["artifacts"][0]["config"]["segmenter"] == "grabcut"
    again = cli("segment", "coffee.png", "--class", "mug", *hint)
    assert again.code == 0 and "mask/mug@1 is up to date" in again.err


@pytest.mark.parametrize("hint", [(), ("--point", "290,100")])
def test_a_class_word_or_a_point_alone_is_refused_in_one_line(
    cli: Cli, saucer: np.ndarray, hint: tuple[str, ...]
) -> None:
    done = cli("segment", "coffee.png", "--class", "mug", *hint)
    assert (done.code, done.out) == (9, "")
    assert (
        "no usable mask of the mug: coffee.png looks like a photograph, and the segmenter here knows only drawings"
        in done.err
    )
    assert "--box x0,y0,x1,y1" in done.err and "objtune fetch --model facebook/sam2" in done.err
    assert list(Path().glob("artifacts/**/*.safetensors")) == []


def test_a_named_segmenter_and_force_insist(cli: Cli, saucer: np.ndarray) -> None:
    for option in (("--segmenter", "sam"), ("--force",)):
        done = cli("segment", "coffee.png", "--class", "mug", "--point", "290,100", "--name", "own", *option)
        assert "the segmenter here knows only drawings" not in done.err
        assert "GrabCut" not in done.err


def test_a_cut_out_and_a_mask_need_no_segmenter(cli: Cli, saucer: np.ndarray) -> None:
    rgb = np.asarray(Image.open("coffee.png"))
    Image.fromarray(np.dstack([rgb, saucer.astype(np.uint8) * 255])).save("cut.png")
    done = cli("segment", "cut.png", "--class", "mug", "--name", "cut")
    assert done.code == 0, done.err
    assert iou(mask_of("cut"), saucer) > 0.97
    assert cli("segment", "coffee.png", "--class", "mug", "--mask", "rough.png").code == 0


def test_drawings_keep_the_embedded_segmenter(cli: Cli, project: Path, dog_photo: Path) -> None:
    done = cli("segment", dog_photo, "--class", "dog", "--box", "110,240,530,535")
    assert done.code == 0 and "GrabCut" not in done.err
    assert json.loads(cli("show", "mask/dog", "--json").out)["artifacts"][0]["config"]["segmenter"] == "sam"


def test_the_middle_of_a_box_belongs_to_the_object() -> None:
    """In a box around the astronaut, her orange suit lies in the middle and resembles what stands behind her."""
    sample = next(each for each in labelled_photos.load_photos() if each.class_word == "person")
    cutter = GrabCut()
    cutter.set_image(sample.rgb)
    box = (20.0, 16.0, 365.0, 511.0)
    assert iou(cutter.predict(Hints(box)).mask, sample.cover > 127) > 0.85
    assert iou(cutter._predict(Hints(box)).mask, sample.cover > 127) < 0.7


@pytest.mark.parametrize(("kind", "by_word"), [("sam2", "sam"), ("sam3", "sam3")])
def test_a_model_for_photographs_on_this_machine_is_taken(
    saucer: np.ndarray, monkeypatch: pytest.MonkeyPatch, kind: str, by_word: str
) -> None:
    best = segmenter_lookup.SegmenterFolder(kind, Path("model"), "the model")
    monkeypatch.setattr(segmenter_lookup, "find_best", lambda: best)
    embedded = segmenters.SegmenterChoice("sam", Path("embedded"), is_fallback=True)
    rgb = np.asarray(Image.open("coffee.png"))
    box, word, point = Target("mug", "mug", (0, 0, 9, 9)), Target("mug", "mug"), Target("mug", "mug", points=((1, 1),))
    for target, expected in ((box, kind), (point, kind), (word, by_word)):
        assert segmenters.adapt_to_photograph(embedded, rgb, [target]).kind == expected
    flat = np.zeros_like(rgb)
    assert segmenters.adapt_to_photograph(embedded, flat, [box]) is embedded
