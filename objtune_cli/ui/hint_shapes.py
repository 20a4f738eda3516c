"""Mask, hints and the stroke that is being drawn, as shapes above a photo."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from objtune_cli.ui import canvas, photo_images
from objtune_cli.ui.hints import Box, PhotoHints, Point

if TYPE_CHECKING:
    import numpy as np

ON, OFF, FRAME = "#16a34a", "#dc2626", "#f59e0b"
"""Colours of the object, of what is beside it, and of boxes."""
DOTS = 90
"""Radii of a point along the photo's longer side."""


def draw_mask(mask: "np.ndarray | None") -> str:
    """A mask (H, W) uint8 above its photo; None: nothing."""
    if mask is None:
        return ""
    height, width = mask.shape
    return f'<image href="{photo_images.mask_address(mask)}" width="{width}" height="{height}" />'


def draw_hints(hints: PhotoHints) -> str:
    """Box and points."""
    radius = max(hints.size) / DOTS
    frame = canvas.rectangle(hints.box, FRAME, radius / 3) if hints.box else ""
    return frame + "".join(canvas.dot(*each.point, ON if each.is_object else OFF, radius) for each in hints.points)


def draw_drag(tool: str, drag: Sequence[Point], width: float, size: tuple[int, int]) -> str:
    """The box or the stroke that the pointer is drawing."""
    if len(drag) < 2:
        return ""
    if tool == "box":
        return canvas.rectangle(box_of(drag), FRAME, max(size) / DOTS / 3)
    return canvas.path(drag, ON if tool == "add" else OFF, width) if tool in ("add", "erase") else ""


def box_of(drag: Sequence[Point]) -> Box:
    """The box x0, y0, x1, y1 between both ends of a drag."""
    (x0, y0), (x1, y1) = drag[0], drag[-1]
    return min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)
