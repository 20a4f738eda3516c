"""Colours as sRGB: by ICC profiles, by what formats say instead of one, and untouched where a photo is sRGB already."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from objtune_cli.images import photo

SRGB = np.array([[29, 186, 165], [200, 60, 90], [120, 120, 120], [10, 20, 30]])
"""Colours that each of the spaces below can show."""
STANDARD = (0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
SPACES: dict[str, tuple[tuple[float, ...], float]] = {
    "Display P3": ((0.68, 0.32, 0.265, 0.69, 0.15, 0.06), 0),
    "Adobe RGB": ((0.64, 0.33, 0.21, 0.71, 0.15, 0.06), 2.2),
    "ProPhoto": ((0.7347, 0.2653, 0.1596, 0.8404, 0.0366, 0.0001), 1.8),
    "linear": (STANDARD, 1.0),
}
"""x, y of red, green and blue under D65 (ProPhoto's too, here), and the exponent; 0 for sRGB's curve."""


def matrix(primaries: tuple[float, ...]) -> np.ndarray:
    """Linear RGB to XYZ, white D65."""
    ends = np.array([(x / y, 1, (1 - x - y) / y) for x, y in zip(primaries[::2], primaries[1::2], strict=True)]).T
    return ends * np.linalg.solve(ends, np.array([0.3127 / 0.3290, 1, 0.3583 / 0.3290]))


def encoded(name: str) -> np.ndarray:
    """The colours of `SRGB` in another space, of 255: straight from the definitions."""
    primaries, gamma = SPACES[name]
    v = SRGB / 255
    light = (
        np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)
        @ (np.linalg.inv(matrix(primaries)) @ matrix(STANDARD)).T
    )
    light = light.clip(0, 1)
    curve = (
        light ** (1 / gamma)
        if gamma
        else np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)
    )
    return (curve * 255).round().astype(np.uint8)


def profile(name: str, *, space: bytes = b"RGB ") -> bytes:
    """An ICC profile of version 2: primaries adapted to D50, and an exponent or a table of sRGB's curve."""
    primaries, gamma = SPACES[name]
    bradford = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
    d50, d65 = np.array([0.9642, 1, 0.8249]), np.array([0.3127 / 0.3290, 1, 0.3583 / 0.3290])
    adapted = np.linalg.inv(bradford) @ np.diag((bradford @ d50) / (bradford @ d65)) @ bradford @ matrix(primaries)
    fixed = lambda values: struct.pack(f">{len(values)}i", *(round(float(v) * 65536) for v in values))  # noqa: E731
    v = np.linspace(0, 1, 1024)
    table = np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)
    curve = b"curv\0\0\0\0" + (
        struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
        if gamma
        else struct.pack(">I1024H", 1024, *(table * 65535).round().astype(int))
    )
    text = name.encode() + b"\0"
    tags = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", len(text)) + text + b"\0" * 80,
        b"wtpt": b"XYZ \0\0\0\0" + fixed(d50),
    }
    if space == b"GRAY":
        tags[b"kTRC"] = curve
    else:
        for i, letter in enumerate(b"rgb"):
            tags[bytes([letter]) + b"XYZ"] = b"XYZ \0\0\0\0" + fixed(adapted[:, i])
            tags[bytes([letter]) + b"TRC"] = curve
    table_of_tags, body, at = b"", b"", 128 + 4 + 12 * len(tags)
    for key, data in tags.items():
        data += b"\0" * (-len(data) % 4)
        table_of_tags += key + struct.pack(">II", at + len(body), len(data))
        body += data
    size = at + len(body)
    head = (
        struct.pack(">I4sI4s4s4s", size, b"\0" * 4, 0x02100000, b"mntr", space, b"XYZ ")
        + b"\0" * 12
        + b"acsp"
        + b"\0" * 28
        + fixed(d50)
        + b"\0" * 48
    )
    return head + struct.pack(">I", len(tags)) + table_of_tags + body


