"""Converts photos to sRGB by their ICC profile or by the colour space that their format declares."""

import io
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

MAX_CHANGE = 3
"""Largest change of any colour, of 255, by a profile that counts as sRGB."""
MAX_CHANGE_NAMED_SRGB = 24
"""The same for a profile named sRGB; version 4 profiles have their own tables for dark colours."""
ROWS_PER_STEP = 256
"""Rows of pixels converted at once."""

_PRIMARIES: dict[str, tuple[float, ...]] = {
    "sRGB": (0.64, 0.33, 0.30, 0.60, 0.15, 0.06, 0.3127, 0.3290),
    "Adobe RGB": (0.64, 0.33, 0.21, 0.71, 0.15, 0.06, 0.3127, 0.3290),
    "Display P3": (0.68, 0.32, 0.265, 0.69, 0.15, 0.06, 0.3127, 0.3290),
    "DCI-P3": (0.68, 0.32, 0.265, 0.69, 0.15, 0.06, 0.314, 0.351),
    "BT.2020": (0.708, 0.292, 0.17, 0.797, 0.131, 0.046, 0.3127, 0.3290),
}
"""x, y of red, green, blue and white."""
_CODES = {9: "BT.2020", 11: "DCI-P3", 12: "Display P3"}
"""Code points of primaries (ITU-T H.273) that differ from sRGB's."""
_CURVES = {4: "2.2", 5: "2.8", 8: "linear", 16: "PQ", 18: "HLG"}
"""Code points of transfer functions (ITU-T H.273) that differ from sRGB's."""


@dataclass(frozen=True, slots=True)
class ColorSpace:
    """A colour space that is declared without an ICC profile.

    Attributes:
        primaries: x, y of red, green, blue and white. curve: "sRGB", "linear", "PQ", "HLG", or an exponent as text.
    """

    name: str
    primaries: tuple[float, ...]
    curve: str


def to_srgb(image: Any, data: bytes, form: str, notes: list[str]) -> tuple["np.ndarray", "np.ndarray | None"]:
    """Convert an image to sRGB (H, W, 3) uint8 and its alpha (H, W) uint8 or None; colours are not blended.

    Args:
        image: The upright Pillow image, of a mode with a known range. data: The file's bytes. form: Its format, as Pillow calls it.
        notes: Receives a line for each conversion.
    """
    import numpy as np

    profile = _profile(image, data, form)
    if image.mode == "CMYK":
        return np.asarray(_convert_cmyk(image, profile, notes)), None
    alpha = None
    if image.mode.startswith("I;16"):
        grey = np.asarray(image).astype(np.float64)
        notes.append("16-bit grey scaled to 8 bits")
        image = _from_array((grey / 257).round().clip(0, 255).astype(np.uint8))
    elif image.has_transparency_data:
        layered = image.convert("RGBA")
        alpha = np.asarray(layered)[..., 3]
        grey_values = image.mode in ("LA", "La", "L", "1")
        image = layered.convert("RGB").getchannel(0) if grey_values else layered.convert("RGB")
    if image.mode == "LAB":
        return np.asarray(image.convert("RGB")), alpha
    if profile:
        return np.asarray(_apply_profile(image, profile, notes)), alpha
    rgb = np.asarray(image.convert("RGB"))
    space = _detect_space(image, data, form)
    if space is None:
        return rgb, alpha
    notes.append(f"colours converted from {space.name} to sRGB")
    return _convert_from_space(rgb, space), alpha


def is_converted(data: bytes) -> bool:
    """Whether `to_srgb` would convert the colours of a file; the file is opened, not decoded."""
    from objtune_cli.images import decoders

    try:
        with decoders.open_image(data)[0] as image:
            profile = _profile(image, data, image.format or "")
            if image.mode in ("CMYK", "LAB"):
                return False
            if not profile:
                return _detect_space(image, data, image.format or "") is not None
            return _build_transform(profile, "L" if image.mode in ("L", "LA", "1", "I;16") else "RGB")[0] is not None
    except Exception:  # the decoder reports the damage later
        return False


def _profile(image: Any, data: bytes, form: str) -> bytes | None:
    """The embedded ICC profile."""
    if form == "JPEG2000":  # Pillow does not read its profile
        at = data.find(b"colr\x02", 0, 4096)
        return data[at + 7 : at - 4 + int.from_bytes(data[at - 4 : at], "big")] if at > 4 else None
    icc: bytes | None = image.info.get("icc_profile")
    return icc


def _from_array(array: "np.ndarray") -> Any:
    from PIL import Image

    return Image.fromarray(array)


