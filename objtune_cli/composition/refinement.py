"""Detail refinement: each object's box is cropped, enlarged, sampled again by the object's adapter alone and pasted back.

In a scene an object has few latent cells and shares the prompt with others, so that it loses its details. Enlarged and alone it is sampled as it was
learned. Only the object's mask is pasted, because a newly sampled background would not fit the scene's.

Source: ADetailer does the same for faces; the objects' own adapters and masks are ours.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from objtune_cli.composition.object_loras import single_lora
from objtune_cli.composition.presence import crop_to_box
from objtune_cli.composition.region_masks import region_weights
from objtune_cli.config.sections import seed_after
from objtune_cli.generation.sampling import resample, to_uint8
from objtune_cli.generation.settings import SamplingSettings
from objtune_cli.models.base_model import BaseModel
from objtune_cli.numerics.masks import Box
from objtune_cli.segmentation.grabcut import GrabCut
from objtune_cli.segmentation.types import Hints

CROP_MARGIN = 0.15
"""Margin around a box in its crop, fraction of its longer side: an adapter hardly learned objects that fill the image."""
OUTLINE_SIDE, GRABCUT_ROUNDS, MIN_PIECE_SHARE = 160, 3, 0.03
"""Side of the image in which an object is cut out, px; rounds of GrabCut; least area of a piece, fraction of the largest piece."""
PASTE_MARGIN = 0.05
"""Margin around an object's mask, fraction of the longer side of its box."""
OUTLINE_SHARES = (0.04, 0.95)
"""Least and greatest fraction of its box that an object may cover; outside them the mask is not used."""
SEED_STRIDE = 7919
"""Distance between the seeds of an image's objects, so that their noises are independent."""


@dataclass(frozen=True, slots=True)
class RefinedObject:
    """One object: its LoRA tensors, its box in the scene, and its own prompt."""

    name: str
    weights: Mapping[str, Tensor]
    box: Box
    prompt: str


@dataclass(frozen=True, slots=True)
class RefinementSettings:
    """Settings of sampling objects again.

    Attributes:
        strength: Fraction of the sampling steps that are taken, in (0, 1].
        sampling: Settings of sampling; see `sampling.resample`.
        whole: Whether the whole box is pasted, or only the object's mask.
    """

    strength: float
    sampling: SamplingSettings
    whole: bool = False


def refine_objects(
    model: BaseModel,
    latents: Tensor,
    objects: Sequence[RefinedObject],
    seeds: Sequence[int],
    how: RefinementSettings,
    on_step: Callable[[str, int, int], None],
) -> tuple[dict[str, Tensor], Tensor]:
    """Refine each object of scenes, from back to front.

    Args:
        latents: The scenes, scaled, (N, C, h, w).
        objects: From back to front.
        on_step: Called with the object's name, the number of steps so far and in all.

    Returns:
        Scaled latents (N, C, h', w') of each object's crop; and the scenes with all of them pasted in, (N, 3, H, W) in [-1, 1], on the CPU.
    """
    images = model.decode_latents(latents).cpu()
    weights = region_weights([o.box for o in objects], _image_size(images))
    refined = {}
    for i, item in enumerate(objects):
        crop = crop_to_box((images + 1) / 2, item.box, model.resolution, CROP_MARGIN) * 2 - 1
        object_seeds = [seed_after(seed, (i + 1) * SEED_STRIDE) for seed in seeds]
        with single_lora(model, item.weights):
            refined[item.name] = resample(
                model,
                model.encode_image(crop).cpu(),
                item.prompt,
                object_seeds,
                how.strength,
                how.sampling,
                partial(on_step, item.name),
            )
        images = paste(images, model.decode_latents(refined[item.name]).cpu(), item.box, weights[i], whole=how.whole)
    return refined, images


def composite(
    model: BaseModel, latents: Tensor, refined: Mapping[str, Tensor], boxes: Mapping[str, Box], *, whole: bool = False
) -> Tensor:
    """The scenes of `refine_objects` from their latents: images (N, 3, H, W) in [-1, 1].

    Args:
        refined: Object name to the latents of its crop.
        boxes: Object name to box, from back to front.
        whole: Whether the whole boxes are pasted.
    """
    images = model.decode_latents(latents).cpu()
    if not boxes:
        return images
    weights = region_weights(list(boxes.values()), _image_size(images))
    for weight, (name, box) in zip(weights, boxes.items(), strict=True):
        images = paste(images, model.decode_latents(refined[name]).cpu(), box, weight, whole=whole)
    return images