def picture(colours: np.ndarray) -> np.ndarray:
    """Four stripes of 24 rows."""
    return np.repeat(np.repeat(colours[:, None].astype(np.uint8), 24, 0), 96, 1)


def saved(path: Path, image: Any, **options: Any) -> Path:
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(path, **options)
    return path


def stripes(found: photo.Photo) -> np.ndarray:
    return found.rgb[12::24, 40].astype(int)


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("file", ["a.png", "a.tif", "a.webp"])
def test_a_profile_is_converted(name: str, file: str, tmp_path: Path) -> None:
    options = {"lossless": True} if file == "a.webp" else {}
    path = saved(tmp_path / file, picture(encoded(name)), icc_profile=profile(name), **options)
    found = photo.read(path)
    steps = 8 if name == "linear" else 3  # eight bits of light are few where it is dark
    assert np.abs(stripes(found) - SRGB).max() <= steps
    assert found.notes == (f"colours converted from {name} to sRGB",)
    assert photo.read_header(path).is_converted


def test_jpeg_and_jpeg_2000_have_profiles_too(tmp_path: Path) -> None:
    path = saved(
        tmp_path / "a.jpg", picture(encoded("Adobe RGB")), icc_profile=profile("Adobe RGB"), quality=97, subsampling=0
    )
    assert np.abs(stripes(photo.read(path)) - SRGB).max() <= 6
    data = saved(tmp_path / "a.jp2", picture(encoded("Adobe RGB"))).read_bytes()
    at, icc = data.index(b"colr") - 4, profile("Adobe RGB")
    box = (len(icc) + 11).to_bytes(4, "big") + b"colr\x02\0\0" + icc
    head = data.index(b"jp2h") - 4
    longer = int.from_bytes(data[head : head + 4], "big") + len(box) - 15
    (tmp_path / "a.jp2").write_bytes(
        data[:head] + longer.to_bytes(4, "big") + data[head + 4 : at] + box + data[at + 15 :]
    )
    assert np.abs(stripes(photo.read(tmp_path / "a.jp2")) - SRGB).max() <= 3


def test_srgb_is_left_alone(tmp_path: Path) -> None:
    """Whatever its profile is called: bytes as without one, no note, the same identity."""
    mine = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for icc in (mine, mine.replace(b"sRGB", b"IEC!"), None):
        path = saved(tmp_path / "a.png", picture(SRGB), **({"icc_profile": icc} if icc else {}))
        found = photo.read(path)
        assert np.array_equal(stripes(found), SRGB)
        assert found.notes == ()
        assert not photo.read_header(path).is_converted


@pytest.mark.parametrize(
    ("icc", "words"),
    [
        (b"nonsense" * 40, "is broken"),
        (profile("Adobe RGB", space=b"GRAY"), "does not fit"),
        (profile("Adobe RGB")[:200], "is broken"),
    ],
)
def test_a_useless_profile_is_noted(icc: bytes, words: str, tmp_path: Path) -> None:
    found = photo.read(saved(tmp_path / "a.jpg", picture(SRGB), icc_profile=icc, quality=97, subsampling=0))
    assert np.abs(stripes(found) - SRGB).max() <= 5
    assert found.notes == (f"its colour profile {words}: colours are taken as sRGB",)


def test_grey_and_transparent_pictures_have_profiles(tmp_path: Path) -> None:
    linear = profile("linear", space=b"GRAY")
    light = np.full((96, 96), 55, np.uint8)  # 0.2157 of white
    right = round((1.055 * (55 / 255) ** (1 / 2.4) - 0.055) * 255)
    for image in (
        Image.fromarray(light),
        Image.merge("LA", [Image.fromarray(light), Image.fromarray(np.full((96, 96), 255, np.uint8))]),
    ):
        assert (
            np.abs(photo.read(saved(tmp_path / "a.png", image, icc_profile=linear)).rgb.astype(int) - right).max() <= 1
        )
    assert (
        photo.read(saved(tmp_path / "b.png", light, icc_profile=profile("Display P3")))
        .notes[0]
        .startswith("a single colour")
    )  # greys are greys
    alpha = np.full((96, 96), 255, np.uint8)
    alpha[:, :20] = 0
    found = photo.read(
        saved(tmp_path / "c.png", np.dstack([picture(encoded("Display P3")), alpha]), icc_profile=profile("Display P3"))
    )
    assert np.abs(stripes(found) - SRGB).max() <= 3
    assert found.rgb[0, 0].tolist() == [255, 255, 255]


