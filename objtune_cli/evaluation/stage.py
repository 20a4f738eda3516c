"""`objtune evaluate REF`: the bench's measures for one trained object, or the papers' for bases without a world."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from objtune_cli.errors import InputError
from objtune_cli.evaluation import rendering, statistics, truth_scores
from objtune_cli.evaluation.benchmark_objects import PLACE, Case, Prompt
from objtune_cli.evaluation.clip_dino import Judges, score
from objtune_cli.evaluation.features import Pictures, Texts
from objtune_cli.store import artifacts
from objtune_cli.store.refs import Ref
from objtune_cli.toybox import world
from objtune_cli.toybox.captions import PLACES, article
from objtune_cli.toybox.evaluator import inference
from objtune_cli.toybox.evaluator.inference import Thing
from objtune_cli.toybox.evaluator.network import cut
from objtune_cli.toybox.world import BACKGROUNDS, Dial, Instance
from objtune_cli.workflow import trained_objects
from objtune_cli.workflow.context import StageContext

SCENES = (
    "on the beach", "in the snow", "on a cobblestone street", "in the jungle", "on a wooden floor",
    "with a city in the background", "with a mountain in the background", "on top of a purple rug",
)  # fmt: skip
"""Scenes asked of bases without a world; most are DreamBooth's (arXiv:2208.12242, supplement)."""


@dataclass(frozen=True, slots=True)
class Given:
    """The trained object and its photo.

    Attributes:
        rgb: The photo (H, W, 3) uint8. mask: coverage (H, W) uint8.
    """

    name: str
    kind: str
    rgb: np.ndarray
    mask: np.ndarray
    weights: dict[str, Any]


def given(ctx: StageContext, ref: Ref, name: str | None = None) -> Given:
    """A trained object with the photo that it was learned from.

    Raises:
        InputError: The adapter holds several objects and `name` is none of them.
    """
    record = artifacts.read_record(ctx.root, ref)
    ctx.check_base(record, drawn=True)
    if name is None and len(record.objects) > 1:
        raise InputError(f"{ref} holds several objects", f"choose one with `--name`: {', '.join(record.objects)}")
    name = name or next(iter(record.objects))
    if name not in record.objects:
        raise InputError(f"{ref} holds no {name}", f"it holds {', '.join(record.objects)}")
    item = trained_objects.Named(name, record, artifacts.sha256(ref.path(ctx.root)))
    source = trained_objects.photo(ctx, item)
    if source is None:
        raise InputError(f"{record.ref} does not say which photo {name} was learned from", "train it from a photo")
    return Given(name, record.objects[name], source.rgb, source.mask, trained_objects.tensors(ctx, item))


def toybox(ctx: StageContext, subject: Given, dial: Dial, repeats: int, seed: int) -> dict[str, float]:
    """The bench's measures against the photo; the class's drawn objects say what 0 and 1 are."""
    network = inference.load()
    if subject.kind not in dial.classes:
        raise InputError(f"the toybox draws no {subject.kind}", f"it draws {', '.join(dial.classes)}")
    case, scale = _calibrated(network, subject, dial, repeats, seed)
    before = rendering.readings(
        network, rendering.of_class(ctx, rendering.loaded(ctx, subject.name, None)[0], subject.kind)
    )
    model, words = rendering.loaded(ctx, subject.name, subject.weights, subject.kind)
    seen = rendering.readings(
        network, rendering.asked(ctx, model, words, case, f"<{subject.name}>", **ctx.base.of_objects())
    )
    after = rendering.readings(network, rendering.of_class(ctx, model, subject.kind))
    return truth_scores.score(case, scale, seen) | truth_scores.drift(scale, subject.kind, before, after)


