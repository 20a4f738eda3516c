"""`place`: a trained object drawn into a region of a picture, the rest of which keeps its bytes."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from objtune_cli.composition import layout_from_prompt, presence_report
from objtune_cli.composition.layout import Box
from objtune_cli.config.sections import Generate, Place, Segment, identifying
from objtune_cli.errors import InputError
from objtune_cli.generation import defaults, extra_loras, generate, image_copies, scene_plan
from objtune_cli.images import photo
from objtune_cli.store.artifacts import Record
from objtune_cli.store.kinds.mask import MaskArtifact
from objtune_cli.store.kinds.scene import LATENTS, MASK_ROLE, PHOTO_ROLE, SHARES
from objtune_cli.workflow import prompt_request, sampling_prompts, trained_objects
from objtune_cli.workflow.context import StageContext, StageResult
from objtune_cli.workflow.scene_syntax import editing_settings, with_scene_syntax

if TYPE_CHECKING:
    import numpy as np
    import torch

    from objtune_cli.models.base_model import BaseModel
    from objtune_cli.placement.crops import CroppedRegion
    from objtune_cli.placement.inpainting import CutOut
    from objtune_cli.placement.regions import Region
    from objtune_cli.workflow.trained_objects import PromptObject


@dataclass(frozen=True, slots=True)
class Location:
    """Where an object goes in a picture; with nothing set a place is proposed.

    Attributes:
        box: In fractions of the picture. mask: Mask file, white where the object goes. replaced: Class word of what it replaces.
    """

    box: Box | None = None
    mask: Path | None = None
    replaced: str = ""


@dataclass(frozen=True, slots=True)
class Placement:
    """An object to place: its prompt, the picture with the region, the settings, nothing left to the base, and LoRAs beside the object."""

    request: prompt_request.PromptRequest
    item: "PromptObject"
    region: "CroppedRegion"
    config: Generate
    options: Place
    loras: list[extra_loras.ExtraLora]


def run(
    ctx: StageContext,
    prompt: str,
    into: Path,
    location: Location,
    config: Generate,
    options: Place,
    out: Path | None = None,
) -> list[StageResult]:
    """Draw the prompt's object into the picture `into`; one scene artifact with `config.num_images` pictures.

    Args:
        out: Folder that the pictures are copied to.

    Raises:
        InputError: The prompt does not name exactly one object, the picture or mask is unusable, or the region is too small; see `sampling_prompts.read`.
        GateError: `options.strict` is set, and the object is missing in a picture for every seed; or what it replaces was not found.
    """
    if out is not None:
        image_copies.check_output(out, config)
    ctx = replace(ctx, inpainting=True)
    request, _ = sampling_prompts.read(ctx, [prompt], config, editing=True)
    (loras,) = extra_loras.find_loras(ctx, config.lora, request.loras)
    item = _require_one_object(request)
    picture = photo.read(into)
    for note in picture.notes:
        ctx.report.note(f"{into.name}: {note}")
    region, replaced, inputs = _find_region(ctx, picture, into, location, item)
    config = _sampling_config(ctx, replace(config, negative_prompt=request.negative), loras)
    config = with_scene_syntax(ctx, request, 0, config, editing=True)
    defaults.note_guidance(ctx, config)
    if options.paste == "auto":
        options = replace(options, paste="region" if ctx.base.picture_input else "object")
    placement = Placement(request, item, _crop(ctx, picture, region, replaced, options), config, options, loras)
    record = _make_record(ctx, placement, picture, inputs)
    decode = partial(_decode, placement)
    result = generate.reuse_scene(ctx, record, config, request.prompts[0], decode)
    if result:
        presence_report.report_presence(ctx, result.metrics, options)
    else:
        result = _sample_placement(ctx, record, placement, decode)
    return image_copies.copy_images([result], out, config)


def _require_one_object(request: prompt_request.PromptRequest) -> "PromptObject":
    """The object that the prompt names.

    Raises:
        InputError: It names none, or several.
    """
    (named,) = request.named
    if not named:
        example = 'for example `objtune place "<mug>" --into table.jpg --at 0.5,0.4,0.9,0.9`'
        raise InputError("the prompt names no trained object", request.advice or example)
    if len(named) > 1:
        names = ", ".join(f"<{o.name}>" for o in named)
        raise InputError(f"the prompt names {names}; `place` takes one object", "place them one after the other")
    return named[0]


def _find_region(
    ctx: StageContext, picture: photo.Photo, into: Path, location: Location, item: "PromptObject"
) -> tuple["Region", "np.ndarray | None", dict[str, dict[str, str]]]:
    """The region of the picture, the mask of what is replaced, and the files that they come from as inputs of the record."""
    from objtune_cli.placement import regions

    size = (picture.rgb.shape[1], picture.rgb.shape[0])
    inputs: dict[str, dict[str, str]] = {}
    boxes: list[Region] = []
    replaced = None
    if location.mask:
        region, notes = regions.from_mask_file(location.mask, picture)
        for note in notes:
            ctx.report.note(f"{location.mask.name}: {note}")
        inputs[MASK_ROLE] = {"ref": "", "sha256": photo.hash_file(location.mask)}
        boxes.append(region)
    if location.replaced:
        result = _segment(ctx, into, location.replaced)
        inputs[MASK_ROLE] = ctx.input_record(result.ref)
        mask = MaskArtifact.from_tensors(ctx.store.read(result.ref)[1]).mask
        thing = regions.from_cover(mask, picture, f"the {location.replaced}", regions.MARGIN)
        replaced = thing.cover > 0.5
        boxes.append(regions.from_pixels(thing.box, size))
    if location.box:
        boxes.append(regions.from_box(location.box, size))
        calmer = regions.find_calmer_box(picture.rgb, location.box, trained_objects.aspect_ratio(ctx, item))
        if calmer and not location.replaced and not location.mask and not ctx.base.picture_input:
            ctx.report.note(
                f"the region shows something, which the object is drawn over: --replace and its class word remove it, "
                f"or --at {_format_box(calmer)} is free"
            )
    if not boxes:
        box = regions.propose_box(picture.rgb, trained_objects.aspect_ratio(ctx, item))
        ctx.report.note(f"placed by default: --at {_format_box(box)}")
        boxes.append(regions.from_box(box, size))
    return regions.union(boxes), replaced, inputs


def _format_box(box: Box) -> str:
    return ",".join(f"{v:.2f}" for v in box)


def _segment(ctx: StageContext, into: Path, word: str) -> StageResult:
    """Segment what is replaced."""
    from objtune_cli.segmentation import segment
    from objtune_cli.segmentation.from_hints import Target
    from objtune_cli.workflow import class_words

    ((word, name),) = class_words.pair_with_names([word])
    return segment.run(ctx.without_force(), into, [Target(word, name)], ctx.settings.resolve(Segment))[0]


def _crop(
    ctx: StageContext, picture: photo.Photo, region: "Region", replaced: "np.ndarray | None", options: Place
) -> "CroppedRegion":
    from objtune_cli.placement.crops import Crop, CroppedRegion

    crop = Crop.around(region.box, (picture.rgb.shape[1], picture.rgb.shape[0]), options.context)
    return CroppedRegion(picture.rgb, region, crop, ctx.base.resolution, options.softness, replaced)


def _sampling_config(ctx: StageContext, config: Generate, loras: list[extra_loras.ExtraLora]) -> Generate:
    """The settings of sampling with the base's own values; the picture has its size, and the object its strength."""
    return replace(defaults.fill_defaults(ctx, replace(config, width=0, height=0), loras), strength=1.0)


