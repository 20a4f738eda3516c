"""Contact sheet of a benchmark: one row per object, one column per method."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from objtune_cli.images import png
from objtune_cli.store import atomic_files

if TYPE_CHECKING:
    from PIL import Image

MAX_OBJECTS = 12
"""Largest number of objects on the sheet."""
CELL = 128
"""Side of one image on the sheet, px."""
GAP, TITLE = 6, 18


def save_sheet(out: Path, photos: Mapping[str, Callable[[], np.ndarray]], names: list[str]) -> Path:
    """Write `sheet.png`: the photo, then each method's image for the object's first prompt.

    Args:
        photos: Object name to a function that returns its photo (H, W, 3) uint8; the centre square is shown. names: The methods.
    """
    from PIL import Image, ImageDraw

    rows = list(photos)[:MAX_OBJECTS]
    width, height = (len(names) + 1) * (CELL + GAP) + GAP, len(rows) * (CELL + GAP) + GAP + TITLE
    canvas = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(canvas)
    for column, title in enumerate(("photo", *names)):
        x = GAP + column * (CELL + GAP)
        pen.text((x, 4), title, fill="black")
        for row, case in enumerate(rows):
            cell = crop_to_cell(photos[case]()) if not column else _first_image(out / "results" / title / f"{case}.png")
            canvas.paste(cell, (x, TITLE + GAP + row * (CELL + GAP)))
    file = out / "sheet.png"
    atomic_files.write_file(file, png.encode_png(np.asarray(canvas)))
    return file


def crop_to_cell(rgb: np.ndarray) -> "Image.Image":
    """Crop the centre square of an image and resize it to a cell; returns a Pillow image."""
    from PIL import Image, ImageOps

    return ImageOps.fit(Image.fromarray(rgb), (CELL, CELL), Image.Resampling.LANCZOS)


def _first_image(file: Path) -> "Image.Image":
    """First image of a result strip; white if the result has no strip."""
    from PIL import Image

    if not file.is_file():
        return Image.new("RGB", (CELL, CELL), "white")
    strip = Image.open(file).convert("RGB")
    return strip.crop((0, 0, strip.height, strip.height)).resize((CELL, CELL), Image.Resampling.BICUBIC)
