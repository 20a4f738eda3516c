"""Pictures of several objects to measures: which thing stands for which object, and whether each is there and itself."""

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from objtune_cli.evaluation import rendering
from objtune_cli.evaluation.truth_scores import SELF, Scale
from objtune_cli.toybox.evaluator import inference
from objtune_cli.toybox.evaluator.inference import Thing
from objtune_cli.toybox.evaluator.network import Evaluator
from objtune_cli.toybox.world import BACKGROUNDS

WINDOW = 32
"""Step of the square windows through which the evaluator reads a wide picture, px of 128."""


def seen(network: Evaluator, shown: np.ndarray, most: int) -> list[list[Thing]]:
    """Things in pictures (N, H, W, 3) that are square or wider: the evaluator reads squares, each thing where it is whole."""
    height, width = shown.shape[1:3]
    if width == height:
        return [r.things for r in inference.read(network, rendering.fitted(shown), most=max(2, most))]
    found: list[list[Thing]] = [[] for _ in shown]
    for x in range(0, width - height + 1, height * WINDOW // rendering.SIDE):
        for things, r in zip(
            found, inference.read(network, rendering.fitted(shown[:, :, x : x + height])), strict=True
        ):
            whole = [t for t in r.things if (t.box[0] > 0.02 or x == 0) and (t.box[2] < 0.98 or x == width - height)]
            things += [
                replace(t, box=((t.box[0] * height + x) / width, t.box[1], (t.box[2] * height + x) / width, t.box[3]))
                for t in whole
            ]
    return [_once(things) for things in found]


def _once(things: list[Thing]) -> list[Thing]:
    """Each thing once, as the surest window saw it."""
    kept: list[Thing] = []
    for thing in sorted(things, key=lambda t: -t.score):
        if all(inference.overlap(thing.box, other.box) < 0.3 for other in kept):
            kept.append(thing)
    return kept


def assigned(scales: Sequence[Scale], things: list[Thing]) -> tuple[np.ndarray, tuple[int, ...]]:
    """Which thing stands for which object, so that the sum of identities is largest.

    Returns:
        Calibrated identity of each thing to each object (T, K); the thing of each object, T where there is none.
    """
    count = len(scales)
    like = np.stack([s.identity(things) for s in scales], 1) if things else np.zeros((0, count))
    padded = np.concatenate([like, np.zeros((count, count))])
    best = max(
        itertools.permutations(range(len(padded)), count), key=lambda p: sum(padded[t, j] for j, t in enumerate(p))
    )
    return like, tuple(min(t, len(things)) for t in best)


def present(scales: Sequence[Scale], things: list[Thing]) -> list[bool]:
    """Whether each object is there and unmixed: a thing nearer to it than halfway, and nearer to it than to any other."""
    like, best = assigned(scales, things)
    return [bool(t < len(things) and like[t, j] >= SELF and int(like[t].argmax()) == j) for j, t in enumerate(best)]


def checked(said: Sequence[Sequence[bool]], right: Sequence[Sequence[bool]]) -> dict[str, float]:
    """How a check's verdicts stand to the evaluator's, both by pictures and their objects; nothing where nobody looked.

    Returns:
        agreed: share of pictures on which both say that all is right, or that it is not. blamed: share of the objects that are right and were
        called wrong; missed: of those that are wrong and were called right. Either is left out where there are no such objects.
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
    network: Evaluator, scales: Sequence[Scale], backgrounds: Sequence[str], shown: np.ndarray
) -> dict[str, float]:
    """Measures of pictures (N, H, W, 3) that ask for all objects before the background of each.

    Returns:
        presence: share of pictures with every object there and unmixed; each: share of objects. identity: mean over objects, 0 for
        a missing one. leak: mean identity of what stands for an object to the others. order: share of pictures with the objects from
        left to right. prompt: share in the asked background.
    """
    found: dict[str, list[float]] = {name: [] for name in ("presence", "each", "identity", "leak", "order", "prompt")}
    for things, background, picture in zip(seen(network, shown, len(scales)), backgrounds, shown, strict=True):
        like, best = assigned(scales, things)
        right = present(scales, things)
        there = [(t, j) for j, t in enumerate(best) if t < len(things)]
        others = [like[t, i] for t, j in there for i in range(len(best)) if i != j]
        middles = [(things[t].box[0] + things[t].box[2]) / 2 for t, _ in there]
        found["presence"].append(all(right))
        found["each"].append(float(np.mean(right)))
        found["identity"].append(sum(like[t, j] for t, j in there) / len(best))
        found["leak"].append(float(np.mean(others)) if others else 0.0)
        found["order"].append(len(there) == len(best) and middles == sorted(middles))
        found["prompt"].append(_background(network, picture) == background)
    return {name: float(np.mean(values)) for name, values in found.items()}


def _background(network: Evaluator, picture: np.ndarray) -> str:
    """The background that the evaluator reads in the middle of a picture."""
    height, width = picture.shape[:2]
    left = (width - height) // 2
    read = inference.read(network, rendering.fitted(picture[None, :, left : left + height]))[0]
    return BACKGROUNDS[int(read.background.argmax())]
