"""Transparency that is a cut-out, and transparency that is none: frames, stray pixels, shadows, holes, other classes."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from objtune_cli.config.sections import Segment
from objtune_cli.images import mask_image, photo, transparency
from objtune_cli.segmentation import transparent_photo
from objtune_cli.segmentation.from_hints import SegmentationModels, Target
from objtune_cli.store.store import Store
from objtune_cli.toybox import renderer, world
from objtune_cli.toybox.world import DIALS

pytestmark = pytest.mark.usefixtures("fast_sampling", "cached_segmentation")

SIDE = 200


@pytest.fixture(scope="module")
def dog() -> tuple[np.ndarray, np.ndarray]:
    """A drawn dog on grass and its coverage (H, W) uint8."""
    rng = np.random.default_rng(6)
    instance = world.sample_instance(rng, DIALS["medium"], kind="dog", held_out=True)
    rgb, (cover,) = renderer.render(
        world.sample_scene(rng, DIALS["medium"], instances=(instance,), background="grass"), 320
    )
    return rgb, cover


def blob() -> np.ndarray:
    """Coverage of a shape that is no frame."""
    cover = cv2.ellipse(np.zeros((SIDE, SIDE), np.uint8), (90, 100), (50, 30), 0, 0, 360, 255, -1)
    return cv2.circle(cover, (140, 70), 22, 255, -1)


def shaped(draw_on: Callable[[np.ndarray], Any]) -> np.ndarray:
    cover = np.zeros((SIDE, SIDE), np.uint8)
    draw_on(cover)
    return cover


def rounded(cover: np.ndarray, radius: int = 20) -> None:
    cv2.rectangle(cover, (30 + radius, 40), (170 - radius, 150), 255, -1)
    cv2.rectangle(cover, (30, 40 + radius), (170, 150 - radius), 255, -1)
    for x in (30 + radius, 170 - radius):
        for y in (40 + radius, 150 - radius):
            cv2.circle(cover, (x, y), radius, 255, -1)


FRAMES: dict[str, Callable[[np.ndarray], Any]] = {
    "rectangle": lambda c: cv2.rectangle(c, (30, 40), (170, 150), 255, -1), "round corners": rounded, "circle": lambda c: cv2.circle(c, (100, 100), 80, 255, -1),
    "ellipse": lambda c: cv2.ellipse(c, (100, 100), (90, 60), 0, 0, 360, 255, -1), "turned": lambda c: cv2.fillPoly(c, [np.array([(60, 20), (180, 60), (140, 180), (20, 140)])], 255),
}  # fmt: skip


@pytest.mark.parametrize("name", FRAMES)
def test_frames_are_no_cut_outs(name: str) -> None:
    assert transparent_photo.is_frame(shaped(FRAMES[name]))
    assert transparent_photo.find_shape_problem(shaped(FRAMES[name]))[0].startswith(
        "leaves a plain rectangle or ellipse"
    )


def test_objects_are_no_frames(dog: tuple[np.ndarray, np.ndarray]) -> None:
    triangle = shaped(lambda c: cv2.fillPoly(c, [np.array([(100, 20), (180, 180), (20, 180)])], 255))
    house = shaped(
        lambda c: (
            cv2.rectangle(c, (50, 90), (150, 180), 255, -1),
            cv2.fillPoly(c, [np.array([(100, 30), (165, 90), (35, 90)])], 255),
        )
    )
    small = shaped(lambda c: cv2.rectangle(c, (60, 60), (130, 120), 255, -1))  # a phone, with much around it
    for cover in (blob(), dog[1], triangle, house, small):
        assert transparent_photo.find_shape_problem(cover) == ("", True)


def test_stray_transparency_is_no_cut_out() -> None:
    whole = np.full((SIDE, SIDE), 255, np.uint8)
    stray = [whole.copy() for _ in range(3)]
    stray[0][0, 0] = 254
    stray[1][-1] = 0
    stray[2][150:190, 120:190] = 128
    for alpha in stray:
        assert "next to nothing" in transparent_photo.find_shape_problem(alpha)[0]
    vignette = np.zeros_like(whole)
    vignette[10:] = vignette[:, 10:] = 255
    vignette[:10, 60:140] = 0
    vignette[100:, 100:150] = 0
    assert "at the edges of the photo alone" in transparent_photo.find_shape_problem(vignette)[0]


def with_shadow(cover: np.ndarray, rgb: np.ndarray) -> np.ndarray:
    """RGBA of an object over a soft black shadow, as editors export it."""
    shade = np.roll(cv2.GaussianBlur(cover, (0, 0), 7), (14, 10), (0, 1)).astype(float) / 255 * 0.7
    own = cover.astype(float) / 255
    alpha = own + shade * (1 - own)
    colour = rgb * (own / np.maximum(alpha, 1e-6))[..., None]
    return np.dstack([colour, alpha * 255]).round().astype(np.uint8)


def test_a_drop_shadow_is_no_object(tmp_path: Path) -> None:
    cover = cv2.GaussianBlur(blob(), (0, 0), 0.7)
    rgb = np.full((SIDE, SIDE, 3), (180, 90, 40), np.uint8)
    Image.fromarray(with_shadow(cover, rgb)).save(tmp_path / "a.png")
    found = photo.read(tmp_path / "a.png")
    assert found.alpha is not None
    hard = transparency.remove_shadow(found.alpha, found.rgb) > 127
    assert (found.alpha > 127).sum() > 1.15 * (cover > 127).sum()  # the shadow is dark enough to count
    assert (hard & (cover > 127)).sum() > 0.96 * (hard | (cover > 127)).sum()
    as_mask = mask_image.read(tmp_path / "a.png", found)
    assert np.array_equal(as_mask.cover > 127, hard)
    assert as_mask.notes == ("the shadow around the opaque part is left out",)


def test_soft_parts_that_are_no_shadow_stay() -> None:
    soft = cv2.GaussianBlur(blob(), (0, 0), 8)
    for colour in (
        (180, 90, 40),
        (255, 255, 255),
        (0, 0, 0),
        (20, 22, 25),
    ):  # fur, light and dark; masks painted in white and black
        rgb = transparency.blend_on_white(np.full((SIDE, SIDE, 3), colour, np.uint8), soft)
        assert np.array_equal(transparency.remove_shadow(soft, rgb), soft)
    glasses = blob()
    glasses[80:120, 70:110] = 180
    rgb = np.full((SIDE, SIDE, 3), 120, np.uint8)
    rgb[80:120, 70:110] = 10  # dark glass inside of a frame
    assert np.array_equal(transparency.remove_shadow(glasses, transparency.blend_on_white(rgb, glasses)), glasses)


def test_levels_of_background_removers_are_stretched(tmp_path: Path) -> None:
    """12 outside and 200 on the object: colours as in the file, a mask of 0 and 255."""
    rgb = np.full((SIDE, SIDE, 3), (29, 186, 165), np.uint8)
    alpha = np.where(blob() > 127, 200, 12).astype(np.uint8)
    Image.fromarray(np.dstack([rgb, alpha])).save(tmp_path / "a.png")
    found = photo.read(tmp_path / "a.png")
    assert found.rgb[100, 90].tolist() == [29, 186, 165]
    assert found.rgb[0, 0].tolist() == [255, 255, 255]
    assert found.alpha is not None
    assert np.array_equal(found.alpha, blob())
    ordinary = cv2.GaussianBlur(blob(), (0, 0), 1)
    assert transparency.normalize_alpha(ordinary) is ordinary


def test_alpha_the_same_everywhere_hides_nothing(tmp_path: Path) -> None:
    rgb = np.full((SIDE, SIDE, 3), (29, 186, 165), np.uint8)
    rgb[50:90, 50:90] = 20
    for level in (254, 128, 60):
        Image.fromarray(np.dstack([rgb, np.full((SIDE, SIDE), level, np.uint8)])).save(tmp_path / "a.png")
        found = photo.read(tmp_path / "a.png")
        assert found.alpha is None
        assert np.array_equal(found.rgb, rgb)
        assert found.notes == ()


def segmented(cli: Callable[..., Any], rgba: np.ndarray, word: str = "dog", *more: str) -> Any:
    Image.fromarray(rgba).save("a.png")
    return cli("segment", "a.png", "--class", word, *more)


def stored(ref: str) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    record, tensors = Store.at(Path()).read(Store.at(Path()).find(ref, ("mask",)))
    return tensors["mask"], tensors["rgb"], dict(record.metrics)


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


def test_a_frame_around_a_photo_is_passed_over(
    cli: Callable[..., Any], project: Path, dog: tuple[np.ndarray, np.ndarray]
) -> None:
    """A window with its shadow, on a screenshot: the dog in it is found, not the window."""
    rgb, cover = dog
    window = np.zeros((400, 400), np.uint8)
    window[40:360, 40:360] = 255
    inside = np.zeros((400, 400, 3), np.uint8)
    inside[40:360, 40:360] = rgb
    done = segmented(cli, with_shadow(window, inside))
    assert done.code == 0, done.err
    assert "its transparency leaves a plain rectangle or ellipse, as a frame does: it is ignored" in done.err
    found, _, metrics = stored("mask/dog")
    assert metrics["found_by"] != "alpha"
    assert iou(found[40:360, 40:360] > 127, cover > 127) > 0.9
    assert (
        cli("segment", "a.png", "--class", "dog", "--name", "window", "--mask", "a.png").code == 0
    )  # as the note says
    assert iou(stored("mask/window")[0] > 127, window > 127) > 0.98


def test_stray_pixels_change_nothing(
    tmp_path: Path, dog: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The photo is as the same one without alpha."""
    rgb, cover = dog
    alpha = np.full_like(cover, 255)
    alpha[0, 0] = 254
    Image.fromarray(np.dstack([rgb, alpha])).save(tmp_path / "a.png")
    notes: list[str] = []
    monkeypatch.setattr(SegmentationModels, "knows_class", lambda self, word: pytest.fail("the base is not asked"))
    eyes = SegmentationModels(SimpleNamespace(report=SimpleNamespace(note=notes.append)), Segment())  # type: ignore[arg-type]
    found = transparent_photo.check_transparency(
        eyes, tmp_path / "a.png", photo.read(tmp_path / "a.png"), Target("dog", "dog")
    )
    assert found.alpha is None
    assert np.array_equal(found.rgb, rgb)
    assert notes == ["a.png: its transparency hides next to nothing of the photo: it is ignored"]