def paste(images: Tensor, crops: Tensor, box: Box, share: Tensor, *, whole: bool = False) -> Tensor:
    """Paste the crops of a box back into images.

    Args:
        images: (N, 3, H, W) in [-1, 1].
        crops: (N, 3, s, s) in [-1, 1], with `CROP_MARGIN`.
        share: Weight of the crops (H, W) in [0, 1].
        whole: Whether the whole box is pasted, or only the object's mask.
    """
    height, width = images.shape[-2:]
    x0, y0, x1, y1 = box[0] * width, box[1] * height, box[2] * width, box[3] * height
    reach = max(x1 - x0, y1 - y0) * (1 + CROP_MARGIN)
    small = F.interpolate(crops, size=(max(1, round(reach)),) * 2, mode="bilinear", antialias=True, align_corners=False)
    y, x = ((torch.arange(n) + 0.5 - (a + b) / 2) / reach * 2 for n, a, b in ((height, y0, y1), (width, x0, x1)))
    grid = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=-1)
    inside = (grid.abs() <= 1).all(-1)
    resized = F.grid_sample(
        small, grid.expand(len(images), -1, -1, -1), mode="bilinear", padding_mode="border", align_corners=False
    )
    weight = share * inside
    return torch.lerp(images, resized, weight if whole else weight * paste_masks(images, resized, box))


def paste_masks(before: Tensor, after: Tensor, box: Box) -> Tensor:
    """Soft masks of the object of a box, as it is before or after refinement, (N, 1, H, W) in [0, 1]; 1 everywhere if it cannot be cut out.

    The mask covers the object in both images, because the parts that refinement removed must be replaced too.
    """
    height, width = before.shape[-2:]
    x0, y0, x1, y1 = round(box[0] * width), round(box[1] * height), round(box[2] * width), round(box[3] * height)
    around = max(1, round(PASTE_MARGIN * max(x1 - x0, y1 - y0)))
    brush = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * around + 1, 2 * around + 1))
    masks = []
    for pair in zip(to_uint8(before).numpy(), to_uint8(after).numpy(), strict=True):
        mask = np.maximum.reduce([_cut_out_object(rgb, (x0, y0, x1, y1), 2 * around) for rgb in pair])
        masks.append(cv2.GaussianBlur(cv2.dilate(mask, brush), (0, 0), 0.6 * around))
    return torch.from_numpy(np.stack(masks))[:, None]


def _cut_out_object(rgb: np.ndarray, box: tuple[int, int, int, int], margin: int) -> np.ndarray:
    """Cut out the object of a box by its colours.

    Args:
        rgb: Image (H, W, 3) uint8.
        box: x0, y0, x1, y1, px.
        margin: Margin around the box that is searched, px.

    Returns:
        Mask (H, W) float32, 1 or 0; all 1 if the object covers too little or too much of the box.
    """
    (height, width), (x0, y0, x1, y1) = rgb.shape[:2], box
    left, top, right, low = max(0, x0 - margin), max(0, y0 - margin), min(width, x1 + margin), min(height, y1 + margin)
    part = rgb[top:low, left:right]
    scale = OUTLINE_SIDE / max(part.shape[:2])
    cutter = GrabCut()
    cutter.iterations, cutter.min_piece_share = GRABCUT_ROUNDS, MIN_PIECE_SHARE
    cutter.core_radius = 0.0  # a place is not a box that a user drew: the object may be anywhere in it
    cutter.set_image(
        cv2.resize(part, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    )
    inner = tuple(
        scale * v for v in (max(x0 - left, 1), max(y0 - top, 1), min(x1, right - 1) - left, min(y1, low - 1) - top)
    )
    mask = cutter.predict(Hints(inner)).mask
    mask = cv2.resize(mask.astype(np.float32), (right - left, low - top), interpolation=cv2.INTER_AREA)
    whole = np.ones((height, width), np.float32)
    if not OUTLINE_SHARES[0] < float(mask.sum()) / max(1, (x1 - x0) * (y1 - y0)) < OUTLINE_SHARES[1]:
        return whole
    whole[:] = 0
    whole[top:low, left:right] = mask > 0
    return whole


def _image_size(images: Tensor) -> tuple[int, int]:
    return images.shape[-2], images.shape[-1]
