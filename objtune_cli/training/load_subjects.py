"""Load the objects of a run from the store: embeddings, masks and photos as tensors."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from objtune_cli.embedding import init_embedding as embed
from objtune_cli.errors import IncompatibleError, UsageError
from objtune_cli.store.artifacts import Record
from objtune_cli.store.kinds.embedding import EmbeddingArtifact, mask_inputs
from objtune_cli.store.kinds.mask import PHOTO_ROLE, MaskArtifact
from objtune_cli.store.refs import parse
from objtune_cli.workflow.context import StageContext

if TYPE_CHECKING:
    from objtune_cli.training.subjects import Subject, SubjectPhoto


def load_subjects(ctx: StageContext, starts: list[Record]) -> "list[Subject]":
    """Load one object with all its photos, or several objects of one photo.

    Args:
        starts: Their embeddings.

    Raises:
        UsageError: Several objects are not of one photo.
    """
    masks = [_load_masks(ctx, start) for start in starts]
    if len(starts) > 1:
        photos = {(digest, mask.mask.shape) for own in masks for digest, mask in own}
        if len(photos) > 1 or any(len(own) > 1 for own in masks):
            raise UsageError(
                "the objects are not of one photo",
                "train them one by one and combine them with `objtune compose`",
            )
    by_photo = [[mask for _, mask in of_photo] for of_photo in zip(*masks, strict=True)]
    hidden = [dilated_union_mask(of_photo) for of_photo in by_photo]
    return [
        _load_subject(ctx, start, [_to_photo(mask, area) for (_, mask), area in zip(own, hidden, strict=True)])
        for start, own in zip(starts, masks, strict=True)
    ]


def _load_masks(ctx: StageContext, embedding: Record) -> list[tuple[str, MaskArtifact]]:
    """The masks that an embedding was computed from, each with the digest of its photo's file."""
    sources = mask_inputs(embedding.inputs)
    if not sources:
        raise IncompatibleError(f"{embedding.ref} was not made from a mask", "train from the mask")
    masks = []
    for source in sources:
        record, tensors = ctx.store.read(ctx.store.resolve(parse(source["ref"])), source["sha256"])
        masks.append((record.inputs.get(PHOTO_ROLE, {}).get("sha256", ""), MaskArtifact.from_tensors(tensors)))
    return masks


def dilated_union_mask(masks: Sequence[MaskArtifact]) -> Any:
    """Where any of the objects is in their photo, a little wider, (H, W) of 0 and 1: none of them may stand behind another that is placed anew."""
    import cv2
    import numpy as np

    objects = [mask.mask > 8 for mask in masks]
    width = max(3, round(max(objects[0].shape) / 40))
    return np.maximum.reduce([cv2.dilate(m.astype(np.uint8), np.ones((width, width), np.uint8)) for m in objects])


def _load_subject(ctx: StageContext, start: Record, photos: "list[SubjectPhoto]") -> "Subject":
    """The object of one embedding."""
    from objtune_cli.models import placeholders
    from objtune_cli.training.subjects import Subject

    vectors = EmbeddingArtifact.from_tensors(ctx.store.read(start.ref)[1]).vectors
    name, word = next(iter(start.objects.items()))
    return Subject(
        name=name,
        class_word=word,
        token_embeddings=placeholders.from_encoders(vectors),
        num_trainable=int(start.metrics["learned"]),
        photos=tuple(photos),
    )


def _to_photo(source: MaskArtifact, hidden: Any) -> "SubjectPhoto":
    """A photo and its mask as tensors.

    Args:
        hidden: Area (H, W) of 0 and 1 that the background is painted over.
    """
    import torch

    from objtune_cli.training.subjects import SubjectPhoto

    picture, mask = embed.to_photo_tensors(source)
    ground = _inpaint(source.rgb, hidden)
    background = torch.from_numpy(ground.copy()).permute(2, 0, 1).float() / 127.5 - 1
    return SubjectPhoto(picture * 2 - 1, background, mask)


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
