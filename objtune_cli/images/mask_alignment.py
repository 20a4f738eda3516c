"""Aligns a mask with its photo: EXIF orientation, aspect ratio and size."""

from pathlib import Path
from typing import TYPE_CHECKING

from objtune_cli.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from objtune_cli.images.photo import Photo


def has_same_aspect(size: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether two sizes have one aspect ratio, up to the rounding of sides to pixels."""
    return abs(size[0] * other[1] - size[1] * other[0]) <= 1.01 * max(other)


def align(
    path: Path, cover: "np.ndarray", reference: "Photo", own_orientation: int
) -> "tuple[np.ndarray, tuple[str, ...]]":
    """Coverage rotated as the photo is shown, if the mask was drawn on the photo as it is stored; and notes for the user.

    Args:
        cover: (H, W) uint8, upright by the mask's own EXIF orientation `own_orientation`.

    Raises:
        InputError: The aspect ratio differs from the photo's.
    """
    import numpy as np

    size = cover.shape[1::-1]
    notes: list[str] = []
    rotated = f"rotated as the photo is, by its EXIF orientation {reference.orientation}"
    if not has_same_aspect(size, reference.size):
        if reference.orientation >= 5 and has_same_aspect(size, reference.stored_size):
            cover = apply_orientation(cover, reference.orientation)
            notes.append(rotated)
        elif own_orientation >= 5 and has_same_aspect(size[::-1], reference.size):
            cover = apply_orientation(cover, {6: 8, 8: 6}.get(own_orientation, own_orientation))
            notes.append("its own EXIF orientation is ignored: the mask fits the photo without it")
        else:
            quarter_turn = has_same_aspect(size[::-1], reference.size)
            problem = "it is rotated by 90 degrees" if quarter_turn else "the aspect ratio differs"
            width, height = reference.size
            raise InputError(
                f"the mask {path} has {size[0]}x{size[1]} pixels, the photo {width}x{height}: {problem}",
                f"make it {width}x{height} pixels, or smaller with the same aspect ratio",
            )
    elif reference.orientation > 1 and own_orientation == 1 and has_same_aspect(size, reference.stored_size):
        upright = apply_orientation(cover, reference.orientation)
        if _edge_contrast(upright, reference) > 2 * _edge_contrast(cover, reference):
            cover = upright
            notes.append(rotated)
    if cover.shape[1::-1] != reference.size:
        width, height = reference.size
        notes.append(f"scaled from {cover.shape[1]}x{cover.shape[0]} to the photo's {width}x{height} pixels")
    return np.ascontiguousarray(cover), tuple(notes)


def apply_orientation(stored: "np.ndarray", orientation: int) -> "np.ndarray":
    """Rotate and flip stored pixels by an EXIF orientation, as viewers do."""
    import numpy as np

    turned: np.ndarray = {
        2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1], 5: lambda a: a.swapaxes(0, 1), 6: lambda a: np.rot90(a, -1),
        7: lambda a: a[::-1, ::-1].swapaxes(0, 1), 8: lambda a: np.rot90(a),
    }.get(orientation, lambda a: a)(stored)  # fmt: skip
    return turned


def _edge_contrast(cover: "np.ndarray", reference: "Photo") -> float:
    """Mean edge strength of the photo along a mask's outline, divided by the mean of the whole photo."""
    import cv2
    import numpy as np

    size = (256, max(16, round(256 * reference.size[1] / reference.size[0])))
    grey = cv2.GaussianBlur(cv2.resize(reference.rgb, size, interpolation=cv2.INTER_AREA), (0, 0), 1).astype(np.float32)
    steps = np.sqrt(cv2.Sobel(grey, cv2.CV_32F, 1, 0) ** 2 + cv2.Sobel(grey, cv2.CV_32F, 0, 1) ** 2).sum(2)
    hard = (cv2.resize(cover, size, interpolation=cv2.INTER_AREA) > 127).astype(np.uint8)
    outline = cv2.morphologyEx(hard, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
    return float(steps[outline].mean() / max(float(steps.mean()), 1e-6)) if outline.any() else 0.0
