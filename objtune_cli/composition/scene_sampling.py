"""Sample a scene: regions, then the refinement of each object, and the best of several seeds by the presence check."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

from torch import Tensor

from objtune_cli.composition import layout_from_prompt, object_loras, presence_report, refinement, regional
from objtune_cli.composition.layout import Box
from objtune_cli.composition.presence import PresenceCheck
from objtune_cli.composition.region_masks import PlacedObject
from objtune_cli.composition.scene import Scene
from objtune_cli.config.sections import Generate, seed_after
from objtune_cli.generation import generate
from objtune_cli.generation.sampling import sample
from objtune_cli.generation.settings import SamplingSettings
from objtune_cli.models import prompt_syntax
from objtune_cli.models.base_model import BaseModel
from objtune_cli.models.conditioning import Conditioning
from objtune_cli.models.placeholders import Placeholders
from objtune_cli.store.kinds.scene import REFINED
from objtune_cli.workflow import prompt_request
from objtune_cli.workflow.context import StageContext

ObjectWeights = Mapping[str, Mapping[str, Tensor]]
"""Object name to its LoRA tensors."""
SceneBatch = tuple[list[dict[str, Tensor]], Tensor]
"""The tensors of each image, and the images (N, 3, H, W) in [-1, 1]."""
SampleBatch = Callable[[list[int], Callable[[int, int], None]], SceneBatch]
"""Seeds and a step callback to a batch of scenes."""


def build_sampler(
    ctx: StageContext, model: BaseModel, scene: Scene, weights: ObjectWeights, placeholders: Placeholders
) -> SampleBatch:
    """The function that samples a batch of images of the scene.

    Args:
        weights: Object name to its LoRA tensors.
    """
    options, order, boxes = scene.options, scene.layout.order, scene.layout.boxes
    size = image_size(model, scene)
    prompt = scene.request.prompts[0]
    if options.context_words == "class":
        prompt = prompt_syntax.substitute(prompt, model.prompt_syntax, layout_from_prompt.side_by_side_edits)
    prompt_request.check_lengths(ctx, model, placeholders, replace(scene.request, prompts=[prompt]))
    text = placeholders.expand(prompt)
    regions = [PlacedObject(n, weights[n], boxes[n], placeholders.token_mask(text, n)) for n in order]
    conditions = _encode_scene(model, scene, prompt, regions, placeholders)
    sampling = replace(
        SamplingSettings.from_config(scene.config),
        guidance_scale=max(scene.config.guidance_scale, 1.001),  # regions need the half of the batch without prompt
        negative_prompt=placeholders.expand(scene.config.negative_prompt),
        height=size[0],
        width=size[1],
    )
    refine = _build_refiner(ctx, model, scene, sampling, prompt, weights, placeholders)

    def sample_batch(seeds: list[int], on_step: Callable[[int, int], None]) -> SceneBatch:
        bounded, aspect = options.bounded_self_attention, size[1] / size[0]
        with regional.regional_sampling(model, regions, options.region_softness, aspect=aspect, bounded=bounded):
            latents = sample(model, text, seeds, sampling, on_step, conditions)
        return refine(latents, seeds)

    return sample_batch


def image_size(model: BaseModel, scene: Scene) -> tuple[int, int]:
    """Height and width of the scene's images, px."""
    high, wide = (
        round(model.resolution * side / model.size_multiple) * model.size_multiple
        for side in (scene.layout.high, scene.layout.wide)
    )
    return high, wide


def _encode_scene(
    model: BaseModel, scene: Scene, prompt: str, regions: list[PlacedObject], placeholders: Placeholders
) -> dict[str, Conditioning]:
    """Encode the prompt with its objects' text encoder LoRAs; empty if plain encoding gives the same."""
    text, condition = placeholders.expand(prompt), None
    if scene.options.context_words == "class":
        classes = {o.name: o.class_word for o in scene.objects}
        condition = placeholders.encode_with_class_context(prompt, classes, model.encode_prompt([text]))
    condition = object_loras.encode_with_object_loras(model, text, regions, condition)
    return {} if condition is None else {text: condition}


def _build_refiner(
    ctx: StageContext,
    model: BaseModel,
    scene: Scene,
    sampling: SamplingSettings,
    prompt: str,
    weights: ObjectWeights,
    placeholders: Placeholders,
) -> Callable[[Tensor, list[int]], SceneBatch]:
    """The function that decodes latents (N, C, h, w), one per seed, and refines their objects if the settings ask for it."""
    options, order, boxes = scene.options, scene.layout.order, scene.layout.boxes
    settings = refinement.RefinementSettings(
        options.refine_strength,
        replace(sampling, autoguidance_scale=options.refine_autoguidance_scale),
        options.paste == "box",
    )
    prompts = {
        n: placeholders.expand(
            prompt_syntax.edit(prompt, model.prompt_syntax, partial(layout_from_prompt.object_characters, name=n))
        )
        for n in order
    }
    objects = [refinement.RefinedObject(n, weights[n], boxes[n], prompts[n]) for n in order]

    def refine(latents: Tensor, seeds: list[int]) -> SceneBatch:
        if not options.refine_strength:
            return [{"latents": z} for z in latents], model.decode_latents(latents).cpu()
        progress = {n: ctx.progress(f"closer look at {n}") for n in order}
        refined, images = refinement.refine_objects(
            model, latents, objects, seeds, settings, lambda n, done, total: progress[n](done, total)
        )
        tensors = [
            {"latents": z} | {f"{REFINED}{n}": each[i] for n, each in refined.items()} for i, z in enumerate(latents)
        ]
        return tensors, images

    return refine


def sample_best_seeds(
    ctx: StageContext,
    check: PresenceCheck | None,
    boxes: list[Box],
    config: Generate,
    max_retries: int,
    sample_batch: SampleBatch,
    command: str = "compose",
) -> tuple[list[presence_report.SceneCandidate], dict[str, object]]:
    """Sample every image, then those in which the check finds a fault again from other seeds.

    Args:
        boxes: In the order of the check's objects, fractions of the sampled images.
        command: Name of the progress.

    Returns:
        The best candidate of each image, and the metrics of all.
    """
    count = config.num_images
    best: dict[int, presence_report.SceneCandidate] = {}
    waiting = list(range(count))
    for attempt in range(max_retries + 1 if check else 1):
        label = f"{command}, attempt {attempt + 1}" if attempt else command
        batches = -(-len(waiting) // generate.BATCH)
        for b in range(batches):
            batch = waiting[b * generate.BATCH : (b + 1) * generate.BATCH]
            seeds = [seed_after(config.seed, i + attempt * count) for i in batch]
            on_step = partial(_report_batch, ctx.progress(label), b, batches)
            tensors, images = sample_batch(seeds, on_step)
            candidates = presence_report.check_candidates(check, tensors, images, seeds, boxes)
            for i, candidate in zip(batch, candidates, strict=True):
                best[i] = max(best.get(i, candidate), candidate, key=lambda each: each.margin)
        waiting = [i for i in range(count) if best[i].failed]
        if not waiting:
            break
    winners = [best[i] for i in range(count)]
    return winners, presence_report.summarize(check, winners)


def _report_batch(progress: Callable[[int, int], None], batch: int, batches: int, done: int, total: int) -> None:
    """Report the steps of a batch as part of the steps of all batches."""
    progress(batch * total + done, batches * total)
