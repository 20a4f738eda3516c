"""Images as data addresses in WebP, small enough for a page."""

import base64
import io
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

SHEET, IMAGE, MANY_IMAGE, STRIP = 1400, 320, 192, 1024
"""Longest side of a sheet, of an image, of an image among more than `MANY`, and of a strip of a benchmark, px."""
MANY = 2000
"""Images from which they are smaller, so that a page of 10,000 has about 65 MB."""
QUALITY, EFFORT = 80, 1
"""Quality of WebP, and its effort from 0 to 6; the encoder's default of 4 takes three times as long and saves 15 % of the bytes."""
UNREADABLE = "this image cannot be read"


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """An image as a data address, with its size for the layout; `parameters` are those of A1111's form, or empty."""

    address: str
    width: int
    height: int
    parameters: str = ""


def _shrink(data: bytes, side: int) -> Thumbnail:
    """Make a thumbnail of at most `side` px from the bytes of an image file."""
    from PIL import Image

    with Image.open(io.BytesIO(data)) as opened:
        parameters = str(opened.info.get("parameters", ""))
        picture = opened.convert("RGB")
    return _encode(picture, side, parameters)


def make_thumbnail(read: Callable[[], bytes], side: int) -> Thumbnail:
    """Make a thumbnail; a grey square that says so stands for a file that is gone or damaged."""
    from PIL import Image

    try:
        return _shrink(read(), side)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):  # Pillow's errors of damaged files
        return _encode(Image.new("RGB", (side // 2, side // 2), "grey"), side, UNREADABLE)


def _encode(picture: "Image.Image", side: int, parameters: str) -> Thumbnail:
    """Encode an image of Pillow as a thumbnail of at most `side` px."""
    from PIL import Image

    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    picture.save(out, "WEBP", quality=QUALITY, method=EFFORT)
    address = "data:image/webp;base64," + base64.b64encode(out.getvalue()).decode()
    return Thumbnail(address, *picture.size, parameters)


def make_thumbnails(groups: Iterable[list[Callable[[], bytes]]], side: int) -> Iterator[list[Thumbnail]]:
    """Make the thumbnails of groups of images, one group at a time, on all processors.

    Args:
        groups: Functions that read the bytes of the images.
    """
    with ThreadPoolExecutor(os.cpu_count() or 1) as threads:
        for group in groups:
            yield list(threads.map(partial(make_thumbnail, side=side), group))
