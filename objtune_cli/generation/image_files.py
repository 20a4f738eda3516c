"""A scene's images as PNG files in the project, with their generation parameters."""

from pathlib import Path
from typing import TYPE_CHECKING

from objtune_cli.config.sections import Generate, seed_after
from objtune_cli.generation import extra_loras, lora_hashes
from objtune_cli.generation.image_metadata import infotext
from objtune_cli.images import png
from objtune_cli.store.artifacts import Record
from objtune_cli.store.refs import Ref
from objtune_cli.store.safetensors_format import canonical_json
from objtune_cli.workflow.context import StageContext
from objtune_cli.workflow.prompt_text import write_strengths

if TYPE_CHECKING:
    import numpy as np


def write_images(
    ctx: StageContext, ref: Ref, record: Record, images: "np.ndarray", config: Generate, prompt: str
) -> list[Path]:
    """Write a scene's images as PNG files with their generation parameters. Seeds come from the metric `seeds`, if the record has it."""
    files, size = [], (images.shape[2], images.shape[1])
    tags, own_hashes = extra_loras.infotext_tags(record.config.get("loras", ()))
    hashes = lora_hashes.collect_hashes(ctx, record.inputs, own_hashes)
    seeds = record.metrics.get("seeds", [seed_after(config.seed, k) for k in range(len(images))])
    for i, image in enumerate(images):
        parameters = infotext(
            write_strengths(prompt, record.config.get("strengths", {})),
            config,
            int(seeds[i]),
            size,
            ctx.base.id,
            ctx.base.sampler,
            hashes,
            tags,
            editing=bool(record.config.get("prompt_editing")),
        )
        provenance = canonical_json({"scene": str(ref), "inputs": record.inputs, "seed": seeds[i]})
        data = png.encode_png(image, {"parameters": parameters, "objtune": provenance})
        files.append(ctx.store.write_image(ref, f"{i + 1:03d}.png", data))
    return files
