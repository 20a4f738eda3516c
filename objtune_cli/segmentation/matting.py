"""Converts hard masks to soft outlines by the colours on both sides of the edge."""

import cv2
import numpy as np

EPS = 1e-3
"""Regularisation of the guided filter: colour variance that counts as an edge, for colours in [0, 1]."""


def matte(rgb: np.ndarray, mask: np.ndarray, width: float) -> np.ndarray:
    r"""Coverage of the object along its outline.

    In a band of `width` to both sides of the outline, coverage is the mask as a local linear function of the colours,
    q = mean(a) I + mean(b) with a = (cov(I, I) + eps U)^-1 cov(I, p), b = mean(p) - a mean(I) over windows of the band's width;
    outside the band it is the mask.

    Args:
        rgb: (H, W, 3) uint8. mask: (H, W) bool. width: Half width of the band, px; below 1 there is no band.

    Returns:
        (H, W) float32 in [0, 1].

    Source:
        Guided filter, He, Sun and Tang, PAMI 2013, equations 19 to 21; the band is ours.
    """
    p = mask.astype(np.float32)
    radius = round(width)
    if radius < 1 or not mask.any() or mask.all():
        return p
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    band = cv2.dilate(mask.astype(np.uint8), kernel) != cv2.erode(mask.astype(np.uint8), kernel)
    y0, y1, x0, x1 = _padded_bounds(band, 2 * radius + 1)
    soft = p.copy()
    part = _guided_filter(rgb[y0:y1, x0:x1].astype(np.float32) / 255, p[y0:y1, x0:x1], 2 * radius + 1)
    soft[y0:y1, x0:x1] = np.where(band[y0:y1, x0:x1], part, p[y0:y1, x0:x1])
    return soft


def snap_to_edges(rgb: np.ndarray, mask: np.ndarray, width: float, rounds: int = 2) -> np.ndarray:
    """Move the outline of a mask (H, W) bool to colour edges within `width` px: repeat `matte` and threshold at 0.5. Our own method."""
    for _ in range(rounds):
        mask = matte(rgb, mask, width) > 0.5
    return mask


def _padded_bounds(band: np.ndarray, room: int) -> tuple[int, int, int, int]:
    ys, xs = band.nonzero()
    height, width = band.shape
    return (
        max(0, ys.min() - room),
        min(height, ys.max() + room + 1),
        max(0, xs.min() - room),
        min(width, xs.max() + room + 1),
    )


def _guided_filter(guide: np.ndarray, p: np.ndarray, side: int) -> np.ndarray:
    """Guided filter of p (H, W) by colours (H, W, 3) with windows of `side` px."""

    def mean(a: np.ndarray) -> np.ndarray:
        return cv2.blur(np.ascontiguousarray(a, np.float32), (side, side))

    mean_i, mean_p = mean(guide), mean(p)
    cross = mean(guide * p[..., None]) - mean_i * mean_p[..., None]
    pairs = guide[..., :, None] * guide[..., None, :]
    spread = (
        mean(pairs.reshape(*p.shape, 9)[..., :4]),
        mean(pairs.reshape(*p.shape, 9)[..., 4:8]),
        mean(pairs[..., 2, 2]),
    )
    whole = np.concatenate([spread[0], spread[1], spread[2][..., None]], axis=-1).reshape(*p.shape, 3, 3)
    covariance = whole - mean_i[..., :, None] * mean_i[..., None, :] + EPS * np.eye(3, dtype=np.float32)
    a = np.linalg.solve(covariance, cross[..., None])[..., 0]
    b = mean_p - (a * mean_i).sum(-1)
    filtered: np.ndarray = (mean(a) * guide).sum(-1) + mean(b)
    return filtered.clip(0, 1)


def remove_specks(mask: np.ndarray, share: float = 0.01) -> np.ndarray:
    """Remove pieces below `share` of the area of a mask (H, W) bool, and fill holes below a tenth of that; larger holes are real."""
    area = int(mask.sum())
    if not area:
        return mask
    cleaned = mask.copy()
    for inside, least in ((True, share * area), (False, 0.1 * share * area)):
        count, pieces, stats, _ = cv2.connectedComponentsWithStats((cleaned == inside).astype(np.uint8), connectivity=4)
        small = [i for i in range(1, count) if stats[i, cv2.CC_STAT_AREA] < least]
        cleaned[np.isin(pieces, small)] = not inside
    return cleaned
