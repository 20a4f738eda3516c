"""The region of a picture that an object is placed in: a box, a mask, what a class word finds, or a proposal."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from objtune_cli.composition import layout
from objtune_cli.composition.layout import MIN_SIDE, PLACES, Box
from objtune_cli.errors import InputError, UsageError
from objtune_cli.images import mask_image
from objtune_cli.images.photo import Photo

MIN_PIXELS = 16
"""Least width and height of a region, px."""
MARGIN = 0.04
"""Margin around a mask of what is replaced, fraction of its longer side: its shadow and its soft edge go, too."""
PROPOSED = 0.5
"""Longer side of a proposed region over the picture's shorter side."""
STEPS = 24
"""Positions of a proposed region along each side of the picture."""
LOWER = 0.35
"""How much a proposal prefers low and central positions, in the units of the calmness that it looks for."""
STRONG_EDGE = 0.3
"""Least gradient of a strong edge, in the units of `_edges`."""
OCCUPIED = 0.12
"""Share of strong edges in a region that shows something. On the toybox, nine of ten regions are told right."""

PixelBox = tuple[int, int, int, int]
"""x0, y0, x1, y1, px."""


@dataclass(frozen=True, slots=True)
class Region:
    """What may change in a picture.

    Attributes:
        cover: (H, W) float32 in [0, 1], 1 where the picture may change.
        box: Around it, x0, y0, x1, y1 px.
    """

    cover: np.ndarray
    box: PixelBox


def parse_box(text: str) -> Box:
    """Parse `left` or `0.55,0.4,0.95,0.9` to a box in fractions of the picture.

    Raises:
        UsageError: No named place, and no box inside the picture of at least `MIN_SIDE`.
    """
    box = layout.parse_box(text)
    if box is None:
        raise UsageError(
            f"--at is {text!r}, which is not a place in the picture",
            f"{', '.join(PLACES)}, or x0,y0,x1,y1 in fractions of the picture",
        )
    if min(box[2] - box[0], box[3] - box[1]) < MIN_SIDE:
        raise UsageError(
            f"--at is {text!r}, which is too small",
            f"places are at least {MIN_SIDE:g} wide and high, in fractions of the picture",
        )
    return box


def from_box(box: Box, size: tuple[int, int]) -> Region:
    """The region of a box in fractions of a picture of `size` (width, height), px.

    Raises:
        InputError: It has fewer than `MIN_PIXELS` in width or height.
    """
    width, height = size
    pixels = round(box[0] * width), round(box[1] * height), round(box[2] * width), round(box[3] * height)
    return from_pixels(pixels, size)


def from_pixels(box: PixelBox, size: tuple[int, int]) -> Region:
    """The region of a box, px, of a picture of `size` (width, height)."""
    cover = np.zeros((size[1], size[0]), np.float32)
    cover[box[1] : box[3], box[0] : box[2]] = 1
    return _checked(Region(cover, box), "the place")


def from_mask_file(path: Path, picture: Photo) -> tuple[Region, tuple[str, ...]]:
    """The region of a mask file, and notes on how it was read.

    Raises:
        InputError: It is no mask, has another shape than the picture, or is too small.
    """
    mask = mask_image.read(path, picture)
    return from_cover(mask.cover, picture, str(path)), mask.notes


def from_cover(cover: np.ndarray, picture: Photo, what: str, margin: float = 0.0) -> Region:
    """The region of a coverage (h, w) uint8 of the picture, at any size.

    Args:
        what: What covers it, for messages.
        margin: Margin around it, fraction of its longer side.

    Raises:
        InputError: It covers nothing, or too little.
    """
    height, width = picture.rgb.shape[:2]
    inside = cv2.resize(cover, (width, height), interpolation=cv2.INTER_LINEAR) > 127
    if inside.any() and margin:
        x0, y0, x1, y1 = _bounding_box(inside)
        reach = max(1, round(margin * max(x1 - x0, y1 - y0)))
        brush = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
        inside = cv2.dilate(inside.astype(np.uint8), brush) > 0
    if not inside.any():
        raise InputError(f"{what} covers nothing of the picture", "a mask is white where the object goes")
    return _checked(Region(inside.astype(np.float32), _bounding_box(inside)), what)


