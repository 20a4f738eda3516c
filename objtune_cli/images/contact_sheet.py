"""Contact sheets: pictures in rows and columns with labels."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from objtune_cli.images import png

if TYPE_CHECKING:
    import numpy as np

MAX_SIDE = 8192
"""Largest side of a sheet, px; the pictures are made smaller for it."""
GAP = 6


def draw(rows: Sequence[Sequence[Path]], across: Sequence[str] = (), down: Sequence[str] = ()) -> "np.ndarray":
    """Draw pictures as a sheet.

    Args:
        rows: PNG files; rows may have different lengths.
        across, down: Labels of the columns and of the rows, or none.

    Returns:
        (H, W, 3) uint8.
    """
    import numpy as np
    from PIL import Image, ImageDraw, ImageFont

    sizes = [Image.open(file).size for row in rows for file in row]
    columns = max(map(len, rows))
    width, height = max(w for w, _ in sizes), max(h for _, h in sizes)
    scale = min(1.0, MAX_SIDE / (columns * (width + GAP)), MAX_SIDE / (len(rows) * (height + GAP)))
    width, height = max(1, round(width * scale)), max(1, round(height * scale))
    size = max(12, min(32, height // 12))
    font: Any = ImageFont.load_default(size)
    left = GAP + max((round(font.getlength(text)) + GAP for text in down), default=0)
    top = GAP + (size + 2 * GAP if across else 0)
    canvas = Image.new("RGB", (left + columns * (width + GAP), top + len(rows) * (height + GAP)), "white")
    pen = ImageDraw.Draw(canvas)
    for j, text in enumerate(across):
        pen.text((left + j * (width + GAP), GAP), _shorten(text, font, width), fill="black", font=font)
    for i, row in enumerate(rows):
        y = top + i * (height + GAP)
        if down:
            pen.text((GAP, y + height // 2 - size // 2), down[i], fill="black", font=font)
        for j, file in enumerate(row):
            picture = Image.fromarray(png.read(file))
            picture.thumbnail((width, height), Image.Resampling.LANCZOS)
            canvas.paste(picture, (left + j * (width + GAP), y))
    return np.asarray(canvas)


def _shorten(text: str, font: Any, width: int) -> str:
    """A label that is not wider than its column."""
    while text and font.getlength(text) > width:
        text = text[:-2] + "…" if len(text) > 2 else ""
    return text
