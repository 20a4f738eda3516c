"""The masks' bench: its scenes, its measures by closed forms, and a run."""

import sys

import cv2
import numpy as np
import pytest

from objtune_cli.bench import labelled_photos
from objtune_cli.bench.suites import masks
from objtune_cli.config.sections import Bench
from objtune_cli.errors import ResourceError
from objtune_cli.toybox.world import DIALS


def test_scene_i_is_the_same_for_every_count() -> None:
    few, many = (list(masks.sample_scenes(DIALS["medium"], n, 0)) for n in (2, 6))
    assert [len(s.objects) for s in many] == [1, 2, 3, 1, 2, 3]
    for a, b in zip(few, many, strict=False):
        assert np.array_equal(a.photo.rgb, b.photo.rgb)
    assert all(len({k for k, _ in s.objects}) == len(s.objects) for s in many)


def test_outlines_within_the_tolerance_are_the_same() -> None:
    square = np.zeros((320, 320), bool)
    square[100:200, 100:200] = True
    assert masks.boundary_f(square, square) == 1
    reach = round(masks.TOLERANCE * np.hypot(320, 320))
    assert masks.boundary_f(np.roll(square, reach - 1, 0), square) == 1
    assert masks.boundary_f(np.roll(square, 40, 1), square) < 0.6
    assert masks.boundary_f(np.zeros_like(square), square) == 0
    small = cv2.erode(square.astype(np.uint8), np.ones((41, 41), np.uint8)) > 0
    assert masks.boundary_f(small, square) == 0


@pytest.mark.parametrize("way", masks.HINTS)
def test_a_target_says_what_the_way_allows(way: str) -> None:
    seen = next(masks.sample_scenes(DIALS["medium"], 1, 0))
    kind, cover = seen.objects[0]
    target = masks._make_target(kind, cover, way, np.random.default_rng(0))
    assert target.has_no_hint == (way == "class")
    for x, y in target.points:
        assert cover[int(y), int(x)] > 127
    if target.box_xyxy:
        ys, xs = (cover > 127).nonzero()
        assert (
            np.abs(np.array(target.box_xyxy) - [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]).max()
            <= 0.02 * masks.SIDE
        )


@pytest.mark.slow
def test_a_run_measures_both_segmenters_by_every_way(context, monkeypatch: pytest.MonkeyPatch) -> None:
    ctx = context()
    rows = masks.run(ctx, DIALS["medium"], Bench(num_mask_scenes=2))
    found = {(r["method"], r["measure"]): r["mean"] for r in rows}
    for segmenter in ("sam", "grabcut"):
        for way in masks.HINTS:
            assert {m for method, m in found if method == f"{segmenter}, {way}"} == {
                "iou",
                "boundary_f",
                "hit_rate",
                "rejection_rate",
                "false_accept_rate",
                "seconds",
            }
        assert (f"{segmenter}, absent", "false_accept_rate") in found
    assert found["sam, box", "iou"] > 0.8 and found["sam, box", "hit_rate"] == 1


def test_photographs_have_outlines_inside_them() -> None:
    found = list(labelled_photos.load_photos())
    assert [o.class_word for o in found] == [
        "mug", "saucer", "person", "helmet", "cat", "rocket", "man", "tripod", "motorcycle",
    ]  # fmt: skip
    shares = [float((o.cover > 0).mean()) for o in found]
    assert all(o.rgb.shape[:2] == o.cover.shape and o.rgb.dtype == np.uint8 for o in found)
    assert all(0.1 < share < 0.8 for share in [*shares[:5], shares[6], shares[8]])
    assert all(0.01 < share < 0.1 for share in (shares[5], shares[7]))  # thin objects
    for sample in found:
        part = sample.crop_detail(sample.cover)
        assert part is None or 0.02 < float((part > 0).mean()) < 0.98, sample.class_word
    cup, saucer, person, helmet = (o.cover > 0 for o in found[:4])
    assert (cup & saucer).sum() > 0.95 * cup.sum()  # the cup stands on the saucer
    assert (person & helmet).sum() < 0.05 * helmet.sum()


def test_photographs_without_their_package_say_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skimage.io", None)
    with pytest.raises(ResourceError, match="scikit-image"):
        list(labelled_photos.load_photos())


@pytest.mark.slow
def test_photographs_are_measured_with_boxes(context) -> None:
    """GrabCut in a box finds the helmet; every way has a row."""
    rows = masks.run(context(), DIALS["medium"], Bench(segmenters="grabcut", mask_dataset="photos"))
    found = {(r["method"], r["measure"]): r for r in rows}
    assert found["grabcut, photographs, box", "iou"]["n"] == 9
    assert found["grabcut, helmet, box", "iou"]["mean"] > 0.7 < found["grabcut, person, box", "iou"]["mean"]
    assert 0 < found["grabcut, helmet, box", "detail_iou"]["mean"] <= 1
    assert found["grabcut, photographs, class", "false_accept_rate"]["mean"] <= 0.4
