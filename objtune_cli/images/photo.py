"""Decodes photos to upright sRGB, or refuses them with a one-line error.

Each file is read into memory once. Of its metadata only the EXIF orientation is used.
"""

import hashlib
import io
import math
import os
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from objtune_cli.errors import InputError, ObjtuneError
from objtune_cli.images import color_profiles, decoders, formats, transparency
from objtune_cli.store.regular_files import open_regular

if TYPE_CHECKING:
    import numpy as np

MAX_BYTES = 256 << 20
KEPT_PIXELS = 64_000_000
"""Larger photos are reduced while they are decoded."""
MAX_SIDE = 32_768
MIN_SIDE = 64
MAX_ASPECT = 8


@dataclass(frozen=True, slots=True)
class Photo:
    """A decoded photo.

    Attributes:
        rgb: (H, W, 3) uint8, upright.
        alpha: (H, W) uint8 coverage where the file has transparency, 0 everywhere if it shows nothing, else None.
        sha256: Digest of the file's bytes.
        notes: Conversions that were applied, for the user.
        orientation: EXIF orientation by which the stored pixels were turned; 1 for none.
        full_size: Upright width and height of the file, px, where `rgb` is smaller because the file has more than `KEPT_PIXELS`.
    """

    rgb: "np.ndarray"
    alpha: "np.ndarray | None"
    sha256: str
    notes: tuple[str, ...]
    orientation: int = 1
    full_size: tuple[int, int] | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Upright width and height of the file, px; points and boxes are in these pixels."""
        return self.full_size or (self.rgb.shape[1], self.rgb.shape[0])

    @property
    def stored_size(self) -> tuple[int, int]:
        """Width and height before the EXIF orientation was applied, px."""
        return self.size[::-1] if self.orientation >= 5 else self.size


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """An upright Pillow image with its original pixel mode, the format of its file and its EXIF orientation.

    `full_size` is the upright size of the file, px, if the image was reduced.
    """

    image: Any
    form: str
    orientation: int
    full_size: tuple[int, int] | None = None


def read(path: Path) -> Photo:
    """Decode a photo.

    Raises:
        InputError: Missing, not an image, animated, broken, too large, too small or too narrow.
    """
    data = read_bytes(path)
    notes: list[str] = []
    with translate_errors(path):
        decoded = decode(path, data, notes)
        if decoded.image.mode in ("F", "I"):
            raise InputError(f"{path} has {decoded.image.mode} pixels of unknown range", "save it as 8-bit PNG or JPEG")
        rgb, alpha = color_profiles.to_srgb(decoded.image, data, decoded.form, notes)
        if alpha is not None:
            rgb, alpha = _blend_on_white(rgb, alpha, notes)
    if (rgb == rgb[0, 0]).all():
        notes.append("a single colour: there is nothing to learn")
    digest = hashlib.sha256(data).hexdigest()
    return Photo(rgb, alpha, digest, tuple(notes), decoded.orientation, decoded.full_size)


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes, with the checks of `read_bytes`."""
    return hashlib.sha256(read_bytes(path)).hexdigest()


@dataclass(frozen=True, slots=True)
class Header:
    """Properties of a photo that are read without decoding its pixels.

    Attributes:
        sha256: Digest of the file's bytes. size: Upright width and height, px. orientation: EXIF orientation, 1 for none.
        is_converted: Whether its colours are converted to sRGB.
    """

    sha256: str
    size: tuple[int, int]
    orientation: int
    is_converted: bool


def read_header(path: Path) -> Header:
    """Read size, digest and colour space of a photo without decoding it.

    Raises:
        InputError: As `read`, except for errors that only decoding finds.
    """
    data = read_bytes(path)
    with translate_errors(path):
        image, orientation = _open_image(path, data)
        size = image.size[::-1] if orientation >= 5 and image.format != "TIFF" else image.size
        return Header(hashlib.sha256(data).hexdigest(), size, orientation, color_profiles.is_converted(data))


