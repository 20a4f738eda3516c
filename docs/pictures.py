"""`make pictures`: draws the pictures of README and docs again, with the commands that they show."""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from objtune_cli.images.png import grid

EXAMPLES = Path(__file__).parent / "examples"


def objtune(folder: Path, *args: str) -> list[str]:
    """Run one command in a project; the lines of its stdout."""
    command = [str(Path(sys.executable).with_name("objtune")), *args]
    print("$ objtune", *args, flush=True)
    return subprocess.run(command, cwd=folder, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()


def gallery(folder: Path) -> None:
    """The scenes of docs/compose.md in a project that holds <dog> and <cup>: each a row, its layout first."""
    (folder / "scene.toml").write_text("dog = [0.0, 0.3, 0.55, 0.95]\ncup = [0.55, 0.3, 1.0, 0.95]\n")
    rows = []
    for args in (
        ("a photo of <dog> next to <cup> on the beach",),
        ("a photo of <dog> right of <cup> in the snow",),
        ("a photo of <dog> and <cup> in the desert", "--layout", "scene.toml"),
    ):
        paths = [folder / line for line in objtune(folder, "compose", *args, "-n", "2")]
        for path in (paths[0].with_name("layout.png"), *paths):
            rows.append(np.asarray(Image.open(path).resize((160, 160), Image.Resampling.LANCZOS)))
    Image.fromarray(grid(np.stack(rows), 3)).quantize(128).save(EXAMPLES / "gallery.png")


def apart(folder: Path) -> None:
    """The photo of three objects, each of them alone, and two in one scene, as docs/compose.md has them."""
    words = ("--class", "cat", "--name", "tom", "--class", "car", "--name", "mini", "--class", "mug", "--name", "tea")
    points = ("--point", "tom=115,380", "--point", "mini=520,400", "--point", "tea=310,420")
    objtune(folder, "train", str(EXAMPLES / "three.jpg"), *words, *points)
    asked = ("a photo of <tom> on the beach", "a photo of <mini> in the snow", "a photo of <tea> in the desert")
    paths = objtune(folder, "generate", *asked, "-n", "1") + objtune(
        folder, "compose", "a photo of <tom> left of <mini> in the snow", "-n", "1"
    )
    shown = [
        Image.open(p).convert("RGB").resize((192, 192), Image.Resampling.LANCZOS)
        for p in (EXAMPLES / "three.jpg", *(folder / p for p in paths))
    ]
    Image.fromarray(grid(np.stack([np.asarray(s) for s in shown]), 5)).save(EXAMPLES / "three.png")


def main() -> None:
    """Train both examples, compose them, draw the sheet of the base."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        objtune(folder, "init")
        objtune(folder, "train", str(EXAMPLES / "photo.jpg"), "--class", "dog")
        objtune(folder, "train", str(EXAMPLES / "mug.jpg"), "--class", "mug", "--name", "cup")
        shutil.copy(folder / "artifacts/adapter/dog/v001/preview.png", EXAMPLES / "preview.png")
        paths = objtune(
            folder,
            "compose",
            "a photo of <dog> and <cup> on the beach",
            "--place",
            "dog=left",
            "--place",
            "cup=right",
            "-n",
            "3",
        )
        layout = Image.open((folder / paths[0]).with_name("layout.png")).resize((192, 192), Image.Resampling.LANCZOS)
        shown = [np.asarray(Image.open(folder / path).resize((192, 192), Image.Resampling.BICUBIC)) for path in paths]
        Image.fromarray(grid(np.stack([np.asarray(layout), *shown]), 4)).save(EXAMPLES / "compose.png")
        gallery(folder)
        apart(folder)
    command = [sys.executable, "-m", "objtune_cli.toybox.recipe", "sheet", "--work", str(EXAMPLES)]
    print("$ python", *command[1:], flush=True)
    subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
