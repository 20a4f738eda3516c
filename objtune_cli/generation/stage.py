"""`generate`: sample images from prompts and publish a scene artifact with their latents."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from objtune_cli.config.sections import Generate, identifying, seed_after
from objtune_cli.errors import GateError, InputError
from objtune_cli.generation import extra_loras, image_copies, image_files
from objtune_cli.generation.defaults import fill_defaults as fill_defaults
from objtune_cli.generation.extra_loras import ExtraLora
from objtune_cli.images import png
from objtune_cli.store.artifacts import Record
from objtune_cli.store.refs import Ref
from objtune_cli.workflow import prompt_request, sampling_prompts, trained_objects
from objtune_cli.workflow.context import StageContext, StageResult
from objtune_cli.workflow.scene_syntax import with_scene_syntax

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
    if out is not None:
        image_copies.check_output(out, config)
    request, draws = sampling_prompts.read(ctx, prompts, config, source, per_image=True)
    _check_shared_strengths(request)
    loras = extra_loras.find_loras(ctx, config.lora, request.loras)
    shared = [lora for lora in loras[0] if all(lora in each for each in loras)]
    config = fill_defaults(
        ctx, replace(config, negative_prompt=request.negative, strength=1.0), shared
    )  # the objects carry it now
    note_guidance(ctx, config)
    configs = [
        with_scene_syntax(ctx, request, i, replace(config, seed=draw.seed, num_images=draw.num_images))
        for i, draw in enumerate(draws)
    ]
    scenes = [_find_scene(ctx, request, i, configs[i], loras[i]) for i in range(len(request.prompts))]
    records, results = [record for record, _ in scenes], [result for _, result in scenes]
    missing = [i for i, result in enumerate(results) if result is None]
    if missing:
        base_model = ctx.load_base_model()
        base_model.prompt_syntax = config.prompt_syntax
        loaded = extra_loras.load_loras(ctx, base_model, itertools.chain(*loras))
        weights = {item.name: trained_objects.load_tensors(ctx, item) for item in request.objects}
        placeholders = trained_objects.add_placeholders(base_model, request.objects, weights)
        prompt_request.check_lengths(ctx, base_model, placeholders, request)
        lora_names = _load_adapters(base_model, [o for named in request.named for o in named], weights)
        for i in missing:
            _activate_adapters(base_model, [n for o in request.named[i] if (n := lora_names[o.record.ref, o.strength])])
            with extra_loras.active_loras(base_model, loras[i], loaded):
                results[i] = _sample_scene(ctx, base_model, placeholders, request.prompts[i], records[i], configs[i])
    return image_copies.copy_images([result for result in results if result is not None], out, config)


def note_guidance(ctx: StageContext, config: Generate) -> None:
    """Warn the user if the negative prompt has no effect."""
    if config.negative_prompt.strip() and config.guidance_scale <= 1:
        ctx.report.note(
            f"the negative prompt has no effect at a guidance of {config.guidance_scale:g}; it acts above 1"
        )
    elif config.negative_prompt.strip() and config.guidance_interval_high <= 0:
        ctx.report.note(
            "the negative prompt has no effect, because `generate.guidance_interval_high` lets guidance act at no step"
        )


def _find_scene(
    ctx: StageContext, request: prompt_request.PromptRequest, i: int, config: Generate, loras: Sequence[ExtraLora] = ()
) -> tuple[Record, StageResult | None]:
    """The record of the scene of prompt `i`, and its result if the scene exists."""
    objects, prompt = request.named[i], request.prompts[i]
    classes = {o.name: o.class_word for o in objects}
    name = "-".join(classes)[:64].rstrip("-.") or "scene"
    settings = (
        identifying(config)
        | sampler_settings(ctx, config)
        | {"prompt": prompt}
        | strength_settings(objects)
        | extra_loras.scene_settings(loras)
    )
    inputs = trained_objects.scene_inputs(objects, request.negative_objects(i)) | extra_loras.scene_inputs(loras)
    record = Record("scene", name, classes, inputs, settings, ctx.base.record())
    return record, reuse_scene(ctx, record, config, prompt)


def sampler_settings(ctx: StageContext, config: Generate) -> dict[str, str]:
    """The name of the base's own sampler for the scene's record, if that sampler is used and is not the family's usual one."""
    return ctx.base.sampler_settings() if config.scheduler == "auto" else {}


def strength_settings(objects: Sequence[trained_objects.PromptObject]) -> dict[str, dict[str, float]]:
    """The strengths of objects for the scene's record; empty if all are 1."""
    other = {o.name: o.strength for o in objects if o.strength != 1}
    return {"strengths": other} if other else {}


def _check_shared_strengths(request: prompt_request.PromptRequest) -> None:
    """Refuse different strengths of one LoRA: a LoRA acts on the whole image.

    Raises:
        InputError: Objects of one joint adapter have different strengths.
    """
    for objects in request.named:
        for a, b in itertools.combinations(objects, 2):
            if a.record.ref == b.record.ref and a.strength != b.strength:
                raise InputError(
                    f"<{a.name}> and <{b.name}> share one LoRA, {a.record.ref}, and have the strengths {a.strength:g} and {b.strength:g}",
                    "give them one strength, or draw them with `objtune compose`",
                )


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
        ctx.store.check_writable(record.kind, record.name)
        return None
    result = ctx.find_existing(record, computed=True)
    if result is not None and decoded is None:
        result.images = files
    elif result is not None and decoded is not None:
        result.images = image_files.write_images(ctx, ref, replace(record, metrics=metrics), decoded, config, prompt)
    return result


def _load_adapters(
    base_model: "BaseModel", objects: list[trained_objects.PromptObject], weights: dict[str, dict[str, Any]]
) -> dict[tuple[Ref, float], str]:
    """Load every adapter once for each of its strengths.

    Returns:
        (adapter, strength) to the LoRA's name in the denoiser; "" for an adapter without LoRA.
    """
    from objtune_cli.lora import layers

    names: dict[tuple[Ref, float], str] = {}
    for item in objects:
        if (item.record.ref, item.strength) not in names:
            name = f"lora{len(names)}"
            has_lora = layers.load(base_model, trained_objects.scale_lora(weights[item.name], item.strength), name)
            names[item.record.ref, item.strength] = name if has_lora else ""
    return names


def _activate_adapters(base_model: "BaseModel", names: list[str]) -> None:
    """Activate these LoRAs only; the deltas of several are added."""
    from objtune_cli.lora import layers

    layers.set_active(base_model, list(dict.fromkeys(names)))


def _sample_scene(
    ctx: StageContext, base_model: "BaseModel", placeholders: Any, prompt: str, record: Record, config: Generate
) -> StageResult:
    import torch

    from objtune_cli.generation.sampling import sample
    from objtune_cli.generation.settings import SamplingSettings

    base_model.prompt_syntax = config.prompt_syntax
    text = placeholders.expand(prompt)
    settings = replace(
        SamplingSettings.from_config(config), negative_prompt=placeholders.expand(config.negative_prompt)
    )
    batches = [
        sample(base_model, text, seeds, settings, on_step)
        for seeds, on_step in seed_batches(config, ctx.progress("generate"))
    ]
    record = replace(record, tools=ctx.tools(base_model))
    return publish_scene(ctx, base_model, record, {"latents": torch.cat(batches)}, config, prompt)


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
    ref = ctx.store.create(record, tensors)
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
