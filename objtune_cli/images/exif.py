"""The EXIF block of an image with generation parameters, as A1111 and Civitai read it."""

import struct

ASCII, LONG, UNDEFINED = 2, 4, 7
"""Types of EXIF values."""
SOFTWARE, EXIF_IFD, EXIF_VERSION, USER_COMMENT = 0x0131, 0x8769, 0x9000, 0x9286
HEADER = b"Exif\0\0"
MAX_BYTES = 65_533 - len(HEADER)
"""The longest block that fits a JPEG file."""
Field = tuple[int, int, bytes]
"""Tag, type and bytes of a value."""


def encode_parameters(parameters: str, software: str) -> bytes:
    """A big-endian TIFF structure with the parameters in `UserComment`, UTF-16 without a byte order mark.

    Source: `UserComment.dump` of piexif with the encoding "unicode", which A1111 writes and reads.
    """
    comment = b"UNICODE\0" + parameters.encode("utf-16-be", errors="replace")
    program = software.encode("ascii", errors="replace") + b"\0"
    first: list[Field] = [(SOFTWARE, ASCII, program), (EXIF_IFD, LONG, b"\0\0\0\0")]
    inner_start = 8 + _size(first)
    first[1] = (EXIF_IFD, LONG, struct.pack(">I", inner_start))
    inner: list[Field] = [(EXIF_VERSION, UNDEFINED, b"0232"), (USER_COMMENT, UNDEFINED, comment)]
    return b"MM\0*" + struct.pack(">I", 8) + _encode_directory(first, 8) + _encode_directory(inner, inner_start)


def _size(fields: list[Field]) -> int:
    return 6 + 12 * len(fields) + sum(len(value) + len(value) % 2 for _, _, value in fields if len(value) > 4)


def _encode_directory(fields: list[Field], start: int) -> bytes:
    """A directory at an offset: its entries, then the values that do not fit into them."""
    entries, values = b"", b""
    values_start = start + 6 + 12 * len(fields)
    for tag, kind, value in fields:
        count = len(value) // 4 if kind == LONG else len(value)
        content = value.ljust(4, b"\0") if len(value) <= 4 else struct.pack(">I", values_start + len(values))
        entries += struct.pack(">HHI", tag, kind, count) + content
        if len(value) > 4:
            values += value + b"\0" * (len(value) % 2)
    return struct.pack(">H", len(fields)) + entries + b"\0\0\0\0" + values