def _make_record(
    ctx: StageContext, placement: Placement, picture: photo.Photo, files: Mapping[str, dict[str, str]]
) -> Record:
    import hashlib

    item, request = placement.item, placement.request
    settings: dict[str, Any] = (
        identifying(placement.config)
        | scene_plan.sampler_settings(ctx, placement.config)
        | {f"place_{key}": value for key, value in identifying(placement.options).items()}
        | {"prompt": request.prompts[0], "region": list(placement.region.region.box)}
        | editing_settings(request, 0, placement.config.prompt_syntax)
        | scene_plan.strength_settings([item])
        | extra_loras.scene_settings(placement.loras)
    )
    if MASK_ROLE in files:
        cover = (placement.region.region.cover > 0.5).tobytes()
        settings["region_mask"] = hashlib.sha256(cover).hexdigest()[:16]
    inputs = trained_objects.scene_inputs([item], request.negative_objects(0)) | dict(files)
    inputs |= extra_loras.scene_inputs(placement.loras)
    inputs[PHOTO_ROLE] = {"ref": "", "sha256": picture.sha256}
    return Record("scene", item.name, {item.name: item.class_word}, inputs, settings, ctx.base.record())


def _sample_placement(ctx: StageContext, record: Record, placement: Placement, decode: generate.Decode) -> StageResult:
    """Sample the region, check that the object is in it, and publish the pictures."""
    import torch

    from objtune_cli.composition import scene_sampling
    from objtune_cli.generation.settings import SamplingSettings
    from objtune_cli.placement.inpainting import Inpainter

    model = ctx.load_base_model()
    model.prompt_syntax = placement.config.prompt_syntax
    request, item, options = placement.request, placement.item, placement.options
    weights = {
        o.name: trained_objects.scale_lora(trained_objects.load_tensors(ctx, o), o.strength) for o in request.objects
    }
    placeholders = trained_objects.add_placeholders(model, request.objects, weights)
    prompt_request.check_lengths(ctx, model, placeholders, request)
    sampling = replace(
        SamplingSettings.from_config(placement.config),
        negative_prompt=placeholders.expand(placement.config.negative_prompt),
        prompt_editing=True,
    )
    loaded = extra_loras.load_loras(ctx, model, placement.loras)
    with extra_loras.active_loras(model, placement.loras, loaded):
        prompt = placeholders.expand(crop_prompt(request.prompts[0], item.name, model.prompt_syntax))
        cut_out = _load_cut_out(ctx, placement.region.picture) if options.paste == "object" else None
        region = placement.region
        inpainter = Inpainter(
            model, region, weights[item.name], prompt, options.change, options.harmonize, sampling, cut_out
        )
        check = presence_report.build_check(model, [item], weights, placeholders) if options.presence_check else None

        def sample_batch(seeds: list[int], on_step: Any) -> scene_sampling.SceneBatch:
            latents, shares = inpainter.sample(seeds, on_step)
            tensors = [{LATENTS: z, SHARES: share} for z, share in zip(latents, shares, strict=True)]
            return tensors, model.decode_latents(latents).cpu()

        box = region.crop.box_in_crop(region.region.box)
        candidates, metrics = scene_sampling.sample_best_seeds(
            ctx, check, [box], placement.config, options.max_retries, sample_batch, "place"
        )
    presence_report.report_presence(ctx, metrics, options)  # before publishing: with `strict` it may refuse
    tensors = {name: torch.stack([each.tensors[name] for each in candidates]) for name in (LATENTS, SHARES)}
    record = replace(record, metrics=metrics, tools=ctx.tools(model))
    return generate.publish_scene(ctx, model, record, tensors, placement.config, request.prompts[0], decode)


