"""Random photos: what is kept is what a colour-managed viewer shows, or the file is refused in one line."""

import io
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pillow_heif
import pillow_jxl  # noqa: F401  (registers JPEG XL with Pillow)
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps

from tests.support.fuzzing import Entrance, entrance, figures, tries  # noqa: F401  (a fixture)
from tests.support.icc_profiles import PROFILES

pillow_heif.register_heif_opener()

FORMS = {
    "PNG": ("RGB", "L", "LA", "RGBA", "P", "1", "I;16"), "JPEG": ("RGB", "L", "CMYK"), "WEBP": ("RGB", "RGBA"), "TIFF": ("RGB", "L", "RGBA", "CMYK", "LAB", "F"),
    "BMP": ("RGB", "L", "1", "P"), "GIF": ("P", "L"), "AVIF": ("RGB", "RGBA"), "JPEG2000": ("RGB", "L", "RGBA"),
    "HEIF": ("RGB", "L", "RGBA"), "JXL": ("RGB", "L", "RGBA", "I;16"),
}  # fmt: skip
"""File format to the pixel modes that it is written in."""
MAY_BE_REFUSED = {"F", "LAB", "CMYK"}
SUFFIXES = {
    "PNG": "png",
    "JPEG": "jpg",
    "WEBP": "webp",
    "TIFF": "tif",
    "BMP": "bmp",
    "GIF": "gif",
    "AVIF": "avif",
    "JPEG2000": "jp2",
    "HEIF": "heic",
    "JXL": "jxl",
}
SHORTEST = 64
"""Sides of photos that are read, px."""


def drawing(width: int, height: int, seed: int) -> Image.Image:
    """A smooth random picture, which lossy formats keep nearly."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def in_mode(image: Image.Image, mode: str, alpha: int) -> Image.Image:
    """The picture in a pixel mode; `alpha`: opacity of its left half where the mode has any."""
    if mode in ("RGBA", "LA"):
        cover = Image.new("L", image.size, 255)
        cover.paste(alpha, (0, 0, image.width // 2, image.height))
        image.putalpha(cover)
    if mode == "I;16":
        return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    if mode == "LAB":
        return ImageCms.profileToProfile(
            image, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
        )
    return image.convert(mode)


def damaged(data: bytes, how: str, at: int, byte: int) -> bytes:
    """A file's bytes, damaged at a place."""
    return {
        "none": data,
        "cut": data[:at],
        "flip": data[:at] + bytes([data[at] ^ byte]) + data[at + 1 :],
        "tail": data + bytes([byte]) * 9,
        "zeros": data[:at] + bytes(8) + data[at + 8 :],
    }[how]


@dataclass(frozen=True)
class File:
    """A photo's bytes, and what was done to it."""

    data: bytes = field(repr=False)
    form: str
    mode: str
    how: str
    profile: str
    name: str
    size: tuple[int, int]


@st.composite
def photos(draw: Any) -> File:
    """A photo as a file's bytes, with what was done to it."""
    form = draw(st.sampled_from(sorted(FORMS)))
    mode = draw(st.sampled_from(FORMS[form]))
    size = draw(st.integers(SHORTEST - 8, 120)), draw(st.integers(SHORTEST - 8, 120))
    alpha = draw(st.sampled_from([255, 255, 254, 128, 0]))
    image = in_mode(drawing(*size, draw(st.integers(0, 2**32 - 1))), mode, alpha)
    options: dict[str, Any] = {"WEBP": {"lossless": True}, "JPEG": {"quality": 95}, "AVIF": {"quality": 95}, "HEIF": {"quality": 95}}.get(form, {})  # fmt: skip
    turn = draw(st.integers(0, 9)) if form in ("PNG", "JPEG", "WEBP") and mode != "I;16" else 1
    if turn != 1:
        exif = Image.Exif()
        exif[0x0112] = turn
        options |= {"exif": exif}
    profile = (
        draw(st.sampled_from(["", *sorted(PROFILES)]))
        if form in ("PNG", "JPEG", "WEBP", "TIFF", "AVIF", "HEIF") and mode in ("RGB", "RGBA")
        else ""
    )
    if profile:
        options |= {"icc_profile": PROFILES[profile]}
    out = io.BytesIO()
    image.save(out, form, **options)
    how = draw(st.sampled_from(["none", "none", "cut", "flip", "tail", "zeros"]))
    data = damaged(out.getvalue(), how, draw(st.integers(1, len(out.getvalue()) - 1)), draw(st.integers(1, 255)))
    size = size[::-1] if turn in (5, 6, 7, 8) else size
    name = "photo." + draw(st.sampled_from([SUFFIXES[form], SUFFIXES[form].upper(), "jpg", "heic", "bin"]))
    return File(data, form, mode, how, profile, name, size)


def viewed(item: File) -> np.ndarray:
    """The photo as a colour-managed viewer shows it, (H, W, 3) float."""
    image: Any = ImageOps.exif_transpose(Image.open(io.BytesIO(item.data)))
    if item.mode == "I;16":
        return np.repeat((np.asarray(image).astype(float) / 257)[..., None], 3, 2)
    if item.mode == "LAB":
        return np.asarray(
            ImageCms.profileToProfile(
                image, ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), outputMode="RGB"
            )
        ).astype(float)
    image = image.convert("RGB")
    if item.profile not in ("", "broken"):
        source = ImageCms.ImageCmsProfile(io.BytesIO(PROFILES[item.profile]))
        image = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"))
    return np.asarray(image).astype(float)


@tries(3500, 40)
@given(item=photos())
def check_photo(place: Entrance, item: File) -> None:
    folder = place.empty()
    (folder / item.name).write_bytes(item.data)
    width, height = item.size
    cover = np.zeros((height, width), np.uint8)
    cover[height // 4 : -height // 4, width // 4 : -width // 4] = 255
    Image.fromarray(cover).save(folder / "mask.png")
    done = place.run("segment", item.name, "--class", "dog", "--mask", "mask.png")
    assert done.code in (0, 3), done.err
    if item.how != "none":
        if done.code == 0:
            place.load("mask", "dog")
        return
    if done.code:
        assert min(item.size) < SHORTEST or item.mode in MAY_BE_REFUSED, done.err
        return
    _, tensors = place.load("mask", "dog")
    expected = viewed(item)
    assert tensors["rgb"].shape == expected.shape
    opaque = np.full((height, width), True)
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(item.data)))
    if image.mode in (
        "RGBA",
        "LA",
    ):  # the colours of transparent pixels may be replaced; WebP keeps no alpha that is 255 everywhere
        opaque = np.asarray(image.getchannel("A")) >= 254
    assert opaque.any()
    assert np.abs(tensors["rgb"] - expected)[opaque].max() <= (40 if item.mode == "CMYK" else 3), (
        item.form,
        item.mode,
        item.profile,
    )
    assert np.array_equal(tensors["mask"], cover)


def test_photos(entrance: Entrance, record_property: Any) -> None:  # noqa: F811
    check_photo(entrance)
    figures(entrance, record_property, "photos")
