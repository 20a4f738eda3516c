"""Photos as people have them: an exact picture, or one line that says why not."""

import hashlib
import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from objtune_cli.errors import InputError
from objtune_cli.images import photo, png

WIDTH, HEIGHT = 96, 72


def coloured() -> np.ndarray:
    """Four plain quarters, each of another colour: red, green / blue, white."""
    rgb = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    rgb[: HEIGHT // 2, : WIDTH // 2] = (255, 0, 0)
    rgb[: HEIGHT // 2, WIDTH // 2 :] = (0, 255, 0)
    rgb[HEIGHT // 2 :, : WIDTH // 2] = (0, 0, 255)
    rgb[HEIGHT // 2 :, WIDTH // 2 :] = 255
    return rgb


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """`save(image, "a.png", **options)`: a file made by Pillow."""

    def write(image: Any, name: str, **options: Any) -> Path:
        path = tmp_path / name
        (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(path, **options)
        return path

    return write


def refused(path: Path, message: str) -> InputError:
    """The error of reading a file: one line, with a hint, naming the file."""
    with pytest.raises(InputError, match=message) as caught:
        photo.read(path)
    assert caught.value.code == 3
    assert caught.value.hint
    assert "\n" not in caught.value.message + caught.value.hint
    assert str(path) in caught.value.message
    return caught.value


LOSSLESS = {
    "a.png": {},
    "a.tif": {},
    "a.bmp": {},
    "a.webp": {"lossless": True},
    "b.tif": {"compression": "tiff_lzw"},
    "a.jp2": {},
}


@pytest.mark.parametrize("name", LOSSLESS)
def test_lossless_formats_are_exact(name: str, save: Callable[..., Path]) -> None:
    path = save(coloured(), name, **LOSSLESS[name])
    found = photo.read(path)
    assert np.array_equal(found.rgb, coloured())
    assert found.rgb.dtype == np.uint8
    assert found.alpha is None
    assert found.notes == ()
    assert found.sha256 == photo.hash_file(path) == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    "options", [{"quality": 95}, {"quality": 95, "progressive": True}, {"quality": 95, "subsampling": 0}], ids=repr
)
def test_jpeg_is_close(options: dict[str, Any], save: Callable[..., Path]) -> None:
    found = photo.read(save(coloured(), "a.jpg", **options))
    inner = np.s_[8:28, 8:40]
    assert np.abs(found.rgb.astype(int) - coloured())[inner].max() <= 4


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.tif"])
def test_exif_orientation_is_undone(orientation: int, name: str, save: Callable[..., Path]) -> None:
    """Stored is the inverse of what the orientation asks for, by the table of the EXIF standard."""
    upright = coloured()
    stored = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1],
        5: upright.swapaxes(0, 1), 6: np.rot90(upright), 7: upright[::-1, ::-1].swapaxes(0, 1), 8: np.rot90(upright, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(np.ascontiguousarray(stored), name, exif=exif, **({"lossless": True} if name == "a.webp" else {}))
    found = photo.read(path)
    assert np.array_equal(found.rgb, upright)
    assert found.notes == (() if orientation == 1 else ("rotated as its EXIF orientation says",))


def test_a_jpeg_is_turned_too(save: Callable[..., Path]) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert photo.read(save(np.ascontiguousarray(np.rot90(coloured())), "a.jpg", exif=exif)).rgb.shape == (
        HEIGHT,
        WIDTH,
        3,
    )


def test_an_impossible_orientation_is_ignored(save: Callable[..., Path]) -> None:
    exif = Image.Exif()
    exif[0x0112] = 99
    found = photo.read(save(coloured(), "a.png", exif=exif))
    assert np.array_equal(found.rgb, coloured())
    assert found.notes == ()


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_sixteen_bit_grey_is_scaled_not_clipped(name: str, save: Callable[..., Path]) -> None:
    ramp = np.linspace(0, 65535, WIDTH).round().astype(np.uint16)
    found = photo.read(save(np.tile(ramp, (HEIGHT, 1)), name))
    assert np.array_equal(found.rgb[0, :, 0], (ramp / 257).round().astype(np.uint8))
    assert np.array_equal(found.rgb[..., 0], found.rgb[..., 2])
    assert found.notes == ("16-bit grey scaled to 8 bits",)


def test_sixteen_bit_colour_is_read(tmp_path: Path) -> None:
    """A 16-bit RGB PNG by hand, which Pillow cannot write: eight bits of each value remain."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    wide = np.stack([np.tile(np.arange(WIDTH) * 600 + k, (HEIGHT, 1)) for k in range(3)], -1).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in wide)
    head = WIDTH.to_bytes(4, "big") + HEIGHT.to_bytes(4, "big") + bytes([16, 2, 0, 0, 0])
    path = tmp_path / "deep.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )
    assert np.abs(photo.read(path).rgb.astype(int) - wide.astype(int) / 257).max() <= 1


@pytest.mark.parametrize("mode", ["1", "L"])
def test_grey_becomes_rgb(mode: str, save: Callable[..., Path]) -> None:
    grey = np.where(np.arange(WIDTH) % 2, 255, 0).astype(np.uint8)
    image = Image.fromarray(np.tile(grey, (HEIGHT, 1))).convert(mode)
    assert np.array_equal(photo.read(save(image, "a.png")).rgb, np.repeat(np.tile(grey, (HEIGHT, 1))[..., None], 3, 2))


def test_palette_is_exact(save: Callable[..., Path]) -> None:
    for name in ("a.png", "a.gif"):
        found = photo.read(save(Image.fromarray(coloured()).quantize(4), name))
        assert np.array_equal(found.rgb, coloured()), name
        assert found.alpha is None


def test_transparent_palette_shows_white_and_keeps_its_alpha(save: Callable[..., Path]) -> None:
    indices = np.zeros((HEIGHT, WIDTH), np.uint8)
    indices[20:50, 30:60] = 1
    image = Image.fromarray(indices, "P")
    image.putpalette([10, 20, 30, 200, 100, 0])
    for name in ("a.png", "a.gif"):
        found = photo.read(save(image, name, transparency=0))
        assert found.alpha is not None
        assert np.array_equal(found.alpha, indices * 255), name
        assert found.rgb[0, 0].tolist() == [255, 255, 255]
        assert found.rgb[30, 40].tolist() == [200, 100, 0]
        assert found.notes == ("transparent parts shown on white",)


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.tif"])
def test_alpha_hides_the_colours_below(name: str, save: Callable[..., Path]) -> None:
    alpha = np.zeros((HEIGHT, WIDTH), np.uint8)
    alpha[10:40, 10:40] = 255
    alpha[50:60, 50:60] = 128
    image = np.dstack([np.full((HEIGHT, WIDTH, 3), (200, 0, 0), np.uint8), alpha])
    found = photo.read(save(image, name, **({"lossless": True, "exact": True} if name == "a.webp" else {})))
    assert found.alpha is not None
    assert np.array_equal(found.alpha, alpha)
    assert found.rgb[0, 0].tolist() == [255, 255, 255]
    assert found.rgb[20, 20].tolist() == [200, 0, 0]
    assert found.rgb[55, 55].tolist() == [200, 0, 0]  # the object's own colour, no white mixed in


def test_grey_with_alpha(save: Callable[..., Path]) -> None:
    image = Image.new("LA", (WIDTH, HEIGHT), (40, 255))
    image.paste((40, 0), (0, 0, 20, 20))
    found = photo.read(save(image, "a.png"))
    assert found.alpha is not None
    assert (found.alpha == 0).sum() == 400
    assert found.rgb[0, 0].tolist() == [255] * 3
    assert found.rgb[-1, -1].tolist() == [40] * 3


def test_full_alpha_is_no_mask(save: Callable[..., Path]) -> None:
    found = photo.read(save(Image.fromarray(coloured()).convert("RGBA"), "a.png"))
    assert found.alpha is None
    assert np.array_equal(found.rgb, coloured())
    assert found.notes == ()


def test_cmyk_without_a_profile_is_approximate(save: Callable[..., Path]) -> None:
    for name in ("a.jpg", "a.tif"):
        found = photo.read(save(Image.fromarray(coloured()).convert("CMYK"), name))
        assert np.abs(found.rgb[10, 10].astype(int) - [255, 0, 0]).max() <= 6, name
        assert found.notes == ("CMYK without a usable profile: colours are approximate",)


@pytest.mark.parametrize(
    "profile",
    [b"nonsense" * 40, ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()],
    ids=["broken", "of RGB"],
)
def test_cmyk_with_a_useless_profile_is_approximate(profile: bytes, save: Callable[..., Path]) -> None:
    found = photo.read(save(Image.fromarray(coloured()).convert("CMYK"), "a.jpg", icc_profile=profile))
    assert found.notes == ("CMYK without a usable profile: colours are approximate",)


def test_a_phone_photo_with_a_second_picture_is_read(save: Callable[..., Path]) -> None:
    """Phones keep a depth map or a preview behind the photo (MPO); it is no animation."""
    image = Image.fromarray(coloured())
    path = save(
        image, "phone.jpg", format="MPO", save_all=True, append_images=[Image.new("RGB", image.size)], quality=95
    )
    with Image.open(path) as opened:
        assert getattr(opened, "n_frames", 1) == 2
    assert np.abs(photo.read(path).rgb[10, 10].astype(int) - [255, 0, 0]).max() <= 4


def test_twelve_megapixels(save: Callable[..., Path]) -> None:
    path = save(Image.fromarray(coloured()).resize((4000, 3000)), "big.jpg")
    assert photo.read(path).rgb.shape == (3000, 4000, 3)


def test_lab_is_read(save: Callable[..., Path]) -> None:
    found = photo.read(save(Image.new("LAB", (WIDTH, HEIGHT), (255, 128, 128)), "a.tif"))
    assert found.rgb.min() > 240


@pytest.mark.parametrize(("mode", "value"), [("F", 0.5), ("I", 70_000)])
def test_pixels_of_unknown_range_are_refused(mode: str, value: float, save: Callable[..., Path]) -> None:
    refused(save(Image.new(mode, (WIDTH, HEIGHT), value), "a.tif"), f"has {mode} pixels of unknown range")


@pytest.mark.parametrize("colour", ["black", "white", "red", (17, 34, 51)])
def test_a_plain_colour_is_noted(colour: Any, save: Callable[..., Path]) -> None:
    assert photo.read(save(Image.new("RGB", (WIDTH, HEIGHT), colour), "a.png")).notes == (
        "a single colour: there is nothing to learn",
    )


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((1, 1), "has 1x1 pixels"), ((63, 500), "has 63x500 pixels"), ((64, 64), ""), ((512, 64), ""), ((513, 64), "is 513x64: too narrow"),
        ((64, 5000), "is 64x5000: too narrow"), ((32_769, 5000), "has 32769x5000 pixels"), ((16000, 14000), "has 16000x14000 pixels"),
    ],
    ids=repr,
)  # fmt: skip
def test_sizes(size: tuple[int, int], message: str, save: Callable[..., Path]) -> None:
    path = save(Image.new("1", size), "a.png")
    if message:
        refused(path, message)
    else:
        assert photo.read(path).rgb.shape == (size[1], size[0], 3)


def test_a_decompression_bomb_is_not_unpacked(save: Callable[..., Path]) -> None:
    path = save(Image.new("1", (20_000, 20_000)), "bomb.png")
    assert path.stat().st_size < 200_000
    refused(path, "cannot be decoded: Image size|has 20000x20000 pixels")


def test_a_text_chunk_bomb_is_refused(save: Callable[..., Path]) -> None:
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("comment", "x" * (70 << 20), zip=True)
    refused(save(coloured(), "a.png", pnginfo=chunks), "cannot be decoded")


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tif", "a.bmp", "a.gif"])
@pytest.mark.parametrize("kept", [0.2, 0.5, 0.9])
def test_truncated_files_are_refused(name: str, kept: float, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    path = tmp_path / name
    Image.fromarray(noise).save(path)
    photo.read(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    refused(path, "cannot be decoded|is not a picture")


def test_a_flipped_byte_in_a_png_is_noticed(save: Callable[..., Path]) -> None:
    path = save(coloured(), "a.png")
    data = bytearray(path.read_bytes())
    data[data.index(b"IDAT") + 20] ^= 0xFF
    path.write_bytes(data)
    refused(path, "cannot be decoded")


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n%%EndComments\n%%EOF\n"
PSD = b"8BPS\0\1" + b"\0" * 6 + b"\0\3" + (100).to_bytes(4, "big") * 2 + b"\0\x08\0\3" + b"\0" * 200


def container(*brands: bytes) -> bytes:
    """The first box of HEIC files, raw files and videos."""
    names = brands[0] + b"\0\0\0\0" + b"".join(brands[1:])
    return (8 + len(names)).to_bytes(4, "big") + b"ftyp" + names + b"\0" * 64


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("text.jpg", b"these are words\n" * 50, "is not a picture"),
        ("script.png", EPS, "is a PostScript document"),
        ("layers.png", PSD, "is a Photoshop document"),
        ("page.jpg", b"<svg xmlns='http://www.w3.org/2000/svg'></svg>", "is an SVG drawing"),
        ("drawing.png", b"<?xml version='1.0'?>\n<!-- made by hand -->\n<svg></svg>", "is an SVG drawing"),
        ("doc.png", b"%PDF-1.4\n", "is a PDF document"),
        ("IMG_0412.HEIC", container(b"heic", b"mif1", b"heic"), "is not a picture|cannot be decoded"),
        ("IMG_0412.jpg", container(b"mif1", b"miaf", b"heix"), "is not a picture|cannot be decoded"),
        ("a.jxl", b"\xff\x0a" + b"\0" * 99, "has 1x1 pixels"),
        ("b.png", b"\0\0\0\x0cJXL \r\n\x87\n" + b"\0" * 99, "its JPEG XL header is broken"),
        ("bomb.jxl", b"\xff\x0a" + b"\xfe" * 40, "has 1069531072x534765536 pixels"),
        ("live.jpg", container(b"qt  "), "is a video"),
        ("a.mp4", container(b"isom", b"mp42"), "is a video"),
        ("a.webm", b"\x1aE\xdf\xa3" + b"\0" * 99, "is a video"),
        ("a.cr3", container(b"crx ", b"isom"), "is a camera's raw file"),
        ("a.raf", b"FUJIFILMCCD-RAW 0201" + b"\0" * 99, "is a camera's raw file"),
        ("a.xcf", b"gimp xcf v011", "is a GIMP document"),
        ("404.jpg", b"\n<!DOCTYPE html><html>", "is a web page"),
        ("pointer.jpg", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a Git LFS pointer"),
        ("rex.jpg", b"\x20\0\0\0\0\0\0\0" + b'{"__metadata__":{"format":"pt"}}', "is a safetensors file"),
        ("zero.png", b"\0" * 4096, "is not a picture"),
        ("magic.png", b"\x89PNG\r\n\x1a\n", "is not a picture|cannot be decoded"),
        ("magic.jpg", b"\xff\xd8\xff", "is not a picture|cannot be decoded"),
        ("empty.jpg", b"", "is empty"),
    ],
)
def test_other_files_are_refused(
    name: str, data: bytes, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("subprocess.Popen", lambda *_a, **_k: pytest.fail("a program was started"))
    path = tmp_path / name
    path.write_bytes(data)
    refused(path, message)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    refused(tmp_path / "nothing.jpg", "there is no file")
    refused(Path("https://example.org/a.jpg"), "is an address, not a file")
    refused(tmp_path, "is a folder; one photo is needed")
    os.mkfifo(tmp_path / "pipe.jpg")
    refused(tmp_path / "pipe.jpg", "cannot be read")
    (tmp_path / "dead.jpg").symlink_to(tmp_path / "nowhere")
    refused(tmp_path / "dead.jpg", "there is no file")
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    refused(tmp_path / "loop.jpg", "cannot be read")
    refused(Path("/dev/null"), "cannot be read: not a regular file")
    refused(tmp_path / ("x" * 300 + ".jpg"), "cannot be read: File name too long")


def test_a_file_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "huge.jpg"
    path.touch()
    os.truncate(path, photo.MAX_BYTES + 1)
    refused(path, "has 256 MiB")


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.webp", "a.avif"])
def test_animations_are_refused(name: str, save: Callable[..., Path]) -> None:
    frames = [Image.new("RGB", (WIDTH, HEIGHT), c) for c in ("red", "green", "blue")]
    path = save(frames[0], name, save_all=True, append_images=frames[1:], duration=40)
    refused(path, r"is animated \(3 frames\)")


def test_a_tiff_of_pages_gives_its_first(save: Callable[..., Path]) -> None:
    path = save(Image.fromarray(coloured()), "a.tif", save_all=True, append_images=[Image.new("RGB", (WIDTH, HEIGHT))])
    found = photo.read(path)
    assert np.array_equal(found.rgb, coloured())
    assert found.notes == ("the first of its 2 pages is used",)


def test_a_folder_names_one_of_its_photos(save: Callable[..., Path]) -> None:
    path = save(coloured(), "b.png")
    assert f"`{path}`" in refused(path.parent, "is a folder").hint


@pytest.mark.parametrize(
    "tag", [{254: 1}, {50706: b"\1\4\0\0"}, {262: 32803}], ids=["thumbnail", "DNG", "colour filter"]
)
def test_a_raw_file_is_not_read_as_its_thumbnail(tag: dict[int, Any], tmp_path: Path) -> None:
    """Its first picture is small, or has one colour a pixel, and a TIFF reader takes it."""
    entries = {256: WIDTH, 257: HEIGHT, 262: 2, **tag}
    rows = b"".join(
        struct.pack("<HHI4s", k, *((1, 4, v) if isinstance(v, bytes) else (3, 1, struct.pack("<HH", v, 0))))
        for k, v in sorted(entries.items())
    )
    path = tmp_path / "a.tif"
    path.write_bytes(b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + rows + b"\0" * 4)
    refused(path, "is a camera's raw file")


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0, "optimize": True}], ids=repr)
def test_a_jpeg_without_its_end_marker_is_read(options: dict[str, Any], save: Callable[..., Path]) -> None:
    """As every viewer does; one whose last pixels are missing is refused."""
    noise = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    path = save(noise, "a.jpg", **options)
    data, whole = path.read_bytes(), photo.read(path)
    for kept in (data[:-1], data[:-2]):
        path.write_bytes(kept)
        found = photo.read(path)
        assert np.array_equal(found.rgb, whole.rgb)
        assert found.notes == ("the end of the file is missing; all of its pixels are there",)
    for missing in (6, 12, 40, 400):
        path.write_bytes(data[:-missing])
        refused(path, "cannot be decoded: image file is truncated")


CANARY = "Canary-5e3c"


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif", "a.webp"])
def test_metadata_does_not_survive(name: str, save: Callable[..., Path]) -> None:
    exif = Image.Exif()
    exif[0x010E], exif[0x013B] = CANARY, CANARY
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("Comment", CANARY)
    options: dict[str, dict[str, Any]] = {
        "a.jpg": {"exif": exif, "comment": CANARY}, "a.png": {"exif": exif, "pnginfo": chunks}, "a.tif": {"exif": exif}, "a.webp": {"exif": exif},
    }  # fmt: skip
    path = save(coloured(), name, **options[name])
    assert CANARY.encode() in path.read_bytes()
    found = photo.read(path)
    assert CANARY not in repr(found)
    assert CANARY.encode() not in png.encode_png(found.rgb)
    with Image.open(io.BytesIO(png.encode_png(found.rgb))) as again:
        assert again.info == {}