def crop_prompt(prompt: str, name: str, syntax: str = "plain") -> str:
    """The prompt of the crop: without the object's side of the picture; a name alone becomes `a photo of <name>`."""
    from objtune_cli.models import prompt_syntax
    from objtune_cli.models.prompt_editing import has_editing
    from objtune_cli.models.prompts import PROMPT

    if has_editing(prompt, syntax):
        return prompt

    characters = partial(layout_from_prompt.object_characters, name=name)
    text = prompt_syntax.edit(prompt, syntax, characters).strip()
    plain = prompt_syntax.plain_text(text, syntax)
    is_name = plain.startswith("<") and plain.endswith(">") and plain.count("<") == 1
    return PROMPT.format(text) if is_name else text


def _decode(
    placement: Placement, model: "BaseModel", record: Record, tensors: "Mapping[str, torch.Tensor]"
) -> "np.ndarray":
    """The pictures (N, H, W, 3) uint8 of a placed object."""
    from objtune_cli.placement import inpainting

    return inpainting.blend(model, placement.region, tensors[LATENTS], tensors[SHARES])


def _load_cut_out(ctx: StageContext, picture: "np.ndarray") -> "CutOut":
    """The segmenter that `segment` takes for a box in the picture (H, W, 3) uint8, as a function."""
    from objtune_cli.placement.crops import largest_piece
    from objtune_cli.segmentation import segmenters
    from objtune_cli.segmentation.from_hints import SegmentationModels, Target
    from objtune_cli.segmentation.types import Hints

    config = ctx.settings.resolve(Segment)
    in_box = Target("object", "object", (0.0, 0.0, 1.0, 1.0))
    choice = segmenters.adapt_to_photograph(segmenters.choose_segmenter(ctx, config), picture, [in_box])
    models = SegmentationModels(ctx, config, choice)

    def cut_out(rgb: "np.ndarray", box: tuple[float, float, float, float]) -> "np.ndarray":
        models.segmenter.set_image(rgb)
        return largest_piece(models.segmenter.predict(Hints(box)).mask)

    return cut_out
