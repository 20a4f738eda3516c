"""Detects file formats by their first bytes, and names those that cannot be read as photos."""

import struct

PILLOW = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "AVIF", "JPEG2000")
"""Formats that Pillow reads without plugins, as it calls them; with plugins, HEIF and JXL."""
READ_NAMES = "JPEG, PNG, HEIC, WebP, AVIF, JPEG XL, JPEG 2000, TIFF, BMP and GIF are read"
SUFFIXES = (
    ".jpg",
    ".jpeg",
    ".jpe",
    ".jfif",
    ".png",
    ".webp",
    ".avif",
    ".tif",
    ".tiff",
    ".bmp",
    ".gif",
    ".jp2",
    ".j2k",
    ".jpx",
    ".heic",
    ".heif",
    ".hif",
    ".jxl",
)
"""File name suffixes of the formats that are read."""
RAW = (
    ".dng",
    ".cr2",
    ".cr3",
    ".crw",
    ".nef",
    ".nrw",
    ".arw",
    ".srf",
    ".sr2",
    ".raf",
    ".orf",
    ".rw2",
    ".pef",
    ".srw",
    ".x3f",
    ".iiq",
    ".3fr",
    ".erf",
    ".kdc",
    ".mrw",
    ".rwl",
)
OTHER_SUFFIXES = (
    ".pdf", ".svg", ".psd", ".psb", ".xcf", ".kra", ".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".exr", ".hdr", ".ico", ".tga", ".ppm", ".qoi", *RAW,
)  # fmt: skip
"""Suffixes of other images and videos; an argument with one of them is a file, not a ref."""

_EXPORT = "export it as PNG or JPEG"
_FRAME = "save one frame as PNG or JPEG"
_DEVELOP = "develop it in a photo program and export it as JPEG or PNG"
_STARTS: tuple[tuple[bytes, str, str], ...] = (
    (b"%PDF", "a PDF document", _EXPORT),
    (b"%!PS", "a PostScript document", _EXPORT),
    (b"\xc5\xd0\xd3\xc6", "a PostScript document", _EXPORT),
    (b"8BPS", "a Photoshop document", _EXPORT),
    (b"gimp xcf", "a GIMP document", _EXPORT),
    (b"FUJIFILMCCD-RAW", "a camera's raw file", _DEVELOP),
    (b"IIRO", "a camera's raw file", _DEVELOP),
    (b"IIRS", "a camera's raw file", _DEVELOP),
    (b"MMOR", "a camera's raw file", _DEVELOP),
    (b"IIU\x00", "a camera's raw file", _DEVELOP),
    (b"FOVb", "a camera's raw file", _DEVELOP),
    (b"\x00MRM", "a camera's raw file", _DEVELOP),
    (b"v/1\x01", "an OpenEXR picture", _EXPORT),
    (b"#?RADIANCE", "a Radiance HDR picture", _EXPORT),
    (b"\x1aE\xdf\xa3", "a video", _FRAME),
    (b"\x00\x00\x01\xba", "a video", _FRAME),
    (b"\x00\x00\x01\xb3", "a video", _FRAME),
    (b"FLV\x01", "a video", _FRAME),
    (b"0&\xb2u\x8ef\xcf\x11", "a video", _FRAME),
    (b"\x00\x00\x01\x00", "a Windows icon", _EXPORT),
    (b"qoif", "a QOI picture", _EXPORT),
    (b"\x93NUMPY", "a NumPy array", "save it as PNG"),
    (b"version https://git-lfs", "a Git LFS pointer, not the picture itself", "fetch it: `git lfs pull`"),
    (b"PK\x03\x04", "a zip archive", "unpack it and give one picture of it"),
    (b"\x1f\x8b", "a gzip archive", "unpack it and give one picture of it"),
    (b"Rar!", "a RAR archive", "unpack it and give one picture of it"),
    (b"7z\xbc\xaf", "a 7z archive", "unpack it and give one picture of it"),
)
_HEIF_BRANDS = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1", b"mif2"))
_AVIF_BRANDS = frozenset((b"avif", b"avis"))
_PHOTO_BRANDS = _HEIF_BRANDS | _AVIF_BRANDS | {b"jxl "}
_BRANDS: dict[bytes, tuple[str, str]] = {
    b"crx ": ("a camera's raw file", _DEVELOP),
}
_DNG_VERSION, _SUBFILE, _PHOTOMETRIC = 50706, 254, 262
_CFA, _LINEAR_RAW = 32803, 34892


def describe(data: bytes) -> tuple[str, str] | None:
    """Name a file format that is not read as a photo, with a hint; None for readable and unknown formats.

    The suffix is ignored, because phones and messengers save HEIC as `.jpg`.
    """
    for start, what, hint in _STARTS:
        if data.startswith(start):
            return what, hint
    if data[4:8] == b"ftyp":
        return _describe_container(data)
    if data[:4] == b"RIFF" and data[8:12] == b"AVI ":
        return "a video", _FRAME
    if data[:4] in (b"II*\x00", b"MM\x00*"):
        return _describe_tiff(data)
    if b"__metadata__" in data[8:200] and data[8:9] == b"{":
        return "a safetensors file", "give the photo; artifacts are given by their refs, as `objtune list` shows them"
    text = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith(b"<svg") or (text.startswith(b"<?xml") and b"<svg" in data[:4096].lower()):
        return "an SVG drawing", _EXPORT
    if text.startswith((b"<!doctype html", b"<html")):
        return "a web page, not the picture itself", "download the picture: open it alone and save it"
    return None


def _describe_container(data: bytes) -> tuple[str, str] | None:
    """Tell photos, raw files and videos apart by the brands of their common container."""
    length = max(16, min(int.from_bytes(data[:4], "big"), 256))
    brands = [data[8:12], *(data[i : i + 4] for i in range(16, length, 4))]
    if not _PHOTO_BRANDS.isdisjoint(brands):
        return None
    return next((_BRANDS[brand] for brand in brands if brand in _BRANDS), ("a video", _FRAME))


def _describe_tiff(data: bytes) -> tuple[str, str] | None:
    """Detect raw files, which are TIFFs whose first image is a thumbnail or a sensor mosaic."""
    raw = ("a camera's raw file", _DEVELOP)
    if data[8:10] == b"CR":
        return raw
    order = "<" if data[:2] == b"II" else ">"
    try:
        (start,) = struct.unpack_from(order + "I", data, 4)
        (count,) = struct.unpack_from(order + "H", data, start)
        tags: dict[int, int] = {}
        for i in range(count):
            tag, kind, _, value = struct.unpack_from(order + "HHII", data, start + 2 + 12 * i)
            tags[tag] = value >> 16 if kind == 3 and order == ">" else value & 0xFFFF if kind == 3 else value
    except struct.error:  # the decoder reports the damage
        return None
    if _DNG_VERSION in tags or tags.get(_SUBFILE, 0) & 1 or tags.get(_PHOTOMETRIC) in (_CFA, _LINEAR_RAW):
        return raw
    return None
