"""Values and colours of a mask image: contrast, labels, shades and two-colour projections."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

MIN_LABEL_SHARE = 0.003
"""Smallest share of a mask that counts as a label; less is a soft edge."""
DIM, BRIGHT = 63, 192
"""The contrast of a mask is stretched unless it reaches from DIM or below to BRIGHT or above; otherwise its object would be half transparent."""
MAX_GREY_SHARE, MIN_CLEAR_ON, MIN_CLEAR_OFF = 0.45, 0.35, 0.5
"""Largest share of grey pixels in a mask, and smallest shares of clearly white and clearly black pixels in its two halves."""
MAX_FEATHER_STEP = 0.1
"""Largest step between neighbouring pixels of a feathered mask, fraction of its contrast."""
PLAIN_REACH = 0.01
"""Smallest radius of a plain area, fraction of the longer side; soft edges are narrower."""
MAX_COUNTED_PIXELS = 2_000_000
"""Larger masks are subsampled to this many pixels before their values are counted."""
COLOR_TOLERANCE = 24
"""Largest difference of two colours that count as one after JPEG compression, of 255."""


def read_colors(image: Any) -> "np.ndarray":
    """Brightness (H, W) in [0, 255] of a grey image, or colours (H, W, 3) uint8 of any other."""
    import numpy as np

    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values = np.nan_to_num(np.asarray(image).astype(np.float64), posinf=0, neginf=0).clip(0)
        most = float(values.max())
        if most <= 1 and image.mode == "F":
            return values * 255
        return values if most <= 255 else values / 257 if most <= 65_535 else values * (255 / most)
    rgb = np.asarray(image.convert("RGB"))
    if image.mode == "P" and (rgb == rgb[0, 0]).all():  # labels whose palette has one colour
        return np.asarray(image).astype(np.float64)
    spread = rgb.max(2).astype(int) - rgb.min(2)
    return rgb.mean(2).round() if (spread <= COLOR_TOLERANCE).mean() >= 0.99 else rgb


def stretch_contrast(shades: "np.ndarray") -> tuple["np.ndarray", str]:
    """Stretch shades of low contrast to [0, 255]; also return a note for the user, empty if nothing changed."""
    low, high = float(shades.min()), float(shades.max())
    if high - low < 0.5 or (high >= BRIGHT and low <= DIM):
        return shades, ""
    note = f"its darkest and brightest values, {low:.0f} and {high:.0f} of 255, are taken as black and white"
    return (shades - low) * (255 / (high - low)), note


def has_shades(shades: "np.ndarray") -> bool:
    """Whether an image has shades like a photo: too few pixels are clearly black or white, or plain areas are grey."""
    import numpy as np

    low, high = float(shades.min()), float(shades.max())
    share = ((shades - low) / (high - low)).astype(np.float32)
    on, between = share > 0.5, (share > 0.15) & (share < 0.85)
    if float(between.mean()) > MAX_GREY_SHARE:
        return True
    if float(np.percentile(_local_range(share), 99.9)) < MAX_FEATHER_STEP:  # a feathered mask
        return False
    plain = float((between & (_local_range(share, PLAIN_REACH) < 0.01)).mean())
    return (
        plain > MIN_LABEL_SHARE
        or float((share[on] >= 0.85).mean()) < MIN_CLEAR_ON
        or float((share[~on] <= 0.15).mean()) < MIN_CLEAR_OFF
    )


def find_labels(colors: "np.ndarray", reach: float) -> "np.ndarray":
    """Values (K,) or colours (K, 3) of the plain areas of an image, similar ones merged; empty if the image has shades.

    Args:
        reach: Smallest radius of a plain area, fraction of the longer side.
    """
    import numpy as np

    step = max(1, round((colors.shape[0] * colors.shape[1] / MAX_COUNTED_PIXELS) ** 0.5))
    small = np.atleast_3d(colors[::step, ::step])
    alike = COLOR_TOLERANCE if small.shape[2] == 3 else 0.04 * float(np.ptp(small))
    steps = _local_range(small)
    if float(np.percentile(steps, 99.9)) < MAX_FEATHER_STEP * float(np.ptp(small)):  # a feathered mask
        return np.empty(0)
    plain = _local_range(small, reach) <= alike
    flat = small[plain].round().astype(np.int32)
    _, first, counts = np.unique(
        flat @ np.array([65536, 256, 1][-small.shape[2] :]), return_index=True, return_counts=True
    )
    values: list[Any] = []
    sizes: list[int] = []
    for i in np.argsort(-counts, kind="stable")[:512]:
        near = next((k for k, other in enumerate(values) if np.abs(other - flat[first[i]]).max() <= alike), None)
        if near is None:
            values.append(flat[first[i]])
            sizes.append(0)
        sizes[-1 if near is None else near] += int(counts[i])
    large = [value for value, size in zip(values, sizes, strict=True) if size >= MIN_LABEL_SHARE * plain.size]
    if sum(size for size in sizes if size >= MIN_LABEL_SHARE * plain.size) < 0.97 * len(flat) or plain.mean() < 0.4:
        return np.empty(0)
    return np.array(large) if small.shape[2] == 3 else np.sort(np.array(large)[:, 0])


def _local_range(colors: "np.ndarray", reach: float = 0) -> "np.ndarray":
    """Difference (H, W) between the largest and the smallest value around each pixel, the widest of the channels."""
    import cv2
    import numpy as np

    side = 2 * max(1, round(reach * max(colors.shape[:2]))) + 1
    steps = cv2.morphologyEx(colors.astype(np.float32), cv2.MORPH_GRADIENT, np.ones((side, side), np.uint8))
    widest: np.ndarray = steps if steps.ndim == 2 else steps.max(2)
    return widest


def is_trimap(shades: "np.ndarray") -> bool:
    """Whether an image has three greys of which the middle one is a band around the object, as in a trimap."""
    import cv2
    import numpy as np

    labels = find_labels(shades, 0)
    if len(labels) != 3 or labels.ndim > 1 or not 0.35 < (labels[1] - labels[0]) / (labels[2] - labels[0]) < 0.65:
        return False
    square = np.ones((3, 3), np.uint8)
    low, high = ((np.abs(shades - v) < 0.2 * (labels[2] - labels[0])).astype(np.uint8) for v in (labels[0], labels[2]))
    return float((cv2.dilate(high, square) & low).sum()) < 0.05 * float(
        cv2.morphologyEx(high, cv2.MORPH_GRADIENT, square).sum()
    )


def project_on_two_colors(rgb: "np.ndarray") -> "np.ndarray | None":
    """Position (H, W) in [0, 255] of each pixel between the darker and the brighter of two colours; None if there are more colours."""
    import numpy as np

    flat = rgb.reshape(-1, 3).astype(np.int32)
    first = most_common_color(flat)
    far = flat[np.abs(flat - first).sum(1) > 60]
    if len(far) < MIN_LABEL_SHARE * len(flat):
        return None
    second = most_common_color(far)
    dark, bright = sorted((first, second), key=lambda c: float(c.sum()))
    line = bright - dark
    place = ((flat - dark) @ line) / float(line @ line)
    off = np.linalg.norm(flat - (dark + place.clip(0, 1)[:, None] * line), axis=1)
    if (off > 2 * COLOR_TOLERANCE).mean() > 0.02:
        return None
    shades: np.ndarray = (place.clip(0, 1) * 255).reshape(rgb.shape[:2])
    return shades


def most_common_color(flat: "np.ndarray") -> "np.ndarray":
    """Mean of the colours (N, 3) in the fullest bin of a 16^3 histogram."""
    import numpy as np

    boxes = (flat[:, 0] // 16) * 256 + (flat[:, 1] // 16) * 16 + flat[:, 2] // 16
    fullest = np.bincount(boxes, minlength=4096).argmax()
    mean: np.ndarray = flat[boxes == fullest].mean(0)
    return mean