def _apply_profile(image: Any, profile: bytes, notes: list[str]) -> Any:
    """Convert an image by an ICC profile to RGB."""
    from PIL import ImageCms

    grey = image.mode in ("L", "1")
    if not grey and image.mode != "RGB":
        image = image.convert("RGB")
    transform, name = _build_transform(profile, "L" if grey else "RGB")
    if transform is None:
        if name:
            notes.append(name)
        return image.convert("RGB")
    if grey:
        image = image.convert("L" if transform.input_mode == "L" else "RGB")
    notes.append(f"colours converted from {name} to sRGB")
    return ImageCms.applyTransform(image, transform)


def _build_transform(profile: bytes, mode: str) -> tuple[Any, str]:
    """The transform to sRGB and the profile's name; None if none is needed (empty text) or possible (the text is the reason)."""
    from PIL import ImageCms

    useless = "its colour profile {}: colours are taken as sRGB"
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = source.profile.xcolor_space.strip()
        if space not in ("RGB", "GRAY") or (space == "GRAY" and mode != "L"):
            return None, useless.format("does not fit")
        name = " ".join((source.profile.profile_description or "its profile").split())
        grey, mode = mode == "L", "L" if space == "GRAY" else "RGB"
        transform = ImageCms.buildTransform(
            source,
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
        limit = MAX_CHANGE_NAMED_SRGB if "srgb" in name.lower() else MAX_CHANGE
        return (None, "") if _largest_change(transform, grey=grey) <= limit else (transform, name)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None, useless.format("is broken")


def _largest_change(transform: Any, *, grey: bool) -> int:
    """Largest change of any channel, of 255, over a grid of colours or greys."""
    import numpy as np
    from PIL import ImageCms

    if grey:
        same = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, 2)
    else:
        levels = np.linspace(0, 255, 9).round().astype(np.uint8)
        same = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(1, -1, 3)
    moved = np.asarray(ImageCms.applyTransform(_from_array(same).convert(transform.input_mode), transform))
    return int(np.abs(moved.astype(int) - same).max())


def _convert_cmyk(image: Any, profile: bytes | None, notes: list[str]) -> Any:
    from PIL import ImageCms

    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            done = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
            notes.append("CMYK converted by its colour profile")
            return done
        except (ImageCms.PyCMSError, OSError):  # no profile, or none for CMYK
            pass
    notes.append("CMYK without a usable profile: colours are approximate")
    return image.convert("RGB")


def _detect_space(image: Any, data: bytes, form: str) -> ColorSpace | None:
    """The colour space that a file without a profile declares; None for sRGB."""
    if form == "PNG":
        return _space_from_png(data)
    if form == "AVIF":
        start = data.find(b"colrnclx")
        return _space_from_codes(*struct.unpack_from(">HH", data, start + 8)) if 0 <= start <= len(data) - 15 else None
    if form == "HEIF":
        declared = image.info.get("nclx_profile") or {}
        return _space_from_codes(declared.get("color_primaries", 1), declared.get("transfer_characteristics", 13))
    if form in ("JPEG", "MPO", "TIFF", "WEBP") and _is_adobe_rgb(image):
        return ColorSpace("Adobe RGB (by its EXIF)", _PRIMARIES["Adobe RGB"], "2.2")
    return None


def _is_adobe_rgb(image: Any) -> bool:
    """Whether EXIF (DCF 2.0) declares Adobe RGB, as cameras often do without a profile."""
    from PIL import ExifTags

    exif = image.getexif()
    space = exif.get_ifd(ExifTags.IFD.Exif).get(0xA001)
    return bool(
        space == 2 or (space == 0xFFFF and str(exif.get_ifd(ExifTags.IFD.Interop).get(1, "")).startswith("R03"))
    )


def _space_from_codes(primaries: int, transfer: int) -> ColorSpace | None:
    """The colour space of ITU-T H.273 code points; None for sRGB."""
    gamut, curve = _CODES.get(primaries, "sRGB"), _CURVES.get(transfer, "sRGB")
    if gamut == "sRGB" and curve in ("sRGB", "2.2"):
        return None
    return ColorSpace(gamut if curve == "sRGB" else f"{gamut} {curve}", _PRIMARIES[gamut], curve)


