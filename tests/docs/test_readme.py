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
    environment |= {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "HF_HUB_OFFLINE": "1"}
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
def test_scenes_hold_both_objects(folder):
    """Teal of the dog on the left and blue of the mug on the right, as three of the scenes ask; one picture in five may fail."""
    from objtune_cli.toybox.world import COLOURS

    teal, blue = COLOURS["teal"], COLOURS["blue"]
    asked = [path for version in ("v001", "v002", "v004") for path in sorted((folder / "artifacts/scene/dog-cup" / version).glob("0*.png"))]
    right = []
    for path in asked:
        shown = np.asarray(Image.open(path))
        dog, cup = shown[40:, : shown.shape[1] // 2], shown[40:, shown.shape[1] // 2 :]
        right.append(near(dog, teal) > max(0.05, near(cup, teal)) and near(cup, blue) > max(0.05, near(dog, blue)))
    assert len(asked) == 5 and sum(right) >= 4, right


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
