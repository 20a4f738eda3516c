"""Load the objects of a run from the store: embeddings, masks and the photo as tensors."""

from typing import TYPE_CHECKING, Any

from objtune_cli.embedding import stage as embed
from objtune_cli.errors import IncompatibleError, UsageError
from objtune_cli.store.artifacts import Record
from objtune_cli.store.kinds.embedding import MASK_ROLE, EmbeddingArtifact
from objtune_cli.store.kinds.mask import PHOTO_ROLE, MaskArtifact
from objtune_cli.store.refs import Ref, parse
from objtune_cli.workflow.context import StageContext

if TYPE_CHECKING:
    from objtune_cli.training.subjects import Subject


def load_subjects(ctx: StageContext, starts: list[Record]) -> "list[Subject]":
    """The objects that start from embeddings of one photo.

    Raises:
        UsageError: They are not of one photo.
    """
    sizes = {_load_mask(ctx, s).mask.shape for s in starts}
    if len(sizes) > 1 or len({_photo_digest(ctx, s) for s in starts}) > 1:
        raise UsageError(
            "the objects are not of one photo", "train them one by one and bring them together with `objtune compose`"
        )
    away = dilated_union_mask(ctx, starts)
    return [load_subject(ctx, start, away) for start in starts]


def _photo_digest(ctx: StageContext, embedding: Record) -> str:
    mask = _mask_ref(ctx, embedding)
    return ctx.store.read_record(mask).inputs[PHOTO_ROLE]["sha256"]


def _mask_ref(ctx: StageContext, embedding: Record) -> Ref:
    if MASK_ROLE not in embedding.inputs:
        raise IncompatibleError(f"{embedding.ref} was not made from a mask", "train from the mask")
    return ctx.store.resolve(parse(embedding.inputs[MASK_ROLE]["ref"]))


def _load_mask(ctx: StageContext, embedding: Record) -> MaskArtifact:
    """The mask and photo that an embedding was computed from."""
    ref, sha256 = _mask_ref(ctx, embedding), embedding.inputs[MASK_ROLE]["sha256"]
    return MaskArtifact.from_tensors(ctx.store.read(ref, sha256)[1])


def dilated_union_mask(ctx: StageContext, starts: list[Record]) -> Any:
    """Where any of the objects is in their photo, a little wider, (H, W) of 0 and 1: none of them may stand behind another that is placed anew."""
    import cv2
    import numpy as np

    masks = [_load_mask(ctx, s).mask > 8 for s in starts]
    width = max(3, round(max(masks[0].shape) / 40))
    return np.maximum.reduce([cv2.dilate(m.astype(np.uint8), np.ones((width, width), np.uint8)) for m in masks])


def load_subject(ctx: StageContext, start: Record, away: Any) -> "Subject":
    """Photo, background, mask and token of one embedding."""
    import torch

    from objtune_cli.models import placeholders
    from objtune_cli.training.subjects import Subject

    vectors = EmbeddingArtifact.from_tensors(ctx.store.read(start.ref)[1]).vectors
    source = _load_mask(ctx, start)
    picture, mask = embed.to_photo_tensors(source)
    ground = _inpaint(source.rgb, away)
    name, word = next(iter(start.objects.items()))
    return Subject(
        name=name,
        class_word=word,
        token_embeddings=placeholders.from_encoders(vectors),
        num_trainable=int(start.metrics["learned"]),
        picture=picture * 2 - 1,
        background=torch.from_numpy(ground.copy()).permute(2, 0, 1).float() / 127.5 - 1,
        mask=mask,
    )


def _inpaint(rgb: Any, away: Any) -> Any:
    """The photo with the hidden part filled in from around it, at a size where that is quick."""
    import cv2

    height, width = away.shape
    scale = min(1.0, 256 / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = cv2.inpaint(
        cv2.resize(rgb, size, interpolation=cv2.INTER_AREA),
        cv2.resize(away, size, interpolation=cv2.INTER_NEAREST),
        5,
        cv2.INPAINT_TELEA,
    )
    filled = cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)
    filled[away == 0] = rgb[away == 0]
    return filled
