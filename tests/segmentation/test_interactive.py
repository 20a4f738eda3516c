"""Hints that come one after another: the photo is embedded once, and the finished mask is that of the command."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from objtune_cli import api
from objtune_cli.errors import GateError, InputError
from objtune_cli.numerics.masks import iou
from objtune_cli.segmentation.from_hints import Target
from objtune_cli.segmentation.interactive import InteractivePhoto
from objtune_cli.segmentation.sam import SegmentAnything
from objtune_cli.store.store import Store

BOX = (150.0, 200.0, 620.0, 560.0)


def test_a_photo_is_embedded_once_and_its_mask_is_that_of_the_command(
    project: Path, dog_photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedded: list[Any] = []
    embed = SegmentAnything.embed

    def count(self: SegmentAnything, rgb: Any) -> Any:
        embedded.append(rgb.shape)
        return embed(self, rgb)

    monkeypatch.setattr(SegmentAnything, "embed", count)
    ctx = api.project(project)
    photo = InteractivePhoto.open(ctx, dog_photo)
    photo.prepare()
    sketch = photo.sketch(Target("dog", "dog", BOX))
    photo.sketch(Target("dog", "dog", BOX, points=((320.0, 350.0),)))
    assert [shape for shape in embedded if shape == (640, 640, 3)] == [(640, 640, 3)]
    mask, verdict = photo.segment(Target("dog", "dog", BOX))
    assert iou(sketch > 127, mask > 127) > 0.9 and verdict.problem == ""
    api.segment(ctx, dog_photo, "dog", box=BOX)
    (ref,) = Store.at(project).list("mask")
    assert np.array_equal(Store.at(project).read(ref)[1]["mask"], mask)


def test_the_gate_judges_a_mended_mask(project: Path, dog_photo: Path) -> None:
    photo = InteractivePhoto.open(api.project(project), dog_photo)
    mask = np.zeros((640, 640), np.uint8)
    target = Target("dog", "dog", points=((1.0, 1.0),))
    assert photo.judge(mask, target).problem == "nothing was found"
    mask[200:400, 200:400] = 255
    assert photo.judge(mask, target).problem == ""  # no hint contradicts a mask that the user has drawn


def test_what_the_command_refuses_is_refused(project: Path, dog_photo: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no file"):
        InteractivePhoto.open(api.project(project), tmp_path / "none.jpg")
    photo = InteractivePhoto.open(api.project(project), dog_photo)
    with pytest.raises(InputError, match="does not know the class 'spaceship'"):
        photo.segment(Target("spaceship", "spaceship"))
    noise = np.random.default_rng(0).integers(0, 256, (640, 640, 3), np.uint8)
    photo.rgb = noise  # looks like a photograph, and only a model of drawings is here
    with pytest.raises(GateError, match="looks like a photograph"):
        photo.sketch(Target("dog", "dog", points=((5.0, 5.0),)))


@pytest.mark.parametrize("is_installed", [True, False])
def test_a_refused_mask_offers_the_page_where_it_is_installed(
    cli: Any, dog_photo: Path, monkeypatch: pytest.MonkeyPatch, is_installed: bool
) -> None:
    monkeypatch.setattr("objtune_cli.segmentation.page_offer.find_spec", lambda name: is_installed or None)
    empty = Path("a mask.png")
    Image.new("L", (640, 640)).save(empty)
    shutil.copy(dog_photo, "my dog.jpg")
    done = cli("segment", "my dog.jpg", "--class", "dog", "--mask", empty)
    assert done.code == 9 and done.err.count("hint: ") == 1
    assert ("; or show it in the browser: `objtune ui 'my dog.jpg'`" in done.err) == is_installed
