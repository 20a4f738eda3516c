"""Writes and reads PNGs: deterministic bytes with parameters in text chunks, image grids and mask overlays."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from objtune_cli.errors import DamagedError

if TYPE_CHECKING:
    import numpy as np


def encode_png(rgb: "np.ndarray", texts: Mapping[str, str] | None = None) -> bytes:
    """Encode an (H, W, 3) or (H, W) uint8 array as PNG; `texts` become text chunks in their order."""
    from PIL import Image, PngImagePlugin

    chunks = PngImagePlugin.PngInfo()
    for key, value in (texts or {}).items():
        chunks.add_text(key, value)
    out = io.BytesIO()
    Image.fromarray(rgb).save(out, "PNG", pnginfo=chunks)
    return out.getvalue()


def make_grid(pictures: "np.ndarray", columns: int = 0, gap: int = 4, scale: int = 1) -> "np.ndarray":
    """Arrange images (N, H, W, 3) uint8 in rows on white, each enlarged `scale` times."""
    import numpy as np
    from PIL import Image

    if scale > 1:
        size = (pictures.shape[2] * scale, pictures.shape[1] * scale)
        pictures = np.stack([np.asarray(Image.fromarray(p).resize(size, Image.Resampling.BICUBIC)) for p in pictures])
    count, height, width = pictures.shape[:3]
    columns = columns or min(count, 4)
    rows = -(-count // columns)
    sheet = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, 3), 255, np.uint8)
    for i, picture in enumerate(pictures):
        y, x = gap + i // columns * (height + gap), gap + i % columns * (width + gap)
        sheet[y : y + height, x : x + width] = picture
    return sheet


def read(path: Path) -> "np.ndarray":
    """Read a PNG that this package wrote as (H, W, 3) uint8.

    Raises:
        DamagedError: The file cannot be read.
    """
    import numpy as np
    from PIL import Image

    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError) as error:
        raise DamagedError(f"{path} is damaged: {error}", "remove it; the same command decodes it again") from None


def read_text(path: Path, key: str) -> str:
    """The text chunk of a PNG that this package wrote; "" if it has none."""
    from PIL import Image

    with Image.open(path) as image:
        return str(image.info.get(key, ""))


MAX_SPREAD, MIN_SAME_SHARE = 2, 0.999
"""An image has a single colour if MIN_SAME_SHARE of its pixels lie within MAX_SPREAD levels (of 255) in each channel. A decoded white wall spreads wider."""


def is_single_color(rgb: "np.ndarray") -> bool:
    """Whether an image (H, W, 3) uint8 is black, white, or any other single colour."""
    import numpy as np

    for channel in np.moveaxis(rgb, -1, 0):
        counts = np.bincount(channel.reshape(-1), minlength=256)
        if np.convolve(counts, np.ones(MAX_SPREAD + 1, np.int64)).max() < MIN_SAME_SHARE * channel.size:
            return False
    return True


OUTLINE, ALTERNATIVE = (255, 64, 160), (40, 120, 255)
"""Colours of the outlines of the object and of alternative candidates."""


def draw_overlay(rgb: "np.ndarray", mask: "np.ndarray", rivals: Sequence["np.ndarray"] = ()) -> "np.ndarray":
    """Grey out everything but the object, and draw the outlines of the object and of alternative masks (H, W) bool."""
    import cv2
    import numpy as np

    grey = (rgb.mean(2, keepdims=True) * 0.4 + 130).clip(0, 255)
    cover = mask[..., None].astype(np.float32) / 255
    blended = np.ascontiguousarray((rgb * cover + grey * (1 - cover)).round().astype(np.uint8))
    width = max(1, round(max(mask.shape) / 300))
    for hard, color in (*((r, ALTERNATIVE) for r in rivals), (mask > 127, OUTLINE)):
        edges, _ = cv2.findContours(hard.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(blended, edges, -1, color, width)
    return blended
