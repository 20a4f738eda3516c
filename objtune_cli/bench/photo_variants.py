"""Variants of a training photo: the exact one, a smaller object, inexact masks, and further photos of the object.

"5 % of the object's size" refers to the longer side of its box.
"""

import zlib
from dataclasses import replace

import cv2
import numpy as np

from objtune_cli.evaluation.benchmark_objects import PHOTO_SIDE, Case
from objtune_cli.toybox import renderer, world
from objtune_cli.toybox.world import Dial

VARIANTS = ("exact", "small", "eroded", "dilated", "noisy")
"""Exact photo and mask; the object covers 2 to 5 % of the photo; masks with an error of 5 % of the object's size."""
SMALL = (0.02, 0.05)
ROUGH = 0.05
Photo = tuple[np.ndarray, np.ndarray]


def make_photo(case: Case, way: str = "exact") -> Photo:
    """Make a variant: photo (S, S, 3) and mask (S, S), uint8.

    Raises:
        ValueError: There is no such variant.
    """
    rng = np.random.default_rng((zlib.crc32(case.name.encode()), 7))
    if way == "small":
        return _shrink_object(case, rng.uniform(*SMALL))
    rgb, mask = case.picture()
    if way == "exact":
        return rgb, mask
    return rgb, _distort_mask(mask, way, rng)


def make_further_photos(case: Case, dial: Dial, count: int) -> list[Photo]:
    """Make photos of the object in other scenes, with other poses and backgrounds; the first are the same for every `count`."""
    rng = np.random.default_rng((zlib.crc32(case.name.encode()), 8))
    elsewhere = [background for background in dial.backgrounds if background != case.photo_background]
    backgrounds = [elsewhere[i] for i in rng.permutation(len(elsewhere))]
    photos = []
    for i in range(count):
        scene = world.sample_scene(rng, dial, instances=(case.instance,), background=backgrounds[i % len(backgrounds)])
        rgb, masks = renderer.render(scene, PHOTO_SIDE)
        photos.append((rgb, masks[0]))
    return photos


def _shrink_object(case: Case, share: float) -> Photo:
    """The same scene with a smaller object. The photo is scaled, because the renderer would not scale the object's outline."""
    rgb, mask = case.picture()
    behind = renderer.render(replace(case.photo, objects=()), PHOTO_SIDE)[0].astype(np.float32)
    cover = mask.astype(np.float32)[..., None] / 255
    paint = rgb - behind * (1 - cover)  # the object alone, times its coverage
    factor = float(np.sqrt(share / cover.mean()))
    size = max(1, round(PHOTO_SIDE * factor))
    ys, xs = (mask > 127).nonzero()
    centre = np.array([ys.min() + ys.max(), xs.min() + xs.max()]) / 2
    top, left = (round(float(c) * (1 - factor)) for c in centre)  # the object's centre stays
    layer = np.zeros((PHOTO_SIDE, PHOTO_SIDE, 4), np.float32)
    layer[top : top + size, left : left + size] = cv2.resize(
        np.dstack([paint, cover]), (size, size), interpolation=cv2.INTER_AREA
    )
    composite = layer[..., :3] + behind * (1 - layer[..., 3:])
    return composite.round().clip(0, 255).astype(np.uint8), (layer[..., 3] * 255).round().clip(0, 255).astype(np.uint8)


def _distort_mask(mask: np.ndarray, way: str, rng: np.random.Generator) -> np.ndarray:
    """A mask with an edge error of `ROUGH` of the object's size."""
    inside = (mask > 127).astype(np.uint8)
    ys, xs = inside.nonzero()
    radius = ROUGH * max(ys.max() - ys.min(), xs.max() - xs.min())
    # Signed distance to the outline, positive inside.
    distance = cv2.distanceTransform(inside, cv2.DIST_L2, 5) - cv2.distanceTransform(1 - inside, cv2.DIST_L2, 5)
    if way in ("eroded", "dilated"):
        moved = distance > radius if way == "eroded" else distance > -radius
    elif way == "noisy":
        waves = cv2.GaussianBlur(rng.standard_normal(mask.shape).astype(np.float32), (0, 0), radius)
        moved = distance + radius * waves / waves.std() > 0  # off by the radius on average (root mean square)
    else:
        raise ValueError(f"no way {way!r}: {', '.join(VARIANTS)}")
    image: np.ndarray = moved.astype(np.uint8) * 255
    return image
