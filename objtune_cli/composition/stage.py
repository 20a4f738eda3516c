"""`compose`: separately trained objects in one image, each in its region."""

import itertools
import re
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from objtune_cli.composition import layout, layout_from_prompt, presence_report
from objtune_cli.composition.layout import Box, Layout
from objtune_cli.config.sections import Compose, Generate, identifying, seed_after
from objtune_cli.errors import InputError
from objtune_cli.generation import stage as generate
from objtune_cli.images import png
from objtune_cli.store.artifacts import Record
from objtune_cli.store.kinds.scene import REFINED
from objtune_cli.workflow import output_files, prompt_request, trained_objects
from objtune_cli.workflow.context import StageContext, StageResult

if TYPE_CHECKING:
    import numpy as np
    import torch

    from objtune_cli.composition.presence import PresenceCheck
    from objtune_cli.models.base_model import BaseModel
    from objtune_cli.models.placeholders import Placeholders

    SceneBatch = tuple[list[dict[str, torch.Tensor]], torch.Tensor]
    """The tensors of each image, and the images (N, 3, H, W) in [-1, 1]."""
    SampleBatch = Callable[[list[int], Callable[[int, int], None]], SceneBatch]
    """Seeds and a step callback to a batch of scenes."""


MAX_OBJECTS = 16
"""Objects of one scene: the image grows with them."""


@dataclass(frozen=True, slots=True)
class _Scene:
    """A scene to sample.

    Attributes:
        prompt: The prompt as the record has it.
        request: The request with a name for every mention of an object.
        objects: One for every mention, in the order of mention.
        config: Settings of sampling, nothing left to the base.
        options: Settings of composition.
    """

    prompt: str
    request: prompt_request.PromptRequest
    layout: Layout
    config: Generate
    options: Compose

    @property
    def objects(self) -> list[trained_objects.PromptObject]:
        return self.request.named[0]


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
        InputError: The prompt names no object, or not the object of a place; see `prompt_request.read`.
        UsageError: Two objects have one place, or an object has more places than mentions.
        GateError: `how.strict` is set, and an object is missing or mixed in an image for every seed.
    """
    if out is not None:
        output_files.check_folder(out)
    request = prompt_request.read_prompts(ctx, [prompt], config.negative_prompt, strength=config.strength)
    named = _require_objects(request, prompt)
    prompt = request.prompts[0]
    text, objects = name_mentions(prompt, named, {o.name for o in request.objects})
    if len(objects) > MAX_OBJECTS:
        raise InputError(
            f"the prompt names {len(objects)} objects; a scene has room for {MAX_OBJECTS}",
            "name fewer, in several scenes",
        )
    placed = layout.assign_places(places, {o.name: [m.name for m in objects if m.key == o.key] for o in named})
    layout.check_places(placed, [o.name for o in objects])
    _note_repeated(ctx, named, objects)
    is_sized = bool(config.width or config.height)
    config = generate.fill_defaults(ctx, config)
    scene_layout = _arrange(ctx, text, objects, placed, config if is_sized else None)
    scene = _Scene(
        prompt,
        replace(request, prompts=[text], named=[objects]),
        scene_layout,
        _sampling_config(config, request.negative),
        _fill_defaults(ctx, how),
    )
    generate.note_guidance(ctx, scene.config)
    record = _make_record(ctx, scene, named, request.negative_objects(0), is_sized)
    result = generate.reuse_scene(ctx, record, scene.config, prompt, decode_scene)
    if result:
        presence_report.report_presence(ctx, result.metrics, scene.options)
    else:
        result = _compose_scene(ctx, record, scene)
    return generate.copy_images([result], out)


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
    placed: Mapping[str, Box],
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
    found = layout_from_prompt.propose(prompt, names, placed, aspect_ratios, extent)
    largest = ctx.base.largest_side / side  # a transformer has no position embeddings beyond it
    found.wide, found.high = min(found.wide, largest), min(found.high, largest)
    free = [name for name in names if name not in placed]
    if free:
        boxes = ", ".join(f"{name}={','.join(f'{v:.2f}' for v in found.boxes[name])}" for name in free)
        ctx.report.note(f"placed by us: {boxes}")
    return found


def _fill_defaults(ctx: StageContext, how: Compose) -> Compose:
    """The settings with the base's own values; without refinement, the settings of refinement are set to one value so that they make no other scene."""
    if not how.refine_strength:
        return replace(how, paste="box", refine_autoguidance_scale=0.0)
    return replace(how, refine_autoguidance_scale=ctx.base.autoguidance_scale(how.refine_autoguidance_scale))


