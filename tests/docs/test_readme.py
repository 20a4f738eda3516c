"""The commands of the README and the tutorials, run in order in one folder, print what the pages say.

The guide on several objects is slow: it runs with `make slow`, behind the tutorials' commands with all their steps.
"""

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

pytestmark = pytest.mark.commands

EXAMPLES = REPOSITORY / "docs" / "examples"
SHORTER = {
    "OBJTUNE_TRAIN_MAX_STEPS": "40",
    "OBJTUNE_TRAIN_SELF_EVALUATION": "false",
    "OBJTUNE_PRIOR_NUM_CLASS_IMAGES": "2",
    "OBJTUNE_PRIOR_NUM_PREDICTIONS": "8",
}
"""A tenth of the steps that one object takes at most, a small class prior, and no scores, which nothing here reads."""
APART = "## Learn several objects from one photo"


def sessions(text: str) -> list[tuple[str, str]]:
    """(command line, expected stdout) of every `$` line of a page."""
    blocks = re.findall(r"```console\n(.*?)```", text, re.S)
    parts = [re.split(r"^\$ ", block, flags=re.M)[1:] for block in blocks]
    return [tuple(part.split("\n", 1)) for block in parts for part in block]  # type: ignore[misc]


def tutorials() -> str:
    """README and the tutorials on the toybox, which go on from one another."""
    pages = ("README.md", "docs/tutorial/first-object.md", "docs/tutorial/two-objects.md")
    return "\n".join((REPOSITORY / page).read_text() for page in pages)


def compose_page() -> tuple[str, str]:
    """The guide on several objects, which goes on from the tutorials, and its part that stands alone."""
    start, _, rest = (REPOSITORY / "docs" / "how-to" / "several-objects.md").read_text().partition(APART)
    apart, after = rest.split("\n## ", 1)
    return start + after, apart


def ran(text: str, folder: Path, more: dict[str, str]) -> None:
    """Run a page's commands, each once, in a folder with the example photos and the toybox."""
    for photo in EXAMPLES.glob("*.jpg"):
        shutil.copy(photo, folder)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("OBJTUNE_")}
    environment |= {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HF_HUB_OFFLINE": "1",
        **more,
    }
    wrong = []
    for command, expected in dict.fromkeys(sessions(text)):
        done = subprocess.run(["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True)
        if (done.returncode, done.stdout) != (0, expected):
            wrong.append(f"$ {command}\n{done.stdout}\n--- expected\n{expected}\n--- stderr\n{done.stderr[-2000:]}")
    assert not wrong, "\n".join(wrong)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which every command of the README and the tutorials was run."""
    folder = tmp_path_factory.mktemp("readme")
    ran(tutorials(), folder, SHORTER)
    return folder


def near(picture: np.ndarray, colour: tuple[int, int, int], reach: float = 75) -> float:
    """Share of the pixels within `reach` (RGB distance) of a colour."""
    return float((np.linalg.norm(picture.astype(float) - colour, axis=2) < reach).mean())


@pytest.mark.timeout(900)
def test_the_readme_and_the_tutorials_are_true(folder):
    assert len(set(sessions(tutorials()))) == 7
    assert (folder / "artifacts/adapter/dog/v001/preview.png").is_file()


def in_their_places(folder: Path, scenes: dict[str, bool]) -> list[bool]:
    """Teal of the dog and blue of the mug, each more on the side that its scene asks for; of every picture of scenes, by whether the dog is left."""
    from objtune_cli.toybox.world import COLOURS

    right = []
    for version, dog_is_left in scenes.items():
        for path in sorted((folder / "artifacts/scene/dog-cup" / version).glob("0*.png")):
            shown = np.asarray(Image.open(path))[40:]
            halves = shown[:, : shown.shape[1] // 2], shown[:, shown.shape[1] // 2 :]
            dog, cup = halves if dog_is_left else halves[::-1]
            sides = [
                near(own, COLOURS[c]) > near(other, COLOURS[c])
                for c, own, other in (("teal", dog, cup), ("blue", cup, dog))
            ]
            right.append(all(sides))
    return right


def test_a_scene_keeps_objects_in_their_places(folder):
    assert in_their_places(folder, {"v001": True}) == [True]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_page_on_composing_is_true(tmp_path):
    """It goes on from the tutorials: the dog is left in all scenes but the third."""
    ran(tutorials(), tmp_path, {})
    ran(compose_page()[0], tmp_path, {})
    right = in_their_places(tmp_path, {"v001": True, "v002": True, "v003": False, "v004": True})
    assert len(right) == 7 and sum(right) >= 6, right


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_objects_of_one_photo_come_apart(tmp_path):
    """Blue of the mug is most in its own picture; the cat's yellow is not in the car's, and the car's pink hardly in the cat's."""
    from objtune_cli.toybox.world import COLOURS

    ran(compose_page()[1], tmp_path, {})
    shown = {
        name: np.asarray(Image.open(tmp_path / f"artifacts/scene/{name}/v001/001.png"))
        for name in ("tom", "mini", "tea")
    }
    pink, blue, yellow = (
        {name: near(picture, COLOURS[c]) for name, picture in shown.items()} for c in ("pink", "blue", "yellow")
    )
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
    print(
        "share of teal: photo",
        near(photo, COLOURS["teal"]),
        "drawn",
        teal,
        "ordinary dog",
        near(ordinary, COLOURS["teal"]),
    )
    assert sum(t > 0.05 for t in teal) >= 3, "the dog's colour is missing"
    green = [near(t[tile // 2 :], COLOURS["green"], 60) for t in drawn]
    assert max(green) < 0.5 * near(photo[tile // 2 :], COLOURS["green"], 60), "the photo's grass came along"
