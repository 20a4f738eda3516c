"""Converts boxes and points to photo pixels, and checks masks against them."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from objtune_cli.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    from objtune_cli.images.photo import Photo
    from objtune_cli.segmentation.from_hints import Target

MAX_OVERSHOOT = 0.01
"""Boxes may exceed the photo by this fraction of its side, at least by a pixel, and are clipped."""
BOX_MARGIN = 0.08
"""Objects may exceed their box by this fraction of the box's side."""
MIN_INSIDE, MIN_SPAN = 0.85, 0.5
"""Smallest share of a mask inside its box, and smallest share of the box's width and height that the mask spans."""
MIN_ROUGH_OVERLAP = 0.5
"""Smallest overlap of a mask and its rough mask, as a share of either."""
POINT_TOLERANCE = 0.02
"""Largest distance of a point to its mask, fraction of the mask's longer side."""


@dataclass(frozen=True, slots=True)
class PhotoSize:
    """Size of the upright photo in px, and the EXIF orientation that was applied."""

    width: int
    height: int
    orientation: int = 1

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


def to_pixels(target: "Target", frame: PhotoSize, note: "Callable[[str], None]") -> "Target":
    """Convert a target's box and points to pixels: scale fractions and clip boxes that slightly exceed the photo.

    Raises:
        InputError: A box or point is outside the photo, or the corners of a box are in another order.
    """
    box = target.box_xyxy
    if box is None and not (target.points or target.negative_points):
        return target
    if box:
        box = _box_to_pixels(box, frame, target.name, note)
    dots = (*target.points, *target.negative_points)
    if any(_is_fraction(dot) for dot in dots):
        scaled = tuple(
            _clamp_to_last_pixel(_scale_point(dot, frame), frame) if all(0 <= v <= 1 for v in dot) else dot
            for dot in dots
        )
        note(
            f"points of {target.name} in fractions of the photo are {' and '.join(_format(dot) for dot in scaled)} in pixels"
        )
        dots = scaled
    dots = tuple(_clip_point(dot, frame) for dot in dots)
    count = len(target.points)
    return replace(target, box_xyxy=box, points=dots[:count], negative_points=dots[count:])


def _format(values: "tuple[float, ...]") -> str:
    return ",".join(f"{v:g}" for v in values)


def _is_fraction(dot: tuple[float, float]) -> bool:
    """Whether a point is in fractions of the photo, such as 0.5,0.5; 0,0 and 1,1 count as pixels."""
    return all(0 <= v <= 1 for v in dot) and not all(v in (0, 1) for v in dot)


def _scale_point(dot: tuple[float, float], frame: PhotoSize) -> tuple[float, float]:
    x, y = dot
    return round(x * frame.width, 2), round(y * frame.height, 2)


def _box_to_pixels(
    box: tuple[float, float, float, float], frame: PhotoSize, name: str, note: "Callable[[str], None]"
) -> tuple[float, float, float, float]:
    box_text = _format(box)
    if all(0 <= v <= 1 for v in box):
        box = (*_scale_point(box[:2], frame), *_scale_point(box[2:], frame))
        note(f"the box of {name} in fractions of the photo is {_format(box)} in pixels")
    x0, y0, x1, y1 = box
    if x1 <= x0 or y1 <= y0:
        raise InputError(
            f"the box {box_text} is not inside the photo ({frame}): x1,y1 has to be right of and below x0,y0",
            _suggest_orders(box, frame),
        )
    reach_x, reach_y = max(1.0, MAX_OVERSHOOT * frame.width), max(1.0, MAX_OVERSHOOT * frame.height)
    inside = (max(x0, 0.0), max(y0, 0.0), min(x1, float(frame.width)), min(y1, float(frame.height)))
    outside = max(-x0, x1 - frame.width) >= reach_x or max(-y0, y1 - frame.height) >= reach_y
    if outside or inside[2] <= inside[0] or inside[3] <= inside[1]:
        raise InputError(f"the box {box_text} is not inside the photo ({frame})", _suggest_other_box(box, frame))
    if max(abs(a - b) for a, b in zip(box, inside, strict=True)) >= 1:
        note(f"the box {box_text} reaches over the edge of the photo ({frame}): clipped")
    return inside if inside != box else box


def _suggest_orders(box: tuple[float, ...], frame: PhotoSize) -> str:
    """Hint with the boxes that the numbers may mean."""
    x0, y0, x1, y1 = box
    corners = (min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1))
    suggestions = []
    if corners[0] < corners[2] and corners[1] < corners[3]:
        suggestions.append(f"with its corners in order `--box {_format(corners)}`")
    if min(box) >= 0 and x1 > 0 and y1 > 0 and x0 + x1 <= frame.width and y0 + y1 <= frame.height:
        suggestions.append(f"if it is x,y,width,height, `--box {_format((x0, y0, x0 + x1, y0 + y1))}`")
    return (
        "; ".join(suggestions)
        or "x0,y0 is its upper left, x1,y1 its lower right corner, for example `--box 0.2,0.2,0.8,0.8`"
    )


def _suggest_other_box(box: tuple[float, ...], frame: PhotoSize) -> str:
    """Hint for a box outside the photo."""
    turned = _turn_box(box, frame)
    if turned:
        return f"in the photo as it is stored, before its EXIF rotation, that is a box; as the photo is shown, it is `--box {_format(turned)}`"
    return "x0,y0 is its upper left, x1,y1 its lower right corner, in pixels of this photo or in fractions of it: `--box 0.2,0.2,0.8,0.8`"


