"""Images as data addresses in WebP, small enough for a page."""

import base64
import io
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

SHEET, IMAGE, MANY_IMAGE, STRIP = 1400, 320, 192, 1024
"""Longest side of a sheet, of an image, of an image among more than `MANY`, and of a strip of a benchmark, px."""
MANY = 2000
"""Images from which they are smaller, so that a page of 10,000 has about 50 MB."""
QUALITY, EFFORT = 80, 1
"""Quality of WebP, and its effort from 0 to 6; the encoder's default of 4 takes three times as long and saves 15 % of the bytes."""


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """An image as a data address, with its size for the layout; `parameters` are those of A1111's form, or empty."""

    address: str
    width: int
    height: int
    parameters: str = ""


def shrink(data: bytes, side: int) -> Thumbnail:
    """Make a thumbnail of at most `side` px from the bytes of an image file."""
    from PIL import Image

    with Image.open(io.BytesIO(data)) as opened:
        parameters = str(opened.info.get("parameters", ""))
        picture = opened.convert("RGB")
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    picture.save(out, "WEBP", quality=QUALITY, method=EFFORT)
    address = "data:image/webp;base64," + base64.b64encode(out.getvalue()).decode()
    return Thumbnail(address, *picture.size, parameters)


def shrink_all(groups: Iterable[list[Callable[[], bytes]]], side: int) -> Iterator[list[Thumbnail]]:
    """Make the thumbnails of groups of images, one group at a time, on all processors.

    Args:
        groups: Functions that read the bytes of the images.
    """
    with ThreadPoolExecutor(os.cpu_count() or 1) as threads:
        for group in groups:
            yield list(threads.map(lambda read: shrink(read(), side), group))
