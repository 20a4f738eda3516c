"""Pictures out: PNG bytes with their parameters in text chunks, equal for equal content."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from objtune_cli.errors import DamagedError

if TYPE_CHECKING:
    import numpy as np


def png(rgb: "np.ndarray", texts: Mapping[str, str] | None = None) -> bytes:
    """PNG of an (H, W, 3) or (H, W) uint8 array; `texts` become text chunks in their order."""
    from PIL import Image, PngImagePlugin

    chunks = PngImagePlugin.PngInfo()
    for key, value in (texts or {}).items():
        chunks.add_text(key, value)
    out = io.BytesIO()
    Image.fromarray(rgb).save(out, "PNG", pnginfo=chunks)
    return out.getvalue()


def grid(pictures: "np.ndarray", columns: int = 0, gap: int = 4, scale: int = 1) -> "np.ndarray":
    """Pictures (N, H, W, 3) uint8 in rows on white, each enlarged `scale` times."""
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
    """The pixels (H, W, 3) uint8 of a PNG of ours.

    Raises:
        DamagedError: It cannot be read.
    """
    import numpy as np
    from PIL import Image

    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError) as error:
        raise DamagedError(f"{path} is damaged: {error}", "remove it: the same command decodes it again") from None


SAME, ALL = 2, 0.999
"""A picture is of one colour where so large a share of its pixels lies within so many levels, of 255, in each channel. A VAE's white wall spreads wider."""


def is_one_colour(rgb: "np.ndarray") -> bool:
    """Whether a picture (H, W, 3) uint8 shows nothing: black, white, or any one colour."""
    import numpy as np

    for channel in np.moveaxis(rgb, -1, 0):
        counts = np.bincount(channel.reshape(-1), minlength=256)
        if np.convolve(counts, np.ones(SAME + 1, np.int64)).max() < ALL * channel.size:
            return False
    return True


OUTLINE, RIVAL = (255, 64, 160), (40, 120, 255)
"""Colours of the object's outline, and of what else it might have been."""


def overlay(rgb: "np.ndarray", mask: "np.ndarray", rivals: Sequence["np.ndarray"] = ()) -> "np.ndarray":
    """The photo with everything but the object greyed, its outline in colour, those of rivals (H, W) bool in another."""
    import cv2
    import numpy as np

    grey = (rgb.mean(2, keepdims=True) * 0.4 + 130).clip(0, 255)
    cover = mask[..., None].astype(np.float32) / 255
    shown = np.ascontiguousarray((rgb * cover + grey * (1 - cover)).round().astype(np.uint8))
    width = max(1, round(max(mask.shape) / 300))
    for hard, colour in (*((r, RIVAL) for r in rivals), (mask > 127, OUTLINE)):
        edges, _ = cv2.findContours(hard.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(shown, edges, -1, colour, width)
    return shown
