"""Soft outlines on pictures whose coverage is known exactly."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from objtune_cli.segmentation.matting import matte, remove_specks, snap_to_edges


def _scene(noise: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """A red shape with a soft edge on green, and its true coverage (160, 200)."""
    big = np.zeros((640, 800), np.uint8)
    cv2.ellipse(big, (400, 300), (220, 150), 30, 0, 360, 255, -1)
    cv2.rectangle(big, (380, 40), (400, 200), 255, -1)  # a thin part
    cover = cv2.resize(big, (200, 160), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    rgb = cover[..., None] * np.array([200, 40, 40]) + (1 - cover[..., None]) * np.array([60, 150, 70])
    rgb = rgb + np.random.default_rng(0).normal(0, noise, rgb.shape)
    return rgb.clip(0, 255).astype(np.uint8), cover


@pytest.mark.parametrize("noise", [0, 6])
def test_coverage_along_the_edge_is_nearer_to_the_truth_than_the_mask(noise: float) -> None:
    rgb, cover = _scene(noise)
    hard = cover > 0.5
    assert np.abs(matte(rgb, hard, 3) - cover).mean() < 0.6 * np.abs(hard - cover).mean()


@pytest.mark.parametrize("change", [cv2.dilate, cv2.erode])
def test_an_outline_a_pixel_off_is_drawn_to_the_edge(change) -> None:
    rgb, cover = _scene(4)
    hard = cover > 0.5
    off = change(hard.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    iou = lambda a: (a & hard).sum() / (a | hard).sum()  # noqa: E731
    assert iou(snap_to_edges(rgb, off, 4)) > 0.985 > 0.95 > iou(off)


def test_far_from_the_outline_nothing_changes() -> None:
    rgb, cover = _scene()
    mask = cover > 0.5
    far = cv2.dilate(mask.astype(np.uint8), np.ones((25, 25), np.uint8)) == cv2.erode(
        mask.astype(np.uint8), np.ones((25, 25), np.uint8)
    )
    assert np.array_equal(matte(rgb, mask, 4)[far], mask[far].astype(np.float32))


@given(st.integers(0, 2**31), st.floats(0, 12))
@settings(deadline=None, max_examples=25)
def test_it_stays_between_0_and_1_whatever_the_picture(seed: int, width: float) -> None:
    rng = np.random.default_rng(seed)
    rgb = rng.integers(0, 256, (40, 56, 3), dtype=np.uint8) if seed % 2 else np.full((40, 56, 3), seed % 256, np.uint8)
    mask = cv2.GaussianBlur(rng.normal(size=(40, 56)), (0, 0), 3) > rng.normal(0, 0.1)
    soft = matte(rgb, mask, width)
    assert soft.dtype == np.float32 and soft.shape == mask.shape and soft.min() >= 0 and soft.max() <= 1
    if round(width) < 1:
        assert np.array_equal(soft, mask.astype(np.float32))


def test_specks_go_and_holes_stay() -> None:
    mask = np.zeros((120, 120), bool)
    mask[20:100, 20:100] = True
    mask[50:60, 50:60] = False  # 1.6 % of the object: a hole to see through
    mask[80, 80] = False  # a missing pixel
    mask[2:5, 2:5] = True  # 0.14 %: a speck
    mask[104:116, 104:116] = True  # 2.2 %: a piece of its own
    found = remove_specks(mask)
    assert not found[3, 3] and found[80, 80] and not found[55, 55] and found[110, 110]
    assert not remove_specks(np.zeros((4, 4), bool)).any()
