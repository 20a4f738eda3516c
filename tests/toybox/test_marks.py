"""Marks that no caption names: they lie on the coat, tell instances apart, and leave the other dials as they were."""

import hashlib
import itertools
from dataclasses import replace

import cv2
import numpy as np
import pytest

from objtune_cli.toybox import captions, marks, world
from objtune_cli.toybox.renderer import render
from objtune_cli.toybox.world import DIALS, MARKED, Pose, Scene


def instances(count: int, kind: str | None = None) -> list[world.Instance]:
    rng = np.random.default_rng(11)
    return [world.sample_instance(rng, MARKED, kind=kind, held_out=None) for _ in range(count)]


def draw(instance: world.Instance) -> tuple[np.ndarray, np.ndarray]:
    picture, covers = render(Scene(((instance, Pose(0.5, 0.5, 0.7)),), "snow", 1), 128)
    return picture.astype(int), covers[0]


def without_marks(instance: world.Instance) -> world.Instance:
    return replace(instance, marks=(), marking=())


@pytest.mark.parametrize(
    ("dial", "digest"), [("easy", "037f896ce71fcfc0"), ("medium", "a32f19a276a8703d"), ("full", "d995a552f437e687")]
)
def test_worlds_without_marks_keep_their_pictures(dial: str, digest: str) -> None:
    """A published base and its benchmark objects are named by seeds of these dials."""
    found = hashlib.sha256()
    for scene in itertools.islice(world.scenes(7, DIALS[dial]), 60):
        picture, covers = render(scene, 64)
        for array in (picture, *covers):
            found.update(array.tobytes())
    assert found.hexdigest()[:16] == digest


@pytest.mark.parametrize("kind", MARKED.classes)
def test_marks_fill_a_visible_share_of_the_object_and_nothing_else(kind: str) -> None:
    shares = []
    for instance in instances(12, kind):
        marked, cover = draw(instance)
        plain, whole = draw(without_marks(instance))
        changed = np.abs(marked - plain).sum(2) > 40
        assert not changed[whole == 0].any()
        assert (cover <= whole).all()
        shares.append(changed.sum() / (whole > 127).sum())
    assert np.mean(shares) > 0.06
    assert np.mean(np.array(shares) > 0.02) >= 0.75


def test_objects_of_the_same_words_differ_by_their_marks() -> None:
    first, second = instances(2, "mug")
    twin = replace(first, marks=second.marks, marking=second.marking, marking_rgb=second.marking_rgb)
    assert captions.describe(first, 3) == captions.describe(twin, 3)
    assert captions.label(first, "snow") == captions.label(twin, "snow")
    assert (np.abs(draw(first)[0] - draw(twin)[0]).sum(2) > 60).mean() > 0.01


def test_no_caption_names_a_mark() -> None:
    rng = np.random.default_rng(0)
    words = set(captions.vocabulary())
    for scene in itertools.islice(world.scenes(3, MARKED), 100):
        assert set(captions.caption(scene, rng).split()) <= words
    assert not words & set(marks.EMBLEMS)


@pytest.mark.parametrize("kind", marks.EMBLEMS)
def test_emblems_are_one_shape_of_radius_one_and_differ_by_seed(kind: str) -> None:
    stencils = []
    for seed in range(8):
        mark = marks.Mark(kind, 0, 0, 0, 0.2, 0.3, (9, 9, 9), seed)
        contours = marks.outlines(mark)
        assert max(float(np.hypot(*contour.T).max()) for contour in contours) < 1.45
        stencil = np.zeros((96, 96), np.uint8)
        cv2.fillPoly(stencil, [np.round(contour * 32 + 48).astype(np.int32) for contour in contours], 255)
        assert 0.1 < (stencil > 0).sum() / (np.pi * 32**2) < 1.05
        stencils.append(stencil.tobytes())
    assert len(set(stencils)) >= 2


def test_marks_stand_out_from_the_coat() -> None:
    for instance in instances(60):
        coat = instance.rgb[: 1 if instance.pattern == "plain" else 2]
        for mark in instance.marks:
            assert min(np.abs(np.subtract(mark.rgb, rgb)).sum() for rgb in coat) > 150
