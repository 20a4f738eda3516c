"""Tells photographs from flat drawings, for base models that know only drawings."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

SIDE = 256
"""Longer side at which the statistic is taken, px."""
FLAT = 3.0
"""Laplacian of a flat pixel, of 255."""
MAX_FLAT_SHARE = 0.42
"""Largest share of flat pixels in a photograph; drawn scenes have 0.45 and more, also after JPEG at quality 50."""


def looks_like_photograph(rgb: "np.ndarray") -> bool:
    """Whether an image (H, W, 3) uint8 has the texture of a photograph: few pixels whose neighbourhood is flat or a ramp.

    Photographs with large blurred areas count as drawings.
    """
    import cv2
    import numpy as np

    height, width = rgb.shape[:2]
    scale = SIDE / max(height, width)
    size = (max(8, round(width * scale)), max(8, round(height * scale)))
    small = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    texture = np.abs(cv2.Laplacian(small.astype(np.float32), cv2.CV_32F)).max(2)
    return float((texture < FLAT).mean()) < MAX_FLAT_SHARE
