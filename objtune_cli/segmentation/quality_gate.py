"""Quality gate for masks: statistics, and the reason why a mask is refused."""

from typing import TYPE_CHECKING

from objtune_cli.config.sections import Segment

if TYPE_CHECKING:
    import numpy as np

MIN_AREA, MAX_AREA = 0.004, 0.92
MAX_BORDER = 0.55
INSIDE_BORDER, MAX_INSIDE = 0.05, 0.7
"""Largest shares of the border and of the photo that the object of an inverted mask covers."""
MAX_LINE_SHARE, MAX_LINE_WIDTH = 0.4, 0.05
"""A mask is an outline if it fills at most this share of the area it encloses, and has at most this width, fraction of its longer side."""
MIN_LINE_WIDTH = 3.0
"""Width that counts as a line in small images, px."""
MAX_LINE_GAP = 0.16
"""Widest gap in a closed outline, fraction of the longer side."""
MAX_MIDDLE_SHARE = 0.02
"""Largest share of an outline in the middle of its convex hull."""
MAX_OPEN_ANGLE, MIN_DASHES, MAX_DASHED_ANGLE = 75, 4, 120
"""Widest gap in an outline as seen from its middle, in degrees; in one that scaling tore into so many dashes, and the widest gap of those."""
MAX_PIECES = 12
MIN_CELLS = 1.0
"""Smallest number of latent cells of an object if the photo fills the base's frame; the base cannot represent smaller ones."""


def mask_statistics(mask: "np.ndarray", cells: int = 0) -> dict[str, float]:
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
    statistics = {"area": round(area / hard.size, 6), "pieces": pieces, "border": round(float(border.mean()), 6)}
    return statistics | ({"cells": round(cells * area / hard.size, 3)} if cells else {})


def is_inverted(mask: "np.ndarray") -> bool:
    """Whether a mask covers nearly all of the border and leaves an object inside free."""
    import numpy as np

    on = mask > 127
    border = np.concatenate([on[0], on[-1], on[:, 0], on[:, -1]])
    free = 1 - float(on.mean())
    return float(border.mean()) > 1 - INSIDE_BORDER and MIN_AREA <= free <= MAX_INSIDE


def explain_outline(mask: "np.ndarray") -> str:
    """Why a mask is only an outline, closed or dashed, and not filled; an empty text for filled masks."""
    import cv2
    import numpy as np

    hard = np.pad((mask > 127).astype(np.uint8), 1)
    if not hard.any():
        return ""
    _, _, width, height = cv2.boundingRect(hard)
    longer = max(width, height)
    thick = 2 * float(cv2.distanceTransform(hard, cv2.DIST_L2, 5).max())
    if thick > max(MIN_LINE_WIDTH, MAX_LINE_WIDTH * longer):
        return ""
    gaps = sorted({0, 1, *(max(1, round(share * longer / 2)) for share in (MAX_LINE_GAP / 2, MAX_LINE_GAP))})
    if not any(_encloses_area(hard, gap) for gap in gaps) and not _is_ring(hard):
        return ""
    return f"it is an outline, a line of at most {thick:.0f} px, and not filled"


def _encloses_area(line: "np.ndarray", reach: int) -> bool:
    """Whether a line (H, W) of 0 and 1 encloses much more than itself, once gaps of twice `reach` pixels are bridged."""
    import cv2
    import numpy as np

    wide = np.pad(line, 2 * reach)
    square = np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)
    bridged = cv2.dilate(wide, square)
    contours, _ = cv2.findContours(bridged, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    filled = cv2.drawContours(np.zeros_like(bridged), contours, -1, 1, cv2.FILLED)
    inside = cv2.dilate(
        filled - bridged, square
    )  # teeth of a comb leave nothing here: bridging fills what lies between
    return float(line.sum()) <= MAX_LINE_SHARE * float((inside | wide).sum())


def _is_ring(line: "np.ndarray") -> bool:
    """Whether a line (H, W) of 0 and 1, or the dashes that scaling made of it, lie all around a middle that is empty."""
    import cv2
    import numpy as np

    points = np.argwhere(line)[:, ::-1].astype(np.int32)
    hull = cv2.convexHull(points)
    filled = cv2.fillConvexPoly(np.zeros_like(line), hull, 1)
    depth = cv2.distanceTransform(filled, cv2.DIST_L2, 5)
    if (
        line.sum() > MAX_LINE_SHARE * filled.sum()
        or line[depth > depth.max() / 2].sum() > MAX_MIDDLE_SHARE * line.sum()
    ):
        return False
    rows, columns = filled.nonzero()
    angles = np.sort(np.degrees(np.arctan2(points[:, 1] - rows.mean(), points[:, 0] - columns.mean())))
    widest = float(np.diff(angles, append=angles[0] + 360).max())
    count, dashes = cv2.connectedComponents(line)
    if count > MIN_DASHES:
        return widest <= MAX_DASHED_ANGLE
    return widest <= MAX_OPEN_ANGLE and any(_is_curved((dashes == i).astype(np.uint8)) for i in range(1, count))


def _is_curved(dash: "np.ndarray") -> bool:
    """Whether one dash (H, W) of 0 and 1 goes around something; two straight ones side by side may be two sticks."""
    import cv2
    import numpy as np

    hull = cv2.convexHull(np.argwhere(dash)[:, ::-1].astype(np.int32))
    return float(dash.sum()) <= MAX_LINE_SHARE * float(cv2.fillConvexPoly(np.zeros_like(dash), hull, 1).sum())


def rejection_reason(metrics: dict[str, float], class_word: str, config: Segment) -> str:
    """Why a mask is unusable for training, or an empty text."""
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
    if metrics.get("likeness", 1.0) < config.min_class_probability:
        return f"the best mask is a {class_word} with a probability of {metrics['likeness']:.2f}"
    if "likeness" in metrics and metrics["score"] < config.min_score:
        return f"the mask has no clear outline (score {metrics['score']:.1f})"
    if metrics.get("margin", config.min_score_margin) < config.min_score_margin:
        return f"something else is as much a {class_word} (margin {metrics['margin']:.2f})"
    return ""
