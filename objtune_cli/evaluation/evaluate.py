"""`objtune evaluate REF`: the toybox measures of one trained object, or CLIP and DINO for bases that are not of the toybox."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from objtune_cli.errors import InputError
from objtune_cli.evaluation import rendering, statistics, truth_scores
from objtune_cli.evaluation.benchmark_objects import OBJECT_SLOT, Case, Prompt
from objtune_cli.evaluation.clip_dino import MetricModels, score
from objtune_cli.evaluation.features import ImageEmbedder, TextEmbedder
from objtune_cli.store.refs import Ref
from objtune_cli.toybox import world
from objtune_cli.toybox.captions import PLACES, article
from objtune_cli.toybox.evaluator import inference
from objtune_cli.toybox.evaluator.inference import Detection
from objtune_cli.toybox.evaluator.network import cut
from objtune_cli.toybox.world import BACKGROUNDS, Dial, Instance
from objtune_cli.workflow import trained_objects
from objtune_cli.workflow.context import StageContext

SCENES = (
    "on the beach", "in the snow", "on a cobblestone street", "in the jungle", "on a wooden floor",
    "with a city in the background", "with a mountain in the background", "on top of a purple rug",
)  # fmt: skip
"""Scene phrases for bases that are not of the toybox; most are DreamBooth's (arXiv:2208.12242, supplement)."""


