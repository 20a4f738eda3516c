"""Photos as people have them, to upright RGB, or refused in one line.

Reads the file once into memory; nothing of its metadata is kept but the rotation it asks for.
"""

import hashlib
import io
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from objtune_cli.errors import InputError
from objtune_cli.store.header import open_regular

if TYPE_CHECKING:
    import numpy as np

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF")
MAX_BYTES = 64 << 20
MAX_PIXELS = 64_000_000
MAX_SIDE = 16_384
MIN_SIDE = 64
MAX_ASPECT = 8


@dataclass(frozen=True, slots=True)
class Photo:
    """A decoded photo.

    Attributes:
        rgb: (H, W, 3) uint8, upright.
        alpha: (H, W) uint8 coverage where the file has transparency, else None.
        sha256: Digest of the file's bytes.
        notes: What had to be done to it, in words.
    """

    rgb: "np.ndarray"
    alpha: "np.ndarray | None"
    sha256: str
    notes: tuple[str, ...]


def read(path: Path) -> Photo:
    """Decode a photo.

    Raises:
        InputError: Missing, not an image, animated, broken, too large, too small or too narrow.
    """
    data = _bytes(path)
    from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

    notes: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # EXIF oddities; sizes are checked below
        try:
            image: Any = Image.open(io.BytesIO(data), formats=FORMATS)
            _check_size(path, *image.size)
            if getattr(image, "n_frames", 1) > 1 and image.format in ("GIF", "PNG", "WEBP"):  # phones keep a second JPEG behind the photo
                raise InputError(f"{path} is animated ({image.n_frames} frames)", "save the frame you want as PNG or JPEG")
            if image.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9):
                notes.append("rotated as its EXIF orientation says")
            image.load()  # turns a TIFF by itself
            rgb, alpha = _to_rgb(path, ImageOps.exif_transpose(image), notes)
        except UnidentifiedImageError:
            raise InputError(f"{path} is not a picture", "JPEG, PNG, WebP, TIFF, BMP and GIF are read") from None
        except InputError:
            raise
        except Exception as error:  # every decoder has its own; all mean the same to the user
            raise InputError(f"{path} cannot be decoded: {str(error) or type(error).__name__}", "save it again as PNG or JPEG") from None
    if (rgb == rgb[0, 0]).all():
        notes.append("a single colour: there is nothing to learn")
    return Photo(rgb, alpha, hashlib.sha256(data).hexdigest(), tuple(notes))


def digest(path: Path) -> str:
    """SHA-256 of the photo's bytes, without decoding it."""
    return hashlib.sha256(_bytes(path)).hexdigest()


def _bytes(path: Path) -> bytes:
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > MAX_BYTES:
                raise InputError(f"{path} has {size >> 20} MiB", f"at most {MAX_BYTES >> 20} MiB are read")
            data = file.read()
    except FileNotFoundError:
        raise InputError(f"there is no file {path}", "give the path of a photo") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or 'not a regular file'}", "give the path of a photo") from None
    if not data:
        raise InputError(f"{path} is empty", "give the path of a photo")
    return data


def _check_size(path: Path, width: int, height: int) -> None:
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise InputError(
            f"{path} has {width}x{height} pixels", f"at most {MAX_PIXELS // 1_000_000} Mpx and {MAX_SIDE} a side are read; shrink it"
        )
    if min(width, height) < MIN_SIDE:
        raise InputError(f"{path} has {width}x{height} pixels", f"at least {MIN_SIDE} a side are needed")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise InputError(f"{path} is {width}x{height}: too narrow", f"sides may differ {MAX_ASPECT}-fold; crop it to the object")


def _to_rgb(path: Path, image: Any, notes: list[str]) -> tuple["np.ndarray", "np.ndarray | None"]:
    import numpy as np
    from PIL import Image

    if image.mode.startswith("I;16"):
        grey = np.asarray(image).astype(np.float64)
        notes.append("16-bit grey scaled to 8 bits")
        return np.repeat((grey / 257).round().clip(0, 255).astype(np.uint8)[..., None], 3, 2), None
    if image.mode in ("F", "I"):
        raise InputError(f"{path} holds {image.mode} pixels of unknown range", "save it as 8-bit PNG or JPEG")
    if image.mode == "CMYK":
        return np.asarray(_from_cmyk(image, notes)), None
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        layered = image.convert("RGBA")
        alpha = np.asarray(layered)[..., 3]
        if alpha.min() < 255:
            notes.append("transparent parts shown on white")
            ground = Image.new("RGBA", layered.size, "white")
            return np.asarray(Image.alpha_composite(ground, layered).convert("RGB")), alpha
        return np.asarray(layered.convert("RGB")), None
    return np.asarray(image.convert("RGB")), None


def _from_cmyk(image: Any, notes: list[str]) -> Any:
    from PIL import ImageCms

    profile = image.info.get("icc_profile")
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


def read_mask(path: Path, size: tuple[int, int]) -> "np.ndarray":
    """A mask picture as coverage (H, W) uint8: its alpha where it has one, else its brightness.

    Args:
        size: Width and height of the photo, px; the mask must have the same.

    Raises:
        InputError: Unreadable, or of another size than the photo.
    """
    import numpy as np

    photo = read(path)
    height, width = photo.rgb.shape[:2]
    if (width, height) != size:
        raise InputError(f"{path} has {width}x{height} pixels, the photo {size[0]}x{size[1]}", "draw the mask on the photo itself")
    return photo.alpha if photo.alpha is not None else photo.rgb.mean(2).round().astype(np.uint8)
