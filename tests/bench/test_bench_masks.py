"""The masks' bench: its scenes, its measures by closed forms, and a run."""

import cv2
import numpy as np
import pytest

from objtune_cli.bench import masks
from objtune_cli.config import Bench
from objtune_cli.toybox.world import DIALS


def test_scene_i_is_the_same_for_every_count() -> None:
    few, many = (list(masks.scenes(DIALS["medium"], n, 0)) for n in (2, 6))
    assert [len(s.objects) for s in many] == [1, 2, 3, 1, 2, 3]
    for a, b in zip(few, many, strict=False):
        assert np.array_equal(a.photo.rgb, b.photo.rgb)
    assert all(len({k for k, _ in s.objects}) == len(s.objects) for s in many)


def test_outlines_within_the_tolerance_are_the_same() -> None:
    square = np.zeros((320, 320), bool)
    square[100:200, 100:200] = True
    assert masks.boundary(square, square) == 1
    reach = round(masks.TOLERANCE * np.hypot(320, 320))
    assert masks.boundary(np.roll(square, reach - 1, 0), square) == 1
    assert masks.boundary(np.roll(square, 40, 1), square) < 0.6
    assert masks.boundary(np.zeros_like(square), square) == 0
    small = cv2.erode(square.astype(np.uint8), np.ones((41, 41), np.uint8)) > 0
    assert masks.boundary(small, square) == 0


@pytest.mark.parametrize("way", masks.WAYS)
def test_a_target_says_what_the_way_allows(way: str) -> None:
    seen = next(masks.scenes(DIALS["medium"], 1, 0))
    kind, cover = seen.objects[0]
    target = masks._target(kind, cover, way, np.random.default_rng(0))
    assert target.blind == (way == "class")
    for x, y in target.points:
        assert cover[int(y), int(x)] > 127
    if target.box_xyxy:
        ys, xs = (cover > 127).nonzero()
        assert np.abs(np.array(target.box_xyxy) - [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]).max() <= 0.02 * masks.SIDE


def test_a_run_measures_both_segmenters_by_every_way(context, monkeypatch: pytest.MonkeyPatch) -> None:
    ctx = context()
    rows = masks.run(ctx, DIALS["medium"], Bench(scenes=2))
    found = {(r["method"], r["measure"]): r["mean"] for r in rows}
    for segmenter in ("sam", "grabcut"):
        for way in masks.WAYS:
            assert {m for method, m in found if method == f"{segmenter}, {way}"} == {
                "iou",
                "boundary",
                "right",
                "refused",
                "wrong",
                "seconds",
            }
        assert (f"{segmenter}, absent", "wrong") in found
    assert found["sam, box", "iou"] > 0.8 and found["sam, box", "right"] == 1
