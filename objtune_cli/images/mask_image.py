"""A picture that a user gives as a mask, as coverage: judged by its values, and compared with the photo that it belongs to."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from objtune_cli.errors import InputError
from objtune_cli.images import photo, transparency

if TYPE_CHECKING:
    import numpy as np

    from objtune_cli.images.photo import Photo

MIN_SIDE = 32
PLATEAU = 0.003
"""Least share of a mask that is a value of its own and no soft edge."""
DIM, BRIGHT = 63, 192
"""Darkest and brightest values between which a mask is stretched: lower contrast would make its object half transparent, or nothing."""
MAX_BETWEEN, MIN_ON, MIN_OFF = 0.45, 0.35, 0.5
"""A mask has at most this share between on and off, and of each half at least this share clearly on or off."""
SOFT = 0.1
"""Largest step from a pixel to its neighbours in a mask that is feathered, of its whole contrast."""
REACH = 0.01
"""How far a label or a plain shade reaches, fraction of the longer side: pixels of a soft edge are none."""
LOOKED_AT = 2_000_000
"""Pixels of a mask whose values are counted."""
SAME_COLOUR = 24
"""Largest difference of two colours in JPEG that are the same, of 255."""
EVEN = 0.9
"""Least share of the ground of a cut-out that has its colour but for the noise of JPEG."""
HINT = "a mask is white on the object and black elsewhere, or transparent there; a rough box does as well: `--box x0,y0,x1,y1`"

CUT_OUT = "it is a cut-out of the photo: all but its plain ground is taken as the object"
ONE_OBJECT = "make one that is white on this object alone"


@dataclass(frozen=True, slots=True)
class MaskPicture:
    """Coverage (H, W) uint8 of an object, of the photo's proportions, and what had to be done to it, in words."""

    cover: "np.ndarray"
    notes: tuple[str, ...] = ()


def read(path: Path, of: "Photo") -> MaskPicture:
    """Coverage of the object: a mask's alpha where it has one, else its brightness.

    Args:
        of: The photo that the mask belongs to.

    Raises:
        InputError: Unreadable, of other proportions than the photo, of one value, of several labels, or no mask at all.
    """
    import numpy as np

    data = photo.read_bytes(path)
    ignored: list[str] = []
    with photo.explained(path):
        decoded = photo.decode(path, data, ignored, MIN_SIDE)
        image = decoded.image
        notes: list[str] = []
        if _has_alpha(image):
            layers = np.asarray(image.convert("RGBA"))
            alpha = transparency.stretched(layers[..., 3])
            if not alpha.any():
                raise InputError(f"{path} is wholly transparent", HINT)
            if (alpha <= 127).mean() >= PLATEAU:
                cover = transparency.without_shadow(alpha, transparency.on_white(layers[..., :3], alpha))
                shadow = ("the shadow around what is opaque is left out",) if (cover != alpha).any() else ()
                return _turned(path, MaskPicture(cover, shadow), of, decoded.orientation)
            image = image.convert("RGB")
        colours = _colours(image)
    cover = _of_shades(path, colours, of, notes)
    return _turned(path, MaskPicture(cover, tuple(notes)), of, decoded.orientation)


def _has_alpha(image: Any) -> bool:
    return image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info


def _colours(image: Any) -> "np.ndarray":
    """Brightness (H, W) in [0, 255] of a grey picture, or colours (H, W, 3) uint8."""
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
    return rgb.mean(2).round() if (spread <= SAME_COLOUR).mean() >= 0.99 else rgb


def _stretched(shades: "np.ndarray") -> tuple["np.ndarray", str]:
    """Shades with the darkest as 0 and the brightest as 255 where their contrast is low, and a note of that."""
    low, high = float(shades.min()), float(shades.max())
    if high - low < 0.5 or (high >= BRIGHT and low <= DIM):
        return shades, ""
    return (shades - low) * (
        255 / (high - low)
    ), f"its darkest and brightest values, {low:.0f} and {high:.0f} of 255, are taken as black and white"


