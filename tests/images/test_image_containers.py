"""Where the parameters lie in each kind of file: read from the bytes by the file formats' own rules, as exiftool and ComfyUI read them."""

import struct
import zlib
from collections.abc import Iterator

import numpy as np
import pytest

from objtune_cli.images import encoding, png

TEXT = "a photo of <dog>, naß \N{DOG FACE}\nNegative prompt: text\nSteps: 20, Sampler: DDIM, Seed: 1, Size: 16x16"
SOFTWARE = "objtune 1.0"
IMAGE = np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3)
ASCII, UNDEFINED = 2, 7
SIZES = {1: 1, ASCII: 1, 3: 2, 4: 4, 5: 8, UNDEFINED: 1}


def jpeg_block(data: bytes) -> bytes:
    """The TIFF structure of the first APP1 segment with EXIF (EXIF 2.32, 4.7.2)."""
    assert data[:2] == b"\xff\xd8"
    at = 2
    while data[at + 1] != 0xDA:
        assert data[at] == 0xFF
        (length,) = struct.unpack_from(">H", data, at + 2)
        if data[at + 1] == 0xE1 and data[at + 4 : at + 10] == b"Exif\0\0":
            return data[at + 10 : at + 2 + length]
        at += 2 + length
    raise AssertionError("no EXIF before the scan")


def webp_block(data: bytes) -> bytes:
    """The chunk `EXIF` of the extended format, whose header must announce it."""
    assert data[:4] == b"RIFF" and data[8:12] == b"WEBP" and data[12:16] == b"VP8X"
    assert data[20] & 0b1000  # the flag of EXIF
    at = 12
    while at < len(data):
        name, length = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        if name == b"EXIF":
            return data[at + 8 : at + 8 + length]
        at += 8 + length + length % 2
    raise AssertionError("no chunk EXIF")


def boxes(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Name, start and end of the content of each ISO box."""
    while start < end:
        size = int.from_bytes(data[start : start + 4], "big")
        assert 8 <= size <= end - start
        yield data[start + 4 : start + 8], start + 8, start + size
        start += size


def avif_block(data: bytes) -> bytes:
    """The item of the type `Exif`: its place from `iloc`, without the offset in front of it (ISO 23008-12, A.2.1)."""
    meta = next((a, b) for name, a, b in boxes(data, 0, len(data)) if name == b"meta")
    inner = {name: (a, b) for name, a, b in boxes(data, meta[0] + 4, meta[1])}
    first, _ = inner[b"iinf"]
    item = None
    for name, a, _ in boxes(data, first + 6, inner[b"iinf"][1]):
        assert name == b"infe" and data[a] == 2
        if data[a + 8 : a + 12] == b"Exif":
            item = int.from_bytes(data[a + 4 : a + 6], "big")
    assert item is not None
    at, _ = inner[b"iloc"]
    version, sizes = data[at], data[at + 4 : at + 6]
    offset_size, length_size, base_size = sizes[0] >> 4, sizes[0] & 15, sizes[1] >> 4
    count = int.from_bytes(data[at + 6 : at + 8], "big")
    at += 8
    for _ in range(count):
        number = int.from_bytes(data[at : at + 2], "big")
        at += 2 + (2 if version else 0) + 2
        base = int.from_bytes(data[at : at + base_size], "big")
        extents = int.from_bytes(data[at + base_size : at + base_size + 2], "big")
        at += base_size + 2
        assert extents == 1
        start = base + int.from_bytes(data[at : at + offset_size], "big")
        length = int.from_bytes(data[at + offset_size : at + offset_size + length_size], "big")
        at += offset_size + length_size
        if number == item:
            content = data[start : start + length]
            return content[4 + int.from_bytes(content[:4], "big") :]
    raise AssertionError("no place of the item")


BLOCKS = {"jpg": jpeg_block, "webp": webp_block, "avif": avif_block}


def read_directory(block: bytes, offset: int) -> dict[int, tuple[int, bytes]]:
    """Type and bytes of each entry of a TIFF directory."""
    order = {b"MM": ">", b"II": "<"}[block[:2]]
    assert struct.unpack_from(f"{order}H", block, 2) == (42,)
    found = {}
    for i in range(struct.unpack_from(f"{order}H", block, offset)[0]):
        tag, kind, count = struct.unpack_from(f"{order}HHI", block, offset + 2 + 12 * i)
        size = SIZES[kind] * count
        place = offset + 10 + 12 * i
        start = place if size <= 4 else struct.unpack_from(f"{order}I", block, place)[0]
        assert start + size <= len(block)
        found[tag] = (kind, block[start : start + size])
    return found


@pytest.mark.parametrize("suffix", BLOCKS)
def test_the_comment_is_where_exiftool_looks(suffix: str) -> None:
    block = BLOCKS[suffix](encoding.encode_image(IMAGE, suffix, 0, TEXT, SOFTWARE))
    first = read_directory(block, struct.unpack_from(">I", block, 4)[0])
    assert first[0x0131] == (ASCII, SOFTWARE.encode() + b"\0")
    inner = read_directory(block, struct.unpack(">I", first[0x8769][1])[0])
    kind, comment = inner[0x9286]
    assert kind == UNDEFINED and comment[:8] == b"UNICODE\0"  # the code of the character set; exiftool skips it
    assert comment[8:].decode("utf-16-be") == TEXT and inner[0x9000] == (UNDEFINED, b"0232")


@pytest.mark.parametrize("suffix", BLOCKS)
def test_comfyui_finds_no_workflow_and_does_not_stumble(suffix: str) -> None:
    """Its loader takes texts `name:value` from the first directory; `prompt` and `workflow` would be JSON."""
    block = BLOCKS[suffix](encoding.encode_image(IMAGE, suffix, 0, TEXT, SOFTWARE))
    first = read_directory(block, struct.unpack_from(">I", block, 4)[0])
    texts = [value.decode() for kind, value in first.values() if kind == ASCII]
    assert not any(text.lower().startswith(("prompt:", "workflow:")) for text in texts)


def test_the_chunks_of_a_png_have_their_texts_in_their_encodings() -> None:
    """`tEXt` is Latin-1 and `iTXt` UTF-8 (PNG 11.3.4); ComfyUI reads both, and takes `prompt` and `workflow` alone as graphs."""
    data = png.encode_png(IMAGE, {"parameters": TEXT, "objtune": '{"seed":1}'})
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    texts, at, names = {}, 8, []
    while at < len(data):
        length, name = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        body = data[at + 8 : at + 8 + length]
        assert int.from_bytes(data[at + 8 + length : at + 12 + length], "big") == zlib.crc32(name + body)
        names.append(name)
        if name == b"tEXt":
            key, _, value = body.partition(b"\0")
            texts[key.decode()] = value.decode("latin-1")
        elif name == b"iTXt":
            key, _, rest = body.partition(b"\0")
            assert rest[:2] == b"\0\0"  # not compressed
            texts[key.decode()] = rest[2:].split(b"\0", 2)[2].decode()
        at += 12 + length
    assert texts == {"parameters": TEXT, "objtune": '{"seed":1}'} and names[-1] == b"IEND"
    assert names.index(b"iTXt") < names.index(b"IDAT")  # readers that stop at the pixels have seen it
