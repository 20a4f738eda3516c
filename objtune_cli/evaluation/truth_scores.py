"""Measures of one object from the evaluator's readings; ground truth is scored by the same function."""

from dataclasses import dataclass

import numpy as np

from objtune_cli.evaluation import statistics
from objtune_cli.evaluation.benchmark_objects import Case, Prompt
from objtune_cli.toybox.evaluator.inference import MIN_SCORE, Detection, SceneReading
from objtune_cli.toybox.world import BACKGROUNDS

POOLED = ("prompt", "all_present")
"""Measures that the table divides by the ground truth's mean over all objects; the ratio of one object's few images would be biased."""
MIN_IDENTITY = 0.5
"""Calibrated identity from which a detection counts as the object: it is nearer to it than to other instances of its class."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """Calibration of the measures of one object: the raw values for 0 and 1.

    Attributes:
        references: Identity vectors of renderings of the object, (R, d).
        floor, ceiling: Mean cosine to them of other instances of the class, and of further renderings of the object.
        spread: Mean distance between the poses of the object's renderings.
    """

    references: np.ndarray
    floor: float
    ceiling: float
    spread: float

    def endpoints(self) -> dict[str, tuple[float, float]]:
        """Raw values of identity and diversity at which the measures are 0 and 1."""
        return {"identity": (round(self.floor, 5), round(self.ceiling, 5)), "diversity": (0.0, round(self.spread, 5))}

    def identity(self, things: list[Detection]) -> np.ndarray:
        """Calibrated identity of each detection."""
        cosines = statistics.mean_cosine(identity_vectors(things), self.references)
        return (cosines - self.floor) / (self.ceiling - self.floor)


def identity_vectors(things: list[Detection]) -> np.ndarray:
    """Identity vectors of detections, (N, d)."""
    return np.stack([t.vector.numpy() for t in things])


def pose_spread(things: list[Detection]) -> float:
    """Mean distance between the poses of detections."""
    return statistics.mean_distance(np.array([statistics.pose_vector(t.box) for t in things]))


def score(case: Case, scale: Calibration, readings: list[SceneReading]) -> dict[str, float]:
    """Measures of the images of a case's prompts, in the order of the prompts.

    Returns:
        Those of these measures for which there is a kind of prompt.
        identity, diversity: calibrated. background_leakage: probability of the photo's background, in [0, 1].
        detection_rate: fraction of the images of the object alone with a detection; duplicate_rate: with two that are the object.
        prompt: fraction of images that follow it; all_present: of pairs with both objects. The table divides these two by the
            ground truth's (`POOLED`).
    """
    kinds = [p.kind for p in case.prompts]
    lone = [(p, r) for p, r in zip(case.prompts, readings, strict=True) if p.kind != "pair"]
    scenes = [r.main for r, kind in zip(readings, kinds, strict=True) if kind == "scene"]
    pairs = [(p, r) for p, r in zip(case.prompts, readings, strict=True) if p.kind == "pair"]
    own = BACKGROUNDS.index(case.photo_background)
    scores: dict[str, float] = {}
    if scenes:
        detected = [t for t in scenes if t.score >= MIN_SCORE]
        scores["identity"] = float(scale.identity(scenes).mean())
        scores["detection_rate"] = len(detected) / len(scenes)
        scores["diversity"] = pose_spread(detected) / scale.spread if len(detected) > 1 else 0.0
        scores["duplicate_rate"] = float(
            np.mean(
                [
                    int((scale.identity(r.detections) >= MIN_IDENTITY).sum()) > 1
                    for r, kind in zip(readings, kinds, strict=True)
                    if kind == "scene"
                ]
            )
        )
    if lone:
        scores["prompt"] = float(np.mean([follows_prompt(p, r) for p, r in lone]))
        scores["background_leakage"] = float(np.mean([float(r.background[own]) for _, r in lone]))
    if pairs:
        scores["all_present"] = float(np.mean([shows_pair(p, scale, r) for p, r in pairs]))
    return scores


def follows_prompt(prompt: Prompt, reading: SceneReading) -> bool:
    """Whether the image shows the prompt's background and accessory."""
    background = BACKGROUNDS[int(reading.background.argmax())] == prompt.background
    return background and (not prompt.accessory or reading.main.label("accessory") == prompt.accessory)


def shows_pair(prompt: Prompt, scale: Calibration, reading: SceneReading) -> bool:
    """Whether one detection is the object and another one has the class and colour of the prompt's second object."""
    if prompt.other is None or len(reading.detections) < 2:
        return False
    is_object = scale.identity(reading.detections) >= MIN_IDENTITY
    is_other = [
        t.label("class") == prompt.other.kind and t.label("colour") == prompt.other.colour for t in reading.detections
    ]
    return bool((is_object[0] and is_other[1]) or (is_object[1] and is_other[0]))


def score_drift(
    scale: Calibration, kind: str, before: list[SceneReading], after: list[SceneReading]
) -> dict[str, float]:
    """Class drift, from images of "a <class>" from equal noise before and after training.

    Returns:
        drift: 0 if the class is as far from the object as before, 1 if it is the object.
        class_accuracy: fraction of images that still show the class.
    """
    cosine_before, cosine_after = (
        float(statistics.mean_cosine(identity_vectors([r.main for r in side]), scale.references).mean())
        for side in (before, after)
    )
    is_class = [r.main.label("class") == kind for r in after]
    return {
        "drift": statistics.calibrate(cosine_after, cosine_before, scale.ceiling),
        "class_accuracy": float(np.mean(is_class)),
    }
