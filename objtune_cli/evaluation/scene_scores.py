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

MEASURES = ("all_present", "object_present", "identity", "identity_leakage", "layout_accuracy", "prompt")
WINDOW = 32
"""Step of the square windows in which the evaluator reads a wide image, px of 128."""


def find_detections(network: Evaluator, images: np.ndarray, most: int) -> list[list[Detection]]:
    """Detections in images (N, H, W, 3), square or wider. The evaluator reads square windows; a detection counts in windows that show all of it."""
    height, width = images.shape[1:3]
    if width == height:
        return [
            r.detections for r in inference.read_images(network, rendering.resize_images(images), most=max(2, most))
        ]
    detections: list[list[Detection]] = [[] for _ in images]
    for x in range(0, width - height + 1, height * WINDOW // rendering.SIDE):
        for things, r in zip(
            detections,
            inference.read_images(network, rendering.resize_images(images[:, :, x : x + height])),
            strict=True,
        ):
            whole = [
                t for t in r.detections if (t.box[0] > 0.02 or x == 0) and (t.box[2] < 0.98 or x == width - height)
            ]
            things += [
                replace(t, box=((t.box[0] * height + x) / width, t.box[1], (t.box[2] * height + x) / width, t.box[3]))
                for t in whole
            ]
    return [_drop_duplicates(things) for things in detections]


def _drop_duplicates(things: list[Detection]) -> list[Detection]:
    """Keep the surest of overlapping detections."""
    unique: list[Detection] = []
    for thing in sorted(things, key=lambda t: -t.score):
        if all(inference.overlap(thing.box, other.box) < 0.3 for other in unique):
            unique.append(thing)
    return unique


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


def score_presence_check(
    verdicts: Sequence[Sequence[bool]], truth_verdicts: Sequence[Sequence[bool]]
) -> dict[str, float]:
    """Compare the verdicts of `compose`'s check with the evaluator's, by image and object; nothing without a check.

    Args:
        verdicts: Verdicts of the check.
        truth_verdicts: Verdicts of the evaluator.

    Returns:
        check_agreement: fraction of images on which both agree that all objects are right, or that not all are.
        false_alarm_rate: fraction of the right objects that the check calls wrong.
        miss_rate: fraction of the wrong objects that the check calls right. Either is left out if there are no such objects.
    """
    if not verdicts:
        return {}
    rates = {
        "check_agreement": float(np.mean([all(a) == all(b) for a, b in zip(verdicts, truth_verdicts, strict=True)]))
    }
    called = [
        (a, b) for one, other in zip(verdicts, truth_verdicts, strict=True) for a, b in zip(one, other, strict=True)
    ]
    for name, truth in (("false_alarm_rate", True), ("miss_rate", False)):
        disagrees = [a != b for a, b in called if b is truth]
        if disagrees:
            rates[name] = float(np.mean(disagrees))
    return rates


def score(
    network: Evaluator, scales: Sequence[Calibration], backgrounds: Sequence[str], images: np.ndarray
) -> dict[str, float]:
    """Measures of images of all objects.

    Args:
        backgrounds: Background of each image's prompt.
        images: Images (N, H, W, 3) uint8.

    Returns:
        all_present: fraction of images in which every object is present and unmixed; object_present: fraction of objects.
        identity: mean over objects, 0 for a missing one.
        identity_leakage: mean identity of an object's detection to the other objects.
        layout_accuracy: fraction of images with the objects from left to right.
        prompt: fraction of images with the background of the prompt.
    """
    scores: dict[str, list[float]] = {name: [] for name in MEASURES}
    for things, background, picture in zip(
        find_detections(network, images, len(scales)), backgrounds, images, strict=True
    ):
        like, best = assign_detections(scales, things)
        right = find_present_objects(scales, things)
        there = [(t, j) for j, t in enumerate(best) if t < len(things)]
        others = [like[t, i] for t, j in there for i in range(len(best)) if i != j]
        middles = [(things[t].box[0] + things[t].box[2]) / 2 for t, _ in there]
        scores["all_present"].append(all(right))
        scores["object_present"].append(float(np.mean(right)))
        scores["identity"].append(sum(like[t, j] for t, j in there) / len(best))
        scores["identity_leakage"].append(float(np.mean(others)) if others else 0.0)
        scores["layout_accuracy"].append(len(there) == len(best) and middles == sorted(middles))
        scores["prompt"].append(_read_background(network, picture) == background)
    return {name: float(np.mean(values)) for name, values in scores.items()}


def _read_background(network: Evaluator, picture: np.ndarray) -> str:
    """The background that the evaluator reads in the middle of an image."""
    height, width = picture.shape[:2]
    left = (width - height) // 2
    reading = inference.read_images(network, rendering.resize_images(picture[None, :, left : left + height]))[0]
    return BACKGROUNDS[int(reading.background.argmax())]
