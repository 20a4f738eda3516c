"""Random masks, boxes and points beside a photo: what is kept is what was meant, or one line says why not."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from objtune_cli.numerics.masks import iou
from tests.support.fuzzing import Entrance, entrance, figures, tries  # noqa: F401  (a fixture)

WIDTH, HEIGHT = 96, 72
TURNED = 6
"""EXIF orientation of the photo where a mask is drawn on the pixels as they are stored."""


def truth(cx: float, cy: float, rx: float, ry: float, angle: float) -> np.ndarray:
    """An ellipse (H, W) bool."""
    canvas = np.zeros((HEIGHT, WIDTH), np.uint8)
    cv2.ellipse(
        canvas,
        (round(cx * WIDTH), round(cy * HEIGHT)),
        (max(4, round(rx * WIDTH)), max(4, round(ry * HEIGHT))),
        angle,
        0,
        360,
        255,
        -1,
    )
    return canvas > 127


def photo_of(mask: np.ndarray) -> np.ndarray:
    """A photo (H, W, 3) uint8: a striped object on a shaded ground."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    ground = np.stack([70 + x, 120 + y, 190 - x // 2], axis=-1).astype(np.uint8)
    thing = np.where((x // 6 % 2)[..., None], np.array([210, 60, 50]), np.array([240, 170, 60])).astype(np.uint8)
    return np.where(mask[..., None], thing, ground)


def _alpha(mask: np.ndarray, rgb: np.ndarray) -> Image.Image:
    return Image.fromarray(np.dstack([rgb, mask.astype(np.uint8) * 255]))


FORMS: dict[str, Any] = {
    "white": lambda m, rgb: Image.fromarray(m.astype(np.uint8) * 255), "one bit": lambda m, rgb: Image.fromarray(m), "0 and 1": lambda m, rgb: Image.fromarray(m.astype(np.uint8)),
    "16 bit": lambda m, rgb: Image.fromarray(m.astype(np.uint16) * 65535), "16 bit low": lambda m, rgb: Image.fromarray(m.astype(np.uint16) * 255),
    "red": lambda m, rgb: Image.fromarray(m[..., None] * np.array([255, 0, 0], np.uint8)), "blue": lambda m, rgb: Image.fromarray(m[..., None] * np.array([0, 0, 255], np.uint8)),
    "grey": lambda m, rgb: Image.fromarray(np.where(m, 128, 0).astype(np.uint8)), "alpha": _alpha, "cut-out on black": lambda m, rgb: Image.fromarray(m[..., None] * rgb),
    "inverted": lambda m, rgb: Image.fromarray((~m).astype(np.uint8) * 255), "erased": lambda m, rgb: _alpha(~m, rgb), "photo": lambda m, rgb: Image.fromarray(rgb),
    "blurred": lambda m, rgb: Image.fromarray(cv2.GaussianBlur(m.astype(np.uint8) * 255, (0, 0), 1.2)), "empty": lambda m, rgb: Image.fromarray(np.zeros_like(m, np.uint8)),
    "full": lambda m, rgb: Image.fromarray(np.full_like(m, 255, np.uint8)), "noise": lambda m, rgb: Image.fromarray(np.random.default_rng(0).integers(0, 256, m.shape, np.uint8)),
    "outline": lambda m, rgb: Image.fromarray((m & ~cv2.erode(m.astype(np.uint8), np.ones((3, 3))).astype(bool)).astype(np.uint8) * 255),
    "veil": lambda m, rgb: Image.fromarray(np.where(m[..., None], (rgb * 0.5 + np.array([255, 0, 255]) * 0.5).astype(np.uint8), rgb)),
}  # fmt: skip
"""How people and programs write the same mask."""
PLAIN = ("white", "one bit", "alpha", "blurred")
"""Forms that must be read."""


@dataclass(frozen=True)
class Given:
    """A mask file and what it means."""

    form: str
    scale: float
    stored: bool
    suffix: str
    option: str
    mask: np.ndarray = field(repr=False)


@st.composite
def masks(draw: Any) -> Given:
    """An ellipse as some program writes it: in a form, at a scale, as the photo is stored or as it is seen."""
    share = lambda low, high: draw(st.floats(low, high))  # noqa: E731
    mask = truth(share(0.3, 0.7), share(0.3, 0.7), share(0.12, 0.25), share(0.12, 0.25), draw(st.integers(0, 90)))
    suffix = draw(st.sampled_from(["png", "png", "jpg"]))
    form = draw(st.sampled_from(sorted(FORMS)))
    scale = draw(st.sampled_from([1, 1, 1, 0.5, 2, 1.33]))
    return Given(
        form, scale, draw(st.booleans()), suffix, draw(st.sampled_from(["--mask", "--mask", "--refine-mask"])), mask
    )


def write(folder: Path, item: Given) -> None:
    """The photo, and the mask beside it."""
    rgb = photo_of(item.mask)
    image: Image.Image = FORMS[item.form](item.mask, rgb)
    exif = Image.Exif()
    if item.stored:  # the photo is turned by its EXIF, the mask drawn on the pixels as they lie
        exif[0x0112] = TURNED
        image = image.transpose(Image.Transpose.ROTATE_90)
        rgb = np.rot90(rgb)
    Image.fromarray(np.ascontiguousarray(rgb)).save(folder / "photo.png", exif=exif)
    if item.scale != 1:
        image = image.resize(
            (round(image.width * item.scale), round(image.height * item.scale)), Image.Resampling.NEAREST
        )
    if item.suffix == "jpg":
        image = (
            image.convert("RGB" if image.mode in ("RGB", "RGBA") else "L")
            if image.mode != "I;16"
            else image.point(lambda v: v / 257).convert("L")
        )
    image.save(folder / f"mask.{item.suffix}", **({"quality": 95} if item.suffix == "jpg" else {}))


@tries(3000, 40)
@given(item=masks())
def check_mask(place: Entrance, item: Given) -> None:
    folder = place.empty()
    write(folder, item)
    done = place.run(
        "segment", "photo.png", "--class", "dog", item.option, f"mask.{item.suffix}", "--segmenter", "grabcut"
    )
    assert done.code in (0, 3, 9), done.err
    if done.code:
        plain = (
            item.form in PLAIN
            and item.scale == 1
            and not item.stored
            and item.suffix == "png"
            and item.option == "--mask"
        )
        assert not plain, done.err
        return
    found = place.load("mask", "dog")[1]["mask"] > 127
    assert found.shape == item.mask.shape
    assert iou(found, item.mask) > (
        0.7 if item.scale != 1 or item.option == "--refine-mask" or item.form == "outline" else 0.85
    ), (item, iou(found, item.mask))


def test_masks(entrance: Entrance, record_property: Any) -> None:  # noqa: F811
    check_mask(entrance)
    figures(entrance, record_property, "masks")


@dataclass(frozen=True)
class Hint:
    """A box or a point as text, and the object that it was drawn around."""

    option: str
    text: str
    mask: np.ndarray = field(repr=False)


@st.composite
def hints(draw: Any) -> Hint:
    """A box or a point in pixels or fractions, as people write it, sometimes wrong."""
    share = lambda low, high: draw(st.floats(low, high))  # noqa: E731
    mask = truth(share(0.35, 0.65), share(0.35, 0.65), share(0.15, 0.25), share(0.15, 0.25), 0)
    ys, xs = mask.nonzero()
    box = [xs.min() - 2, ys.min() - 2, xs.max() + 3, ys.max() + 3]
    unit = draw(st.sampled_from(["pixels", "pixels", "fractions", "stored", "sizes", "wild"]))
    values = {
        "pixels": box, "fractions": [round(v / s, 3) for v, s in zip(box, (WIDTH, HEIGHT) * 2, strict=True)], "stored": [box[1], WIDTH - box[2], box[3], WIDTH - box[0]],
        "sizes": [*box[:2], box[2] - box[0], box[3] - box[1]], "wild": [draw(st.integers(-50, 300)) for _ in range(4)],
    }[unit]  # fmt: skip
    if draw(st.booleans()):
        text = draw(st.sampled_from([", ", ","])).join(f"{v:g}" for v in values)
        return Hint("--box", draw(st.sampled_from(["{}", "{}", "[{}]", "({})"])).format(text), mask)
    x, y = (values[0] + values[2]) / 2, (values[1] + values[3]) / 2
    return Hint("--point", f"{x:g},{y:g}", mask)


@tries(1000, 12)
@given(item=hints())
def check_hint(place: Entrance, item: Hint) -> None:
    folder = place.empty()
    Image.fromarray(photo_of(item.mask)).save(folder / "photo.png")
    done = place.run("segment", "photo.png", "--class", "dog", item.option, item.text, "--segmenter", "grabcut")
    assert done.code in (0, 2, 3, 9), done.err
    if done.code:
        return
    found = place.load("mask", "dog")[1]["mask"] > 127
    values = [float(v) for v in item.text.strip("[]()").split(",")]
    scale = np.array((WIDTH, HEIGHT) * 2, float)[: len(values)] if max(values) <= 1 else 1
    numbers = np.array(values) * scale
    ys, xs = found.nonzero()
    if item.option == "--point":
        x, y = (int(np.clip(v, 0, s - 1)) for v, s in zip(numbers, (WIDTH, HEIGHT), strict=True))
        assert found[max(0, y - 2) : y + 3, max(0, x - 2) : x + 3].any(), (item.text, "the mask is not under its point")
    else:
        x0, y0, x1, y1 = numbers
        inside = ((xs >= x0 - 1) & (xs <= x1) & (ys >= y0 - 1) & (ys <= y1)).mean()
        assert inside > 0.5, (item.text, f"{inside:.0%} of the mask lies in its box")


def test_hints(entrance: Entrance, record_property: Any) -> None:  # noqa: F811
    check_hint(entrance)
    figures(entrance, record_property, "boxes and points")