def _has_shades(shades: "np.ndarray") -> bool:
    """Whether a picture has shades as a photo has: too little of it is clearly on or off, or plain parts of it are neither."""
    import numpy as np

    low, high = float(shades.min()), float(shades.max())
    share = ((shades - low) / (high - low)).astype(np.float32)
    on, between = share > 0.5, (share > 0.15) & (share < 0.85)
    if float(between.mean()) > MAX_BETWEEN:
        return True
    if float(np.percentile(_steps(share), 99.9)) < SOFT:  # a feathered mask
        return False
    plain = float((between & (_steps(share, REACH) < 0.01)).mean())
    return plain > PLATEAU or float((share[on] >= 0.85).mean()) < MIN_ON or float((share[~on] <= 0.15).mean()) < MIN_OFF


def _of_shades(path: Path, colours: "np.ndarray", of: "Photo", notes: list[str]) -> "np.ndarray":
    """Coverage of a picture of two values or colours, with soft edges between them, or of a cut-out of the photo.

    Raises:
        InputError: One value, several labels, a photo, or anything else.
    """
    low, high = float(colours.min()), float(colours.max())
    if colours.ndim == 2 and high - low < 0.5:
        if 0.5 < high < 254.5:
            raise InputError(f"the mask {path} is of one value, {high:.0f} of 255", HINT)
        if colours.shape[1::-1] != of.size:
            height, width = colours.shape
            raise InputError(
                f"the mask {path} has {width}x{height} pixels, the photo {of.size[0]}x{of.size[1]}, and is of one value",
                HINT,
            )
        return colours.round().astype("uint8")  # nothing or everything: the gate looks at that
    if colours.ndim == 3 and (cut := _cut_out(path, colours, of)) is not None:
        notes.append(CUT_OUT)
        return cut
    shades = colours if colours.ndim == 2 else _between_two(colours)
    labels = _labels(colours, REACH)
    if (
        shades is None
        or _is_photo(colours, of)
        or not (_is_trimap(shades) or (len(labels) <= 2 and not _has_shades(shades)))
    ):
        return _of_picture(path, colours, labels, of, notes)
    if colours.ndim == 3:
        notes.append("it has two colours: the brighter one is the object")
    grey, note = _stretched(shades)
    notes += [note] if note else []
    cover: np.ndarray = grey.round().clip(0, 255).astype("uint8")
    return cover


def _labels(colours: "np.ndarray", reach: float) -> "np.ndarray":
    """Values (K,) or colours (K, 3) of which all plain parts of a picture are, those alike taken together; none where there are shades.

    Args:
        reach: How far a part has to reach around a pixel to be plain there, fraction of the longer side; edges are none.
    """
    import numpy as np

    step = max(1, round((colours.shape[0] * colours.shape[1] / LOOKED_AT) ** 0.5))
    small = np.atleast_3d(colours[::step, ::step])
    alike = SAME_COLOUR if small.shape[2] == 3 else 0.04 * float(np.ptp(small))
    steps = _steps(small)
    if float(np.percentile(steps, 99.9)) < SOFT * float(np.ptp(small)):  # a feathered mask
        return np.empty(0)
    plain = _steps(small, reach) <= alike
    flat = small[plain].round().astype(np.int32)
    _, first, counts = np.unique(
        flat @ np.array([65536, 256, 1][-small.shape[2] :]), return_index=True, return_counts=True
    )
    found: list[Any] = []
    sizes: list[int] = []
    for i in np.argsort(-counts, kind="stable")[:512]:
        near = next((k for k, other in enumerate(found) if np.abs(other - flat[first[i]]).max() <= alike), None)
        if near is None:
            found.append(flat[first[i]])
            sizes.append(0)
        sizes[-1 if near is None else near] += int(counts[i])
    large = [value for value, size in zip(found, sizes, strict=True) if size >= PLATEAU * plain.size]
    if sum(size for size in sizes if size >= PLATEAU * plain.size) < 0.97 * len(flat) or plain.mean() < 0.4:
        return np.empty(0)
    return np.array(large) if small.shape[2] == 3 else np.sort(np.array(large)[:, 0])


