"""Pictures given as masks: what is read as one, what is turned or scaled, and what is no mask."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from objtune_cli.errors import InputError
from objtune_cli.images import mask_alignment, mask_image, photo
from objtune_cli.images.photo import Photo

WIDTH, HEIGHT = 160, 120
SIZE = WIDTH, HEIGHT


def scene() -> tuple[np.ndarray, np.ndarray]:
    """A photo (H, W, 3) of an object with shades of its own before a background with others, and the object's mask in 0 and 255."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    rng = np.random.default_rng(0)
    rgb = np.stack([60 + x / 2, 110 + y / 2, 150 - x / 3], -1) + rng.normal(0, 6, (HEIGHT, WIDTH, 3))
    cover = cv2.ellipse(np.zeros((HEIGHT, WIDTH), np.uint8), (60, 70), (36, 24), 20, 0, 360, 255, -1)
    body = np.stack([170 + x / 3, 60 + y / 2, 40 + x / 4], -1) + rng.normal(0, 6, (HEIGHT, WIDTH, 3))
    return np.where(cover[..., None] > 0, body, rgb).clip(0, 255).astype(np.uint8), cover


RGB, COVER = scene()
PHOTO = Photo(RGB, None, "", ())
ON = COVER > 0


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    def write(image: Any, name: str = "m.png", **options: Any) -> Path:
        path = tmp_path / name
        (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(path, **options)
        return path

    return write


def two(on: tuple[int, ...], off: tuple[int, ...]) -> np.ndarray:
    """The mask in two colours."""
    return np.where(ON[..., None], np.uint8(on), np.uint8(off))


def refused(path: Path, of: Photo = PHOTO) -> InputError:
    with pytest.raises(InputError) as caught:
        mask_image.read(path, of)
    assert str(path) in caught.value.message
    assert caught.value.hint
    assert "\n" not in caught.value.message + caught.value.hint
    return caught.value


def test_a_good_mask_is_kept_to_the_bit(save: Callable[..., Path]) -> None:
    soft = cv2.GaussianBlur(COVER, (0, 0), 2)
    for image in (
        COVER,
        soft,
        np.repeat(soft[..., None], 3, 2),
        np.dstack([RGB, soft]),
        np.dstack([np.full_like(RGB, 255), soft]),
        soft.astype(np.uint16) * 257,
    ):
        found = mask_image.read(save(image), PHOTO)
        assert np.array_equal(found.cover, soft if image is not COVER else COVER)
        assert found.notes == ()
    grey_alpha = Image.merge("LA", [Image.new("L", SIZE, 255), Image.fromarray(soft)])
    assert np.array_equal(mask_image.read(save(grey_alpha), PHOTO).cover, soft)
    assert np.array_equal(mask_image.read(save(Image.fromarray(COVER).convert("1")), PHOTO).cover, COVER)
    jpeg = mask_image.read(save(COVER, "m.jpg", quality=60), PHOTO)
    assert np.array_equal(jpeg.cover > 127, ON)
    assert jpeg.notes == ()


@pytest.mark.parametrize("sigma", [1, 4, 9, 15])
def test_a_feathered_mask_is_one(sigma: int, save: Callable[..., Path]) -> None:
    soft = cv2.GaussianBlur(COVER, (0, 0), sigma)
    assert np.abs(mask_image.read(save(soft), PHOTO).cover.astype(int) - soft).max() <= (
        0 if soft.max() >= 192 else 255
    )


def test_a_trimap_and_a_hard_hole_are_masks(save: Callable[..., Path]) -> None:
    band = (cv2.dilate(COVER, np.ones((7, 7))) > 0) & (cv2.erode(COVER, np.ones((7, 7))) == 0)
    trimap = np.where(band, 128, COVER).astype(np.uint8)
    assert np.array_equal(mask_image.read(save(trimap), PHOTO).cover, trimap)
    holed = cv2.circle(COVER.copy(), (60, 70), 8, 0, -1)
    assert np.array_equal(mask_image.read(save(holed), PHOTO).cover, holed)


def low_contrast() -> dict[str, Any]:
    palette = Image.fromarray(COVER // 255, "P")
    palette.putpalette([0, 0, 0, 0, 0, 255])
    one_colour = Image.fromarray(COVER // 255, "P")
    one_colour.putpalette([0, 0, 0] * 256)
    return {
        "0 and 1": COVER // 255, "0 and 2": COVER // 255 * 2, "16 bits, 0 and 255": (COVER // 255).astype(np.uint16) * 255, "16 bits, 0 and 1": (COVER // 255).astype(np.uint16),
        "90 and 160": COVER // 255 * 70 + 90, "red": two((255, 0, 0), (0, 0, 0)), "dark red": two((128, 0, 0), (0, 0, 0)), "blue palette": palette,
        "palette of one colour": one_colour, "yellow on purple": two((250, 240, 30), (60, 10, 80)), "32 bits": (COVER // 255).astype(np.int32) * 70_000,
    }  # fmt: skip


@pytest.mark.parametrize("name", low_contrast())
def test_of_two_values_the_brighter_one_is_the_object(name: str, save: Callable[..., Path]) -> None:
    image = low_contrast()[name]
    found = mask_image.read(save(image, "m.tif" if name == "32 bits" else "m.png"), PHOTO)
    assert np.array_equal(found.cover > 127, ON)
    assert found.cover.max() >= 250
    assert found.notes or "bits" in name


def test_floats_and_a_coloured_jpeg(save: Callable[..., Path]) -> None:
    assert np.array_equal(mask_image.read(save((COVER / 255).astype(np.float32), "m.tif"), PHOTO).cover, COVER)
    found = mask_image.read(save(two((230, 20, 20), (10, 10, 10)), "m.jpg", quality=75), PHOTO)
    assert (found.cover[cv2.erode(COVER, np.ones((9, 9))) > 0] > 200).all()
    assert (found.cover[cv2.dilate(COVER, np.ones((9, 9))) == 0] < 50).all()


@pytest.mark.parametrize(
    "image",
    [RGB, np.asarray(Image.fromarray(RGB).convert("L")), RGB.mean(2).round().astype(np.uint8)],
    ids=["colours", "grey", "mean"],
)
@pytest.mark.parametrize("name", ["m.png", "m.jpg"])
def test_the_photo_itself_is_no_mask(image: np.ndarray, name: str, save: Callable[..., Path]) -> None:
    assert (
        "not a mask" in (error := refused(save(image, name))).message
        or "is the photo itself, not a mask of it" in error.message
    )


def test_the_photo_with_a_veil_is_no_mask(save: Callable[..., Path]) -> None:
    painted = np.where(ON[..., None], RGB // 2 + np.uint8([127, 0, 127]), RGB).astype(np.uint8)
    assert "with something painted on it" in refused(save(painted)).message


def test_other_pictures_are_no_masks(save: Callable[..., Path]) -> None:
    other = cv2.GaussianBlur(np.random.default_rng(3).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8), (0, 0), 3)
    other = cv2.normalize(other, None, 0, 255, cv2.NORM_MINMAX)
    assert "it is a picture in colours" in refused(save(other)).message
    assert "it has shades, as a photo has" in refused(save(other[..., 0])).message
    product = np.where(ON, other[..., 0], 255).astype(np.uint8)  # another object on white
    assert "is not a mask" in refused(save(product)).message


@pytest.mark.parametrize("ground", [(0, 0, 0), (255, 255, 255), (0, 255, 0), (128, 128, 128)])
@pytest.mark.parametrize("name", ["m.png", "m.jpg"])
def test_a_cut_out_of_the_photo_shows_its_object(ground: tuple[int, ...], name: str, save: Callable[..., Path]) -> None:
    found = mask_image.read(save(np.where(ON[..., None], RGB, np.uint8(ground)), name), PHOTO)
    assert ((found.cover > 127) & ON).sum() > 0.9 * ((found.cover > 127) | ON).sum()
    assert found.notes == ("it is a cut-out of the photo: all but its plain background is taken as the object",)


@pytest.mark.parametrize("around", ["dimmed", "blurred", "grey"])
def test_a_photo_whose_surroundings_are_toned_down_is_no_cut_out(around: str, save: Callable[..., Path]) -> None:
    """As overlays show a mask, this tool's own too: what is even there is so by chance."""
    shade = cv2.GaussianBlur(np.random.default_rng(5).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8), (0, 0), 3)
    shade = cv2.normalize(shade, None, 0, 255, cv2.NORM_MINMAX)
    rgb = np.where(ON[..., None], RGB, shade)
    toned = {
        "dimmed": shade // 4,
        "blurred": cv2.GaussianBlur(shade, (0, 0), 8),
        "grey": 150 + shade.mean(2, keepdims=True) // 3,
    }[around]
    error = refused(save(np.where(ON[..., None], rgb, toned).astype(np.uint8)), Photo(rgb, None, "", ()))
    assert "with its surroundings toned down" in error.message


def test_several_labels_are_named(save: Callable[..., Path]) -> None:
    labels = COVER // 255
    labels[10:40, 120:150] = 2
    assert "has 3 values (0, 1, 2)" in refused(save(labels)).message
    grey = np.choose(labels, (0, 255, 128)).astype(np.uint8)
    assert "has 3 values (0, 128, 255)" in refused(save(grey)).message
    colours = np.array([(0, 0, 0), (128, 0, 0), (0, 128, 0)], np.uint8)[labels]
    error = refused(save(colours))
    assert "has 3 colours" in error.message and "128,0,0" in error.message
    assert "this object only" in error.hint


def test_one_value_is_no_mask(save: Callable[..., Path]) -> None:
    """Black or white everywhere is nothing or everything, which the gate judges; one grey says neither."""
    assert "has a single value, 90 of 255" in refused(save(np.full((HEIGHT, WIDTH), 90, np.uint8))).message
    for value in (0, 255):
        assert (mask_image.read(save(np.full((HEIGHT, WIDTH), value, np.uint8)), PHOTO).cover == value).all()


def test_alpha_that_hides_nothing_is_passed_over(save: Callable[..., Path]) -> None:
    for level in (255, 254, 128):
        assert np.array_equal(
            mask_image.read(save(np.dstack([COVER] * 3 + [np.full_like(COVER, level)])), PHOTO).cover, COVER
        )
    assert "is wholly transparent" in refused(save(np.dstack([RGB, COVER * 0]))).message


@pytest.mark.parametrize("size", [(80, 60), (320, 240), (159, 120), (161, 120), (107, 80), (1600, 1200)], ids=repr)
def test_a_mask_of_the_same_proportions_is_scaled(size: tuple[int, int], save: Callable[..., Path]) -> None:
    found = mask_image.read(save(cv2.resize(COVER, size, interpolation=cv2.INTER_AREA)), PHOTO)
    same = cv2.resize(found.cover, SIZE, interpolation=cv2.INTER_AREA) > 127
    assert (same & ON).sum() > 0.93 * (same | ON).sum()
    assert found.notes == (f"scaled from {size[0]}x{size[1]} to the photo's 160x120 pixels",)


@pytest.mark.parametrize(
    ("size", "words"),
    [
        ((120, 120), "the aspect ratio differs"),
        ((150, 120), "the aspect ratio differs"),
        ((120, 160), "it is rotated by 90 degrees"),
    ],
)
def test_a_mask_of_other_proportions_is_refused(size: tuple[int, int], words: str, save: Callable[..., Path]) -> None:
    error = refused(save(cv2.resize(COVER, size)))
    assert f"has {size[0]}x{size[1]} pixels, the photo 160x120: {words}" in error.message
    assert "make it 160x120 pixels" in error.hint


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("square", [False, True])
def test_a_mask_drawn_on_the_stored_photo_is_turned(orientation: int, square: bool, save: Callable[..., Path]) -> None:
    """As tools do that pass over EXIF; one drawn on the photo as it is shown stays as it is."""
    rgb, cover = (RGB[:, :HEIGHT], COVER[:, :HEIGHT]) if square else (RGB, COVER)
    inverse = {6: 8, 8: 6}.get(orientation, orientation)
    stored, raw = (np.ascontiguousarray(mask_alignment.apply_orientation(a, inverse)) for a in (rgb, cover))
    exif = Image.Exif()
    exif[0x0112] = orientation
    shown = photo.read(save(stored, "photo.png", exif=exif))
    assert np.array_equal(shown.rgb, rgb)
    found = mask_image.read(save(raw), shown)
    assert np.array_equal(found.cover, cover)
    assert found.notes == (f"rotated as the photo is, by its EXIF orientation {orientation}",)
    assert mask_image.read(save(np.ascontiguousarray(cover)), shown).notes == ()
    tagged = mask_image.read(save(raw, "tagged.png", exif=exif), shown)
    assert np.array_equal(tagged.cover, cover)
    assert tagged.notes == ()


def test_an_orientation_copied_to_an_upright_mask_is_passed_over(save: Callable[..., Path]) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    found = mask_image.read(save(COVER, exif=exif), PHOTO)
    assert np.array_equal(found.cover, COVER)
    assert "its own EXIF orientation is ignored" in found.notes[0]
