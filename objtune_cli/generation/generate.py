"""`generate`: sample images from prompts and publish a scene artifact with their latents."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from objtune_cli.config.sections import Generate, seed_after
from objtune_cli.errors import GateError
from objtune_cli.generation import extra_loras, image_copies, image_files, init_image, references, scene_plan
from objtune_cli.generation.defaults import fill_defaults as fill_defaults
from objtune_cli.images import png
from objtune_cli.store.artifacts import Record
from objtune_cli.store.refs import Ref
from objtune_cli.workflow import prompt_request, trained_objects
from objtune_cli.workflow.context import StageContext, StageResult
from objtune_cli.workflow.reporting import NotesOnce
from objtune_cli.workflow.trained_objects import PromptObject

if TYPE_CHECKING:
    import numpy as np
    import torch

    from objtune_cli.models.base_model import BaseModel

BATCH = 4
"""Images sampled at once."""


def run(
    ctx: StageContext, prompts: list[str], config: Generate, out: Path | None = None, source: Ref | None = None
) -> list[StageResult]:
    """Sample `config.num_images` images of each prompt; one scene artifact per prompt, or per image of a prompt with choices.

    Args:
        out: Folder that the images are copied to.
        source: Adapter that all objects are taken from.

    Raises:
        InputError, MissingError: See `sampling_prompts.read`.
    """
    return run_variants(ctx, prompts, [config], out, source)


def run_variants(
    ctx: StageContext,
    prompts: list[str],
    variants: Sequence[Generate],
    out: Path | None = None,
    source: Ref | None = None,
) -> list[StageResult]:
    """Sample every prompt with each of several settings; the base is loaded once. Arguments and errors are those of `run`.

    Returns:
        One result for each prompt of the first settings, then of the second, and so on.
    """
    if out is not None:
        image_copies.check_output(out, variants[0])
    once = replace(ctx, report=NotesOnce(ctx.report)) if len(variants) > 1 else ctx
    scenes = [scene for config in variants for scene in scene_plan.plan_scenes(once, prompts, config, source)]
    results = [reuse_scene(once, each.record, each.config, each.prompt) for each in scenes]
    missing = [i for i, result in enumerate(results) if result is None]
    if missing:
        for i, result in zip(missing, _sample_scenes(ctx, [scenes[i] for i in missing]), strict=True):
            results[i] = result
    return image_copies.copy_images([result for result in results if result is not None], out, variants[0])


def _sample_scenes(ctx: StageContext, scenes: Sequence[scene_plan.PlannedScene]) -> Iterator[StageResult]:
    """Sample planned scenes on one base, and publish each."""
    base_model = ctx.load_base_model()
    loaded = extra_loras.load_loras(ctx, base_model, itertools.chain(*(each.loras for each in scenes)))
    objects = {item.name: item for each in reversed(scenes) for item in each.request.objects}
    weights = {name: trained_objects.load_tensors(ctx, item) for name, item in objects.items()}
    placeholders = trained_objects.add_placeholders(base_model, list(objects.values()), weights)
    for syntax, request in {each.config.prompt_syntax: each.request for each in scenes}.items():
        base_model.prompt_syntax = syntax
        prompt_request.check_lengths(ctx, base_model, placeholders, request)
    activate = _load_adapters(base_model, [each.objects for each in scenes], weights)
    for each in scenes:
        activate(each.objects)
        with (
            extra_loras.active_loras(base_model, each.loras, loaded),
            references.shown(ctx, base_model, each.references),
        ):
            yield _sample_scene(ctx, base_model, placeholders, each)


def reuse_scene(
    ctx: StageContext, record: Record, config: Generate, prompt: str, decode: "Decode | None" = None
) -> StageResult | None:
    """The result of a finished scene, or None if there is none.

    Images that were deleted are decoded again from the latents. A scene with an image of one colour, which earlier versions published, is not reused.
    """
    ref = None if ctx.force else ctx.find(record, computed=True)
    if ref is None:
        ctx.store.check_writable(record.kind, record.name)
        return None
    metrics = ctx.store.read_record(ref).metrics
    files, decoded = [file for file in ctx.store.list_images(ref) if file.stem.isdigit()], None
    if len(files) != config.num_images:
        import torch

        tensors = {name: torch.from_numpy(array.copy()) for name, array in ctx.store.read(ref)[1].items()}
        decoded = (decode or decode_latents)(ctx.load_base_model(), record, tensors)
    flat = find_flat_images([png.read(file) for file in files] if decoded is None else decoded)
    if set(flat) - set(metrics.get(ONE_COLOUR, ())):
        ctx.report.note(f"{ref} is not used again: {describe_images(flat, config.num_images)} of one colour")
        ctx.reject(ref)
        ctx.store.check_writable(record.kind, record.name)
        return None
    result = ctx.find_existing(record, computed=True)
    if result is not None and decoded is None:
        result.images = files
    elif result is not None and decoded is not None:
        result.images = image_files.write_images(ctx, ref, replace(record, metrics=metrics), decoded, config, prompt)
    return result


def _load_adapters(
    base_model: "BaseModel", scenes: Sequence[Sequence[PromptObject]], weights: dict[str, dict[str, Any]]
) -> Callable[[Sequence[PromptObject]], None]:
    """Load every adapter once for each of its strengths.

    Returns:
        A function that activates the adapters of a scene, whose deltas are added. They become part of the denoiser's
        weights where that is possible; other scenes of the command make no difference to that.
    """
    from objtune_cli.lora import folding, layers

    scaled = {
        (item.record.ref, item.strength): trained_objects.scale_lora(weights[item.name], item.strength)
        for item in itertools.chain(*scenes)
    }
    names: dict[tuple[Ref, float], str] = {}

    def activate(objects: Sequence[PromptObject]) -> None:
        keys = list(dict.fromkeys((item.record.ref, item.strength) for item in objects))
        is_folded = folding.fold(base_model, [scaled[key] for key in keys])
        for key in keys:
            if not is_folded and key not in names:
                name = f"lora{len(names)}"
                names[key] = name if layers.load(base_model, scaled[key], name) else ""  # an adapter may have no LoRA
        layers.set_active(base_model, [] if is_folded else [names[key] for key in keys if names[key]])

    for objects in scenes:
        activate(objects)  # an adapter of another base is refused before anything is drawn
    return activate


def _sample_scene(
    ctx: StageContext, base_model: "BaseModel", placeholders: Any, scene: scene_plan.PlannedScene
) -> StageResult:
    import torch

    from objtune_cli.generation.sampling import sample
    from objtune_cli.generation.settings import SamplingSettings

    config, original = scene.config, scene.original
    base_model.prompt_syntax = config.prompt_syntax
    text = placeholders.expand(scene.prompt)
    settings = replace(
        SamplingSettings.from_config(config),
        negative_prompt=placeholders.expand(config.negative_prompt),
        prompt_editing=True,
    )
    batches = []
    for seeds, on_step in seed_batches(config, ctx.progress("generate")):
        if original is None:
            batches.append(sample(base_model, text, seeds, settings, on_step))
        else:
            batches.append(init_image.resample_image(base_model, original, text, seeds, settings, on_step))
    record = replace(scene.record, tools=ctx.tools(base_model))
    return publish_scene(ctx, base_model, record, {"latents": torch.cat(batches)}, config, scene.prompt)


def seed_batches(
    config: Generate, progress: Callable[..., None]
) -> Iterator[tuple[list[int], Callable[[int, int], None]]]:
    """The seeds of each batch, and a callback that reports the batch's steps as part of all steps."""
    batches = -(-config.num_images // BATCH)
    for i in range(batches):
        seeds = [seed_after(config.seed, k) for k in range(i * BATCH, min((i + 1) * BATCH, config.num_images))]

        def on_step(done: int, total: int, before: int = i) -> None:
            progress(before * total + done, batches * total)

        yield seeds, on_step


def publish_scene(
    ctx: StageContext,
    base_model: "BaseModel",
    record: Record,
    tensors: dict[str, "torch.Tensor"],
    config: Generate,
    prompt: str,
    decode: "Decode | None" = None,
) -> StageResult:
    """Publish a scene: its tensors in the artifact, its images as PNG files beside it.

    Raises:
        GateError: An image is of one colour, and `--force` is not given.
    """
    images = (decode or decode_latents)(base_model, record, tensors)
    flat = find_flat_images(images)
    if flat and not ctx.force:
        precision = "`--precision fp32`, " if "precision" in record.tools else ""
        raise GateError(
            f"{describe_images(flat, len(images))} of one colour: nothing is published",
            f"try {precision}another `--seed`, or another `--base`; `--force` keeps it",
        )
    if flat:
        ctx.report.note(f"{describe_images(flat, len(images))} of one colour")
        record = replace(record, metrics={**record.metrics, ONE_COLOUR: flat})
    ref = ctx.publish(record, tensors)
    return StageResult(
        ref, False, image_files.write_images(ctx, ref, record, images, config, prompt), dict(record.metrics)
    )


ONE_COLOUR = "one_colour"
"""Metric with the indices, from 0, of a scene's images that are of one colour and were published with `--force`."""


def find_flat_images(images: "Iterable[np.ndarray]") -> list[int]:
    """Indices of the images (H, W, 3) uint8 that are of one colour."""
    return [i for i, image in enumerate(images) if png.is_single_color(image)]


def describe_images(indices: list[int], count: int) -> str:
    """Some of `count` images as the subject of a sentence, with its verb."""
    if count == 1:
        return "the picture is"
    numbers = ", ".join(str(i + 1) for i in indices)
    return f"picture{'s' if len(indices) > 1 else ''} {numbers} of {count} {'are' if len(indices) > 1 else 'is'}"


def decode_latents(base_model: "BaseModel", record: Record, tensors: "Mapping[str, torch.Tensor]") -> "np.ndarray":
    """The images (N, H, W, 3) uint8 of a generated scene; composed scenes have their own decoder."""
    from objtune_cli.generation.sampling import to_uint8

    return to_uint8(base_model.decode_latents(tensors["latents"]).cpu()).numpy()


Decode = Callable[["BaseModel", Record, "Mapping[str, torch.Tensor]"], "np.ndarray"]
"""(base model, record, tensors) to images (N, H, W, 3) uint8."""