def test_a_cut_out_is_of_the_class_that_was_asked_for(
    cli: Callable[..., Any], project: Path, dog: tuple[np.ndarray, np.ndarray]
) -> None:
    rgb, cover = dog
    assert segmented(cli, np.dstack([rgb, cover])).code == 0
    assert np.array_equal(stored("mask/dog")[0], cover)
    assert stored("mask/dog")[2]["found_by"] == "alpha"
    done = segmented(cli, np.dstack([rgb, cover]), "car")
    assert done.code == 9
    assert "its transparency shows a dog, no car" in done.err
    assert not Path("artifacts/mask/car").exists()


@pytest.mark.parametrize("word", ["dog", "mug"])
def test_of_two_things_cut_out_the_class_is_taken(word: str, cli: Callable[..., Any], project: Path) -> None:
    rng = np.random.default_rng(6)
    instances = tuple(world.sample_instance(rng, DIALS["medium"], kind=k, held_out=True) for k in ("dog", "mug"))
    rgb, covers = renderer.render(
        world.sample_scene(rng, DIALS["medium"], instances=instances, background="grass"), 320
    )
    done = segmented(cli, np.dstack([rgb, np.maximum(*covers)]), word)
    assert done.code == 0, done.err
    assert f"the part of the cut-out that is a {word} is used" in done.err
    assert iou(stored(f"mask/{word}")[0] > 127, covers[word == "mug"] > 127) > 0.97


def test_an_erased_object_and_nothing_at_all(
    cli: Callable[..., Any], project: Path, dog: tuple[np.ndarray, np.ndarray]
) -> None:
    rgb, cover = dog
    done = segmented(cli, np.dstack([rgb, 255 - cover]))
    assert done.code == 9
    assert "what is transparent in a.png lies inside" in done.err
    Image.fromarray(rgb).save("whole.png")
    assert cli("segment", "whole.png", "--class", "dog", "--mask", "a.png").code == 0  # as the hint says
    assert iou(stored("mask/dog")[0] > 127, cover > 127) > 0.98
    done = segmented(cli, np.dstack([rgb, cover * 0]), "mug")
    assert done.code == 3
    assert "a.png is wholly transparent" in done.err
    assert segmented(cli, np.dstack([rgb, cover * 0]), "mug", "--mask", "whole.png").code == 3