def _turn_box(box: tuple[float, ...], frame: PhotoSize) -> tuple[float, ...] | None:
    """Convert a box of the stored photo to the upright photo; None if it is no such box."""
    if frame.orientation < 5:
        return None
    x0, y0, x1, y1 = box
    width, height = frame.height, frame.width
    if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
        return None
    left, right = (y0, y1) if frame.orientation in (5, 8) else (height - y1, height - y0)
    top, bottom = (x0, x1) if frame.orientation in (5, 6) else (width - x1, width - x0)
    return left, top, right, bottom


def _clip_point(dot: tuple[float, float], frame: PhotoSize) -> tuple[float, float]:
    x, y = dot
    if not (-1 < x < frame.width and -1 < y < frame.height):
        raise InputError(
            f"the point {_format(dot)} is not inside the photo ({frame})",
            "give pixels of the photo as it is shown, or fractions of it: `--point 0.5,0.5`",
        )
    return max(x, 0.0), max(y, 0.0)


def _clamp_to_last_pixel(dot: tuple[float, float], frame: PhotoSize) -> tuple[float, float]:
    """Clamp a point to the last pixel."""
    return min(dot[0], frame.width - 1.0), min(dot[1], frame.height - 1.0)


def find_disagreement(
    cover: "np.ndarray", target: "Target", photo: "Photo", rough: "np.ndarray | None" = None
) -> tuple[str, str]:
    """Why a mask disagrees with a box, points or a rough mask, and a hint; two empty texts if it agrees.

    Args:
        cover: Coverage (H, W) uint8 at the stored size. target: Hints in pixels of the photo. rough: The rough mask, like `cover`.
    """
    mask = cover > 127
    if not mask.any() or target.mask:
        return "", ""
    scale = cover.shape[1] / photo.size[0]
    box = _box_disagreement(mask, target, scale) if target.box_xyxy else ""
    if box:
        return box, suggest_box(target, photo)
    if rough is not None:
        shared = float((mask & (rough > 127)).sum())
        share = max(shared / mask.sum(), shared / max(1, (rough > 127).sum()))
        if share < MIN_ROUGH_OVERLAP:
            return (
                f"the mask and the rough mask share {share:.0%}",
                "draw the rough mask on the object, or give the exact one with `--mask M.png`",
            )
    return _point_disagreement(mask, target, scale)


def _box_disagreement(mask: "np.ndarray", target: "Target", scale: float) -> str:
    """Why a mask (H, W) bool disagrees with the target's box; empty if it agrees."""
    import numpy as np

    assert target.box_xyxy
    ys, xs = mask.nonzero()
    x0, y0, x1, y1 = (v * scale for v in target.box_xyxy)
    margin_x, margin_y = max(2.0, BOX_MARGIN * (x1 - x0)), max(2.0, BOX_MARGIN * (y1 - y0))
    is_inside = (xs >= x0 - margin_x) & (xs < x1 + margin_x) & (ys >= y0 - margin_y) & (ys < y1 + margin_y)
    inside = float(is_inside.mean())
    if inside < MIN_INSIDE:
        return f"only {inside:.0%} of the mask lies in its box"
    left, right = np.quantile(xs, (0.005, 0.995))
    top, bottom = np.quantile(ys, (0.005, 0.995))
    span = min((min(right + 1, x1) - max(left, x0)) / (x1 - x0), (min(bottom + 1, y1) - max(top, y0)) / (y1 - y0))
    return f"the mask fills only {max(span, 0):.0%} of its box's width or height" if span < MIN_SPAN else ""


def _point_disagreement(mask: "np.ndarray", target: "Target", scale: float) -> tuple[str, str]:
    """Why a mask (H, W) bool disagrees with the target's points, and a hint; two empty texts if it agrees."""
    import numpy as np

    ys, xs = mask.nonzero()
    near = POINT_TOLERANCE * max(float(np.ptp(xs)), float(np.ptp(ys))) + 2
    for x, y in target.points:
        if float(np.hypot(xs - x * scale, ys - y * scale).min()) > near:
            return f"the point {_format((x, y))} is not on the mask", "give `--box x0,y0,x1,y1` or more points on it"
    for x, y in target.negative_points:
        column, row = min(int(x * scale), mask.shape[1] - 1), min(int(y * scale), mask.shape[0] - 1)
        around = mask[max(0, row - 2) : row + 3, max(0, column - 2) : column + 3]
        if around.all():
            return (
                f"the point {_format((x, y))} of `--negative-point` is on the mask",
                "give `--box x0,y0,x1,y1` or `--mask M.png`",
            )
    return "", ""


def suggest_box(target: "Target", photo: "Photo") -> str:
    """Hint for a box with another content than the object."""
    frame = PhotoSize(*photo.size, photo.orientation)
    x0, y0, x1, y1 = target.box_xyxy or (0, 0, 0, 0)
    suggestions = []
    if (x0 or y0) and x0 + x1 <= frame.width and y0 + y1 <= frame.height:
        suggestions.append(f"if it is x,y,width,height, give `--box {_format((x0, y0, x0 + x1, y0 + y1))}`")
    turned = _turn_box(target.box_xyxy or (), frame) if target.box_xyxy else None
    if turned:
        suggestions.append(f"if it is of the photo before its EXIF rotation, give `--box {_format(turned)}`")
    return "; ".join(
        [
            f"a box is x0,y0,x1,y1 in pixels of this photo ({frame}), close around the object",
            *suggestions,
            "or give `--mask M.png`",
        ]
    )