class translate_errors:
    """Context manager that translates decoder exceptions into an `InputError` about the file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        self.quiet = warnings.catch_warnings()
        self.quiet.__enter__()
        warnings.simplefilter("ignore")  # EXIF oddities; sizes are checked

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self.quiet.__exit__(None, None, None)
        # every decoder raises its own kinds; to the user they mean the same
        if isinstance(error, Exception) and not isinstance(error, ObjtuneError):
            from PIL import UnidentifiedImageError

            if isinstance(error, UnidentifiedImageError):
                raise InputError(f"{self.path} is not a picture", formats.READ_NAMES) from None
            raise InputError(
                f"{self.path} cannot be decoded: {str(error) or type(error).__name__}", "save it again as PNG or JPEG"
            ) from None


def decode(path: Path, data: bytes, notes: list[str], least: int = MIN_SIDE) -> DecodedImage:
    """Decode a file and apply its EXIF orientation; exceptions of the decoder pass through.

    Args:
        notes: Receives a line for each conversion. least: Smallest allowed side, px.

    Raises:
        InputError: Not a photo, animated, too large, too small or too narrow.
    """
    from PIL import ImageOps

    image, orientation = _open_image(path, data, least)
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format in ("GIF", "PNG", "WEBP", "AVIF"):  # phones keep a second JPEG behind the photo
        raise InputError(f"{path} is animated ({frames} frames)", "save one frame as PNG or JPEG")
    if frames > 1 and image.format == "TIFF":
        notes.append(f"the first of its {frames} pages is used")
    if orientation != 1:
        notes.append("rotated as its EXIF orientation says")
    form = image.format or ""
    full_size = image.size
    steps = math.ceil(math.sqrt(image.width * image.height / KEPT_PIXELS))
    if steps > 1:
        image.draft(image.mode, (image.width // steps, image.height // steps))  # a JPEG is decoded at a smaller size
    try:
        image.load()  # turns a TIFF by itself
    except OSError:
        image = _complete_jpeg(data) if form in ("JPEG", "MPO") else None
        if image is None:
            raise
        notes.append("the end of the file is missing; all of its pixels are there")
    if steps > 1:
        image = _reduce(image)
        notes.append(f"reduced from {full_size[0]}x{full_size[1]} to {image.width}x{image.height} pixels")
    upright = ImageOps.exif_transpose(image) if orientation != 1 else image
    if orientation >= 5 and form != "TIFF":
        full_size = full_size[::-1]
    return DecodedImage(upright, form, orientation, full_size if steps > 1 else None)


def _reduce(image: Any) -> Any:
    """Reduce an image to at most `KEPT_PIXELS` by averaging blocks of pixels."""
    steps = math.ceil(math.sqrt(image.width * image.height / KEPT_PIXELS))
    if steps == 1:
        return image
    if image.mode in ("P", "PA", "1"):
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    if image.mode.startswith("I;16"):
        raise ValueError(f"16-bit grey images of more than {KEPT_PIXELS // 1_000_000} Mpx are not read")
    return image.reduce(steps)


def _open_image(path: Path, data: bytes, least: int = MIN_SIDE) -> tuple[Any, int]:
    """Open a file without decoding its pixels and check its size; also return its EXIF orientation."""
    described = formats.describe(data)
    if described:
        raise InputError(f"{path} is {described[0]}", described[1])
    if decoders.is_jpeg_xl(data):
        _check_size(path, decoders.jpeg_xl_size(data), least)
    image, orientation = decoders.open_image(data)
    _check_size(path, image.size, least)
    return image, orientation


def _complete_jpeg(data: bytes) -> Any:
    """Decode a JPEG that lacks only its end marker; None if pixels are missing as well.

    The file is decoded with different padding. If all pixels are there, the padding does not change them.
    """
    from PIL import Image

    images = []
    for filling in (b"", b"\x5a" * 64, b"\xa7\x31" * 32):
        image = Image.open(io.BytesIO(data.removesuffix(b"\xff") + filling + b"\xff\xd9"), formats=("JPEG",))
        try:
            image.load()
        except OSError:
            return None
        images.append(image)
    return images[0] if len({image.tobytes() for image in images}) == 1 else None


def read_bytes(path: Path) -> bytes:
    """Read a file that may be a photo.

    Raises:
        InputError: Missing, a folder, no regular file, too large or empty.
    """
    try:
        if path.is_dir():
            raise InputError(f"{path} is a folder; one photo is needed", _suggest_photo(path))
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > MAX_BYTES:
                raise InputError(f"{path} has {size >> 20} MiB", f"at most {MAX_BYTES >> 20} MiB are read")
            data = file.read()
    except FileNotFoundError:
        if re.match(r"(?:https?|ftp|s3|gs):/", str(path), re.I):
            raise InputError(f"{path} is an address, not a file", "download the picture, and give the file") from None
        raise InputError(f"there is no file {path}", "give the path of a photo") from None
    except OSError as error:
        raise InputError(
            f"{path} cannot be read: {error.strerror or 'not a regular file'}", "give the path of a photo"
        ) from None
    if not data:
        raise InputError(f"{path} is empty", "give the path of a photo")
    return data


def _suggest_photo(folder: Path) -> str:
    """Hint for a user who gave a folder instead of a photo."""
    photos = sorted(p.name for p in folder.iterdir() if p.suffix.lower() in formats.SUFFIXES)
    return f"give one photo, for example `{folder / photos[0]}`" if photos else "give the path of a photo"


def _check_size(path: Path, size: tuple[int, int], least: int) -> None:
    width, height = size
    if width * height > decoders.MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise InputError(
            f"{path} has {width}x{height} pixels",
            f"at most {decoders.MAX_PIXELS // 1_000_000} Mpx and {MAX_SIDE} a side are read; shrink it",
        )
    if min(width, height) < least:
        raise InputError(f"{path} has {width}x{height} pixels", f"at least {least} a side are needed")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise InputError(
            f"{path} is {width}x{height}: too narrow", f"sides may differ {MAX_ASPECT}-fold; crop it to the object"
        )


def _blend_on_white(
    rgb: "np.ndarray", alpha: "np.ndarray", notes: list[str]
) -> tuple["np.ndarray", "np.ndarray | None"]:
    """Colours blended on white where they are transparent, and the normalised alpha, None if nothing is transparent."""
    if alpha.min() == 255:
        return rgb, None
    levels = transparency.normalize_alpha(alpha)
    if not levels.any():
        notes.append("wholly transparent: the colours below are taken")
        return rgb, levels
    if levels.min() == 255:
        return rgb, None
    if levels.min() < 128:
        notes.append("transparent parts shown on white")
    return transparency.blend_on_white(rgb, levels), levels