def _steps(colours: "np.ndarray", reach: float = 0) -> "np.ndarray":
    """Largest difference (H, W) of values around each pixel."""
    import cv2
    import numpy as np

    side = 2 * max(1, round(reach * max(colours.shape[:2]))) + 1
    steps = cv2.morphologyEx(colours.astype(np.float32), cv2.MORPH_GRADIENT, np.ones((side, side), np.uint8))
    widest: np.ndarray = steps if steps.ndim == 2 else steps.max(2)
    return widest


def _is_trimap(shades: "np.ndarray") -> bool:
    """Whether the middle one of three greys is a band between the object and the rest, as in a trimap."""
    import cv2
    import numpy as np

    labels = _labels(shades, 0)
    if len(labels) != 3 or labels.ndim > 1 or not 0.35 < (labels[1] - labels[0]) / (labels[2] - labels[0]) < 0.65:
        return False
    square = np.ones((3, 3), np.uint8)
    low, high = ((np.abs(shades - v) < 0.2 * (labels[2] - labels[0])).astype(np.uint8) for v in (labels[0], labels[2]))
    return float((cv2.dilate(high, square) & low).sum()) < 0.05 * float(
        cv2.morphologyEx(high, cv2.MORPH_GRADIENT, square).sum()
    )


def _shown(colours: "np.ndarray", of: "Photo") -> "np.ndarray | None":
    """The photo at the size of a picture, grey where the picture is; None where proportions differ."""
    import cv2

    size = colours.shape[1::-1]
    if not _same_proportions(size, of.size):
        return None
    shown: np.ndarray = cv2.resize(of.rgb, size, interpolation=cv2.INTER_AREA)
    return shown if colours.ndim == 3 else shown.mean(2)


def _is_photo(colours: "np.ndarray", of: "Photo") -> bool:
    """Whether a picture is the photo, which has more than two values."""
    import numpy as np

    shown = _shown(colours, of)
    if shown is None or float(((shown > 38) & (shown < 217)).mean()) <= 0.05:
        return False
    near = np.abs(shown.astype(int) - colours) <= SAME_COLOUR
    return float((near if near.ndim == 2 else near.all(2)).mean()) >= 0.97


def _of_picture(path: Path, colours: "np.ndarray", labels: "np.ndarray", of: "Photo", notes: list[str]) -> "np.ndarray":
    """Coverage of a cut-out of the photo on one colour.

    Raises:
        InputError: The photo itself, painted or not; labels of several colours; anything else.
    """
    import numpy as np

    if colours.ndim == 2 and (cut := _cut_out(path, colours, of)) is not None:
        notes.append(CUT_OUT)
        return cut
    same = _same_as(colours, of, SAME_COLOUR)
    if same is not None:
        if same.mean() >= 0.95:
            raise InputError(f"{path} is the photo itself, not a mask of it", HINT)
        if same.mean() >= (0.4 if colours.ndim == 3 else 0.7):
            raise InputError(
                f"{path} is the photo with something painted on it, not a mask",
                f"paint on a layer of its own and save that alone; {HINT}",
            )
    if len(labels) > 2:
        named = ", ".join(",".join(f"{v:.0f}" for v in np.atleast_1d(label)) for label in labels[:6]) + (
            ", …" if len(labels) > 6 else ""
        )
        what = "values" if colours.ndim == 2 else "colours"
        raise InputError(
            f"the mask {path} has {len(labels)} {what} ({named}) and does not say which is the object", ONE_OBJECT
        )
    if colours.ndim == 2:
        between = float(((colours > 38) & (colours < 217)).mean())
        raise InputError(
            f"{path} is no mask: it has shades, as a photo has ({between:.0%} of it is neither black nor white)", HINT
        )
    raise InputError(f"{path} is no mask: it is a picture in colours", HINT)


