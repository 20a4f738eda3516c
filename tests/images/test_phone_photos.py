"""Photos as phones save them: HEIC, JPEG XL, gain maps, depth maps and 200 Mpx, each shown as a viewer shows it."""

import builtins
import io
import resource
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pillow_heif
import pillow_jxl  # noqa: F401  (registers JPEG XL with Pillow)
import pytest
from PIL import Image, ImageCms

from objtune_cli.errors import ResourceError
from objtune_cli.images import decoders, formats, photo
from tests.support import icc_profiles

pillow_heif.register_heif_opener()

WIDTH, HEIGHT = 96, 72


def quarters() -> Image.Image:
    """Red, green / blue, white."""
    rgb = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    rgb[: HEIGHT // 2, : WIDTH // 2] = (255, 0, 0)
    rgb[: HEIGHT // 2, WIDTH // 2 :] = (0, 255, 0)
    rgb[HEIGHT // 2 :, : WIDTH // 2] = (0, 0, 255)
    rgb[HEIGHT // 2 :, WIDTH // 2 :] = 255
    return Image.fromarray(rgb)


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def centres(rgb: np.ndarray) -> list[tuple[int, ...]]:
    """The colours of the four quarters, read row by row."""
    height, width = rgb.shape[:2]
    return [tuple(int(v) for v in rgb[y * height // 4, x * width // 4]) for y in (1, 3) for x in (1, 3)]


def near(colours: list[tuple[int, ...]], expected: list[tuple[int, ...]], tolerance: int = 12) -> bool:
    return bool(np.abs(np.array(colours) - np.array(expected)).max() <= tolerance)


RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
AS_TAKEN = [RED, GREEN, BLUE, WHITE]
TURNED = {1: AS_TAKEN, 3: [WHITE, BLUE, GREEN, RED], 6: [BLUE, RED, WHITE, GREEN], 8: [GREEN, WHITE, RED, BLUE]}
"""The quarters as a viewer shows them, by EXIF orientation."""


@pytest.mark.parametrize("orientation", sorted(TURNED))
@pytest.mark.parametrize("name", ["IMG_0412.HEIC", "IMG_0412.jpg"])
def test_heic_is_read_under_any_name_and_shown_upright(name: str, orientation: int, tmp_path: Path) -> None:
    path = tmp_path / name
    quarters().save(path, "HEIF", quality=95, exif=turned(orientation).tobytes())  # bytes make it write `irot`
    decoded = photo.read(path)
    assert near(centres(decoded.rgb), TURNED[orientation])
    assert decoded.orientation == 1
    assert decoded.size == photo.read_header(path).size == ((HEIGHT, WIDTH) if orientation >= 5 else (WIDTH, HEIGHT))


def test_exif_orientation_without_a_rotation_of_the_container_is_ignored(tmp_path: Path) -> None:
    """ISO/IEC 23008-12: the container's own transformations are the only ones."""
    quarters().save(tmp_path / "a.heic", quality=95, exif=turned(6))
    assert near(centres(photo.read(tmp_path / "a.heic").rgb), AS_TAKEN)


def test_orientation_is_applied_once_in_a_jpeg_that_is_packed_as_jpeg_xl(tmp_path: Path) -> None:
    """cjxl packs a JPEG without loss; the pixels stay as they were stored."""
    quarters().save(tmp_path / "a.jpg", quality=95, exif=turned(6))
    with Image.open(tmp_path / "a.jpg") as stored:
        stored.save(tmp_path / "a.jxl", lossless_jpeg=True)
    assert near(centres(photo.read(tmp_path / "a.jxl").rgb), TURNED[6])
    assert photo.read_header(tmp_path / "a.jxl").size == (HEIGHT, WIDTH)


def test_exif_orientation_is_ignored_in_other_jpeg_xl(tmp_path: Path) -> None:
    """The codestream has its own orientation, which the decoder applies (ISO/IEC 18181-2)."""
    quarters().save(tmp_path / "a.jxl", lossless=True, exif=turned(6).tobytes())
    decoded = photo.read(tmp_path / "a.jxl")
    assert (decoded.rgb == np.asarray(quarters())).all()
    assert decoded.orientation == 1


@pytest.mark.parametrize(
    "size", [(64, 64), (65, 64), (128, 96), (300, 200), (640, 360), (96, 128), (520, 70), (1200, 1000), (4100, 600)]
)
def test_the_size_of_jpeg_xl_is_read_from_its_header(size: tuple[int, int]) -> None:
    for options in ({}, {"use_container": True}, {"lossless": True}):
        out = io.BytesIO()
        Image.new("RGB", size).save(out, "JXL", **options)
        assert decoders.jpeg_xl_size(out.getvalue()) == size


def test_jpeg_xl_without_its_package_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quarters().save(tmp_path / "a.jxl")
    real = builtins.__import__

    def without(name: str, *args: Any, **options: Any) -> Any:
        if name == "pillow_jxl":
            raise ImportError(name)
        return real(name, *args, **options)

    monkeypatch.delitem(sys.modules, "pillow_jxl")
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ResourceError) as caught:
        photo.read(tmp_path / "a.jxl")
    assert caught.value.code == 7
    assert "objtune[jxl]" in caught.value.hint


@pytest.mark.parametrize(("name", "form"), [("a.heic", "HEIF"), ("a.jxl", "JXL"), ("a.avif", "AVIF")])
def test_display_p3_of_phones_is_converted_to_srgb(name: str, form: str, tmp_path: Path) -> None:
    profile = icc_profiles.PROFILES["display-p3"]
    image = Image.new("RGB", (WIDTH, HEIGHT), (200, 60, 50))
    stored = "a.jpg" if form == "JXL" else name  # the JPEG XL encoder packs a profile with a JPEG alone
    image.save(tmp_path / stored, None if form == "JXL" else form, quality=95, icc_profile=profile)
    if form == "JXL":
        with Image.open(tmp_path / stored) as jpeg:
            jpeg.save(tmp_path / name, lossless_jpeg=True)
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    expected = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB")).getpixel((0, 0))
    decoded = photo.read(tmp_path / name)
    assert near(centres(decoded.rgb), [expected] * 4, 6)
    assert photo.read_header(tmp_path / name).is_converted
    assert any("to sRGB" in note for note in decoded.notes)


def test_hdr_heic_is_shown_with_white_at_its_reference(tmp_path: Path) -> None:
    """PQ code 0.58 is white at 203 cd/m2 (ITU-R BT.2408); without a conversion it would be grey."""
    image = Image.new("RGB", (WIDTH, HEIGHT), (148, 148, 148))
    codes = {"color_primaries": 9, "transfer_characteristics": 16, "matrix_coefficients": 9, "full_range_flag": 1}
    image.save(tmp_path / "a.heic", "HEIF", quality=-1, chroma=444, **codes)
    decoded = photo.read(tmp_path / "a.heic")
    assert decoded.rgb.min() >= 250
    assert any("BT.2020 PQ" in note for note in decoded.notes)


def test_the_gain_map_of_an_ultra_hdr_jpeg_is_ignored(tmp_path: Path) -> None:
    """The first image of the file is the photo in sRGB; the second is the gain map."""
    gain = Image.new("L", (WIDTH // 4, HEIGHT // 4), 200)
    quarters().save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[gain], quality=95, subsampling=0)
    decoded = photo.read(tmp_path / "a.jpg")
    assert near(centres(decoded.rgb), AS_TAKEN)
    assert decoded.rgb.shape == (HEIGHT, WIDTH, 3)


def test_further_images_and_thumbnails_of_heic_are_ignored(tmp_path: Path) -> None:
    """A burst or a portrait keeps more than one image in a file; the primary one is the photo."""
    file = pillow_heif.from_pillow(Image.new("RGB", (WIDTH, HEIGHT), "black"))
    file.add_from_pillow(quarters())
    file.save(tmp_path / "a.heic", quality=95, primary_index=1)
    assert near(centres(photo.read(tmp_path / "a.heic").rgb), AS_TAKEN)


def test_heic_with_transparency_is_shown_on_white(tmp_path: Path) -> None:
    image = quarters()
    image.putalpha(Image.new("L", image.size, 0))
    image.paste((255, 0, 0, 255), (0, 0, WIDTH // 2, HEIGHT))
    image.save(tmp_path / "a.heic", quality=95)
    decoded = photo.read(tmp_path / "a.heic")
    assert near(centres(decoded.rgb), [RED, WHITE, RED, WHITE])
    assert decoded.alpha is not None and decoded.alpha[0, -1] < 8 and decoded.alpha[0, 0] > 247


@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
def test_a_photo_of_200_megapixels_is_reduced_in_bounded_memory(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A limit of 4,000 pixels stands for the real one; sizes, points and boxes stay those of the file."""
    monkeypatch.setattr(photo, "KEPT_PIXELS", 4_000)
    quarters().resize((4 * WIDTH, 4 * HEIGHT), Image.Resampling.NEAREST).save(
        tmp_path / name, quality=95, exif=turned(6)
    )
    decoded = photo.read(tmp_path / name)
    assert decoded.rgb.shape[0] * decoded.rgb.shape[1] <= 4_000
    assert near(centres(decoded.rgb), TURNED[6])
    assert decoded.size == photo.read_header(tmp_path / name).size == (4 * HEIGHT, 4 * WIDTH)
    assert decoded.stored_size == (4 * WIDTH, 4 * HEIGHT)
    assert any("reduced from 384x288" in note for note in decoded.notes)


@pytest.mark.slow
def test_memory_of_a_photo_of_200_megapixels(tmp_path: Path) -> None:
    Image.new("RGB", (16_320, 12_240), (90, 120, 30)).save(tmp_path / "a.jpg", quality=80)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert photo.read(tmp_path / "a.jpg").size == (16_320, 12_240)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 700 << 10  # kB


def test_read_formats_have_their_suffixes() -> None:
    assert {".heic", ".heif", ".hif", ".jxl", ".avif", ".jp2"} <= set(formats.SUFFIXES)
    assert not set(formats.SUFFIXES) & set(formats.OTHER_SUFFIXES)
