"""A closer look at the objects of a scene: each one's place enlarged to a picture of its own, drawn again by its own adapter, laid back.

In a scene an object has a part of the base's few cells and shares the sentence with others; it loses what is its own. Enlarged and alone
it is drawn as it was learned. Laid back is what is in its outline: the ground around it, drawn once more, would not meet the scene's.
Knows neither prompts nor the store. Source: what ADetailer does for faces; with the objects' own adapters and outlines, ours.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from objtune_cli.composition.presence import framed
from objtune_cli.composition.regional import alone, shares
from objtune_cli.config.sections import seed_after
from objtune_cli.generation.sampling import again, to_uint8
from objtune_cli.models.base_model import BaseModel
from objtune_cli.numerics.masks import Box
from objtune_cli.segmentation.grabcut import GrabCut
from objtune_cli.segmentation.types import Hints

ROOM = 0.15
"""Room around a place in its own picture, fraction of its longer side: an object that fills its picture was hardly learned."""
CUT, ROUNDS, APART_FROM = 160, 3, 0.03
"""Side at which outlines are looked for, px; rounds of GrabCut; pieces so much of the largest one count too."""
AROUND = 0.05
"""How far around its outline an object is laid back, fraction of its place's longer side."""
FOUND = (0.04, 0.95)
"""Shares of its place that an object may cover; else there is no outline to speak of."""
APART = 7919
"""Between the seeds of a picture's objects: their noises have nothing to do with each other."""


@dataclass(frozen=True, slots=True)
class Object:
    """One object: its LoRA, its place in the scene, and what the base is told of it alone."""

    name: str
    weights: Mapping[str, Tensor]
    box: Box
    prompt: str


@dataclass(frozen=True, slots=True)
class Sampling:
    """How objects are drawn again; `strength`: share of the steps that are taken. whole: all of a place is laid back, not the object alone. own: object guidance."""

    strength: float
    steps: int
    guidance: float
    scheduler: str = "base"
    negative: str = ""
    whole: bool = False
    own: float = 0.0


def looked(
    model: BaseModel,
    latents: Tensor,
    objects: Sequence[Object],
    seeds: Sequence[int],
    how: Sampling,
    on_step: Callable[[str, int, int], None],
) -> tuple[dict[str, Tensor], Tensor]:
    """Draw each object of scenes again, from the back to the front.

    Args:
        latents: Of the scenes, scaled, (N, C, h, w). objects: from the back to the front.

    Returns:
        Each object's own pictures as scaled latents (N, C, h', w'), and the scenes with all of them laid in, (N, 3, H, W) in [-1, 1], on the CPU.
    """
    pictures = model.to_picture(latents).cpu()
    own = shares([o.box for o in objects], _size(pictures))
    close = {}
    for i, item in enumerate(objects):
        view = framed((pictures + 1) / 2, item.box, model.size, ROOM) * 2 - 1
        others = [seed_after(seed, (i + 1) * APART) for seed in seeds]
        with alone(model, item.weights):
            close[item.name] = again(
                model, model.to_latent(view).cpu(), item.prompt, how.negative, others, how.strength, how.steps, how.guidance, how.scheduler,
                partial(on_step, item.name), how.own,
            )  # fmt: skip
        pictures = laid(pictures, model.to_picture(close[item.name]).cpu(), item.box, own[i], whole=how.whole)
    return close, pictures


def scenes(
    model: BaseModel, latents: Tensor, close: Mapping[str, Tensor], boxes: Mapping[str, Box], *, whole: bool = False
) -> Tensor:
    """The scenes of `looked` from what it kept: pictures (N, 3, H, W) in [-1, 1]; `boxes`: from the back to the front."""
    pictures = model.to_picture(latents).cpu()
    if not boxes:
        return pictures
    for own, (name, box) in zip(shares(list(boxes.values()), _size(pictures)), boxes.items(), strict=True):
        pictures = laid(pictures, model.to_picture(close[name]).cpu(), box, own, whole=whole)
    return pictures


def laid(pictures: Tensor, close: Tensor, box: Box, share: Tensor, *, whole: bool = False) -> Tensor:
    """Pictures (N, 3, H, W) with those of a place (N, 3, s, s) made small again and laid in, as much as `share` (H, W) says; `whole`: not the object alone."""
    height, width = pictures.shape[-2:]
    x0, y0, x1, y1 = box[0] * width, box[1] * height, box[2] * width, box[3] * height
    reach = max(x1 - x0, y1 - y0) * (1 + ROOM)
    small = F.interpolate(close, size=(max(1, round(reach)),) * 2, mode="bilinear", antialias=True, align_corners=False)
    y, x = ((torch.arange(n) + 0.5 - (a + b) / 2) / reach * 2 for n, a, b in ((height, y0, y1), (width, x0, x1)))
    grid = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=-1)
    inside = (grid.abs() <= 1).all(-1)
    back = F.grid_sample(
        small, grid.expand(len(pictures), -1, -1, -1), mode="bilinear", padding_mode="border", align_corners=False
    )
    weight = share * inside
    return torch.lerp(pictures, back, weight if whole else weight * outlines(pictures, back, box))


def outlines(before: Tensor, after: Tensor, box: Box) -> Tensor:
    """Where the object of a place is in either of two pictures of it, a little wider and soft, (N, 1, H, W) in [0, 1]; 1 where no outline is found.

    In either: what the scene showed of it and is not there any more has to go.
    """
    height, width = before.shape[-2:]
    x0, y0, x1, y1 = round(box[0] * width), round(box[1] * height), round(box[2] * width), round(box[3] * height)
    around = max(1, round(AROUND * max(x1 - x0, y1 - y0)))
    brush = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * around + 1, 2 * around + 1))
    found = []
    for pair in zip(to_uint8(before).numpy(), to_uint8(after).numpy(), strict=True):
        mask = np.maximum.reduce([_outline(rgb, (x0, y0, x1, y1), 2 * around) for rgb in pair])
        found.append(cv2.GaussianBlur(cv2.dilate(mask, brush), (0, 0), 0.6 * around))
    return torch.from_numpy(np.stack(found))[:, None]


def _outline(rgb: np.ndarray, place: tuple[int, int, int, int], room: int) -> np.ndarray:
    """The object of a place (x0, y0, x1, y1) px of a picture (H, W, 3), cut out by its colours: (H, W) float32, 1 or 0; all 1 where that says nothing."""
    (height, width), (x0, y0, x1, y1) = rgb.shape[:2], place
    left, top, right, low = max(0, x0 - room), max(0, y0 - room), min(width, x1 + room), min(height, y1 + room)
    part = rgb[top:low, left:right]
    scale = CUT / max(part.shape[:2])
    cutter = GrabCut()
    cutter.iterations, cutter.min_piece_share = ROUNDS, APART_FROM
    cutter.set_image(
        cv2.resize(part, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    )
    inner = tuple(
        scale * v for v in (max(x0 - left, 1), max(y0 - top, 1), min(x1, right - 1) - left, min(y1, low - 1) - top)
    )
    mask = cutter.predict(Hints(inner)).mask
    mask = cv2.resize(mask.astype(np.float32), (right - left, low - top), interpolation=cv2.INTER_AREA)
    whole = np.ones((height, width), np.float32)
    if not FOUND[0] < float(mask.sum()) / max(1, (x1 - x0) * (y1 - y0)) < FOUND[1]:
        return whole
    whole[:] = 0
    whole[top:low, left:right] = mask > 0
    return whole


def _size(pictures: Tensor) -> tuple[int, int]:
    return pictures.shape[-2], pictures.shape[-1]
