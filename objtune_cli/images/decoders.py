"""Opens photos with Pillow, and with the plugins that HEIC and JPEG XL need, without decoding their pixels."""

import io
from typing import Any

from objtune_cli.errors import ResourceError
from objtune_cli.images import formats

JXL_CODESTREAM = b"\xff\x0a"
JXL_CONTAINER = b"\x00\x00\x00\x0cJXL \r\n\x87\n"
MAX_PIXELS = 220_000_000
"""Largest photo that is opened; phones have sensors of 200 Mpx."""
_JXL_RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))
"""Width to height, by the code in a JPEG XL header (ISO/IEC 18181-1, size header)."""
_JXL_SIDE_BITS = (9, 13, 18, 30)


def open_image(data: bytes) -> tuple[Any, int]:
    """A Pillow image whose pixels are not decoded yet, and the EXIF orientation (1 for none) that its pixels still need.

    Raises:
        ResourceError: A package that its format needs is not installed. PIL.UnidentifiedImageError: No photo.
    """
    from PIL import ExifTags, Image

    readable = list(formats.PILLOW)
    if is_jpeg_xl(data):
        _register_jpeg_xl()
        readable = ["JXL"]
    elif data[4:8] == b"ftyp":
        _register_heif()
        readable.append("HEIF")
    if Image.MAX_IMAGE_PIXELS:  # `photo` checks the size first, with a plainer message
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, MAX_PIXELS)
    image = Image.open(io.BytesIO(data), formats=readable)
    orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    # libheif and libjxl rotate by themselves, except for a JPEG that is packed in a JPEG XL file
    is_upright = image.format == "HEIF" or (image.format == "JXL" and not getattr(image, "jpeg", False))
    return image, 1 if is_upright or orientation not in range(2, 9) else orientation


def is_jpeg_xl(data: bytes) -> bool:
    """Whether a file is a JPEG XL codestream or container."""
    return data.startswith((JXL_CODESTREAM, JXL_CONTAINER))


def jpeg_xl_size(data: bytes) -> tuple[int, int]:
    """Width and height of a JPEG XL photo, px, from its header; the plugin decodes all pixels when it opens a file.

    Raises:
        ValueError: The header is broken.
    """
    start = 0 if data.startswith(JXL_CODESTREAM) else _find_codestream(data)
    bits = int.from_bytes(data[start + 2 : start + 14], "little")
    if data[start : start + 2] != JXL_CODESTREAM:
        raise ValueError("its JPEG XL header is broken")

    def take(count: int) -> int:
        nonlocal bits
        value, bits = bits & ((1 << count) - 1), bits >> count
        return value

    is_small = take(1)

    def take_side() -> int:
        return 8 * (take(5) + 1) if is_small else take(_JXL_SIDE_BITS[take(2)]) + 1

    height = take_side()
    ratio = take(3)
    if ratio:
        across, down = _JXL_RATIOS[ratio - 1]
        return height * across // down, height
    return take_side(), height


def _find_codestream(data: bytes) -> int:
    """Offset of the codestream in a JPEG XL container (ISO/IEC 18181-2): a whole one, or the first part of several."""
    at = len(JXL_CONTAINER)
    while at + 16 <= len(data):
        length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        head = 8
        if length == 1:
            length, head = int.from_bytes(data[at + 8 : at + 16], "big"), 16
        if kind == b"jxlc":
            return at + head
        if kind == b"jxlp":
            return at + head + 4
        if length < head:
            break
        at += length
    return len(data)


def _register_heif() -> None:
    """Let Pillow open HEIC: the photo alone, without thumbnails, depth and gain maps."""
    import pillow_heif

    pillow_heif.register_heif_opener(thumbnails=False, depth_images=False, aux_images=False)


def _register_jpeg_xl() -> None:
    try:
        import pillow_jxl  # noqa: F401  (registers itself)
    except ImportError:
        raise ResourceError(
            "JPEG XL photos need another package", "`pip install 'objtune[jxl]'`, or save the photo as JPEG or PNG"
        ) from None
