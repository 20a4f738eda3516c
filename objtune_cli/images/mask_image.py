"""Reads a mask image as the coverage of an object in its photo."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from objtune_cli.errors import InputError
from objtune_cli.images import photo, transparency
from objtune_cli.images.mask_alignment import align
from objtune_cli.images.mask_cut_out import MASK_HINT, find_cut_out, is_photo, matches_photo
from objtune_cli.images.mask_values import (
    COLOR_TOLERANCE,
    MIN_LABEL_SHARE,
    PLAIN_REACH,
    find_labels,
    has_shades,
    is_trimap,
    project_on_two_colors,
    read_colors,
    stretch_contrast,
)

if TYPE_CHECKING:
    import numpy as np

    from objtune_cli.images.photo import Photo

MIN_SIDE = 32
"""Smallest side of a mask image, px."""
CUT_OUT_NOTE = "it is a cut-out of the photo: all but its plain background is taken as the object"
ONE_OBJECT_HINT = "make a mask that is white on this object only"


@dataclass(frozen=True, slots=True)
class MaskImage:
    """A decoded mask.

    Attributes:
        cover: Coverage of the object (H, W) uint8, with the photo's aspect ratio. notes: What was changed, for the user.
    """

    cover: "np.ndarray"
    notes: tuple[str, ...] = ()


def read(path: Path, reference: "Photo") -> MaskImage:
    """Read a mask's alpha channel if it has one, else its brightness.

    Args:
        reference: The photo that the mask belongs to.

    Raises:
        InputError: The file is unreadable, has another aspect ratio than the photo, one value or several labels, or is no mask.
    """
    import numpy as np

    data = photo.read_bytes(path)
    notes: list[str] = []
    with photo.translate_errors(path):
        decoded = photo.decode(path, data, [], MIN_SIDE)
        image = decoded.image
        if image.has_transparency_data:
            layers = np.asarray(image.convert("RGBA"))
            alpha = transparency.normalize_alpha(layers[..., 3])
            if not alpha.any():
                raise InputError(f"{path} is wholly transparent", MASK_HINT)
            if (alpha <= 127).mean() >= MIN_LABEL_SHARE:
                cover = transparency.remove_shadow(alpha, transparency.blend_on_white(layers[..., :3], alpha))
                if (cover != alpha).any():
                    notes.append("the shadow around the opaque part is left out")
                return _aligned(path, cover, notes, reference, decoded.orientation)
            image = image.convert("RGB")
        colors = read_colors(image)
    cover = _coverage_from_colors(path, colors, reference, notes)
    return _aligned(path, cover, notes, reference, decoded.orientation)


def _aligned(path: Path, cover: "np.ndarray", notes: list[str], reference: "Photo", own_orientation: int) -> MaskImage:
    cover, more = align(path, cover, reference, own_orientation)
    return MaskImage(cover, (*notes, *more))


def _coverage_from_colors(path: Path, colors: "np.ndarray", reference: "Photo", notes: list[str]) -> "np.ndarray":
    """Coverage from an image of two values or colours with soft edges between them, or from a cut-out of the photo.

    Raises:
        InputError: The image has one value or several labels, is a photo, or is no mask.
    """
    if colors.ndim == 2 and float(colors.max()) - float(colors.min()) < 0.5:
        return _constant_coverage(path, colors, reference)
    if colors.ndim == 3 and (cut := find_cut_out(path, colors, reference)) is not None:
        notes.append(CUT_OUT_NOTE)
        return cut
    shades = colors if colors.ndim == 2 else project_on_two_colors(colors)
    labels = find_labels(colors, PLAIN_REACH)
    if (
        shades is None
        or is_photo(colors, reference)
        or not (is_trimap(shades) or (len(labels) <= 2 and not has_shades(shades)))
    ):
        if colors.ndim == 2 and (cut := find_cut_out(path, colors, reference)) is not None:
            notes.append(CUT_OUT_NOTE)
            return cut
        raise _explain_refusal(path, colors, labels, reference)
    if colors.ndim == 3:
        notes.append("it has two colours: the brighter one is the object")
    grey, note = stretch_contrast(shades)
    notes += [note] if note else []
    cover: np.ndarray = grey.round().clip(0, 255).astype("uint8")
    return cover


def _constant_coverage(path: Path, values: "np.ndarray", reference: "Photo") -> "np.ndarray":
    """Coverage 0 or 255 everywhere; the quality gate refuses both later.

    Raises:
        InputError: The value is neither black nor white, or the size differs from the photo's.
    """
    value = float(values.max())
    if 0.5 < value < 254.5:
        raise InputError(f"the mask {path} has a single value, {value:.0f} of 255", MASK_HINT)
    if values.shape[1::-1] != reference.size:
        height, width = values.shape
        photo_width, photo_height = reference.size
        raise InputError(
            f"the mask {path} has {width}x{height} pixels, the photo {photo_width}x{photo_height}, and it has a single value",
            MASK_HINT,
        )
    return values.round().astype("uint8")


def _explain_refusal(path: Path, colors: "np.ndarray", labels: "np.ndarray", reference: "Photo") -> InputError:
    """Why an image is no mask: it is the photo itself, painted or not, has several labels, or is another picture."""
    import numpy as np

    same = matches_photo(colors, reference, COLOR_TOLERANCE)
    if same is not None:
        if same.mean() >= 0.95:
            return InputError(f"{path} is the photo itself, not a mask of it", MASK_HINT)
        if same.mean() >= (0.4 if colors.ndim == 3 else 0.7):
            return InputError(
                f"{path} is the photo with something painted on it, not a mask",
                f"paint on a separate layer and save only that layer; {MASK_HINT}",
            )
    if len(labels) > 2:
        listed = ", ".join(",".join(f"{v:.0f}" for v in np.atleast_1d(label)) for label in labels[:6])
        more = ", …" if len(labels) > 6 else ""
        what = "values" if colors.ndim == 2 else "colours"
        return InputError(
            f"the mask {path} has {len(labels)} {what} ({listed}{more}) and does not say which is the object",
            ONE_OBJECT_HINT,
        )
    if colors.ndim == 2:
        between = float(((colors > 38) & (colors < 217)).mean())
        return InputError(
            f"{path} is not a mask: it has shades, as a photo has ({between:.0%} of it is neither black nor white)",
            MASK_HINT,
        )
    return InputError(f"{path} is not a mask: it is a picture in colours", MASK_HINT)
