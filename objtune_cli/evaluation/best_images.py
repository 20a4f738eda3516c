"""The best of many generated images, by checks that need no truth: is the object there, and does the image follow the prompt?"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from objtune_cli.composition import presence_report
from objtune_cli.errors import InputError
from objtune_cli.images import png
from objtune_cli.store.artifacts import Record
from objtune_cli.workflow import trained_objects
from objtune_cli.workflow.context import StageContext, StageResult

if TYPE_CHECKING:
    import numpy as np
    import torch

    from objtune_cli.models.base_model import BaseModel
    from objtune_cli.models.clip import Clip

CENTRAL_BOX = (0.15, 0.2, 0.85, 0.9)
"""Fractions x0, y0, x1, y1 of an image: where it is looked for an object that has no place of its own."""
BATCH = 4


@dataclass(frozen=True, slots=True)
class ImageScore:
    """The checks of one image.

    Attributes:
        object: Likeness to its least clear object; 0 as its class, 1 as it was learned; None without objects.
        prompt: Cosine of image and prompt in class words, by the base's CLIP; None if the base has no image encoder.
    """

    object: float | None
    prompt: float | None


def keep_best(ctx: StageContext, groups: Sequence[Sequence[StageResult]], count: int) -> list[dict[str, float]]:
    """Keep the `count` best images of the scenes of each prompt; the others stay in the project.

    An image's rank is the mean of its ranks by `object` and by `prompt`. Images in which an object is missing come last (ours).

    Args:
        groups: The scenes of each prompt.

    Returns:
        The scores of each image that is kept, in the order of the results' images: best first in each scene.

    Raises:
        InputError: The images have no object, and the base has no CLIP image encoder.
    """
    model = ctx.load_base_model()
    towers = _load_clip(ctx, model)
    listed: list[dict[str, float]] = []
    for group in groups:
        scores: list[ImageScore] = []
        owners: list[tuple[StageResult, Path]] = []
        for result in group:
            scores += _score(ctx, model, towers, ctx.store.read_record(result.ref), read_images(result))
            owners += [(result, file) for file in result.images]
        order = rank(scores)[:count]
        ctx.report.note(f"the best {len(order)} of {len(scores)} images: {describe(scores, order)}")
        for result in group:
            own = [i for i in order if owners[i][0] is result]
            result.images = [owners[i][1] for i in own]
            for i in own:
                values = {"object": scores[i].object, "prompt": scores[i].prompt}
                listed.append({k: round(v, 4) for k, v in values.items() if v is not None})
    return listed


def read_images(result: StageResult) -> "np.ndarray":
    """The images of a scene, (N, H, W, 3) uint8."""
    import numpy as np

    return np.stack([png.read(file) for file in result.images])


def rank(scores: Sequence[ImageScore]) -> list[int]:
    """Indices of the images from best to worst.

    Raises:
        InputError: There is nothing to judge by.
    """
    from objtune_cli.composition.presence import MIN_LIKENESS

    columns = [[s.object for s in scores], [s.prompt for s in scores]]
    complete_columns = [column for column in columns if None not in column]
    if not complete_columns:
        raise InputError(
            "there is nothing to choose the best images by: the prompt names no trained object, and the base has no CLIP image encoder",
            "name an object, or set `clip_model`",
        )
    places = [0] * len(scores)
    for column in complete_columns:
        for place, i in enumerate(sorted(range(len(scores)), key=lambda i: -float(column[i] or 0))):
            places[i] += place
    missing = [s.object is not None and s.object < MIN_LIKENESS for s in scores]
    return sorted(range(len(scores)), key=lambda i: (missing[i], places[i], i))


def describe(scores: Sequence[ImageScore], order: Sequence[int]) -> str:
    """The scores of images as text: `3 (object 0.81, prompt 0.27), 1 (…)`."""
    parts = []
    for i in order:
        values = [
            f"{n} {v:.2f}" for n, v in (("object", scores[i].object), ("prompt", scores[i].prompt)) if v is not None
        ]
        parts.append(f"{i + 1} ({', '.join(values)})")
    return ", ".join(parts)


def _load_clip(ctx: StageContext, model: "BaseModel") -> "Clip | None":
    from objtune_cli.models import clip

    return clip.load(ctx.base.clip_path, model) if ctx.base.clip_path is not None else None


def _score(
    ctx: StageContext, model: "BaseModel", towers: "Clip | None", record: Record, images: "np.ndarray"
) -> list[ImageScore]:
    """The scores of a scene's images (N, H, W, 3) uint8."""
    import torch

    pixels = torch.from_numpy(images.copy()).permute(0, 3, 1, 2).float() / 127.5 - 1
    parts = [pixels[i : i + BATCH] for i in range(0, len(pixels), BATCH)]
    objects = _object_scores(ctx, model, record, parts) if record.objects else [None] * len(pixels)
    prompts: list[float] | list[None] = [None] * len(pixels)
    if towers is not None:
        text = class_prompt(record)
        with torch.no_grad():
            wanted = towers.text_features(model, [text])
            prompts = [float(v) for part in parts for v in towers.image_features((part + 1) / 2) @ wanted[0]]
    return [ImageScore(o, p) for o, p in zip(objects, prompts, strict=True)]


def class_prompt(record: Record) -> str:
    """The prompt of a scene as its images show it: the words alone, all choices made, with class words in place of its objects."""
    from objtune_cli.models.prompt_editing import final_prompt
    from objtune_cli.models.prompt_syntax import PLAIN, name_class_words, plain_text

    syntax, text = str(record.config.get("prompt_syntax", PLAIN)), str(record.config["prompt"])
    if record.config.get("prompt_editing"):
        text = final_prompt(text, syntax, int(record.config["num_inference_steps"]))
    text = plain_text(name_class_words(text, record.objects, syntax), syntax)
    return " ".join(text.split())


def _object_scores(
    ctx: StageContext, model: "BaseModel", record: Record, parts: "Sequence[torch.Tensor]"
) -> list[float]:
    """Likeness of each image to the least clear object of its scene."""
    if "leakage" in record.metrics:
        return [min(row[i] for i, row in enumerate(matrix)) for matrix in record.metrics["leakage"]]
    objects = trained_objects.list_scene_objects(ctx, record)
    weights = {o.name: trained_objects.load_tensors(ctx, o) for o in objects}
    placeholders = trained_objects.add_placeholders(model, objects, weights)
    check = presence_report.build_check(model, objects, weights, placeholders)
    boxes = [CENTRAL_BOX] * len(objects)
    return [
        min(float(matrix[i, i]) for i in range(len(objects)))
        for part in parts
        for matrix in check.matrices(part, boxes)
    ]