def _space_from_png(data: bytes) -> ColorSpace | None:
    """The colour space of a PNG: cICP takes precedence over sRGB, then gAMA and cHRM, as the standard requires."""
    chunks: dict[bytes, bytes] = {}
    at = 8
    while at + 8 <= len(data) and (kind := data[at + 4 : at + 8]) != b"IDAT":
        length = int.from_bytes(data[at : at + 4], "big")
        chunks.setdefault(kind, data[at + 8 : at + 8 + length])
        at += 12 + length
    if len(chunks.get(b"cICP", b"")) == 4:
        return _space_from_codes(chunks[b"cICP"][0], chunks[b"cICP"][1])
    if b"sRGB" in chunks:
        return None
    gamma = int.from_bytes(chunks.get(b"gAMA", b""), "big") / 100_000
    curve = (
        "sRGB"
        if not 0.05 < gamma < 10 or 0.42 <= gamma <= 0.50
        else "linear"
        if gamma > 0.95 and gamma < 1.05
        else f"{1 / gamma:.3g}"
    )
    primaries = _PRIMARIES["sRGB"]
    if len(chunks.get(b"cHRM", b"")) == 32:
        white_x, white_y, *rest = (value / 100_000 for value in struct.unpack(">8I", chunks[b"cHRM"]))
        declared = (*rest, white_x, white_y)
        if _is_valid_gamut(declared) and max(abs(a - b) for a, b in zip(declared, primaries, strict=True)) > 0.01:
            primaries = declared
    if curve == "sRGB" and primaries == _PRIMARIES["sRGB"]:
        return None
    return ColorSpace("the space of its gAMA and cHRM chunks", primaries, curve)


def _is_valid_gamut(primaries: tuple[float, ...]) -> bool:
    """Whether primaries span a triangle and allow conversion to XYZ."""
    (rx, ry, gx, gy, bx, by, _, wy) = primaries
    return (
        min(ry, gy, by, wy) > 0.001
        and max(primaries) <= 1
        and abs((gx - rx) * (by - ry) - (bx - rx) * (gy - ry)) > 0.01
    )


def _xyz_matrix(primaries: tuple[float, ...]) -> "np.ndarray":
    """Matrix (3, 3) from linear RGB to XYZ, adapted to the white point D65 (Bradford)."""
    import numpy as np

    ends = np.array([(x / y, 1, (1 - x - y) / y) for x, y in zip(primaries[::2], primaries[1::2], strict=True)]).T
    matrix = ends[:, :3] * np.linalg.solve(ends[:, :3], ends[:, 3])
    bradford = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
    x, y = _PRIMARIES["sRGB"][6:]
    scale = (bradford @ np.array([x / y, 1, (1 - x - y) / y])) / (bradford @ ends[:, 3])
    adapted: np.ndarray = np.linalg.inv(bradford) @ np.diag(scale) @ bradford @ matrix
    return adapted


def _linear_light(curve: str) -> "np.ndarray":
    """Linear light (256,) of each code value, 1 for white; HDR curves exceed 1."""
    import numpy as np

    v = np.linspace(0, 1, 256)
    if curve == "sRGB":
        return np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)
    if curve == "linear":
        return v
    if curve == "PQ":  # SMPTE ST 2084, white at 203 cd/m2 (ITU-R BT.2408)
        p = v ** (1 / 78.84375)
        return 10_000 / 203 * (np.maximum(p - 0.8359375, 0) / (18.8515625 - 18.6875 * p)) ** (1 / 0.1593017578125)
    if curve == "HLG":  # ITU-R BT.2100, shown at 1000 cd/m2
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        return 1000 / 203 * np.where(v <= 0.5, v**2 / 3, (np.exp((v - c) / a) + b) / 12) ** 1.2
    return v ** float(curve)


def _convert_from_space(rgb: "np.ndarray", space: ColorSpace) -> "np.ndarray":
    """Convert colours (H, W, 3) uint8 to sRGB; colours outside its gamut are clipped."""
    import numpy as np

    matrix = (np.linalg.inv(_xyz_matrix(_PRIMARIES["sRGB"])) @ _xyz_matrix(space.primaries)).T.astype(np.float32)
    light = _linear_light(space.curve).astype(np.float32)
    steps = np.linspace(0, 1, 8193) ** 2  # finer where it is dark
    encoded = np.where(steps <= 0.0031308, steps * 12.92, 1.055 * steps ** (1 / 2.4) - 0.055)
    table = (encoded * 255).round().astype(np.uint8)
    converted = np.empty_like(rgb)
    for top in range(0, len(rgb), ROWS_PER_STEP):
        part = (light[rgb[top : top + ROWS_PER_STEP]] @ matrix).clip(0, 1)
        converted[top : top + ROWS_PER_STEP] = table[(np.sqrt(part) * 8192).round().astype(np.int32)]
    return converted
