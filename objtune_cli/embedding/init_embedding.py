"""`init-embedding`: the mask artifacts of an object to the first vectors of its token."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from objtune_cli.config.sections import Embed, identifying
from objtune_cli.errors import ResourceError, UsageError
from objtune_cli.store.artifacts import Record
from objtune_cli.store.kinds.embedding import EmbeddingArtifact, mask_role
from objtune_cli.store.kinds.mask import MaskArtifact
from objtune_cli.store.refs import Ref
from objtune_cli.workflow import class_words
from objtune_cli.workflow.context import StageContext, StageResult, tool_versions


def run(ctx: StageContext, masks: Sequence[Ref], config: Embed) -> StageResult:
    """Start the token of one masked object.

    Args:
        masks: Masks of the object, one for each photo. Their order does not matter, and each counts once.

    Raises:
        ResourceError: A prototype was asked for, and the base has no image tower.
        UsageError: All weights of the prototype are 0, or masks of several objects or classes.
    """
    if not any(config.weights):
        raise UsageError(
            "all weights of the prototype are 0",
            "set one of init-embedding.image_weight, object and word above 0",
        )
    config = _resolve_init(ctx, config)
    masks = _sort_masks(ctx, masks)
    record = _make_record(ctx, masks, config)
    return ctx.find_existing(record) or _compute(ctx, masks, config, record)


def _sort_masks(ctx: StageContext, masks: Sequence[Ref]) -> list[Ref]:
    """The masks, each once, in the order of their names and versions; masks named twice are noted."""
    for mask in {mask for mask in masks if masks.count(mask) > 1}:
        ctx.note_once(f"{mask} is named more than once and counts once")
    return sorted(set(masks), key=lambda mask: (mask.name, mask.version))


def _make_record(ctx: StageContext, masks: list[Ref], config: Embed) -> Record:
    """What identifies the embedding: its masks, settings and base model.

    Raises:
        UsageError: Masks of several objects or classes.
    """
    source = ctx.store.read_record(masks[0])
    _check_one_object([source, *(ctx.store.read_record(mask) for mask in masks[1:])])
    inputs = {mask_role(number): ctx.input_record(mask) for number, mask in enumerate(masks, 1)}
    settings = identifying(config) | ({"clip_model": ctx.base.clip_model} if ctx.base.clip_model else {})
    return Record("embedding", source.name, source.objects, inputs, settings, ctx.base.record())


def _compute(ctx: StageContext, masks: list[Ref], config: Embed, record: Record) -> StageResult:
    """Compute the token's vectors and store them."""
    class_words.warn_unknown(ctx, record.class_word)
    stored = [ctx.store.read(mask, own["sha256"])[1] for mask, own in zip(masks, record.inputs.values(), strict=True)]

    from objtune_cli.embedding import prototype
    from objtune_cli.models import clip, placeholders

    photos = [to_photo_tensors(MaskArtifact.from_tensors(tensors)) for tensors in stored]
    model = ctx.load_base_model()
    class_words.check_length(model, [record.class_word], config.num_vectors)
    towers = clip.load(ctx.base.clip_path, model) if ctx.base.clip_path else None
    second = clip.load(ctx.base.clip_2_path, model, 1) if ctx.base.clip_2_path else None
    step = ctx.progress("init-embedding")
    token = prototype.initialise_token(
        model,
        towers,
        photos,
        record.class_word,
        config,
        lambda i, loss: step(i, config.steps, loss=loss),
        second,
    )
    metrics = {k: round(v, 6) for k, v in token.metrics.items()} | {"learned": token.num_trainable}
    ref = ctx.publish(
        replace(record, metrics=metrics, tools=tool_versions()),
        EmbeddingArtifact(placeholders.split_encoders(token.token_embeddings, model.widths)).to_tensors(),
    )
    return StageResult(ref, False, [], metrics)


def _check_one_object(records: list[Record]) -> None:
    """Refuse masks of several objects, or of one name with several classes.

    Raises:
        UsageError: Names two of them.
    """
    first = records[0]
    other = next((record for record in records if record.objects != first.objects), None)
    if other is not None:
        raise UsageError(
            f"{first.ref} and {other.ref} are not of one object: {first.class_word}, {other.class_word}",
            "give masks of one name and one class",
        )


def to_photo_tensors(artifact: MaskArtifact) -> tuple[Any, Any]:
    """A mask artifact's photo (3, H, W) and coverage (H, W), both in [0, 1]."""
    import torch

    rgb = torch.from_numpy(artifact.rgb.copy()).permute(2, 0, 1).float() / 255
    return rgb, torch.from_numpy(artifact.mask.copy()).float() / 255


def _resolve_init(ctx: StageContext, config: Embed) -> Embed:
    if config.init == "prototype" and ctx.base.clip_path is None:
        raise ResourceError(
            f"the base {ctx.base.id} has no CLIP vision encoder for a prototype",
            "give its CLIP with `--set clip_model=…` (hub id, folder or file); or use `--init class`",
        )
    if config.init != "auto":
        return config
    if ctx.base.clip_path is None:
        ctx.report.note(
            f"the base {ctx.base.id} has no CLIP vision encoder (clip/): the token starts at the class word"
        )
        return replace(config, init="class")
    return replace(config, init="prototype")
