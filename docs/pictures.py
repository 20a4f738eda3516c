"""`make pictures`: draws the pictures of README and docs again, with the commands that they show."""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.numpy import load_file

from objtune_cli.images.png import make_grid

EXAMPLES = Path(__file__).parent / "examples"


def objtune(folder: Path, *args: str) -> list[str]:
    """Run one command in a project; the lines of its stdout."""
    command = [str(Path(sys.executable).with_name("objtune")), *args]
    print("$ objtune", *args, flush=True)
    return subprocess.run(command, cwd=folder, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()


def gallery(folder: Path) -> None:
    """The scenes of docs/how-to/several-objects.md in a project that holds <dog> and <cup>: each a row, its layout first."""
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
    Image.fromarray(make_grid(np.stack(rows), 3)).quantize(128).save(EXAMPLES / "gallery.png")


def apart(folder: Path) -> None:
    """The photo of three objects, each of them alone, and two in one scene, as docs/how-to/several-objects.md has them."""
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
    Image.fromarray(make_grid(np.stack([np.asarray(s) for s in shown]), 5)).save(EXAMPLES / "three.png")


def terms(folder: Path) -> None:
    """The figure of docs/explanation/method.md, a row for each term, in a project that holds <dog>."""
    rows = [_masks(folder), _views(folder)]
    rows.append(objtune(folder, "generate", "a photo of a dog", "-n", "4"))
    prompt = "a photo of <dog> with a red hat on the beach"
    alone, begun = "generate.prompt_guidance_scale=0", "generate.subject_conditioning_start=1"
    rows.append(
        [
            *objtune(folder, "generate", prompt, "-n", "1", "--set", alone, "--set", begun),
            *objtune(folder, "generate", prompt, "-n", "1", "--set", alone),
            *objtune(folder, "generate", prompt, "-n", "1"),
            *objtune(folder, "generate", "a photo of a dog with a red hat on the beach", "-n", "1"),
        ]
    )
    tiles = [_tile(Image.open(folder / each) if isinstance(each, str) else each) for row in rows for each in row]
    Image.fromarray(make_grid(np.stack(tiles), 4)).quantize(256).save(EXAMPLES / "terms.png")


def _tile(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB").resize((160, 160), Image.Resampling.LANCZOS))


def _mask(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Photo (H, W, 3) and mask (H, W) of mask/dog@1, uint8."""
    tensors = load_file(folder / "artifacts/mask/dog/v001.safetensors")
    return tensors["rgb"], tensors["mask"]


def _masks(folder: Path) -> list[Image.Image]:
    """The photo, its mask, and the weights of both losses on latent cells."""
    rgb, mask = _mask(folder)
    cells = Image.fromarray(mask).resize((16, 16), Image.Resampling.BOX)
    weights = [
        Image.fromarray(w).resize((160, 160), Image.Resampling.NEAREST)
        for w in (np.asarray(cells), 255 - np.asarray(cells))
    ]
    return [Image.fromarray(rgb), Image.fromarray(mask), *weights]


def _views(folder: Path) -> list[Image.Image]:
    """The original view and three augmented ones, as training draws them."""
    import cv2
    import torch

    from objtune_cli.numerics.augmentation import views

    rgb, mask = _mask(folder)
    ground = cv2.inpaint(
        rgb, cv2.dilate((mask > 8).astype(np.uint8), np.ones((15, 15), np.uint8)), 5, cv2.INPAINT_TELEA
    )
    picture, behind = (torch.from_numpy(a.copy()).permute(2, 0, 1) / 127.5 - 1 for a in (rgb, ground))
    drawn, _ = views(picture, torch.from_numpy(mask / 255).float(), behind, 4, 160, torch.Generator().manual_seed(0))
    return [Image.fromarray(((v.permute(1, 2, 0) + 1) * 127.5).clamp(0, 255).byte().numpy()) for v in drawn]


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
        Image.fromarray(make_grid(np.stack([np.asarray(layout), *shown]), 4)).save(EXAMPLES / "compose.png")
        terms(folder)
        gallery(folder)
        apart(folder)
    command = [sys.executable, "-m", "objtune_cli.toybox.recipe", "sheet", "--work", str(EXAMPLES)]
    print("$ python", *command[1:], flush=True)
    subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
