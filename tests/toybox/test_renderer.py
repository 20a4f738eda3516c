"""Pictures and masks agree: what the mask covers is the object, all else is the background."""

from dataclasses import replace

import cv2
import numpy as np
import pytest

from objtune_cli.toybox import world
from objtune_cli.toybox.renderer import render
from objtune_cli.toybox.world import ACCESSORIES, BACKGROUNDS, CLASSES, EASY, FULL, PATTERNS, Instance, Pose, Scene


def _instance(kind: str, seed: int = 0, **given: object) -> Instance:
    return replace(world.sample_instance(np.random.default_rng(seed), FULL, kind=kind, held_out=None), **given)


def _scene(*objects: tuple[Instance, Pose], background: str = "grass", seed: int = 1) -> Scene:
    return Scene(objects, background, seed)


@pytest.mark.parametrize("size", [64, 128])
@pytest.mark.parametrize("kind", CLASSES)
def test_the_mask_covers_exactly_what_changed(kind: str, size: int) -> None:
    thing = (_instance(kind, accessory="hat"), Pose(0.5, 0.55, 0.6, 0.1))
    (first, (mask,)), (second, (again,)) = (render(_scene(thing, background=b), size) for b in ("night", "desert"))
    assert first.shape == (size, size, 3) and first.dtype == np.uint8
    assert mask.shape == (size, size) and mask.dtype == np.uint8
    assert np.array_equal(mask, again)  # the object does not depend on what is behind it
    grounds = [render(_scene(background=b), size)[0] for b in ("night", "desert")]
    for picture, ground in zip((first, second), grounds, strict=True):
        assert np.array_equal(picture[mask == 0], ground[mask == 0])
    assert np.array_equal(first[mask == 255], second[mask == 255])  # all of the object is opaque
    # Between them the ground shines through by the uncovered share: up to rounding of averages of 9.
    soft = (mask > 0) & (mask < 255)
    through = (first.astype(float) - second)[soft]
    share = 1 - mask[soft, None] / 255
    expected = share * (grounds[0].astype(float) - grounds[1])[soft]
    assert np.abs(through - expected).mean() < 6
    assert 0.05 < (mask > 127).mean() < 0.5
    assert soft.sum() < 0.5 * (mask > 0).sum() * (64 / size) ** 0.5


@pytest.mark.parametrize("kind", CLASSES)
def test_the_object_stands_where_its_pose_says(kind: str) -> None:
    pose = Pose(0.4, 0.6, 0.5)
    _, (mask,) = render(_scene((_instance(kind, accessory="none"), pose)), 128)
    ys, xs = (mask > 127).nonzero()
    x0, x1, y0, y1 = xs.min() / 128, (xs.max() + 1) / 128, ys.min() / 128, (ys.max() + 1) / 128
    assert (x0 + x1) / 2 == pytest.approx(pose.x, abs=0.015) and (y0 + y1) / 2 == pytest.approx(pose.y, abs=0.015)
    assert max(x1 - x0, y1 - y0) == pytest.approx(pose.size, abs=0.025)  # the ink line lies on the outline


def test_sizes_show_the_same_scene() -> None:
    for scene, _ in zip(world.scenes(5), range(6), strict=False):
        (small, covers), (large, large_covers) = render(scene, 64), render(scene, 128)
        assert np.abs(cv2.resize(large, (64, 64), interpolation=cv2.INTER_AREA).astype(float) - small).mean() < 4
        for a, b in zip(covers, large_covers, strict=True):
            assert abs(a.mean() - b.mean()) < 0.05 * b.mean() + 1


@pytest.mark.parametrize("front", ["car", "mug"])
def test_a_later_object_hides_an_earlier_one(front: str) -> None:
    behind, before = (_instance("house"), Pose(0.45, 0.55, 0.6)), (_instance(front, seed=1), Pose(0.6, 0.6, 0.5))
    picture, (older, newer) = render(_scene(behind, before), 128)
    _, (alone_old,) = render(_scene(behind), 128)
    front_picture, (alone_new,) = render(_scene(before), 128)
    assert np.array_equal(newer, alone_new)
    assert not older[newer == 255].any()
    assert np.array_equal(older[newer == 0], alone_old[newer == 0])
    assert (older.astype(int) + newer).max() <= 256
    assert np.array_equal(picture[newer == 255], front_picture[newer == 255])
    assert older.sum() < 0.9 * alone_old.sum()  # they do overlap


