"""The scenes that `generate` is asked for: prompts, objects, LoRAs and settings, as records, before anything is sampled."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

from objtune_cli.config.sections import Generate, identifying
from objtune_cli.errors import InputError
from objtune_cli.generation import extra_loras, init_image, references
from objtune_cli.generation.defaults import fill_defaults, note_guidance
from objtune_cli.generation.extra_loras import ExtraLora
from objtune_cli.generation.init_image import InitImage
from objtune_cli.generation.references import Reference
from objtune_cli.store.artifacts import Record
from objtune_cli.store.refs import Ref
from objtune_cli.workflow import prompt_request, sampling_prompts, trained_objects
from objtune_cli.workflow.context import StageContext
from objtune_cli.workflow.scene_syntax import editing_settings, with_scene_syntax
from objtune_cli.workflow.trained_objects import PromptObject


@dataclass(frozen=True, slots=True)
class PlannedScene:
    """One scene: prompt `index` of a request.

    Attributes:
        config: Settings of sampling, nothing left to the base.
        loras: LoRAs beside the objects. original: The image that it starts from, or None. references: Objects that the base sees beside the prompt.
    """

    request: prompt_request.PromptRequest
    index: int
    config: Generate
    loras: list[ExtraLora]
    record: Record
    original: InitImage | None = None
    references: Sequence[Reference] = ()

    @property
    def prompt(self) -> str:
        return self.request.prompts[self.index]

    @property
    def objects(self) -> list[PromptObject]:
        """The objects that its prompt names."""
        return self.request.named[self.index]


def plan_scenes(
    ctx: StageContext, prompts: list[str], config: Generate, source: Ref | None = None
) -> list[PlannedScene]:
    """One scene for each prompt, or for each image of a prompt with choices.

    Args:
        source: Adapter that all objects are taken from.

    Raises:
        InputError, MissingError: See `sampling_prompts.read`, `extra_loras.find_loras` and `init_image.read`.
    """
    request, draws = sampling_prompts.read(ctx, prompts, config, source, per_image=True, editing=True)
    _check_shared_strengths(request)
    loras = extra_loras.find_loras(ctx, config.lora, request.loras)
    shared = [lora for lora in loras[0] if all(lora in each for each in loras)]
    shown = references.find(ctx, config)
    original, config = init_image.read(ctx, config)
    config = replace(config, negative_prompt=request.negative, strength=1.0)  # the objects carry it now
    config = fill_defaults(ctx, config, shared)
    note_guidance(ctx, config)
    original = original and original.fitted(config.width or ctx.base.resolution, config.height or ctx.base.resolution)
    scenes = []
    for i, draw in enumerate(draws):
        own_config = replace(config, seed=draw.seed, num_images=draw.num_images)
        own = with_scene_syntax(ctx, request, i, own_config, editing=True)
        scenes.append(
            PlannedScene(
                request,
                i,
                own,
                loras[i],
                _make_record(ctx, request, i, own, loras[i], original, shown),
                original,
                shown,
            )
        )
    return scenes


def _make_record(
    ctx: StageContext,
    request: prompt_request.PromptRequest,
    i: int,
    config: Generate,
    loras: Sequence[ExtraLora],
    original: InitImage | None,
    shown: Sequence[Reference],
) -> Record:
    """The record of the scene of prompt `i`."""
    objects = request.named[i]
    classes = {o.name: o.class_word for o in objects}
    name = "-".join(classes)[:64].rstrip("-.") or "scene"
    settings = (
        identifying(config)
        | sampler_settings(ctx, config)
        | {"prompt": request.prompts[i]}
        | editing_settings(request, i, config.prompt_syntax)
        | strength_settings(objects)
        | extra_loras.scene_settings(loras)
    )
    inputs = trained_objects.scene_inputs(objects, request.negative_objects(i)) | extra_loras.scene_inputs(loras)
    inputs |= references.scene_inputs(shown)
    if original:
        settings, inputs = settings | {"change": config.change}, inputs | original.inputs
    return Record("scene", name, classes, inputs, settings, ctx.base.record())


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