def _sampling_config(config: Generate, negative_prompt: str) -> Generate:
    """The settings of sampling without those that regions cannot use: a scene is sampled with and without prompt at every level."""
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
    scene: _Scene,
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
    chosen = scene.layout
    classes = {o.name: o.class_word for o in named}
    settings = (
        identifying(scene.config)
        | generate.sampler_settings(ctx, scene.config)
        | identifying(scene.options)
        | {"prompt": scene.prompt, "places": {n: list(b) for n, b in chosen.boxes.items()}}
        | generate.strength_settings(named)
    )
    if chosen.order != [o.name for o in scene.objects]:
        settings["order"] = chosen.order
    if not is_sized and (chosen.wide, chosen.high) != (1.0, 1.0):
        settings["frame"] = [chosen.wide, chosen.high]
    with_text_encoders = [o.name for o in scene.objects if trained_objects.has_text_encoder_lora(ctx, o)]
    if with_text_encoders:
        settings["text_encoders"] = with_text_encoders
    name = "-".join(classes)[:64].rstrip("-.")
    return Record("scene", name, classes, trained_objects.scene_inputs(named, avoided), settings, ctx.base.record())


def name_mentions(
    prompt: str, named: Sequence[trained_objects.PromptObject], taken: Set[str] = frozenset()
) -> tuple[str, list[trained_objects.PromptObject]]:
    """Give every mention of an object a name of its own: `<dog> and <dog>` becomes `<dog> and <dog-2>`.

    Args:
        taken: Names of other objects, which no mention gets.

    Returns:
        The prompt with the names, without versions; and an object for every mention.
    """
    from objtune_cli.models.prompts import PLACEHOLDER

    known, mentions = {o.name: o for o in named}, dict[str, trained_objects.PromptObject]()

    def rename(match: re.Match[str]) -> str:
        item = known[match[1]]
        candidates = (item.name if i == 1 else f"{item.name}-{i}" for i in itertools.count(1))
        name = next(n for n in candidates if n not in mentions and (n == item.name or n not in taken | known.keys()))
        mentions[name] = item if name == item.name else replace(item, name=name, trained_name=item.own_name)
        return f"<{name}>"

    return PLACEHOLDER.sub(rename, prompt), list(mentions.values())


def _note_repeated(
    ctx: StageContext, named: Sequence[trained_objects.PromptObject], mentions: Sequence[trained_objects.PromptObject]
) -> None:
    """Tell the user which objects the prompt mentions more than once."""
    for item in named:
        names = [o.name for o in mentions if o.key == item.key]
        if len(names) > 1:
            ctx.report.note(
                f"the prompt names <{item.name}> {len(names)} times, so the scene has {len(names)}: {', '.join(names)}; name it once to draw one"
            )


def _compose_scene(ctx: StageContext, record: Record, scene: _Scene) -> StageResult:
    """Sample a scene, check it and publish it."""
    import torch

    model = ctx.load_base_model()
    request, objects = scene.request, scene.objects
    weights = {
        o.name: trained_objects.scale_lora(trained_objects.load_tensors(ctx, o), o.strength) for o in request.objects
    }
    placeholders = trained_objects.add_placeholders(model, request.objects, weights)
    high, wide = (
        round(model.resolution * side / model.size_multiple) * model.size_multiple
        for side in (scene.layout.high, scene.layout.wide)
    )
    sample_batch = _make_sampler(ctx, model, scene, weights, placeholders, (high, wide))
    check = presence_report.build_check(model, objects, weights, placeholders) if scene.options.presence_check else None
    chosen, metrics = _sample_best_seeds(ctx, check, scene, sample_batch)
    presence_report.report_presence(ctx, metrics, scene.options)  # before publishing: with `strict` it may refuse
    tensors = {name: torch.stack([each.tensors[name] for each in chosen]) for name in chosen[0].tensors}
    record = replace(record, metrics=metrics, tools=ctx.tools(model))
    result = generate.publish_scene(ctx, model, record, tensors, scene.config, scene.prompt, decode_scene)
    ctx.store.write_image(result.ref, "layout.png", png.encode_png(layout.render(scene.layout, (high, wide))))
    return result


