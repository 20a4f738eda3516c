"""`objtune bench masks`: masks of `segment` in toybox scenes of one to three held-out objects, or in labelled photographs."""

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
from objtune_cli.numerics.masks import iou as overlap
from objtune_cli.segmentation import from_class_word, hint_checks, quality_gate
from objtune_cli.segmentation.from_hints import SegmentationModels, SegmentedObject, Target
from objtune_cli.toybox import renderer, world
from objtune_cli.toybox.world import Dial
from objtune_cli.workflow.context import StageContext

SIDE = 320
"""Side of the photos, px."""
TOLERANCE = 0.008
"""Distance within which outlines match, fraction of the photo's diagonal (DAVIS, Perazzi et al. 2016)."""
HINTS = ("class", "box", "point")
MIN_IOU = 0.5
"""IoU above which a mask shows the intended object."""


@dataclass(frozen=True, slots=True)
class LabelledScene:
    """A scene as a photo, and its objects: class word and exact mask (S, S) uint8."""

    photo: Photo
    objects: tuple[tuple[str, np.ndarray], ...]


def sample_scenes(dial: Dial, count: int, seed: int) -> Iterator[LabelledScene]:
    """Sample scenes of one, two and three held-out objects of different classes in turn; scene i is the same for every `count`."""
    for i in range(count):
        rng = np.random.default_rng((seed, i))
        kinds = [str(k) for k in rng.choice(dial.classes, 1 + i % 3, replace=False)]
        instances = tuple(world.sample_instance(rng, dial, kind=k, held_out=True) for k in kinds)
        rgb, covers = renderer.render(world.sample_scene(rng, dial, instances=instances), SIDE)
        yield LabelledScene(Photo(rgb, None, "", ()), tuple(zip(kinds, covers, strict=True)))


def run(ctx: StageContext, dial: Dial, config: Bench) -> list[dict[str, Any]]:
    """Rows of each segmenter and hint, in toybox scenes or photographs.

    Measures: `iou`; `boundary`, F of the outlines; `right`, fraction with the intended object; `refused`, fraction that the quality gate rejects;
    `wrong`, fraction with another object that it accepts; `seconds` per photo; `detail_iou`, IoU in the box of hair, fur, glass or a thin part.
    The row `absent` is for classes that are not in the photo.
    """
    rows: list[dict[str, Any]] = []
    for segmenter in config.segmenters.split(","):
        eyes = SegmentationModels(ctx, ctx.settings.resolve(Segment, segmenter=segmenter.strip()))
        progress = ctx.progress(f"masks {segmenter}")
        measures = (
            _score_photos(eyes, config, progress)
            if config.mask_dataset == "photos"
            else _score_scenes(eyes, dial, config, progress)
        )
        for way, values in measures.items():
            rows += statistics.table_rows(f"{segmenter}, {way}", values)
    return rows


MeasuresByHint = dict[str, list[dict[str, float]]]
"""Measures of each hint, one dictionary per photo."""


def _score_scenes(
    eyes: SegmentationModels, dial: Dial, config: Bench, progress: Callable[[int, int], None]
) -> MeasuresByHint:
    """Measure every hint in toybox scenes."""
    measures: MeasuresByHint = {way: [] for way in (*HINTS, "absent")}
    for i, sample in enumerate(sample_scenes(dial, config.num_mask_scenes, config.seed)):
        rng = np.random.default_rng((config.seed, 1, i))
        kind, cover = sample.objects[int(rng.integers(len(sample.objects)))]
        for way in HINTS:
            measures[way].append(_score_mask(eyes, sample.photo, _make_target(kind, cover, way, rng), cover))
        missing = [k for k in dial.classes if k not in {k for k, _ in sample.objects}]
        absent = _score_mask(eyes, sample.photo, Target(str(rng.choice(missing)), "it"), np.zeros_like(cover))
        measures["absent"].append({name: absent[name] for name in ("rejection_rate", "false_accept_rate")})
        progress(i + 1, config.num_mask_scenes)
    return measures


def _score_photos(eyes: SegmentationModels, config: Bench, progress: Callable[[int, int], None]) -> MeasuresByHint:
    """Measure every hint in photographs, and each object with a box."""
    measures: MeasuresByHint = {f"photographs, {way}": [] for way in HINTS}
    every = list(labelled_photos.load_photos())
    for i, sample in enumerate(every):
        rng = np.random.default_rng((config.seed, 2, i))
        for way in HINTS:
            photo, target = Photo(sample.rgb, None, "", ()), _make_target(sample.class_word, sample.cover, way, rng)
            score, mask = _segment_and_score(eyes, photo, target, sample.cover)
            measures[f"photographs, {way}"].append(score)
            if way == "box":
                part = sample.crop_detail(mask), sample.crop_detail(sample.cover > 127)
                detail = {} if part[0] is None or part[1] is None else {"detail_iou": overlap(part[0], part[1])}
                measures[f"{sample.class_word}, box"] = [score | detail]
        progress(i + 1, len(every))
    return measures


def _make_target(kind: str, cover: np.ndarray, way: str, rng: np.random.Generator) -> Target:
    """A hint like that of a user: a slightly wrong box, or a point well inside."""
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


def _score_mask(eyes: SegmentationModels, photo: Photo, target: Target, cover: np.ndarray) -> dict[str, float]:
    return _segment_and_score(eyes, photo, target, cover)[0]


def _segment_and_score(
    eyes: SegmentationModels, photo: Photo, target: Target, cover: np.ndarray
) -> tuple[dict[str, float], np.ndarray]:
    """The measures of one mask, and the mask (H, W) bool."""
    start_time = time.monotonic()
    located: SegmentedObject = from_class_word.segment_objects(eyes, photo, photo.rgb, [target])[0]
    seconds = time.monotonic() - start_time
    predicted, true = located.cover > 127, cover > 127
    problem = quality_gate.rejection_reason(
        quality_gate.mask_statistics(located.cover, eyes.ctx.base.num_latent_cells) | located.metrics,
        target.class_word,
        eyes.config,
    )
    refused = bool(problem or hint_checks.find_disagreement(located.cover, target, photo, located.rough_mask)[0])
    iou = overlap(predicted, true) if true.any() else 0.0
    measures = {
        "iou": iou, "boundary_f": boundary_f(predicted, true), "hit_rate": float(iou > MIN_IOU), "rejection_rate": float(refused),
        "false_accept_rate": float(not refused and iou <= MIN_IOU), "seconds": seconds,
    }  # fmt: skip
    return measures, predicted


def boundary_f(predicted: np.ndarray, true: np.ndarray) -> float:
    """F measure of the outlines' pixels, which match within `TOLERANCE`; 0 if a mask is empty."""
    reach = max(1, round(TOLERANCE * float(np.hypot(*predicted.shape))))
    near = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
    edges: list[Any] = [
        cv2.morphologyEx(m.astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) for m in (predicted, true)
    ]
    if not all(e.any() for e in edges):
        return 0.0
    precision = float((edges[0] & cv2.dilate(edges[1], near)).sum() / edges[0].sum())
    recall = float((edges[1] & cv2.dilate(edges[0], near)).sum() / edges[1].sum())
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0