def test_pairs_of_the_world_hardly_overlap_and_stand_left_to_right() -> None:
    seen = 0
    for scene in world.scenes(7, EASY):
        if len(scene.objects) != 2:
            continue
        _, (left, right) = render(scene)
        _, (alone,) = render(replace(scene, objects=scene.objects[:1]))
        assert left.sum() > 0.95 * alone.sum()
        centres = [(m.sum(0) * np.arange(64)).sum() / m.sum() for m in (left, right)]
        assert centres[0] < 32 < centres[1]
        seen += 1
        if seen == 15:
            break


def test_lone_objects_lie_in_the_frame() -> None:
    count = 0
    for scene in world.scenes(8, FULL):
        if len(scene.objects) == 1 and scene.objects[0][0].accessory == "none":
            _, (mask,) = render(scene)
            rim = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
            assert (rim > 127).mean() < 0.02
            count += 1
        if count == 30:
            break


def test_facing_left_is_the_mirror_image() -> None:
    thing = _instance("dog", pattern="plain", accessory="none")
    (_, (right,)), (_, (left,)) = (
        render(_scene((thing, Pose(0.5, 0.5, 0.6, 0.0, flip))), 128) for flip in (False, True)
    )
    assert np.abs(left[:, ::-1].astype(int) - right).mean() < 3
    assert np.abs(left.astype(int) - right).mean() > 15


def test_the_coats_colour_is_the_instances() -> None:
    thing = _instance("house", pattern="plain", accessory="none", rgb=((200, 30, 60), (20, 30, 200), (0, 0, 0)))
    picture, (mask,) = render(_scene((thing, Pose(0.5, 0.5, 0.7))), 128)
    on = picture[mask == 255].astype(int)
    coat, trim = (np.abs(on - rgb).max(1) <= 2 for rgb in thing.rgb[:2])
    assert coat.mean() > 0.2 and trim.mean() > 0.1


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_show_the_second_colour_on_the_coat(pattern: str) -> None:
    thing = _instance("car", pattern=pattern, accessory="none", rgb=((200, 30, 60), (20, 30, 200), (0, 0, 0)))
    plain = replace(thing, pattern="plain")
    (a, (mask,)), (b, (same,)) = (render(_scene((i, Pose(0.5, 0.5, 0.7))), 128) for i in (thing, plain))
    assert np.array_equal(mask, same)
    changed = (np.abs(a.astype(int) - b).max(2) > 40)[mask == 255].mean()
    assert changed == 0 if pattern == "plain" else 0.03 < changed < 0.6


@pytest.mark.parametrize("accessory", ACCESSORIES[1:])
def test_accessories_are_part_of_the_object(accessory: str) -> None:
    bare = _instance("cat", accessory="none", third="green", rgb=((200, 30, 60), (20, 30, 200), (10, 250, 10)))
    pose = Pose(0.5, 0.6, 0.5)
    picture, (mask,) = render(_scene((replace(bare, accessory=accessory), pose), background="snow"), 128)
    green = np.abs(picture.astype(int) - (10, 250, 10)).max(2) <= 2
    assert green.sum() > 50 and (mask[green] == 255).all()
    assert not (
        np.abs(render(_scene((bare, pose), background="snow"), 128)[0].astype(int) - (10, 250, 10)).max(2) <= 2
    ).any()


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_backgrounds_fill_the_frame_and_vary_with_their_seed(background: str) -> None:
    pictures = [render(_scene(background=background, seed=s))[0] for s in (1, 1, 2)]
    assert np.array_equal(pictures[0], pictures[1]) and not np.array_equal(pictures[0], pictures[2])
    assert (pictures[0].max(2) > 0).mean() > 0.99  # no part was left unpainted
