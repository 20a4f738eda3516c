"""`segment`: a photo and a class word to a mask artifact that carries the photo's pixels."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from objtune_cli.config.sections import Segment, identifying
from objtune_cli.errors import GateError, InputError, NonFiniteError, ObjtuneError
from objtune_cli.images import photo, photo_or_drawing, png
from objtune_cli.segmentation import (
    from_class_word,
    hint_checks,
    page_offer,
    quality_gate,
    segmenters,
    transparent_photo,
)
from objtune_cli.segmentation.from_hints import SegmentationModels, SegmentedObject, Target
from objtune_cli.store import garbage
from objtune_cli.store.artifacts import Record
from objtune_cli.store.kinds.mask import PHOTO_ROLE, MaskArtifact
from objtune_cli.workflow import class_words
from objtune_cli.workflow.context import StageContext, StageResult

if TYPE_CHECKING:
    import numpy as np


def run(ctx: StageContext, path: Path, targets: list[Target], config: Segment) -> list[StageResult]:
    """Segment each target; all masks must pass the quality gate before the first is published.

    Raises:
        InputError: A photo, mask, box or point is unusable, or two objects claim one region. GateError: A mask is unusable for training.
    """
    try:
        return _segment(ctx, path, targets, config)
    except NonFiniteError:  # of the base: a better hint does not help
        raise
    except GateError as error:
        error.hint = page_offer.offer_page(error.hint, path)
        raise


def _segment(ctx: StageContext, path: Path, targets: list[Target], config: Segment) -> list[StageResult]:
    """Segment each target; arguments and errors are those of `run`."""
    head = photo.read_header(path)
    frame = hint_checks.PhotoSize(*head.size, head.orientation)
    targets = [
        hint_checks.to_pixels(target, frame, lambda text: ctx.report.note(f"{path.name}: {text}"))
        for target in class_words.use_known_spelling(ctx, targets)
    ]
    choice, picture = _choose_segmenter(ctx, path, targets, config)
    records = [_record(ctx, target, targets, head, config, choice) for target in targets]
    done = [ctx.find_existing(record) for record in records]
    if all(done):
        return [d for d in done if d]
    picture = picture or photo.read(path)
    if picture.alpha is not None and not picture.alpha.any() and any(target.has_no_hint for target in targets):
        raise InputError(
            f"{path} is wholly transparent", "save it without transparency, or with the object alone opaque"
        )
    for note in picture.notes:
        ctx.report.note(f"{path.name}: {note}")
    _note_photograph(ctx, path, picture)
    models = SegmentationModels(ctx, config, choice)
    if len(targets) == 1 and targets[0].has_no_hint:
        picture = transparent_photo.check_transparency(models, path, picture, targets[0])
    is_cut_out = len(targets) == 1 and picture.alpha is not None
    for target in targets:
        class_words.note_other_class(ctx, target)
        by_word = config.min_class_probability > 0 and not is_cut_out and target.has_no_hint
        class_words.check_known(ctx, target, chooses=by_word)
        if not is_cut_out and not (target.has_no_hint and config.detector):
            segmenters.require_place(ctx, path, choice, picture.rgb, target)
    rgb = downscale(picture, config)
    located = from_class_word.segment_objects(models, picture, rgb, targets)
    accepted = [
        old or _check_mask(ctx, picture, rgb, item, target, record, config)
        for old, item, target, record in zip(done, located, targets, records, strict=True)
    ]
    return [item if isinstance(item, StageResult) else _publish(ctx, item) for item in accepted]


def _choose_segmenter(
    ctx: StageContext, path: Path, targets: list[Target], config: Segment
) -> tuple[segmenters.SegmenterChoice | None, photo.Photo | None]:
    """The segmenter, None if all masks are given; and the photo if the choice depends on it."""
    if all(target.mask for target in targets):
        return None, None
    choice = segmenters.choose_segmenter(ctx, config)
    if not choice.is_fallback:
        return choice, None
    picture = photo.read(path)
    detected = bool(config.detector)
    return segmenters.adapt_to_photograph(choice, picture.rgb, targets, has_detector=detected), picture


def _note_photograph(ctx: StageContext, path: Path, picture: photo.Photo) -> None:
    """Say that a photograph meets a base that knows only drawings, and how to get one that knows photographs."""
    if segmenters.is_drawn_world(ctx) and photo_or_drawing.looks_like_photograph(picture.rgb):
        ctx.note_once(
            f"{path.name} looks like a photograph, and {ctx.base.id} knows only drawings; for photographs: "
            "`objtune fetch --base sd15`, then the same command with `--base sd15`"
        )


def downscale(picture: photo.Photo, config: Segment) -> "np.ndarray":
    """Downscale the photo to the size at which it is stored."""
    import cv2

    height, width = picture.rgb.shape[:2]
    scale = min(1.0, config.max_image_size / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return cv2.resize(picture.rgb, size, interpolation=cv2.INTER_AREA) if scale < 1 else picture.rgb


def _record(
    ctx: StageContext,
    target: Target,
    targets: list[Target],
    head: photo.Header,
    config: Segment,
    choice: segmenters.SegmenterChoice | None,
) -> Record:
    """Record of the mask's inputs: photo, hints, segmenter, and the base if the class word chooses."""
    inputs = {PHOTO_ROLE: {"ref": "", "sha256": head.sha256}}
    for name, file in (("mask", target.mask), ("rough", target.rough_mask)):
        if file:
            inputs[name] = {"ref": "", "sha256": photo.hash_file(file)}
    settings: dict[str, Any] = (
        identifying(replace(config, sam_checkpoint="", segmenter=_recorded_kind(config, target, choice)))
        | target.to_record()
        | ({"colours": "sRGB"} if head.is_converted else {})
    )
    if (
        config.detector and (detector := Path(config.detector)).is_dir()
    ):  # the identity of the model does not depend on its path
        settings["detector"] = detector.resolve().name
        inputs |= {} if target.mask else {"detector": {"ref": "", "sha256": segmenters.digest_folder(detector)}}
    if not target.mask:
        if choice is not None and choice.weights is not None:
            inputs["segmenter"] = {"ref": "", "sha256": choice.sha256}
        if target.has_no_hint or target.is_single_point:
            settings["chosen_by"] = _base_fingerprint(ctx)
        if len(targets) > 1:
            settings["among"] = [
                [t.class_word, t.to_record(), *(photo.hash_file(f) for f in (t.mask, t.rough_mask) if f)]
                for t in targets
            ]
    return Record("mask", target.name, {target.name: target.class_word}, inputs, settings, base={})


