"""A photograph is told from a drawing, and the toybox says what to do with one."""

import io
import itertools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data

from objtune_cli.images.photo_or_drawing import looks_like_photograph
from objtune_cli.toybox import world
from objtune_cli.toybox.renderer import render

PHOTOGRAPHS = ("cat", "coffee", "astronaut", "rocket", "camera", "brick", "retina")


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_photographs_are_recognised(name: str) -> None:
    rgb = np.asarray(Image.fromarray(getattr(data, name)()).convert("RGB"))
    assert looks_like_photograph(rgb)


@pytest.mark.parametrize("quality", [None, 92, 50])
@pytest.mark.parametrize("dial", ["medium", "marked", "full"])
def test_drawings_are_not(dial: str, quality: int | None) -> None:
    for scene in itertools.islice(world.scenes(21, world.DIALS[dial]), 25):
        image = Image.fromarray(render(scene, 128)[0])
        if quality:
            file = io.BytesIO()
            image.save(file, "JPEG", quality=quality)
            image = Image.open(file)
        assert not looks_like_photograph(np.asarray(image.convert("RGB")))


def test_a_photograph_on_the_toybox_is_said_with_the_two_commands(cli, tmp_path: Path) -> None:
    Image.fromarray(data.cat()).save(tmp_path / "cat.png")
    done = cli("segment", tmp_path / "cat.png", "--class", "cat")
    assert done.code == 9
    assert "cat.png looks like a photograph" in done.err
    assert "objtune fetch --base sd15" in done.err and "--base sd15" in done.err


def test_a_drawing_on_the_toybox_is_not_called_a_photograph(cli, dog_photo: Path) -> None:
    done = cli("segment", dog_photo, "--class", "dog")
    assert done.code == 0 and "looks like a photograph" not in done.err
