"""Alpha of pictures: its levels, what shows on white, and soft shadows that are no object."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

INVISIBLE = 25
"""Alpha up to which a picture shows nothing, and a background is one, of 255."""
OPAQUE, CLEAR = 250, 8
"""Alpha from which a pixel is opaque, and up to which it shows nothing, of 255."""
DARK = 40
"""Brightest value of a shadow's colour, of 255."""
MOSTLY = 0.3
"""Least share of a shadow whose colour shows."""
FREE = 0.2
"""Share of an object's outline that a shadow leaves free if it falls to one side."""
FADING = 60
"""Alpha at which a shadow ends; parts of an object end with more."""


def stretched(alpha: "np.ndarray") -> "np.ndarray":
    """Alpha with the object's own level as 255 and that of a background that barely shows as 0; 0 everywhere if nothing shows.

    Background removers write levels such as 12 and 200.
    """
    import numpy as np

    shown = alpha[alpha > 127]
    high = int(np.percentile(shown, 90)) if len(shown) else int(alpha.max())
    low = int(alpha.min())
    if high <= INVISIBLE:
        return np.zeros_like(alpha)
    if low > INVISIBLE:
        low = 0
    if (low, high) == (0, 255):
        return alpha
    return ((alpha.astype(np.float32) - low) * (255 / (high - low))).round().clip(0, 255).astype(np.uint8)


def on_white(rgb: "np.ndarray", alpha: "np.ndarray") -> "np.ndarray":
    """Colours as they are where they show by half or more, fading to white below that."""
    import numpy as np

    weight = np.minimum(alpha.astype(np.uint16) * 2, 255)[..., None]
    return ((rgb * weight + 255 * (255 - weight) + 127) // 255).astype(np.uint8)


def without_shadow(alpha: "np.ndarray", rgb: "np.ndarray") -> "np.ndarray":
    """Alpha without a soft, dark shadow outside of what is opaque.

    Args:
        rgb: Colours as `on_white` gives them.
    """
    import cv2
    import numpy as np

    opaque = (alpha >= OPAQUE).astype(np.uint8)
    if not opaque.any():
        return alpha
    shown = np.minimum(alpha.astype(np.int32) * 2, 255)
    brightest = rgb.max(2)
    soft = (alpha > 0) & (opaque == 0)
    dark = soft & (alpha > INVISIBLE) & (brightest <= 255 - shown * (255 - DARK) / 255)
    if not dark.any():
        return alpha
    away = cv2.distanceTransform(1 - opaque, cv2.DIST_L2, 5)
    least = max(4.0, 0.01 * max(alpha.shape))
    count, regions = cv2.connectedComponents(
        (dark | (soft & (alpha <= INVISIBLE))).astype(np.uint8)
    )  # what barely shows has no colour to tell
    ends = soft & (cv2.dilate((alpha <= CLEAR).astype(np.uint8), np.ones((3, 3), np.uint8)) > 0)
    ring = (away > 2) & (away < 6)
    on_one_side = float((alpha[ring] <= CLEAR).mean()) > FREE if ring.any() else False
    found = alpha.copy()
    for i in range(1, count):
        region = regions == i
        end = alpha[region & ends]
        if (
            float(dark[region].mean()) < MOSTLY
            or not len(end)
            or float(away[region].max()) <= least
            or float(np.median(end)) > FADING
        ):
            continue
        beside = (cv2.dilate(region.astype(np.uint8), np.ones((9, 9), np.uint8)) > 0) & (opaque > 0)
        if (
            not on_one_side and beside.any() and float(np.median(brightest[beside])) <= 2 * DARK
        ):  # dark fur, or a mask painted black
            continue
        found[region & (away > 1.5)] = 0  # pixels next to what is opaque are its edge
    return found
