"""Alpha channels: normalised levels, blending on white, and removal of soft shadows."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

INVISIBLE = 25
"""Largest alpha of a background, of 255."""
OPAQUE, CLEAR = 250, 8
"""Smallest alpha of an opaque pixel and largest alpha of a clear one, of 255."""
MAX_SHADOW_BRIGHTNESS = 40
"""Largest channel value of a shadow's colour, of 255."""
MIN_DARK_SHARE = 0.3
"""Smallest share of a shadow that is dense enough to show its colour."""
MIN_CLEAR_SHARE = 0.2
"""Share of an object's outline without a shadow, if the shadow falls to one side."""
MAX_END_ALPHA = 60
"""Largest median alpha at the edge of a shadow; soft parts of an object end more abruptly."""


def normalize_alpha(alpha: "np.ndarray") -> "np.ndarray":
    """Scale alpha so that the object has 255 and the background 0; the result is 0 everywhere if nothing is visible.

    Background removers write levels such as 12 and 200 for background and object.
    """
    import numpy as np

    visible = alpha[alpha > 127]
    high = int(np.percentile(visible, 90)) if len(visible) else int(alpha.max())
    low = int(alpha.min())
    if high <= INVISIBLE:
        return np.zeros_like(alpha)
    if low > INVISIBLE:
        low = 0
    if (low, high) == (0, 255):
        return alpha
    factor = 255 / (high - low)
    stretched: np.ndarray = ((alpha.astype(np.float32) - low) * factor).round().clip(0, 255).astype(np.uint8)
    return stretched


def blend_on_white(rgb: "np.ndarray", alpha: "np.ndarray") -> "np.ndarray":
    """Colours as stored where alpha is 128 or more, fading to white below."""
    import numpy as np

    weight = np.minimum(alpha.astype(np.uint16) * 2, 255)[..., None]
    blended: np.ndarray = ((rgb * weight + 255 * (255 - weight) + 127) // 255).astype(np.uint8)
    return blended


def remove_shadow(alpha: "np.ndarray", rgb: "np.ndarray") -> "np.ndarray":
    """Set soft, dark shadows around the opaque part to 0.

    Args:
        alpha: (H, W) uint8. rgb: Colours blended by `blend_on_white`.
    """
    import cv2
    import numpy as np

    opaque = (alpha >= OPAQUE).astype(np.uint8)
    if not opaque.any():
        return alpha
    visible = np.minimum(alpha.astype(np.int32) * 2, 255)
    brightest = rgb.max(2)
    soft = (alpha > 0) & (opaque == 0)
    dark = soft & (alpha > INVISIBLE) & (brightest <= 255 - visible * (255 - MAX_SHADOW_BRIGHTNESS) / 255)
    if not dark.any():
        return alpha
    away = cv2.distanceTransform(1 - opaque, cv2.DIST_L2, 5)
    least = max(4.0, 0.01 * max(alpha.shape))
    # nearly invisible pixels have no usable colour, so they may belong to a shadow
    count, regions = cv2.connectedComponents((dark | (soft & (alpha <= INVISIBLE))).astype(np.uint8))
    ends = soft & (cv2.dilate((alpha <= CLEAR).astype(np.uint8), np.ones((3, 3), np.uint8)) > 0)
    ring = (away > 2) & (away < 6)
    on_one_side = float((alpha[ring] <= CLEAR).mean()) > MIN_CLEAR_SHARE if ring.any() else False
    cleaned = alpha.copy()
    for i in range(1, count):
        region = regions == i
        end = alpha[region & ends]
        if (
            float(dark[region].mean()) < MIN_DARK_SHARE
            or not len(end)
            or float(away[region].max()) <= least
            or float(np.median(end)) > MAX_END_ALPHA
        ):
            continue
        neighbours = (cv2.dilate(region.astype(np.uint8), np.ones((9, 9), np.uint8)) > 0) & (opaque > 0)
        if (
            not on_one_side
            and neighbours.any()
            and float(np.median(brightest[neighbours])) <= 2 * MAX_SHADOW_BRIGHTNESS
        ):
            continue  # dark fur, or a mask painted black
        cleaned[region & (away > 1.5)] = 0  # pixels next to the opaque part are its edge
    return cleaned
