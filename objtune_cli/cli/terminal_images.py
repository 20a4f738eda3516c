"""Images on a terminal: by sixel or kitty's graphics protocol where the terminal has one, else in half blocks."""

import logging
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image

WIDTH = 72
"""Width of an image, characters."""


def render(image: "Image.Image") -> Any:
    """Return an RGB image as a renderable of rich, `WIDTH` characters wide.

    The terminal is asked once what it can show; the answer comes on stdin, so that both must be the terminal.
    """
    stdout = sys.__stdout__
    if sys.stdin is not None and sys.stdin.isatty() and stdout is not None and stdout.isatty():
        logging.getLogger("textual_image").setLevel(logging.CRITICAL)
        from textual_image import renderable

        if renderable.Image in (renderable.SixelImage, renderable.TGPImage):
            return renderable.Image(image, width=WIDTH)
    return half_blocks(image)


def half_blocks(image: "Image.Image") -> Any:
    """Return an RGB image as text: two pixels a character, one above the other."""
    from rich.text import Text

    height = max(2, round(image.height / image.width * WIDTH / 2) * 2)
    pixels: Any = image.resize((WIDTH, height)).load()
    text = Text()
    for y in range(0, height, 2):
        for x in range(WIDTH):
            upper, lower = ("rgb({},{},{})".format(*pixels[x, row]) for row in (y, y + 1))
            text.append("▀", style=f"{upper} on {lower}")
        text.append("\n")
    return text
