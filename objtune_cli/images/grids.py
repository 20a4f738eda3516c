"""One picture of the whole bench: an object a row, a method a column."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from objtune_cli.images import png
from objtune_cli.store import artifacts

MOST = 12
"""Objects on the sheet."""
CELL = 128
"""Side of one picture, px."""
GAP, TITLE = 6, 18


def save(out: Path, photos: Mapping[str, Callable[[], np.ndarray]], names: list[str]) -> Path:
    """Write `sheet.png`: the photo, then each method's picture of the object's first prompt.

    Args:
        photos: What gives each object's photo (H, W, 3) uint8; its middle square is shown.
    """
    from PIL import Image, ImageDraw

    rows = list(photos)[:MOST]
    width, height = (len(names) + 1) * (CELL + GAP) + GAP, len(rows) * (CELL + GAP) + GAP + TITLE
    canvas = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(canvas)
    for column, title in enumerate(("photo", *names)):
        x = GAP + column * (CELL + GAP)
        pen.text((x, 4), title, fill="black")
        for row, case in enumerate(rows):
            shown = fitted(photos[case]()) if not column else _first(out / "results" / title / f"{case}.png")
            canvas.paste(shown, (x, TITLE + GAP + row * (CELL + GAP)))
    file = out / "sheet.png"
    artifacts.write_file(file, png.png(np.asarray(canvas)))
    return file


def fitted(rgb: np.ndarray):
    """The middle square of a picture at the size of the sheet's, as Pillow has it."""
    from PIL import Image, ImageOps

    return ImageOps.fit(Image.fromarray(rgb), (CELL, CELL), Image.Resampling.LANCZOS)


def _first(file: Path):
    """The first picture of a kept strip; white where the result came without one."""
    from PIL import Image

    if not file.is_file():
        return Image.new("RGB", (CELL, CELL), "white")
    strip = Image.open(file).convert("RGB")
    return strip.crop((0, 0, strip.height, strip.height)).resize((CELL, CELL), Image.Resampling.BICUBIC)
