"""Compares a mask image with its photo: the photo itself, or a cut-out of it on a plain background."""

from pathlib import Path
from typing import TYPE_CHECKING

from objtune_cli.errors import InputError
from objtune_cli.images.mask_alignment import has_same_aspect
from objtune_cli.images.mask_values import COLOR_TOLERANCE, MIN_LABEL_SHARE, most_common_color

if TYPE_CHECKING:
    import numpy as np

    from objtune_cli.images.photo import Photo

MASK_HINT = (
    "a mask is white on the object and black or transparent elsewhere; a rough box also works: `--box x0,y0,x1,y1`"
)
MIN_PLAIN_SHARE = 0.9
"""Smallest share of a cut-out's background that has one colour, up to JPEG noise."""


def _scale_photo(colors: "np.ndarray", reference: "Photo") -> "np.ndarray | None":
    """The photo resized to a mask image, in grey if that is grey; None if the aspect ratios differ."""
    import cv2

    size = colors.shape[1::-1]
    if not has_same_aspect(size, reference.size):
        return None
    scaled: np.ndarray = cv2.resize(reference.rgb, size, interpolation=cv2.INTER_AREA)
    return scaled if colors.ndim == 3 else scaled.mean(2)


def is_photo(colors: "np.ndarray", reference: "Photo") -> bool:
    """Whether an image is the photo itself; photos of two values only do not count."""
    import numpy as np

    scaled = _scale_photo(colors, reference)
    if scaled is None or float(((scaled > 38) & (scaled < 217)).mean()) <= 0.05:
        return False
    near = np.abs(scaled.astype(int) - colors) <= COLOR_TOLERANCE
    return float((near if near.ndim == 2 else near.all(2)).mean()) >= 0.97


def matches_photo(colors: "np.ndarray", reference: "Photo", most: int) -> "np.ndarray | None":
    """Pixels (H, W) bool in which an image has the photo's colours; None if the aspect ratios differ."""
    import numpy as np

    scaled = _scale_photo(colors, reference)
    if scaled is None:
        return None
    near: np.ndarray = np.abs(np.atleast_3d(scaled).astype(int) - np.atleast_3d(colors)).max(2) <= most
    return near


def find_cut_out(path: Path, colors: "np.ndarray", reference: "Photo") -> "np.ndarray | None":
    """Coverage of a cut-out of the photo on a plain background; None if the image is no cut-out.

    Raises:
        InputError: The background is the photo's own, dimmed or blurred; plain parts of it are plain by chance.
    """
    import cv2
    import numpy as np

    same = matches_photo(colors, reference, COLOR_TOLERANCE if colors.ndim == 2 else 2 * COLOR_TOLERANCE)
    if same is None:
        return None
    rgb = np.atleast_3d(colors)
    border = np.concatenate([rgb[0], rgb[-1], rgb[:, 0], rgb[:, -1]]).astype(np.int32)
    ground = most_common_color(np.broadcast_to(border, (len(border), 3)))
    if colors.ndim == 2 and COLOR_TOLERANCE < float(ground.mean()) < 255 - COLOR_TOLERANCE:
        return None  # the object may have the same grey
    away = np.abs(border - ground).max(1)
    jpeg_noise = float(np.percentile(away[away <= COLOR_TOLERANCE], 99))
    distance = np.abs(rgb.astype(int) - ground).max(2)
    sure = (distance <= min(COLOR_TOLERANCE, 4 + 2 * jpeg_noise)).astype(np.uint8)
    plain = sure | ((distance <= COLOR_TOLERANCE) & (cv2.dilate(sure, np.ones((9, 9), np.uint8)) > 0))
    count, regions = cv2.connectedComponents(plain, connectivity=4)
    edge = np.unique(np.concatenate([regions[0], regions[-1], regions[:, 0], regions[:, -1]]))
    # the background also shows through holes of the object
    large = np.bincount(regions.ravel(), minlength=count) >= MIN_LABEL_SHARE * plain.size
    outside = (plain > 0) & (np.isin(regions, edge) | large[regions])
    inside = cv2.erode((~outside).astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    closely = matches_photo(colors, reference, COLOR_TOLERANCE // 2)
    shows_photo = closely is None or closely[outside].mean() > 0.5
    if not 0.002 < inside.mean() < 0.95 or same[inside].mean() < 0.85 or shows_photo:
        return None
    if (distance[outside] <= 8).mean() < MIN_PLAIN_SHARE:
        raise InputError(
            f"{path} is an overlay, the photo with its surroundings toned down, and not a mask",
            MASK_HINT,
        )
    mask: np.ndarray = np.where(outside, np.uint8(0), np.uint8(255))
    return mask
