"""`objtune bench --masks`: what `segment` finds in drawn scenes of one to three held-out objects, whose outlines are known."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from objtune_cli.bench import labelled_photos
from objtune_cli.config.sections import Bench, Segment
from objtune_cli.evaluation import statistics
from objtune_cli.images.photo import Photo
from objtune_cli.segmentation import from_class_word, hint_checks, quality_gate
from objtune_cli.segmentation.from_hints import SegmentationModels, SegmentedObject, Target
from objtune_cli.toybox import renderer, world
from objtune_cli.toybox.world import Dial
from objtune_cli.workflow.context import StageContext

SIDE = 320
"""Side of the photos, px."""
TOLERANCE = 0.008
"""Distance at which two outlines are the same, fraction of the photo's diagonal (DAVIS, Perazzi et al. 2016)."""
WAYS = ("class", "box", "point")
RIGHT = 0.5
"""IoU from which a mask is of the object that was meant."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A scene as a photo, and the objects in it: class word and true coverage (S, S) uint8."""

    photo: Photo
    objects: tuple[tuple[str, np.ndarray], ...]


def scenes(dial: Dial, count: int, seed: int) -> Iterator[Seen]:
    """One, two and three held-out objects of different classes in turn; scene i is the same for every count."""
    for i in range(count):
        rng = np.random.default_rng((seed, i))
        kinds = [str(k) for k in rng.choice(dial.classes, 1 + i % 3, replace=False)]
        instances = tuple(world.sample_instance(rng, dial, kind=k, held_out=True) for k in kinds)
        rgb, covers = renderer.render(world.sample_scene(rng, dial, instances=instances), SIDE)
        yield Seen(Photo(rgb, None, "", ()), tuple(zip(kinds, covers, strict=True)))


def run(ctx: StageContext, dial: Dial, config: Bench) -> list[dict[str, Any]]:
    """Rows of each segmenter and way, in drawn scenes or photographs: iou, boundary (F of the outlines), right (share with the object that was meant), refused (share
    that the gate stops), wrong (share that it lets pass although it is another thing), seconds a photo.

    Of `class` there is a row more: `absent`, where the class is not in the photo: the share that passes is wrong.
    """
    rows: list[dict[str, Any]] = []
    for segmenter in config.segmenters.split(","):
        eyes = SegmentationModels(ctx, ctx.settings.resolve(Segment, segmenter=segmenter.strip()))
        progress = ctx.progress(f"masks {segmenter}")
        found = (
            _photographs(eyes, config, progress)
            if config.pictures == "photographs"
            else _drawn(eyes, dial, config, progress)
        )
        for way, values in found.items():
            rows += statistics.rows(f"{segmenter}, {way}", values)
    return rows


Found = dict[str, list[dict[str, float]]]
"""Measures of each way, one for each photo."""


def _drawn(eyes: SegmentationModels, dial: Dial, config: Bench, progress: Callable[[int, int], None]) -> Found:
    """Every way in drawn scenes."""
    found: Found = {way: [] for way in (*WAYS, "absent")}
    for i, seen in enumerate(scenes(dial, config.scenes, config.seed)):
        rng = np.random.default_rng((config.seed, 1, i))
        kind, cover = seen.objects[int(rng.integers(len(seen.objects)))]
        for way in WAYS:
            found[way].append(_measured(eyes, seen.photo, _target(kind, cover, way, rng), cover))
        missing = [k for k in dial.classes if k not in {k for k, _ in seen.objects}]
        asked = _measured(eyes, seen.photo, Target(str(rng.choice(missing)), "it"), np.zeros_like(cover))
        found["absent"].append({name: asked[name] for name in ("refused", "wrong")})
        progress(i + 1, config.scenes)
    return found


def _photographs(eyes: SegmentationModels, config: Bench, progress: Callable[[int, int], None]) -> Found:
    """Every way in photographs, and one by one with a box."""
    found: Found = {f"photographs, {way}": [] for way in WAYS}
    every = list(labelled_photos.outlined())
    for i, seen in enumerate(every):
        rng = np.random.default_rng((config.seed, 2, i))
        for way in WAYS:
            given = _measured(
                eyes, Photo(seen.rgb, None, "", ()), _target(seen.class_word, seen.cover, way, rng), seen.cover
            )
            found[f"photographs, {way}"].append(given)
            if way == "box":
                found[f"{seen.class_word}, box"] = [given]
        progress(i + 1, len(every))
    return found


def _target(kind: str, cover: np.ndarray, way: str, rng: np.random.Generator) -> Target:
    """The object as a person would point at it: a box a little off, a point well inside."""
    if way == "class":
        return Target(kind, "it")
    if way == "box":
        ys, xs = (cover > 127).nonzero()
        height, width = cover.shape
        box = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]) + rng.uniform(-1, 1, 4) * 0.02 * max(
            height, width
        )
        x0, y0, x1, y1 = (float(v) for v in box.clip(0, (width, height, width, height)))
        return Target(kind, "it", (x0, y0, x1, y1))
    depth = cv2.distanceTransform(np.pad((cover > 127).astype(np.uint8), 1), cv2.DIST_L2, 5)[1:-1, 1:-1]
    ys, xs = (depth >= 0.6 * depth.max()).nonzero()
    k = int(rng.integers(len(ys)))
    return Target(kind, "it", points=((float(xs[k]), float(ys[k])),))


def _measured(eyes: SegmentationModels, photo: Photo, target: Target, cover: np.ndarray) -> dict[str, float]:
    started = time.monotonic()
    located: SegmentedObject = from_class_word.segment_objects(eyes, photo, photo.rgb, [target])[0]
    seconds = time.monotonic() - started
    said, true = located.cover > 127, cover > 127
    problem = quality_gate.rejection_reason(
        quality_gate.mask_statistics(located.cover, eyes.ctx.base.cells) | located.metrics,
        target.class_word,
        eyes.config,
    )
    refused = bool(problem or hint_checks.find_disagreement(located.cover, target, photo, located.rough_mask)[0])
    union = (said | true).sum()
    iou = float((said & true).sum() / union) if union else 0.0
    return {
        "iou": iou, "boundary": boundary(said, true), "right": float(iou > RIGHT), "refused": float(refused),
        "wrong": float(not refused and iou <= RIGHT), "seconds": seconds,
    }  # fmt: skip


def boundary(said: np.ndarray, true: np.ndarray) -> float:
    """F of the outlines' pixels, each right where the other outline is within `TOLERANCE`; 0 where one is empty."""
    reach = max(1, round(TOLERANCE * float(np.hypot(*said.shape))))
    near = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
    edges: list[Any] = [
        cv2.morphologyEx(m.astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) for m in (said, true)
    ]
    if not all(e.any() for e in edges):
        return 0.0
    precision = float((edges[0] & cv2.dilate(edges[1], near)).sum() / edges[0].sum())
    recall = float((edges[1] & cv2.dilate(edges[0], near)).sum() / edges[1].sum())
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0