def _make_sampler(
    ctx: StageContext,
    model: "BaseModel",
    scene: _Scene,
    weights: "Mapping[str, Mapping[str, torch.Tensor]]",
    placeholders: "Placeholders",
    size: tuple[int, int],
) -> "SampleBatch":
    """The function that samples a batch of images of the scene.

    Args:
        weights: Object name to its LoRA tensors.
        size: Height and width of the images, px.
    """
    from objtune_cli.composition import refinement, regional
    from objtune_cli.generation.sampling import sample
    from objtune_cli.generation.settings import SamplingSettings

    options, order, boxes = scene.options, scene.layout.order, scene.layout.boxes
    prompt, with_class_words = scene.request.prompts[0], options.context_words == "class"
    if with_class_words:
        prompt = layout_from_prompt.scene_prompt(prompt)
    prompt_request.check_lengths(ctx, model, placeholders, replace(scene.request, prompts=[prompt]))
    text = placeholders.expand(prompt)
    regions = [regional.PlacedObject(n, weights[n], boxes[n], placeholders.token_mask(text, n)) for n in order]
    classes = {o.name: o.class_word for o in scene.objects}
    condition = (
        placeholders.encode_with_class_context(prompt, classes, model.encode_prompt([text]))
        if with_class_words
        else None
    )
    condition = regional.encode_with_object_loras(model, text, regions, condition)
    conditions = {} if condition is None else {text: condition}
    sampling = replace(
        SamplingSettings.from_config(scene.config),
        guidance_scale=max(scene.config.guidance_scale, 1.001),  # regions need the half of the batch without prompt
        negative_prompt=placeholders.expand(scene.config.negative_prompt),
        height=size[0],
        width=size[1],
    )
    refinement_settings = refinement.RefinementSettings(
        options.refine_strength,
        replace(sampling, autoguidance_scale=options.refine_autoguidance_scale),
        options.paste == "box",
    )
    object_prompts = {n: placeholders.expand(layout_from_prompt.object_prompt(prompt, n)) for n in order}
    refined = [refinement.RefinedObject(n, weights[n], boxes[n], object_prompts[n]) for n in order]

    def sample_batch(seeds: list[int], on_step: Callable[[int, int], None]) -> "SceneBatch":
        bounded, aspect = options.bounded_self_attention, size[1] / size[0]
        with regional.regional_sampling(model, regions, options.region_softness, aspect=aspect, bounded=bounded):
            latents = sample(model, text, seeds, sampling, on_step, conditions)
        if not options.refine_strength:
            return [{"latents": z} for z in latents], model.decode_latents(latents).cpu()
        progress = {n: ctx.progress(f"closer look at {n}") for n in order}
        close, images = refinement.refine_objects(
            model, latents, refined, seeds, refinement_settings, lambda n, done, total: progress[n](done, total)
        )
        tensors = [
            {"latents": z} | {f"{REFINED}{n}": each[i] for n, each in close.items()} for i, z in enumerate(latents)
        ]
        return tensors, images

    return sample_batch


def _sample_best_seeds(
    ctx: StageContext, check: "PresenceCheck | None", scene: _Scene, sample_batch: "SampleBatch"
) -> tuple[list[presence_report.SceneCandidate], dict[str, object]]:
    """Sample every image, then those in which the check finds a fault again from other seeds.

    Returns:
        The best candidate of each image, and the metrics of all.
    """
    count, boxes = scene.config.num_images, [scene.layout.boxes[o.name] for o in scene.objects]
    best: dict[int, presence_report.SceneCandidate] = {}
    waiting = list(range(count))
    for attempt in range(scene.options.max_retries + 1 if check else 1):
        label = f"compose, attempt {attempt + 1}" if attempt else "compose"
        batches = -(-len(waiting) // generate.BATCH)
        for b in range(batches):
            batch = waiting[b * generate.BATCH : (b + 1) * generate.BATCH]
            seeds = [seed_after(scene.config.seed, i + attempt * count) for i in batch]
            on_step = partial(_report_batch, ctx.progress(label), b, batches)
            tensors, images = sample_batch(seeds, on_step)
            candidates = presence_report.check_candidates(check, tensors, images, seeds, boxes)
            for i, candidate in zip(batch, candidates, strict=True):
                best[i] = max(best.get(i, candidate), candidate, key=lambda each: each.margin)
        waiting = [i for i in range(count) if best[i].failed]
        if not waiting:
            break
    chosen = [best[i] for i in range(count)]
    return chosen, presence_report.summarize(check, chosen)


def _report_batch(progress: Callable[[int, int], None], batch: int, batches: int, done: int, total: int) -> None:
    """Report the steps of a batch as part of the steps of all batches."""
    progress(batch * total + done, batches * total)


def decode_scene(model: "BaseModel", record: Record, tensors: "Mapping[str, torch.Tensor]") -> "np.ndarray":
    """The images (N, H, W, 3) uint8 of a composed scene, with its refined objects pasted in."""
    from objtune_cli.composition import refinement
    from objtune_cli.generation.sampling import to_uint8

    refined = {name.removeprefix(REFINED): part for name, part in tensors.items() if name.startswith(REFINED)}
    places = record.config["places"] if refined else {}
    boxes = {name: tuple(places[name]) for name in record.config.get("order", places) if refined}
    whole = record.config.get("paste", "box") == "box"
    return to_uint8(refinement.composite(model, tensors["latents"], refined, boxes, whole=whole)).numpy()
