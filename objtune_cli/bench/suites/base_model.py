"""`objtune bench base`: quality of the base model against renderings of the same prompts, and whether it memorizes training images."""

import io
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from objtune_cli.config.sections import Bench
from objtune_cli.errors import IncompatibleError
from objtune_cli.evaluation import image_quality, rendering, statistics
from objtune_cli.images import png
from objtune_cli.store import atomic_files
from objtune_cli.toybox import renderer, world
from objtune_cli.toybox.captions import PLACES, article, describe
from objtune_cli.toybox.evaluator import inference
from objtune_cli.toybox.evaluator.inference import Detection, SceneReading
from objtune_cli.toybox.recipe import dataset
from objtune_cli.toybox.world import BACKGROUNDS, Dial, Instance, Scene
from objtune_cli.workflow.context import StageContext

PAIRS = 0.25
"""Fraction of samples with two objects."""
SHARD_SIZE = 64
"""Samples per file."""
THUMB = 32
"""Side at which images are compared with training images, px."""
ATTRIBUTES = {
    "class": ("class", "kind"),
    "colour": ("colour", "colour"),
    "second_colour": ("second", "second"),
    "pattern": ("pattern", "pattern"),
    "accessory": ("accessory", "accessory"),
}
"""Measure to the evaluator's head and the instance's field."""


def run(ctx: StageContext, out: Path, dial: Dial, config: Bench) -> list[dict[str, Any]]:
    """Rows of the methods `base` (relative to the ground truth) and `truth` (fractions); a contact sheet of samples in `out`.

    Raises:
        IncompatibleError: The base does not name its training set.
    """
    network, bank = inference.load(evaluator_file(config)), _load_training_images(ctx, out, dial)
    scenes = sample_scenes(dial, config.num_base_samples, config.seed)
    images = _load_or_sample(ctx, out / "samples" / f"{ctx.base.fingerprint[:12]}-{config.seed}", scenes)
    true = _redraw_all(scenes, dial, config.seed, 4)
    sampled, calibration = (score_readings(rendering.read_images(network, side), scenes) for side in (images, true))
    rows = []
    for name, values in sampled.items():
        one = float(np.mean(calibration[name])) or 1.0
        rows.append(_row("base", name, [v / one for v in values]))
    rows += [_row("truth", name, values) for name, values in calibration.items()]
    rows += quality_rows(network, images, true, _redraw_all(scenes, dial, config.seed, 5), _reconstruct(ctx, true))
    rows += copy_rows(images, true, bank)
    atomic_files.write_file(out / "base.png", png.encode_png(png.make_grid(images[:64], 8)))
    return rows


def _row(method: str, measure: str, values: Sequence[float]) -> dict[str, Any]:
    return statistics.table_rows(method, [{measure: float(v)} for v in values])[0]


def _load_or_sample(ctx: StageContext, folder: Path, scenes: list[Scene]) -> np.ndarray:
    """Sample the scenes' captions, cached in `folder` in shards, so that an interrupted run continues."""
    from PIL import Image

    done = []
    for start in range(0, len(scenes), SHARD_SIZE):
        file = folder / f"{start:06d}.png"
        part = scenes[start : start + SHARD_SIZE]
        if not file.exists():
            model, _ = rendering.load_adapter(ctx, "", None)
            texts, seeds = [full_caption(s) for s in part], list(range(start, start + len(part)))
            images = rendering.sample_images(ctx, model, texts, seeds, f"samples {start + len(part)} of {len(scenes)}")
            atomic_files.write_file(file, png.encode_png(np.concatenate(list(images))))
        column = np.asarray(Image.open(file))
        if len(column) != len(part) * column.shape[1]:  # from a run with fewer samples
            file.unlink()
            return _load_or_sample(ctx, folder, scenes)
        done.append(column.reshape(len(part), column.shape[1], column.shape[1], 3))
    return np.concatenate(done)


def sample_scenes(dial: Dial, count: int, seed: int) -> list[Scene]:
    """Sample scenes of training objects, every class in turn, a quarter of them with two objects."""
    rng = np.random.default_rng((seed, 3))
    turns = {1: itertools.cycle(dial.classes), 2: itertools.cycle(dial.classes)}
    scenes = []
    for i in range(count):
        number = 2 if i % round(1 / PAIRS) == 0 else 1
        kinds = [next(turns[number])] + [str(rng.choice(dial.classes))] * (number - 1)
        together = tuple(world.sample_instance(rng, dial, kind=k) for k in kinds)
        scenes.append(world.sample_scene(rng, dial, instances=together))
    return scenes


def full_caption(scene: Scene) -> str:
    """The most detailed caption of a scene."""
    subject = " and ".join(article(describe(instance, 3)) for instance, _ in scene.objects)
    return f"a photo of {subject} {PLACES[scene.background][0]}"


def evaluator_file(config: Bench) -> Path:
    """The evaluator's weights: `bench.evaluator`, or those of the package."""
    return Path(config.evaluator) if config.evaluator else inference.WEIGHTS


def _redraw_all(scenes: list[Scene], dial: Dial, seed: int, round_number: int) -> np.ndarray:
    """Renderings of `_redraw` of every scene."""
    return rendering.render_scenes([_redraw(s, dial, seed, i, round_number) for i, s in enumerate(scenes)])


def _redraw(scene: Scene, dial: Dial, seed: int, index: int, round_number: int = 4) -> Scene:
    """Other objects that fit the same caption, with new poses."""
    rng = np.random.default_rng((seed, round_number, index))
    together = tuple(world.sample_namesake(rng, instance, dial) for instance, _ in scene.objects)
    return world.sample_scene(rng, dial, instances=together, background=scene.background)