def png(colours: np.ndarray, *chunks: bytes) -> bytes:
    out = io.BytesIO()
    Image.fromarray(picture(colours)).save(out, "PNG")
    return out.getvalue()[:33] + b"".join(chunks) + out.getvalue()[33:]


def chunk(kind: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


GAMMA, PRIMARIES = (
    (lambda g: chunk(b"gAMA", struct.pack(">I", g))),
    (lambda *v: chunk(b"cHRM", struct.pack(">8I", *(round(x * 100_000) for x in v)))),
)


@pytest.mark.parametrize(
    ("name", "chunks"),
    [
        ("linear", [GAMMA(100_000)]), ("Display P3", [PRIMARIES(0.3127, 0.3290, *SPACES["Display P3"][0])]), ("Display P3", [chunk(b"cICP", bytes([12, 13, 0, 1]))]),
        ("linear", [chunk(b"cICP", bytes([1, 8, 0, 1])), chunk(b"sRGB", b"\0")]),
        ("", [GAMMA(45_455), PRIMARIES(0.3127, 0.3290, *STANDARD)]), ("", [chunk(b"sRGB", b"\0"), GAMMA(100_000)]), ("", [chunk(b"cICP", bytes([1, 13, 0, 1]))]),
        ("", [GAMMA(0)]), ("", [PRIMARIES(*[0] * 8)]), ("", [PRIMARIES(0.3, 0.3, 0.2, 0.2, 0.2, 0.2, 0.2, 0.2)]),
    ],
)  # fmt: skip
def test_what_a_png_says_of_its_colours(name: str, chunks: list[bytes], tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(encoded(name) if name else SRGB, *chunks))
    found = photo.read(tmp_path / "a.png")
    assert np.abs(stripes(found) - SRGB).max() <= (8 if name == "linear" else 3 if name else 0)
    assert bool(found.notes) == bool(name) == photo.read_header(tmp_path / "a.png").is_converted


def test_hdr_white_stays_white(tmp_path: Path) -> None:
    """PQ's code for 203 cd/m2 is 0.58 of full: the white of a picture that is not HDR."""
    (tmp_path / "a.png").write_bytes(png(np.full((4, 3), 148), chunk(b"cICP", bytes([9, 16, 0, 1]))))
    found = photo.read(tmp_path / "a.png")
    assert np.abs(stripes(found) - 255).max() <= 4
    assert found.notes[0] == "colours converted from BT.2020 PQ to sRGB"


def test_cameras_say_adobe_rgb_in_exif(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA001] = 2
    found = photo.read(saved(tmp_path / "a.jpg", picture(encoded("Adobe RGB")), exif=exif, quality=97, subsampling=0))
    assert np.abs(stripes(found) - SRGB).max() <= 6
    exif.get_ifd(0x8769)[0xA001] = 1
    assert photo.read(saved(tmp_path / "b.jpg", picture(SRGB), exif=exif, quality=97, subsampling=0)).notes == ()


def test_avif_is_read_and_says_its_colours(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.avif", picture(SRGB), quality=95, subsampling="4:4:4")
    assert np.abs(stripes(photo.read(path)) - SRGB).max() <= 8
    at = path.read_bytes().index(b"colrnclx") + 8
    data = bytearray(path.read_bytes())
    data[at : at + 2] = (12).to_bytes(2, "big")
    path.write_bytes(data)
    assert photo.read(path).notes == ("colours converted from Display P3 to sRGB",)
