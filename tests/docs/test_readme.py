"""The commands of the README, then of docs/compose.md, run in order in one folder, print what the pages say."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import REPOSITORY

EXAMPLES = REPOSITORY / "docs" / "examples"
SHORTER = {"OBJTUNE_TRAIN_STEPS": "250"}
"""Of one object a few steps less than it would stop at; of three, a third."""


def sessions() -> list[tuple[str, str]]:
    """(command line, expected stdout) of every `$` line of the README and the page that goes on from it."""
    text = "".join((REPOSITORY / page).read_text() for page in ("README.md", "docs/compose.md"))
    blocks = re.findall(r"```console\n(.*?)```", text, re.S)
    parts = [re.split(r"^\$ ", block, flags=re.M)[1:] for block in blocks]
    return [tuple(part.split("\n", 1)) for block in parts for part in block]  # type: ignore[misc]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which every command of both pages was run, with the toybox."""
    folder = tmp_path_factory.mktemp("readme")
    for photo in EXAMPLES.glob("*.jpg"):
        shutil.copy(photo, folder)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("OBJTUNE_")}
    environment |= {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "HF_HUB_OFFLINE": "1", **SHORTER}
    wrong = []
    for command, expected in sessions():
        done = subprocess.run(["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True)
        if (done.returncode, done.stdout) != (0, expected):
            wrong.append(f"$ {command}\n{done.stdout}\n--- expected\n{expected}\n--- stderr\n{done.stderr[-2000:]}")
    assert not wrong, "\n".join(wrong)
    return folder


def near(picture: np.ndarray, colour: tuple[int, int, int], reach: float = 75) -> float:
    """Share of the pixels within `reach` (RGB distance) of a colour."""
    return float((np.linalg.norm(picture.astype(float) - colour, axis=2) < reach).mean())


@pytest.mark.timeout(900)
def test_the_readme_is_true(folder):
    assert (folder / "artifacts/adapter/dog/v001/preview.png").is_file()


@pytest.mark.timeout(900)
def test_scenes_keep_objects_in_their_places(folder):
    """Teal of the dog and blue of the mug, each more on the side that its scene asks for: the dog is left in all but the third."""
    from objtune_cli.toybox.world import COLOURS

    right = {}
    for version, dog_is_left in (("v001", True), ("v002", True), ("v003", False), ("v004", True)):
        for path in sorted((folder / "artifacts/scene/dog-cup" / version).glob("0*.png")):
            shown = np.asarray(Image.open(path))[40:]
            halves = shown[:, : shown.shape[1] // 2], shown[:, shown.shape[1] // 2 :]
            dog, cup = halves if dog_is_left else halves[::-1]
            sides = [near(own, COLOURS[c]) > near(other, COLOURS[c]) for c, own, other in (("teal", dog, cup), ("blue", cup, dog))]
            right[f"{version}/{path.name}"] = all(sides)
    assert len(right) == 7 and sum(right.values()) >= 5, right


@pytest.mark.timeout(900)
def test_objects_of_one_photo_come_apart(folder):
    """Blue of the mug is most in its own picture; the cat's yellow is not in the car's, and the car's pink hardly in the cat's."""
    from objtune_cli.toybox.world import COLOURS

    shown = {name: np.asarray(Image.open(folder / f"artifacts/scene/{name}/v001/001.png")) for name in ("tom", "mini", "tea")}
    pink, blue, yellow = ({name: near(picture, COLOURS[c]) for name, picture in shown.items()} for c in ("pink", "blue", "yellow"))
    assert max(blue, key=blue.__getitem__) == "tea", blue
    assert yellow["tom"] > 0.04 > 10 * yellow["mini"] and pink["mini"] > 2 * pink["tom"], (yellow, pink)


@pytest.mark.timeout(900)
def test_the_dog_is_the_dog_of_the_photo_on_another_background(folder):
    from objtune_cli.toybox.world import COLOURS

    sheet = np.asarray(Image.open(folder / "artifacts/adapter/dog/v001/preview.png"))
    gap = 4
    tile = (sheet.shape[1] - gap) // 3 - gap
    tiles = [sheet[gap + r * (tile + gap) :, gap + c * (tile + gap) :][:tile, :tile] for r in (0, 1) for c in (0, 1, 2)]
    photo, drawn, ordinary = tiles[0], tiles[1:5], tiles[5]
    teal = [near(t, COLOURS["teal"]) for t in drawn]
    print("share of teal: photo", near(photo, COLOURS["teal"]), "drawn", teal, "ordinary dog", near(ordinary, COLOURS["teal"]))
    assert sum(t > 0.05 for t in teal) >= 3, "the dog's colour is missing"
    green = [near(t[tile // 2 :], COLOURS["green"], 60) for t in drawn]
    assert max(green) < 0.5 * near(photo[tile // 2 :], COLOURS["green"], 60), "the photo's grass came along"
