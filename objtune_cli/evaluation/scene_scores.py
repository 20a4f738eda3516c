"""Measures of images of several objects: assign detections to objects, and check that each object is present and unmixed."""

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from objtune_cli.evaluation import rendering
from objtune_cli.evaluation.truth_scores import MIN_IDENTITY, Calibration
from objtune_cli.toybox.evaluator import inference
from objtune_cli.toybox.evaluator.inference import Detection
from objtune_cli.toybox.evaluator.network import Evaluator
from objtune_cli.toybox.world import BACKGROUNDS

WINDOW = 32
"""Step of the square windows in which the evaluator reads a wide image, px of 128."""


def find_detections(network: Evaluator, shown: np.ndarray, most: int) -> list[list[Detection]]:
    """Detections in images (N, H, W, 3), square or wider. The evaluator reads square windows; a detection counts in windows that show all of it."""
    height, width = shown.shape[1:3]
    if width == height:
        return [r.detections for r in inference.read_images(network, rendering.resize_images(shown), most=max(2, most))]
    found: list[list[Detection]] = [[] for _ in shown]
    for x in range(0, width - height + 1, height * WINDOW // rendering.SIDE):
        for things, r in zip(
            found, inference.read_images(network, rendering.resize_images(shown[:, :, x : x + height])), strict=True
        ):
            whole = [
                t for t in r.detections if (t.box[0] > 0.02 or x == 0) and (t.box[2] < 0.98 or x == width - height)
            ]
            things += [
                replace(t, box=((t.box[0] * height + x) / width, t.box[1], (t.box[2] * height + x) / width, t.box[3]))
                for t in whole
            ]
    return [_drop_duplicates(things) for things in found]


def _drop_duplicates(things: list[Detection]) -> list[Detection]:
    """Keep the surest of overlapping detections."""
    kept: list[Detection] = []
    for thing in sorted(things, key=lambda t: -t.score):
        if all(inference.overlap(thing.box, other.box) < 0.3 for other in kept):
            kept.append(thing)
    return kept


def assign_detections(scales: Sequence[Calibration], things: list[Detection]) -> tuple[np.ndarray, tuple[int, ...]]:
    """Assign detections to objects so that the sum of identities is largest.

    Returns:
        Calibrated identity of each detection to each object (T, K); and the index of each object's detection, T for an object without one.
    """
    count = len(scales)
    like = np.stack([s.identity(things) for s in scales], 1) if things else np.zeros((0, count))
    padded = np.concatenate([like, np.zeros((count, count))])
    best = max(
        itertools.permutations(range(len(padded)), count), key=lambda p: sum(padded[t, j] for j, t in enumerate(p))
    )
    return like, tuple(min(t, len(things)) for t in best)


def find_present_objects(scales: Sequence[Calibration], things: list[Detection]) -> list[bool]:
    """Whether each object is present and unmixed: its detection has at least half its identity, and more than the identity of any other object."""
    like, best = assign_detections(scales, things)
    return [
        bool(t < len(things) and like[t, j] >= MIN_IDENTITY and int(like[t].argmax()) == j) for j, t in enumerate(best)
    ]


def compare_checks(said: Sequence[Sequence[bool]], right: Sequence[Sequence[bool]]) -> dict[str, float]:
    """Compare the verdicts of `compose`'s check with the evaluator's, by image and object; nothing without a check.

    Args:
        said: Verdicts of the check.
        right: Verdicts of the evaluator.

    Returns:
        agreed: fraction of images on which both agree that all objects are right, or that not all are.
        blamed: fraction of the right objects that the check calls wrong.
        missed: fraction of the wrong objects that the check calls right. Either is left out if there are no such objects.
    """
    if not said:
        return {}
    found = {"agreed": float(np.mean([all(a) == all(b) for a, b in zip(said, right, strict=True)]))}
    called = [(a, b) for one, other in zip(said, right, strict=True) for a, b in zip(one, other, strict=True)]
    for name, truth in (("blamed", True), ("missed", False)):
        asked = [a != b for a, b in called if b is truth]
        if asked:
            found[name] = float(np.mean(asked))
    return found


def score(
    network: Evaluator, scales: Sequence[Calibration], backgrounds: Sequence[str], shown: np.ndarray
) -> dict[str, float]:
    """Measures of images of all objects.

    Args:
        backgrounds: Background of each image's prompt.
        shown: Images (N, H, W, 3) uint8.

    Returns:
        presence: fraction of images in which every object is present and unmixed; each: fraction of objects.
        identity: mean over objects, 0 for a missing one.
        leak: mean identity of an object's detection to the other objects.
        order: fraction of images with the objects from left to right.
        prompt: fraction of images with the background of the prompt.
    """
    scores: dict[str, list[float]] = {name: [] for name in ("presence", "each", "identity", "leak", "order", "prompt")}
    for things, background, picture in zip(
        find_detections(network, shown, len(scales)), backgrounds, shown, strict=True
    ):
        like, best = assign_detections(scales, things)
        right = find_present_objects(scales, things)
        there = [(t, j) for j, t in enumerate(best) if t < len(things)]
        others = [like[t, i] for t, j in there for i in range(len(best)) if i != j]
        middles = [(things[t].box[0] + things[t].box[2]) / 2 for t, _ in there]
        scores["presence"].append(all(right))
        scores["each"].append(float(np.mean(right)))
        scores["identity"].append(sum(like[t, j] for t, j in there) / len(best))
        scores["leak"].append(float(np.mean(others)) if others else 0.0)
        scores["order"].append(len(there) == len(best) and middles == sorted(middles))
        scores["prompt"].append(_read_background(network, picture) == background)
    return {name: float(np.mean(values)) for name, values in scores.items()}


def _read_background(network: Evaluator, picture: np.ndarray) -> str:
    """The background that the evaluator reads in the middle of an image."""
    height, width = picture.shape[:2]
    left = (width - height) // 2
    read = inference.read_images(network, rendering.resize_images(picture[None, :, left : left + height]))[0]
    return BACKGROUNDS[int(read.background.argmax())]