def _calibrated(network: Any, subject: Given, dial: Dial, repeats: int, seed: int) -> tuple[Case, truth_scores.Scale]:
    """Prompts on every other background, and the scale around the photo's own identity vector."""
    import torch

    square, box = squared(subject.rgb, subject.mask)
    small = rendering.fitted(square[None])
    own = BACKGROUNDS[int(inference.read(network, small)[0].background.argmax())]
    x = torch.from_numpy(small.copy()).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        reference = network.reader(cut(x, torch.tensor([box])))[0].numpy()
    places = [b for b in dial.backgrounds if b != own] * repeats
    prompts = tuple(
        Prompt("scene", f"a photo of {PLACE} {PLACES[b][0]}", b, "", None, 1000 + i) for i, b in enumerate(places)
    )
    rng = np.random.default_rng((seed, 5))
    instances = [world.sample_instance(rng, dial, kind=subject.kind, held_out=True) for _ in range(rendering.OTHERS)]

    def seen(chosen: list[Instance]) -> list[Thing]:
        scenes = [world.sample_scene(rng, dial, instances=(i,)) for i in chosen]
        return [r.main for r in inference.read(network, rendering.drawn(scenes))]

    once, again = (truth_scores.vectors(seen(instances)) for _ in range(2))
    one, zero = float((once * again).sum(1).mean()), float(statistics.similarity(again, reference).mean())
    stand_in = instances[0]
    case = Case(subject.name, stand_in, world.sample_scene(rng, dial, instances=(stand_in,), background=own), prompts)
    return case, truth_scores.Scale(reference, zero, one, truth_scores.scatter(seen([stand_in] * rendering.REFERENCES)))


def squared(rgb: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, tuple[float, float, float, float]]:
    """A photo padded to a square by its edge, and the mask's box in fractions of the square."""
    height, width = mask.shape
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    pad = ((top, side - height - top), (left, side - width - left), (0, 0))
    ys, xs = (mask > 127).nonzero()
    box = ((xs.min() + left) / side, (ys.min() + top) / side, (xs.max() + 1 + left) / side, (ys.max() + 1 + top) / side)
    return np.pad(rgb, pad, mode="edge"), tuple(float(v) for v in box)  # type: ignore[return-value]


def papers(
    ctx: StageContext, subject: Given, scenes: list[str], repeats: int, clip: tuple[Pictures, Texts], dino: Pictures
) -> dict[str, float]:
    """CLIP-I, CLIP-T and DINO, with the photo whole and its object alone, diversity and class drift.

    Returns:
        clip_i, dino: mean cosine of pictures and photo; *_masked: and the object alone. clip_t: of pictures
        and prompts with the class word. diversity: 1 - mean DINO cosine of two pictures of a prompt. drift:
        how much nearer "a <class>" came to the object alone, DINO cosine after less before.
    """
    model, words = rendering.loaded(ctx, subject.name, subject.weights, subject.kind)
    texts = [f"a photo of {PLACE} {place}" for place in scenes for _ in range(repeats)]
    seeds = list(range(1000, 1000 + len(texts)))
    said = [words.expand(t.replace(PLACE, f"<{subject.name}>")) for t in texts]
    shown = rendering.pictures(ctx, model, said, seeds, subject.name, **ctx.base.of_objects())
    after = rendering.of_class(ctx, model, subject.kind)
    before = rendering.of_class(ctx, rendering.loaded(ctx, subject.name, None)[0], subject.kind)
    alone = object_alone(subject.rgb, subject.mask)
    told = [t.replace(PLACE, article(subject.kind)) for t in texts]
    found = score(Judges(*clip, dino), shown, told, {"": [subject.rgb], "_masked": [alone]}, repeats)
    reference = dino(alone[None])
    was, now = (float(statistics.similarity(dino(side), reference).mean()) for side in (before, after))
    return found | {"drift": now - was}


def object_alone(rgb: np.ndarray, mask: np.ndarray, margin: float = 0.1) -> np.ndarray:
    """The object on mid-grey, cut square around its box."""
    ys, xs = (mask > 127).nonzero()
    half = round(max(xs.max() - xs.min(), ys.max() - ys.min()) * (0.5 + margin)) + 1
    cover = mask[..., None].astype(np.float32) / 255
    grey = (rgb * cover + 127 * (1 - cover)).round().astype(np.uint8)
    wide = np.pad(grey, ((half, half), (half, half), (0, 0)), constant_values=127)
    y, x = (ys.min() + ys.max()) // 2 + half, (xs.min() + xs.max()) // 2 + half
    return wide[y - half : y + half, x - half : x + half]