def union(regions: Sequence[Region]) -> Region:
    """The region of all; one or more."""
    if len(regions) == 1:
        return regions[0]
    cover = np.maximum.reduce([each.cover for each in regions])
    return Region(cover, _bounding_box(cover > 0.5))


def propose_box(rgb: np.ndarray, aspect_ratio: float) -> Box:
    """The calmest part of a picture for an object of an aspect ratio (width over height), as a box in fractions.

    Calm is where the brightness changes least; low and central parts are preferred, because objects stand there (ours).
    """
    edges = _edges(rgb)
    sums = cv2.integral(edges)
    high, wide = edges.shape
    longer = PROPOSED * min(high, wide)
    box_wide = min(wide, max(4, round(longer * min(1.0, aspect_ratio))))
    box_high = min(high, max(4, round(longer * min(1.0, 1 / aspect_ratio))))
    usual = max(float(edges.mean()), 1e-4)
    best: tuple[float, int, int] | None = None
    for y in np.unique(np.linspace(0.05 * high, 0.97 * high - box_high, STEPS).clip(0).astype(int)):
        for x in np.unique(np.linspace(0.03 * wide, 0.97 * wide - box_wide, STEPS).clip(0).astype(int)):
            total = sums[y + box_high, x + box_wide] - sums[y, x + box_wide] - sums[y + box_high, x] + sums[y, x]
            off_center = abs((x + box_wide / 2) / wide - 0.5) + abs((y + box_high) / high - 0.9)
            cost = float(total) / (box_wide * box_high) / usual + LOWER * off_center
            if best is None or cost < best[0]:
                best = (cost, int(x), int(y))
    assert best is not None
    _, x, y = best
    left, top, right, low = x / wide, y / high, (x + box_wide) / wide, (y + box_high) / high
    return round(left, 4), round(top, 4), round(right, 4), round(low, 4)


def find_calmer_box(rgb: np.ndarray, box: Box, aspect_ratio: float) -> Box | None:
    """The proposed part of a picture, if it has less than half of the strong edges of `box`; None if `box` is free, too.

    A box that shows much more than the calmest part has another thing in it, which the new object is drawn over.

    Args:
        box: In fractions of the picture. aspect_ratio: Of the object, width over height.
    """
    strong = _edges(rgb) > STRONG_EDGE
    share = _mean_in(strong, box)
    proposed = propose_box(rgb, aspect_ratio)
    return proposed if share > OCCUPIED and _mean_in(strong, proposed) < share / 2 else None


def _edges(rgb: np.ndarray) -> np.ndarray:
    """Gradient of the brightness (Sobel, brightness in [0, 1]) of a picture reduced to 256 px, (h, w)."""
    height, width = rgb.shape[:2]
    scale = 256 / max(height, width)
    small = cv2.resize(rgb, (max(8, round(width * scale)), max(8, round(height * scale))), interpolation=cv2.INTER_AREA)
    grey = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY).astype(np.float32) / 255
    return np.hypot(cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1))


def _mean_in(values: np.ndarray, box: Box) -> float:
    """Mean of values (h, w) in a box in fractions."""
    high, wide = values.shape
    x0, y0, x1, y1 = (round(v * n) for v, n in zip(box, (wide, high, wide, high), strict=True))
    return float(values[y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)].mean())


def _bounding_box(inside: np.ndarray) -> PixelBox:
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _checked(region: Region, what: str) -> Region:
    x0, y0, x1, y1 = region.box
    if min(x1 - x0, y1 - y0) < MIN_PIXELS:
        raise InputError(
            f"{what} has {x1 - x0}x{y1 - y0} pixels in the picture; a base draws nothing so small",
            f"at least {MIN_PIXELS}x{MIN_PIXELS} pixels",
        )
    return region