def _recorded_kind(config: Segment, target: Target, choice: segmenters.SegmenterChoice | None) -> Any:
    """Segmenter in the record: what `auto` chose; a user's own mask is the same whatever it would choose."""
    if config.segmenter != "auto":
        return config.segmenter
    return "sam" if choice is None or target.mask else choice.kind


@dataclass(frozen=True, slots=True)
class AcceptedMask:
    """A mask that passed the quality gate."""

    record: Record
    rgb: "np.ndarray"
    mask: "np.ndarray"
    overlay: bytes


@dataclass(frozen=True, slots=True)
class MaskVerdict:
    """What the quality gate found.

    Attributes:
        metrics: Statistics and scores of the mask. problem: Why it is unusable, "" if it is usable. advice: A hint for the user.
    """

    metrics: dict[str, float]
    problem: str
    advice: str


def judge_mask(
    ctx: StageContext, picture: photo.Photo, located: SegmentedObject, target: Target, config: Segment
) -> MaskVerdict:
    """Check a mask with the quality gate, and against the user's hints."""
    metrics = quality_gate.mask_statistics(located.cover, _latent_cells(ctx)) | located.metrics
    problem, advice = quality_gate.rejection_reason(metrics, target.class_word, config), located.advice
    if problem and target.box_xyxy and not target.mask:
        advice = hint_checks.suggest_box(target, picture)
    if not problem and located.outline:
        problem, advice = located.outline, located.advice
    elif not problem and not target.mask:
        problem, advice = hint_checks.find_disagreement(located.cover, target, picture, located.rough_mask)
    return MaskVerdict(metrics, problem, advice)


def _check_mask(
    ctx: StageContext,
    picture: photo.Photo,
    rgb: "np.ndarray",
    located: SegmentedObject,
    target: Target,
    record: Record,
    config: Segment,
) -> AcceptedMask:
    """Check a mask with the quality gate.

    Raises:
        GateError: The mask is unusable; an overlay of it is written to the project's folder of rejected masks.
    """
    verdict = judge_mask(ctx, picture, located, target, config)
    metrics, problem, advice = verdict.metrics, verdict.problem, verdict.advice
    overlay = png.encode_png(png.draw_overlay(rgb, located.cover, located.alternatives))
    if problem and (not ctx.force or not metrics["area"]):
        rejected = f"{garbage.REJECTED}{target.name}.png"
        ctx.store.write(rejected, overlay)
        raise GateError(
            f"no usable mask of the {target.class_word}: {problem} (see {ctx.store.backend.locate(rejected)})", advice
        )
    if problem:
        ctx.report.note(f"kept although {problem}")
        record = replace(record, config={**record.config, "kept": problem})
    return AcceptedMask(replace(record, metrics={**metrics, "found_by": located.found_by}), rgb, located.cover, overlay)


def _base_fingerprint(ctx: StageContext) -> str:
    """Fingerprint of the base whose CLIP ranks masks; empty if it is not on this machine, since transparent photos need none."""
    try:
        return ctx.base.fingerprint
    except ObjtuneError:
        return ""


def _latent_cells(ctx: StageContext) -> int:
    """Latent cells of the base's frame; 0 if the base is not on this machine, since masks need none."""
    try:
        return ctx.base.num_latent_cells
    except ObjtuneError:
        return 0


def _publish(ctx: StageContext, accepted: AcceptedMask) -> StageResult:
    import numpy as np

    ref = ctx.publish(accepted.record, MaskArtifact(accepted.rgb, np.ascontiguousarray(accepted.mask)).to_tensors())
    overlay = ctx.store.write_image(ref, "overlay.png", accepted.overlay)
    return StageResult(ref, False, [overlay], accepted.record.metrics)