@dataclass(frozen=True, slots=True)
class TrainedSubject:
    """A trained object and its photos.

    Attributes:
        kind: Class word.
        rgb: Photo (H, W, 3) uint8.
        mask: Soft mask (H, W) uint8.
        weights: Tensors of the adapter.
        further: Further photos of the object, each with its mask.
    """

    name: str
    kind: str
    rgb: np.ndarray
    mask: np.ndarray
    weights: dict[str, Any]
    further: tuple[tuple[np.ndarray, np.ndarray], ...] = ()

    @property
    def photos(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """All photos with their masks."""
        return [(self.rgb, self.mask), *self.further]


def load_subject(ctx: StageContext, ref: Ref, name: str | None = None) -> TrainedSubject:
    """Load a trained object and the photos that it was learned from.

    Raises:
        InputError: The adapter contains several objects and no `name` is given, it has no object `name`, or its photo is not known.
    """
    record = ctx.store.read_record(ref)
    ctx.check_base(record, for_images=True)
    if name is None and len(record.objects) > 1:
        raise InputError(f"{ref} has several objects", f"choose one with `--name`: {', '.join(record.objects)}")
    name = name or next(iter(record.objects))
    if name not in record.objects:
        raise InputError(f"{ref} has no {name}", f"it has {', '.join(record.objects)}")
    item = trained_objects.PromptObject(name, record, ctx.store.compute_sha256(ref))
    sources = trained_objects.load_sources(ctx, item)
    if not sources:
        raise InputError(f"{record.ref} does not store the training photo of {name}", "train the object from a photo")
    weights = trained_objects.load_tensors(ctx, item)
    further = tuple((source.rgb, source.mask) for source in sources[1:])
    return TrainedSubject(name, record.objects[name], sources[0].rgb, sources[0].mask, weights, further)


def score_on_toybox(
    ctx: StageContext, subject: TrainedSubject, dial: Dial, repeats: int, seed: int
) -> dict[str, float]:
    """The toybox measures against the photos, calibrated by rendered objects of the class.

    Raises:
        InputError: The toybox does not have the class.
    """
    network = inference.load()
    if subject.kind not in dial.classes:
        raise InputError(f"the toybox has no {subject.kind}", f"it has {', '.join(dial.classes)}")
    case, scale = _calibrate(network, subject, dial, repeats, seed)
    before = rendering.read_images(
        network, rendering.sample_class(ctx, rendering.load_adapter(ctx, subject.name, None)[0], subject.kind)
    )
    model, words = rendering.load_adapter(ctx, subject.name, subject.weights, subject.kind)
    readings = rendering.read_images(
        network,
        rendering.sample_case(ctx, model, words, case, f"<{subject.name}>", **ctx.base.object_sampling_kwargs()),
    )
    after = rendering.read_images(network, rendering.sample_class(ctx, model, subject.kind))
    return truth_scores.score(case, scale, readings) | truth_scores.score_drift(scale, subject.kind, before, after)


def _calibrate(
    network: Any, subject: TrainedSubject, dial: Dial, repeats: int, seed: int
) -> tuple[Case, truth_scores.Calibration]:
    """Prompts on every background but the first photo's, and the calibration around the photos' identity vectors."""
    import torch

    squares = [pad_to_square(rgb, mask) for rgb, mask in subject.photos]
    small = [rendering.resize_images(square[None]) for square, _ in squares]
    own = BACKGROUNDS[int(inference.read_images(network, small[0])[0].background.argmax())]
    vectors = []
    for image, (_, box) in zip(small, squares, strict=True):
        x = torch.from_numpy(image.copy()).permute(0, 3, 1, 2).float() / 127.5 - 1
        with torch.no_grad():
            vectors.append(network.reader(cut(x, torch.tensor([box])))[0].numpy())
    reference = np.concatenate(vectors)
    places = [b for b in dial.backgrounds if b != own] * repeats
    prompts = tuple(
        Prompt("scene", f"a photo of {OBJECT_SLOT} {PLACES[b][0]}", b, "", None, 1000 + i) for i, b in enumerate(places)
    )
    rng = np.random.default_rng((seed, 5))
    instances = [
        world.sample_instance(rng, dial, kind=subject.kind, held_out=True) for _ in range(rendering.OTHER_INSTANCES)
    ]

    def render_and_read(scene: list[Instance]) -> list[Detection]:
        scenes = [world.sample_scene(rng, dial, instances=(i,)) for i in scene]
        return [r.main for r in inference.read_images(network, rendering.render_scenes(scenes))]

    once, again = (truth_scores.identity_vectors(render_and_read(instances)) for _ in range(2))
    one, zero = float((once * again).sum(1).mean()), float(statistics.mean_cosine(again, reference).mean())
    stand_in = instances[0]
    case = Case(subject.name, stand_in, world.sample_scene(rng, dial, instances=(stand_in,), background=own), prompts)
    return case, truth_scores.Calibration(
        reference, zero, one, truth_scores.pose_spread(render_and_read([stand_in] * rendering.REFERENCES))
    )


def pad_to_square(rgb: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, tuple[float, float, float, float]]:
    """Pad a photo to a square by repeating its edge; also the mask's box in fractions of the square."""
    height, width = mask.shape
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    pad = ((top, side - height - top), (left, side - width - left), (0, 0))
    ys, xs = (mask > 127).nonzero()
    box = ((xs.min() + left) / side, (ys.min() + top) / side, (xs.max() + 1 + left) / side, (ys.max() + 1 + top) / side)
    return np.pad(rgb, pad, mode="edge"), tuple(float(v) for v in box)  # type: ignore[return-value]


def score_with_clip_dino(
    ctx: StageContext,
    subject: TrainedSubject,
    scenes: list[str],
    repeats: int,
    clip: tuple[ImageEmbedder, TextEmbedder],
    dino: ImageEmbedder,
) -> dict[str, float]:
    """CLIP-I, CLIP-T, DINO, diversity and class drift.

    Returns:
        clip_i, dino: mean cosine of images and photos; *_masked: of images and the object cut out of each photo.
        clip_t: mean cosine of images and prompts with the class word.
        diversity: 1 - mean DINO cosine of two images of a prompt.
        drift: how much nearer images of "a <class>" came to the cut-out object, DINO cosine after less before.
    """
    model, words = rendering.load_adapter(ctx, subject.name, subject.weights, subject.kind)
    texts = [f"a photo of {OBJECT_SLOT} {place}" for place in scenes for _ in range(repeats)]
    seeds = list(range(1000, 1000 + len(texts)))
    prompts = [words.expand(t.replace(OBJECT_SLOT, f"<{subject.name}>")) for t in texts]
    images = rendering.sample_images(ctx, model, prompts, seeds, subject.name, **ctx.base.object_sampling_kwargs())
    after = rendering.sample_class(ctx, model, subject.kind)
    before = rendering.sample_class(ctx, rendering.load_adapter(ctx, subject.name, None)[0], subject.kind)
    cutouts = [cut_out_object(rgb, mask) for rgb, mask in subject.photos]
    references = {"": [rgb for rgb, _ in subject.photos], "_masked": cutouts}
    class_prompts = [t.replace(OBJECT_SLOT, article(subject.kind)) for t in texts]
    scores = score(MetricModels(*clip, dino), images, class_prompts, references, repeats)
    reference = np.concatenate([dino(image[None]) for image in cutouts])
    was, now = (float(statistics.mean_cosine(dino(side), reference).mean()) for side in (before, after))
    return scores | {"drift": now - was}


def cut_out_object(rgb: np.ndarray, mask: np.ndarray, margin: float = 0.1) -> np.ndarray:
    """Cut out the object on mid-grey, square around its box."""
    ys, xs = (mask > 127).nonzero()
    half = round(max(xs.max() - xs.min(), ys.max() - ys.min()) * (0.5 + margin)) + 1
    cover = mask[..., None].astype(np.float32) / 255
    grey = (rgb * cover + 127 * (1 - cover)).round().astype(np.uint8)
    wide = np.pad(grey, ((half, half), (half, half), (0, 0)), constant_values=127)
    y, x = (ys.min() + ys.max()) // 2 + half, (xs.min() + xs.max()) // 2 + half
    return wide[y - half : y + half, x - half : x + half]
