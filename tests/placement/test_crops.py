"""Regions of pictures and the crops around them: geometry, proposals, and bytes that stay."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from objtune_cli.composition.layout import PLACES
from objtune_cli.errors import InputError, UsageError
from objtune_cli.placement import regions
from objtune_cli.placement.crops import Crop, CroppedRegion, largest_piece

SIDE = 64


def picture(width: int, height: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@st.composite
def boxes(draw: st.DrawFn) -> tuple[tuple[int, int], tuple[int, int, int, int]]:
    """A picture's size and a box in it of at least the least side."""
    width, height = draw(st.integers(64, 300)), draw(st.integers(64, 300))
    x0, y0 = draw(st.integers(0, width - 16)), draw(st.integers(0, height - 16))
    return (width, height), (x0, y0, draw(st.integers(x0 + 16, width)), draw(st.integers(y0 + 16, height)))


@given(boxes(), st.floats(1, 8), st.floats(0, 0.5))
@settings(max_examples=25, deadline=None)
def test_only_the_region_changes(
    drawn: tuple[tuple[int, int], tuple[int, int, int, int]], context: float, softness: float
) -> None:
    """Whatever is drawn, every byte outside of the region stays, and the middle of the region is the drawn one."""
    size, box = drawn
    before = picture(*size)
    region = regions.from_pixels(box, size)
    crop = Crop.around(box, size, context)
    assert crop.take(before).shape == (crop.side, crop.side, 3)
    cropped = CroppedRegion(before, region, crop, SIDE, softness)
    after = cropped.blend(np.full((SIDE, SIDE, 3), 7, np.uint8), np.ones((SIDE, SIDE), np.float32))
    x0, y0, x1, y1 = box
    inside = np.zeros(before.shape[:2], bool)
    inside[y0:y1, x0:x1] = True
    assert np.array_equal(after[~inside], before[~inside])
    assert (after[(y0 + y1) // 2, (x0 + x1) // 2] == 7).all() or softness > 0.4
    left, top, right, low = cropped.box
    assert 0 <= left < right <= SIDE + 1e-6 and 0 <= top < low <= SIDE + 1e-6
    for values in (cropped.draft_map(), cropped.region_map(), cropped.object_map(np.ones((SIDE, SIDE), np.float32))):
        assert values.shape == (SIDE, SIDE) and values.min() >= 0 and values.max() <= 1 + 1e-6


def test_a_crop_lies_in_the_picture_where_it_fits() -> None:
    assert Crop.around((0, 0, 40, 20), (200, 100), 1.5) == Crop(0, 0, 60)
    assert Crop.around((160, 80, 200, 100), (200, 100), 1.5) == Crop(140, 40, 60)
    assert Crop.around((80, 40, 120, 60), (200, 100), 8) == Crop(50, 0, 100)  # no larger than the picture is high
    assert Crop.around((0, 0, 200, 100), (200, 100), 1.0) == Crop(0, -50, 200)  # the border is repeated
    taken = Crop(0, -50, 200).take(picture(200, 100))
    assert np.array_equal(taken[:50], np.repeat(taken[50:51], 50, 0))


def test_an_object_fills_its_region_and_stands_on_it() -> None:
    before = np.full((128, 128, 3), 200, np.uint8)
    cropped = CroppedRegion(before, regions.from_pixels((64, 32, 112, 112), (128, 128)), Crop(0, 0, 128), 128, 0.03)
    draft, outline = np.full((128, 128, 3), 10, np.uint8), np.zeros((128, 128), bool)
    outline[40:60, 50:62] = True  # 12 wide, 20 high: four times as large it fills the box
    image, cover = cropped.insert(draft, outline)
    rows, columns = (cover > 0.5).any(1).nonzero()[0], (cover > 0.5).any(0).nonzero()[0]
    assert rows[-1] in (110, 111) and abs((columns[0] + columns[-1]) / 2 - 87.5) <= 1
    assert rows[-1] - rows[0] + 1 == pytest.approx(40, abs=2)  # at most twice as large
    assert (image[100, 88] == 10).all() and (image[20, 20] == 200).all()


def test_what_is_replaced_is_gone_from_the_background() -> None:
    before = np.full((128, 128, 3), 200, np.uint8)
    cv2.circle(before, (64, 64), 20, (255, 0, 0), -1)
    replaced = np.zeros((128, 128), bool)
    replaced[40:89, 40:89] = True
    region = regions.from_pixels((40, 40, 89, 89), (128, 128))
    cropped = CroppedRegion(before, region, Crop(0, 0, 128), 128, 0.03, replaced)
    assert np.abs(cropped.background.astype(int) - 200).max() <= 10
    assert cropped.object_map(np.zeros((128, 128), np.float32))[64, 64] == 1  # it is drawn anew where the object is not


def test_stray_pieces_on_thin_bridges_are_cut() -> None:
    mask = np.zeros((128, 128), np.uint8)
    cv2.circle(mask, (80, 70), 30, 1, -1)
    cv2.circle(mask, (80, 70), 6, 0, -1)
    cv2.circle(mask, (20, 40), 8, 1, -1)
    cv2.line(mask, (20, 40), (60, 60), 1, 1)
    found = largest_piece(mask > 0)
    assert not found[40, 20] and found[70, 80] and found[45, 80]


def test_thin_parts_stay_with_their_openings() -> None:
    """A tail, and a handle with the background in it."""
    mask = np.zeros((128, 128), np.uint8)
    cv2.circle(mask, (60, 70), 25, 1, -1)
    cv2.line(mask, (60, 70), (20, 20), 1, 2)
    cv2.circle(mask, (92, 70), 12, 1, 2)
    found = largest_piece(mask > 0)
    assert np.array_equal(found, mask > 0) and found[21, 21] and not found[70, 93]


def test_a_calm_part_is_proposed() -> None:
    """Of a picture whose left half is noise the object goes to the right; its box has the object's aspect ratio."""
    before = np.full((200, 300, 3), 180, np.uint8)
    before[:, :150] = picture(150, 200)
    x0, y0, x1, y1 = regions.propose_box(before, 0.5)
    assert x0 >= 0.45 and y1 > 0.7 and (x1 - x0) * 300 / ((y1 - y0) * 200) == pytest.approx(0.5, abs=0.05)


def test_places_in_words_and_numbers() -> None:
    assert regions.parse_box("left") == PLACES["left"] and regions.parse_box("0.1,0.2,0.5,0.9") == (0.1, 0.2, 0.5, 0.9)
    for text in ("middle of it", "0.1,0.2,0.5", "0.5,0.2,0.1,0.9", "0,0,1,1.2", "nan,0,1,1"):
        with pytest.raises(UsageError, match="not a place in the picture"):
            regions.parse_box(text)
    with pytest.raises(UsageError, match="too small"):
        regions.parse_box("0.1,0.1,0.12,0.9")
    with pytest.raises(InputError, match="10x80 pixels"):
        regions.from_box((0.1, 0.1, 0.2, 0.9), (100, 100))
