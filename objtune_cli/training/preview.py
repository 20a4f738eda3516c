"""The sheet that `train` leaves beside an adapter: what a person looks at first."""

import math
from pathlib import Path
from typing import TYPE_CHECKING

from objtune_cli.images import png
from objtune_cli.models.prompts import SCENES
from objtune_cli.store.artifacts import Record
from objtune_cli.training import load_subjects
from objtune_cli.workflow import trained_objects
from objtune_cli.workflow.context import StageContext

if TYPE_CHECKING:
    from torch import Tensor

FILE = "preview.png"
"""The sheet beside an adapter."""
MAX_PHOTOS = 9
"""Largest number of photos in the sheet."""


def _tile(photos: "Tensor") -> "Tensor":
    """Photos (N, 3, S, S) in rows and columns of one image (1, 3, S, S), white where there is none; one photo stays as it is."""
    import torch
    import torch.nn.functional as F

    if len(photos) == 1:
        return photos
    size, columns = photos.shape[-1], math.ceil(math.sqrt(min(len(photos), MAX_PHOTOS)))
    side = size // columns
    sheet = torch.ones_like(photos[:1])
    for i, photo in enumerate(photos[:MAX_PHOTOS]):
        y, x = (side * n for n in divmod(i, columns))
        sheet[0, :, y : y + side, x : x + side] = F.interpolate(photo[None], size=(side, side), mode="area")[0]
    return sheet


def draw(ctx: StageContext, record: Record, starts: list[Record]) -> Path:
    """Photo, the objects in scenes they were not in, and their class as the base still draws it."""
    import torch

    from objtune_cli.generation import sampling
    from objtune_cli.generation.settings import SamplingSettings
    from objtune_cli.lora import layers
    from objtune_cli.models.base_model import vae_batch_size

    objects = [
        trained_objects.PromptObject(name, record, ctx.store.compute_sha256(record.ref)) for name in record.objects
    ]
    weights = {item.name: trained_objects.load_tensors(ctx, item) for item in objects}
    model = ctx.load_base_model()
    words = trained_objects.add_placeholders(model, objects, weights)
    layers.load(model, weights[objects[0].name])
    subject = load_subjects.load_subjects(ctx, starts[-1:])[0]
    photo = _tile(subject.augmented_views(1, model.resolution))
    placeholders = " and ".join(f"<{item.name}>" for item in objects)
    class_text = " and ".join(f"a {word}" for word in record.objects.values())
    prompts = [words.expand(f"a photo of {placeholders} {place}") for place in SCENES] + [
        f"a photo of {class_text} {SCENES[0]}"
    ]
    settings = SamplingSettings(**ctx.base.sampling_kwargs(), **ctx.base.object_sampling_kwargs())
    images, step, size = [photo], ctx.progress("preview"), vae_batch_size(model.resolution, model.resolution)
    for at in range(0, len(prompts), size):
        part = prompts[at : at + size]
        latents = sampling.sample(model, part, list(range(at, at + len(part))), settings)
        images.append(model.decode_latents(latents).cpu())
        step(at + len(part), len(prompts))
    rgb = sampling.to_uint8(torch.cat(images)).numpy()
    flat = sum(png.is_single_color(picture) for picture in rgb[1:])
    if flat:
        ctx.report.note(
            f"{flat} of {len(prompts)} preview pictures are of one colour: another `--base`, or its VAE, may be at fault"
        )
    scale = max(1, 192 // rgb.shape[1])
    grid = png.make_grid(rgb, 3, scale=scale)
    ctx.report.image("preview", len(prompts), record.name, grid)
    return ctx.store.write_image(record.ref, FILE, png.encode_png(grid))
