"""`compose`: separately trained objects in one image, each in its region."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from objtune_cli.composition import layout, layout_from_prompt, mentions, presence_report
from objtune_cli.composition.layout import Box, Layout
from objtune_cli.composition.scene import Scene
from objtune_cli.config.sections import Compose, Generate, identifying
from objtune_cli.errors import InputError
from objtune_cli.generation import defaults, extra_loras, generate, image_copies, scene_plan
from objtune_cli.images import png
from objtune_cli.store.artifacts import Record
from objtune_cli.store.kinds.scene import REFINED
from objtune_cli.workflow import prompt_request, sampling_prompts, trained_objects
from objtune_cli.workflow.context import StageContext, StageResult
from objtune_cli.workflow.scene_syntax import with_scene_syntax

if TYPE_CHECKING:
    import numpy as np
    import torch

    from objtune_cli.models.base_model import BaseModel

MAX_OBJECTS = 16
"""Maximum number of objects in a scene, whose image grows with them."""


def run(
    ctx: StageContext,
    prompt: str,
    places: Mapping[str, Sequence[Box]],
    config: Generate,
    how: Compose,
    out: Path | None = None,
) -> list[StageResult]:
    """Compose the prompt's objects in one image, each in its region; an object that is mentioned twice appears twice.

    Args:
        places: Object name to boxes, at most one for each mention.
        out: Folder that the images are copied to.

    Raises:
        InputError: The prompt names no object, or not the object of a place; see `sampling_prompts.read`.
        UsageError: Two objects have one place, or an object has more places than mentions.
        GateError: `how.strict` is set, and an object is missing or mixed in an image for every seed.
    """
    if out is not None:
        image_copies.check_output(out, config)
    request, _ = sampling_prompts.read(ctx, [prompt], config)
    named = _require_objects(request, prompt)
    is_sized = bool(config.width or config.height)
    scene = _build_scene(ctx, request, named, places, config, how, is_sized)
    defaults.note_guidance(ctx, scene.config)
    record = _make_record(ctx, scene, named, request.negative_objects(0), is_sized)
    result = generate.reuse_scene(ctx, record, scene.config, scene.prompt, decode_scene)
    if result:
        presence_report.report_presence(ctx, result.metrics, scene.options)
    else:
        result = _compose_scene(ctx, record, scene)
    return image_copies.copy_images([result], out, config)


def _build_scene(
    ctx: StageContext,
    request: prompt_request.PromptRequest,
    named: list[trained_objects.PromptObject],
    places: Mapping[str, Sequence[Box]],
    config: Generate,
    how: Compose,
    is_sized: bool,
) -> Scene:
    """Name the mentions of the objects, lay them out, and fix the settings; arguments and errors are those of `run`.

    Args:
        named: The objects that the prompt names, each once.
        is_sized: Whether the user chose the image's size.
    """
    from objtune_cli.models.prompt_syntax import plain_text

    prompt = request.prompts[0]
    text, objects = mentions.name_mentions(prompt, named, {o.name for o in request.objects})
    if len(objects) > MAX_OBJECTS:
        raise InputError(
            f"the prompt names {len(objects)} objects; a scene has at most {MAX_OBJECTS}",
            "split them over several scenes",
        )
    user_boxes = layout.assign_places(places, {o.name: [m.name for m in objects if m.key == o.key] for o in named})
    layout.check_places(user_boxes, [o.name for o in objects])
    mentions.note_repeated(ctx, named, objects)
    (loras,) = extra_loras.find_loras(ctx, config.lora, request.loras)
    config = with_scene_syntax(ctx, request, 0, defaults.fill_defaults(ctx, config, loras))
    scene_layout = _arrange(
        ctx, plain_text(text, config.prompt_syntax), objects, user_boxes, config if is_sized else None
    )
    return Scene(
        prompt,
        replace(request, prompts=[text], named=[objects]),
        scene_layout,
        _sampling_config(config, request.negative),
        _fill_defaults(ctx, how),
        loras,
    )


def _require_objects(request: prompt_request.PromptRequest, prompt: str) -> list[trained_objects.PromptObject]:
    """The objects that the prompt names, each once.

    Raises:
        InputError: It names none.
    """
    (named,) = request.named
    if not named:
        weak = " with a strength above 0" if "<" in prompt else ""
        example = 'for example `objtune compose "<rex> and <cup> on the beach" --place rex=left --place cup=right`'
        raise InputError(f"the prompt names no trained object{weak}", request.advice or example)
    return named


def _arrange(
    ctx: StageContext,
    prompt: str,
    objects: Sequence[trained_objects.PromptObject],
    user_boxes: Mapping[str, Box],
    sized: Generate | None,
) -> Layout:
    """The layout of a scene, with a note of the boxes that the user did not choose.

    Args:
        sized: The settings of sampling if the user chose the image's size.
    """
    side = ctx.base.resolution
    extent = ((sized.width or side) / side, (sized.height or side) / side) if sized else None
    names = [o.name for o in objects]
    aspect_ratios = {o.name: trained_objects.aspect_ratio(ctx, o) for o in objects}
    scene_layout = layout_from_prompt.propose(prompt, names, user_boxes, aspect_ratios, extent)
    largest = ctx.base.largest_side / side  # a transformer has no position embeddings beyond it
    scene_layout.wide, scene_layout.high = min(scene_layout.wide, largest), min(scene_layout.high, largest)
    free = [name for name in names if name not in user_boxes]
    if free:
        boxes = ", ".join(f"{name}={','.join(f'{v:.2f}' for v in scene_layout.boxes[name])}" for name in free)
        ctx.report.note(f"placed by default: {boxes}")
    return scene_layout


def _fill_defaults(ctx: StageContext, how: Compose) -> Compose:
    """The settings with the base's own values.

    Without refinement its settings get fixed values, because they do not change the scene.
    """
    if not how.refine_strength:
        return replace(how, paste="box", refine_autoguidance_scale=0.0)
    return replace(how, refine_autoguidance_scale=ctx.base.autoguidance_scale(how.refine_autoguidance_scale))


def _sampling_config(config: Generate, negative_prompt: str) -> Generate:
    """The settings of sampling without those that regions do not support; a scene needs the half without prompt at every level."""
    return replace(
        config,
        negative_prompt=negative_prompt,
        strength=1.0,
        guidance_interval_high=1.0,
        prompt_guidance_scale=0.0,
        autoguidance_scale=0.0,
        subject_conditioning_start=1.0,
    )


def _make_record(
    ctx: StageContext,
    scene: Scene,
    named: list[trained_objects.PromptObject],
    avoided: Sequence[trained_objects.PromptObject],
    is_sized: bool,
) -> Record:
    """The record of a scene.

    Args:
        named: The objects that the prompt names, each once.
        avoided: The objects that only the negative prompt names.
        is_sized: Whether the user chose the image's size.
    """
    scene_layout = scene.layout
    classes = {o.name: o.class_word for o in named}
    settings = (
        identifying(scene.config)
        | scene_plan.sampler_settings(ctx, scene.config)
        | identifying(scene.options)
        | {"prompt": scene.prompt, "places": {n: list(b) for n, b in scene_layout.boxes.items()}}
        | scene_plan.strength_settings(named)
        | extra_loras.scene_settings(scene.loras)
    )
    if scene_layout.order != [o.name for o in scene.objects]:
        settings["order"] = scene_layout.order
    if not is_sized and (scene_layout.wide, scene_layout.high) != (1.0, 1.0):
        settings["frame"] = [scene_layout.wide, scene_layout.high]
    with_text_encoders = [o.name for o in scene.objects if trained_objects.has_text_encoder_lora(ctx, o)]
    if with_text_encoders:
        settings["text_encoders"] = with_text_encoders
    name = "-".join(classes)[:64].rstrip("-.")
    inputs = trained_objects.scene_inputs(named, avoided) | extra_loras.scene_inputs(scene.loras)
    return Record("scene", name, classes, inputs, settings, ctx.base.record())


def _compose_scene(ctx: StageContext, record: Record, scene: Scene) -> StageResult:
    """Sample a scene, check it and publish it."""
    import torch

    from objtune_cli.composition import scene_sampling

    model = ctx.load_base_model()
    model.prompt_syntax = scene.config.prompt_syntax
    request, objects = scene.request, scene.objects
    weights = {
        o.name: trained_objects.scale_lora(trained_objects.load_tensors(ctx, o), o.strength) for o in request.objects
    }
    placeholders = trained_objects.add_placeholders(model, request.objects, weights)
    loaded = extra_loras.load_loras(ctx, model, scene.loras)
    with extra_loras.active_loras(model, scene.loras, loaded):
        sample_batch = scene_sampling.build_sampler(ctx, model, scene, weights, placeholders)
        check = (
            presence_report.build_check(model, objects, weights, placeholders) if scene.options.presence_check else None
        )
        boxes = [scene.layout.boxes[o.name] for o in objects]
        candidates, metrics = scene_sampling.sample_best_seeds(
            ctx, check, boxes, scene.config, scene.options.max_retries, sample_batch
        )
    presence_report.report_presence(ctx, metrics, scene.options)  # before publishing: with `strict` it may refuse
    tensors = {name: torch.stack([each.tensors[name] for each in candidates]) for name in candidates[0].tensors}
    record = replace(record, metrics=metrics, tools=ctx.tools(model))
    result = generate.publish_scene(ctx, model, record, tensors, scene.config, scene.prompt, decode_scene)
    grid = layout.render(scene.layout, scene_sampling.image_size(model, scene))
    ctx.store.write_image(result.ref, "layout.png", png.encode_png(grid))
    return result


def decode_scene(model: "BaseModel", record: Record, tensors: "Mapping[str, torch.Tensor]") -> "np.ndarray":
    """The images (N, H, W, 3) uint8 of a composed scene, with its refined objects pasted in."""
    from objtune_cli.composition import refinement
    from objtune_cli.generation.sampling import to_uint8

    refined = {name.removeprefix(REFINED): part for name, part in tensors.items() if name.startswith(REFINED)}
    places = record.config["places"] if refined else {}
    boxes = {name: tuple(places[name]) for name in record.config.get("order", places) if refined}
    whole = record.config.get("paste", "box") == "box"
    return to_uint8(refinement.composite(model, tensors["latents"], refined, boxes, whole=whole)).numpy()