def _reconstruct(ctx: StageContext, images: np.ndarray) -> np.ndarray:
    """Images at the base's size, encoded and decoded by its VAE."""
    import torch

    from objtune_cli.generation.sampling import to_uint8

    model = ctx.load_base_model()
    small = rendering.resize_images(images, model.resolution)
    decoded = []
    for start in range(0, len(small), SHARD_SIZE):
        x = torch.from_numpy(small[start : start + SHARD_SIZE]).permute(0, 3, 1, 2).float() / 127.5 - 1
        decoded.append(to_uint8(model.decode_latents(model.encode_image(x))))
    return torch.cat(decoded).numpy()


def quality_rows(
    network: Any, images: np.ndarray, true: np.ndarray, again: np.ndarray, decoded: np.ndarray
) -> list[dict[str, Any]]:
    """Rows of the distance to the truth and of the sharpness.

    `frechet_distance`: of the evaluator's features of samples, and of a second set of renderings `again`, to those of `true`.
    `edge_sharpness`: edge contrast over the mean of `decoded`, which are renderings encoded and decoded by the VAE.
    """
    real = inference.extract_features(network, rendering.resize_images(true))
    sharp = float(image_quality.edge_contrast(decoded).mean())
    rows = []
    for method, side in (("base", images), ("truth", again)):
        features = inference.extract_features(network, rendering.resize_images(side))
        rows.append(_row(method, "frechet_distance", [image_quality.frechet_distance(features, real)]))
        resized = rendering.resize_images(side, decoded.shape[1])
        rows.append(_row(method, "edge_sharpness", list(image_quality.edge_contrast(resized) / sharp)))
    return rows


def score_readings(readings: list[SceneReading], scenes: list[Scene]) -> dict[str, list[float]]:
    """For each measure, 1 or 0 for each sample whose prompt names it.

    Attributes are read on scenes of one object. `both` is whether two objects of the prompt's classes and main
    colours are present, the first one on the left.
    """
    scores: dict[str, list[float]] = {name: [] for name in (*ATTRIBUTES, "background", "pair_accuracy")}
    for r, scene in zip(readings, scenes, strict=True):
        scores["background"].append(float(BACKGROUNDS[int(r.background.argmax())] == scene.background))
        if len(scene.objects) == 2:
            things = sorted(r.detections, key=lambda t: t.box[0] + t.box[2])
            scores["pair_accuracy"].append(
                float(len(things) == 2 and all(_matches(t, i) for t, (i, _) in zip(things, scene.objects, strict=True)))
            )
            continue
        for name, (head, field) in ATTRIBUTES.items():
            scores[name].append(float(r.main.label(head) == getattr(scene.objects[0][0], field)))
    return scores


def _matches(thing: Detection, instance: Instance) -> bool:
    return thing.label("class") == instance.kind and thing.label("colour") == instance.colour


def copy_rows(images: np.ndarray, true: np.ndarray, bank: np.ndarray) -> list[dict[str, Any]]:
    """Rows of the distance to the nearest training image.

    `nearest`: mean distance of samples over that of renderings; less than 1 would mean copies.
    `copies`: fraction of samples that are nearer than 99 of 100 renderings; 0.01 for renderings.
    """
    sample, truth = (nearest_distance(_thumbnails(side), bank) for side in (images, true))
    close = sample < np.quantile(truth, 0.01)
    return [
        _row("base", "nn_distance_ratio", list(sample / truth.mean())),
        _row("base", "memorization_rate", list(close)),
    ]


def _thumbnails(images: np.ndarray) -> np.ndarray:
    import cv2

    return np.stack([cv2.resize(p, (THUMB, THUMB), interpolation=cv2.INTER_AREA) for p in images])


def nearest_distance(thumbs: np.ndarray, bank: np.ndarray, batch: int = 4096) -> np.ndarray:
    """Root mean square difference of each image (N, s, s, 3) to the nearest of the bank, in [0, 255]."""
    flat = thumbs.reshape(len(thumbs), -1).astype(np.float32)
    own = (flat**2).sum(1)
    least = np.full(len(flat), np.inf, np.float32)
    for start in range(0, len(bank), batch):
        part = bank[start : start + batch].reshape(-1, flat.shape[1]).astype(np.float32)
        square = own[:, None] - 2 * flat @ part.T + (part**2).sum(1)[None]
        least = np.minimum(least, square.min(1))
    return np.sqrt(least.clip(0) / flat.shape[1])


def _load_training_images(ctx: StageContext, out: Path, dial: Dial) -> np.ndarray:
    """Render every training image of the base as a thumbnail, cached in `out`.

    Raises:
        IncompatibleError: The base does not name its training set.
    """
    about = json.loads((ctx.base.folder / "toybox.json").read_bytes())
    if not {"seed", "pictures", "captions"} <= set(about):
        raise IncompatibleError(
            f"the base {ctx.base.id} does not name its training images",
            "publish it again with the recipe of this version",
        )
    file = out / f"training-{about['dial']}-{about['seed']}-{about['pictures']}-{about['captions']}.npy"
    if not file.exists():
        step, done = ctx.progress("training pictures"), []
        for index in range(-(-about["pictures"] // dataset.SHARD)):
            done += [
                renderer.render(scene, THUMB)[0]
                for scene, _ in dataset.scenes(about["seed"], index, dial, about["captions"])
            ]
            step(len(done), about["pictures"])
        buffer = io.BytesIO()
        np.save(buffer, np.stack(done))
        atomic_files.write_file(file, buffer.getvalue())
    images: np.ndarray = np.load(file)
    return images