def _between_two(rgb: "np.ndarray") -> "np.ndarray | None":
    """Position (H, W) in [0, 255] of each pixel between the darker and the brighter one of two colours; None where there are more."""
    import numpy as np

    flat = rgb.reshape(-1, 3).astype(np.int32)
    first = _commonest(flat)
    far = flat[np.abs(flat - first).sum(1) > 60]
    if len(far) < PLATEAU * len(flat):
        return None
    second = _commonest(far)
    dark, bright = sorted((first, second), key=lambda c: float(c.sum()))
    line = bright - dark
    place = ((flat - dark) @ line) / float(line @ line)
    off = np.linalg.norm(flat - (dark + place.clip(0, 1)[:, None] * line), axis=1)
    if (off > 2 * SAME_COLOUR).mean() > 0.02:
        return None
    shades: np.ndarray = (place.clip(0, 1) * 255).reshape(rgb.shape[:2])
    return shades


def _commonest(flat: "np.ndarray") -> "np.ndarray":
    """Mean of the colours in the fullest of 16^3 boxes."""
    import numpy as np

    boxes = (flat[:, 0] // 16) * 256 + (flat[:, 1] // 16) * 16 + flat[:, 2] // 16
    fullest = np.bincount(boxes, minlength=4096).argmax()
    mean: np.ndarray = flat[boxes == fullest].mean(0)
    return mean


def _same_as(colours: "np.ndarray", of: "Photo", most: int) -> "np.ndarray | None":
    """Where (H, W) bool a picture has the photo's colours; None where proportions differ."""
    import numpy as np

    shown = _shown(colours, of)
    if shown is None:
        return None
    near: np.ndarray = np.abs(np.atleast_3d(shown).astype(int) - np.atleast_3d(colours)).max(2) <= most
    return near


def _cut_out(path: Path, colours: "np.ndarray", of: "Photo") -> "np.ndarray | None":
    """Coverage of a cut-out of the photo on a plain ground; None where it is none.

    Raises:
        InputError: The ground is the photo's own, dimmed or blurred: what is even there is so by chance.
    """
    import cv2
    import numpy as np

    same = _same_as(colours, of, SAME_COLOUR if colours.ndim == 2 else 2 * SAME_COLOUR)
    if same is None:
        return None
    rgb = np.atleast_3d(colours)
    border = np.concatenate([rgb[0], rgb[-1], rgb[:, 0], rgb[:, -1]]).astype(np.int32)
    ground = _commonest(np.broadcast_to(border, (len(border), 3)))
    if (
        colours.ndim == 2 and SAME_COLOUR < float(ground.mean()) < 255 - SAME_COLOUR
    ):  # greys of the object are that, too
        return None
    away = np.abs(border - ground).max(1)
    noise = float(np.percentile(away[away <= SAME_COLOUR], 99))  # of JPEG
    distance = np.abs(rgb.astype(int) - ground).max(2)
    sure = (distance <= min(SAME_COLOUR, 4 + 2 * noise)).astype(np.uint8)
    plain = sure | ((distance <= SAME_COLOUR) & (cv2.dilate(sure, np.ones((9, 9), np.uint8)) > 0))
    count, regions = cv2.connectedComponents(plain, connectivity=4)
    edge = np.unique(np.concatenate([regions[0], regions[-1], regions[:, 0], regions[:, -1]]))
    large = (
        np.bincount(regions.ravel(), minlength=count) >= PLATEAU * plain.size
    )  # holes of the object show the ground, too
    outside = (plain > 0) & (np.isin(regions, edge) | large[regions])
    inside = cv2.erode((~outside).astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    closely = _same_as(colours, of, SAME_COLOUR // 2)
    shows_photo = closely is None or closely[outside].mean() > 0.5
    if not 0.002 < inside.mean() < 0.95 or same[inside].mean() < 0.85 or shows_photo:
        return None
    if (distance[outside] <= 8).mean() < EVEN:
        raise InputError(
            f"{path} is the photo with its surroundings toned down, as an overlay shows a mask, and no mask itself",
            HINT,
        )
    return (~outside).astype(np.uint8) * 255


def _same_proportions(size: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether one size is the other one scaled; sides are rounded to pixels."""
    return abs(size[0] * other[1] - size[1] * other[0]) <= 1.01 * max(other)


def _turned(path: Path, picture: MaskPicture, of: "Photo", own: int) -> MaskPicture:
    """The mask turned as the photo is shown, where it was drawn on the photo as it is stored.

    Args:
        own: EXIF orientation that the mask itself had.

    Raises:
        InputError: Other proportions than the photo.
    """
    import numpy as np

    cover = picture.cover
    size = cover.shape[1::-1]
    notes = picture.notes
    stored = f"it is turned as the photo is, by its EXIF orientation {of.orientation}"
    if not _same_proportions(size, of.size):
        if of.orientation >= 5 and _same_proportions(size, of.stored_size):
            cover, notes = upright(cover, of.orientation), (*notes, stored)
        elif own >= 5 and _same_proportions(size[::-1], of.size):
            cover, notes = (
                upright(cover, {6: 8, 8: 6}.get(own, own)),
                (*notes, "its own EXIF orientation is passed over: it fits the photo without"),
            )
        else:
            turn = "it is turned by 90 degrees" if _same_proportions(size[::-1], of.size) else "its proportions differ"
            wide, high = of.size
            raise InputError(
                f"the mask {path} has {size[0]}x{size[1]} pixels, the photo {wide}x{high}: {turn}",
                f"make it {wide}x{high} pixels, or smaller with the same proportions",
            )
    elif of.orientation > 1 and own == 1 and _same_proportions(size, of.stored_size):
        other = upright(cover, of.orientation)
        if _edges_on_outline(other, of) > 2 * _edges_on_outline(cover, of):
            cover, notes = other, (*notes, stored)
    if cover.shape[1::-1] != of.size:
        notes = (
            *notes,
            f"scaled from {cover.shape[1]}x{cover.shape[0]} to the photo's {of.size[0]}x{of.size[1]} pixels",
        )
    return replace(picture, cover=np.ascontiguousarray(cover), notes=notes)


def upright(stored: "np.ndarray", orientation: int) -> "np.ndarray":
    """Pixels as they are shown, from those that a file with an EXIF orientation stores."""
    import numpy as np

    turned: np.ndarray = {
        2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1], 5: lambda a: a.swapaxes(0, 1), 6: lambda a: np.rot90(a, -1),
        7: lambda a: a[::-1, ::-1].swapaxes(0, 1), 8: lambda a: np.rot90(a),
    }.get(orientation, lambda a: a)(stored)  # fmt: skip
    return turned


def _edges_on_outline(cover: "np.ndarray", of: "Photo") -> float:
    """How much stronger the photo's edges are along a mask's outline than elsewhere."""
    import cv2
    import numpy as np

    size = (256, max(16, round(256 * of.size[1] / of.size[0])))
    grey = cv2.GaussianBlur(cv2.resize(of.rgb, size, interpolation=cv2.INTER_AREA), (0, 0), 1).astype(np.float32)
    steps = np.sqrt(cv2.Sobel(grey, cv2.CV_32F, 1, 0) ** 2 + cv2.Sobel(grey, cv2.CV_32F, 0, 1) ** 2).sum(2)
    hard = (cv2.resize(cover, size, interpolation=cv2.INTER_AREA) > 127).astype(np.uint8)
    outline = cv2.morphologyEx(hard, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
    return float(steps[outline].mean() / max(float(steps.mean()), 1e-6)) if outline.any() else 0.0
