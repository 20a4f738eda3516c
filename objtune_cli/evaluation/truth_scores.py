"""Readings of one object's pictures to its row of measures; the truth is scored by the same function."""

from dataclasses import dataclass

import numpy as np

from objtune_cli.evaluation import statistics
from objtune_cli.evaluation.benchmark_objects import Case, Prompt
from objtune_cli.toybox.evaluator.inference import PRESENT, Reading, Thing
from objtune_cli.toybox.world import BACKGROUNDS

POOLED = ("prompt", "presence")
"""Shares that are divided by the truth's own, over all objects: of one object's few pictures the ratio would be biased."""
SELF = 0.5
"""Calibrated identity from which a thing counts as the object: nearer to it than to another of its class."""


@dataclass(frozen=True, slots=True)
class Scale:
    """0 and 1 of the measures for one object.

    Attributes:
        references: Identity vectors of the object drawn again, (R, d).
        zero, one: Mean cosine to them of other instances of the class, and of the object drawn again.
        spread: Of the poses of the object drawn again.
    """

    references: np.ndarray
    zero: float
    one: float
    spread: float

    def ends(self) -> dict[str, tuple[float, float]]:
        """The quantity behind identity and diversity where the measure is 0 and where it is 1."""
        return {"identity": (round(self.zero, 5), round(self.one, 5)), "diversity": (0.0, round(self.spread, 5))}

    def identity(self, things: list[Thing]) -> np.ndarray:
        """Calibrated identity of each thing."""
        cosines = statistics.similarity(vectors(things), self.references)
        return (cosines - self.zero) / (self.one - self.zero)


def vectors(things: list[Thing]) -> np.ndarray:
    """Identity vectors (N, d)."""
    return np.stack([t.vector.numpy() for t in things])


def scatter(things: list[Thing]) -> float:
    """Spread of the poses of things."""
    return statistics.spread(np.array([statistics.pose(t.box) for t in things]))


def score(case: Case, scale: Scale, seen: list[Reading]) -> dict[str, float]:
    """Measures of the pictures of a case's prompts, in their order.

    Returns:
        identity, diversity, found, twice, prompt, leak, presence; those without a prompt of their kind are left out.
        twice: share of the pictures of the object alone in which two things are the object.
        prompt and presence are shares as they are: the table puts them on the scale of the truth (`POOLED`).
    """
    kinds = [p.kind for p in case.prompts]
    lone = [(p, r) for p, r in zip(case.prompts, seen, strict=True) if p.kind != "pair"]
    scenes = [r.main for r, kind in zip(seen, kinds, strict=True) if kind == "scene"]
    pairs = [(p, r) for p, r in zip(case.prompts, seen, strict=True) if p.kind == "pair"]
    own = BACKGROUNDS.index(case.photo_background)
    found: dict[str, float] = {}
    if scenes:
        sure = [t for t in scenes if t.score >= PRESENT]
        found["identity"] = float(scale.identity(scenes).mean())
        found["found"] = len(sure) / len(scenes)
        found["diversity"] = scatter(sure) / scale.spread if len(sure) > 1 else 0.0
        found["twice"] = float(
            np.mean(
                [
                    int((scale.identity(r.things) >= SELF).sum()) > 1
                    for r, kind in zip(seen, kinds, strict=True)
                    if kind == "scene"
                ]
            )
        )
    if lone:
        found["prompt"] = float(np.mean([follows(p, r) for p, r in lone]))
        found["leak"] = float(np.mean([float(r.background[own]) for _, r in lone]))
    if pairs:
        found["presence"] = float(np.mean([present(p, scale, r) for p, r in pairs]))
    return found


def follows(prompt: Prompt, seen: Reading) -> bool:
    """Whether the asked background, and the asked accessory, are there."""
    background = BACKGROUNDS[int(seen.background.argmax())] == prompt.background
    return background and (not prompt.accessory or seen.main.word("accessory") == prompt.accessory)


def present(prompt: Prompt, scale: Scale, seen: Reading) -> bool:
    """Whether one thing is the object and another one is of the asked class and colour."""
    if prompt.other is None or len(seen.things) < 2:
        return False
    itself = scale.identity(seen.things) >= SELF
    asked = [t.word("class") == prompt.other.kind and t.word("colour") == prompt.other.colour for t in seen.things]
    return bool((itself[0] and asked[1]) or (itself[1] and asked[0]))


def drift(scale: Scale, kind: str, before: list[Reading], after: list[Reading]) -> dict[str, float]:
    """What "a <class>" became, from pictures of equal noise without and with what was learned.

    Returns:
        drift: 0 where the class is as far from the object as before, 1 where it is the object.
        class: share of pictures that still are of the class.
    """
    was, now = (
        float(statistics.similarity(vectors([r.main for r in side]), scale.references).mean())
        for side in (before, after)
    )
    kept = [r.main.word("class") == kind for r in after]
    return {"drift": statistics.calibrated(now, was, scale.one), "class": float(np.mean(kept))}
