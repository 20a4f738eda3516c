"""What a mask must be before anything is trained on it: measured, judged, and said in words."""

from typing import TYPE_CHECKING

from objtune_cli.config.sections import Segment

if TYPE_CHECKING:
    import numpy as np

MIN_AREA, MAX_AREA = 0.004, 0.92
MAX_BORDER = 0.55
INSIDE_BORDER, MAX_INSIDE = 0.05, 0.7
"""Largest share of the border and of the photo that the object of an inverted mask has."""
MAX_LINE, LINE = 0.4, 0.05
"""A mask that is a line has at most this share of what the line encloses, and this width, fraction of its longer side."""
THIN = 3.0
"""Width of a line in small pictures, px."""
MAX_PIECES = 12
MIN_CELLS = 1.0
"""Latent cells that the object covers where the photo fills the base's frame; a smaller one is no object to the base."""


def measure(mask: "np.ndarray", cells: int = 0) -> dict[str, float]:
    """Area share, latent cells covered, pieces above 1 % of the area, share of the border touched.

    Args:
        mask: Coverage (H, W) uint8. cells: Latent cells of the base's frame; 0 if unknown.
    """
    import cv2
    import numpy as np

    hard = (mask > 127).astype(np.uint8)
    area = int(hard.sum())
    count, _, stats, _ = cv2.connectedComponentsWithStats(hard)
    pieces = sum(int(stats[i, cv2.CC_STAT_AREA]) > 0.01 * area for i in range(1, count))
    border = np.concatenate([hard[0], hard[-1], hard[:, 0], hard[:, -1]])
    found = {"area": round(area / hard.size, 6), "pieces": pieces, "border": round(float(border.mean()), 6)}
    return found | ({"cells": round(cells * area / hard.size, 3)} if cells else {})


def is_inverted(mask: "np.ndarray") -> bool:
    """Whether a mask is off on its object and on all around it: it has nearly all of the border, and what it leaves free is an object inside."""
    import numpy as np

    on = mask > 127
    border = np.concatenate([on[0], on[-1], on[:, 0], on[:, -1]])
    free = 1 - float(on.mean())
    return float(border.mean()) > 1 - INSIDE_BORDER and MIN_AREA <= free <= MAX_INSIDE


def outline(mask: "np.ndarray") -> str:
    """Why a mask is only the outline of its object, drawn as a line; an empty text where it is filled."""
    import cv2
    import numpy as np

    hard = np.pad((mask > 127).astype(np.uint8), 1)
    contours, _ = cv2.findContours(hard, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    if not contours:
        return ""
    filled = cv2.drawContours(np.zeros_like(hard), contours, -1, 1, cv2.FILLED)
    _, _, width, height = cv2.boundingRect(hard)
    thick = 2 * float(cv2.distanceTransform(hard, cv2.DIST_L2, 5).max())
    if hard.sum() > MAX_LINE * filled.sum() or thick > max(THIN, LINE * max(width, height)):
        return ""
    return f"it is an outline, a line of at most {thick:.0f} px, and not filled"


def judge(metrics: dict[str, float], class_word: str, config: Segment) -> str:
    """Why a mask cannot be trained on, or an empty string."""
    if metrics["area"] < MIN_AREA:
        return f"it covers {metrics['area']:.1%} of the photo" if metrics["area"] else "nothing was found"
    if metrics.get("cells", MIN_CELLS) < MIN_CELLS:
        return f"it covers {metrics['cells']:.1f} latent cells of the base"
    if metrics["area"] > MAX_AREA:
        return f"it covers {metrics['area']:.0%} of the photo"
    if metrics["border"] > MAX_BORDER:
        return f"it touches {metrics['border']:.0%} of the photo's border"
    if metrics["pieces"] > MAX_PIECES:
        return f"it falls into {metrics['pieces']:.0f} pieces"
    if metrics.get("likeness", 1.0) < config.min_likeness:
        return f"the best of what was found is a {class_word} with a probability of {metrics['likeness']:.2f}"
    if "likeness" in metrics and metrics["score"] < config.min_score:
        return f"what was found has no clear outline (score {metrics['score']:.1f})"
    if metrics.get("margin", config.min_margin) < config.min_margin:
        return f"something else is as much a {class_word} (margin {metrics['margin']:.2f})"
    return ""
