"""A closer look at the objects of a scene: each one's place enlarged to a picture of its own, drawn again by its own adapter, laid back.

In a scene an object has a part of the base's few cells and shares the sentence with others; it loses what is its own. Enlarged and alone
it is drawn as it was learned. Knows neither prompts nor the store. Source: what ADetailer does for faces; with the objects' own adapters, ours.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from objtune_cli.method.composition import alone, shares
from objtune_cli.method.presence import framed
from objtune_cli.method.sampling import again
from objtune_cli.models.stack import Stack
from objtune_cli.numerics.masks import Box

ROOM = 0.15
"""Room around a place in its own picture, fraction of its longer side: an object that fills its picture was hardly learned."""
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
    """How objects are drawn again; `strength`: share of the steps that are taken."""

    strength: float
    steps: int
    guidance: float
    scheduler: str = "base"
    negative: str = ""


def looked(
    stack: Stack, latents: Tensor, objects: Sequence[Object], seeds: Sequence[int], how: Sampling, on_step: Callable[[str, int, int], None]
) -> tuple[dict[str, Tensor], Tensor]:
    """Draw each object of scenes again, from the back to the front.

    Args:
        latents: Of the scenes, scaled, (N, C, h, w). objects: from the back to the front.

    Returns:
        Each object's own pictures as scaled latents (N, C, h', w'), and the scenes with all of them laid in, (N, 3, H, W) in [-1, 1], on the CPU.
    """
    pictures = stack.to_picture(latents).cpu()
    own = shares([o.box for o in objects], _size(pictures))
    close = {}
    for i, item in enumerate(objects):
        view = framed((pictures + 1) / 2, item.box, stack.size, ROOM) * 2 - 1
        others = [(seed + (i + 1) * APART) % 2**32 for seed in seeds]
        with alone(stack, item.weights):
            close[item.name] = again(
                stack, stack.to_latent(view).cpu(), item.prompt, how.negative, others, how.strength, how.steps, how.guidance, how.scheduler,
                partial(on_step, item.name),
            )  # fmt: skip
        pictures = laid(pictures, stack.to_picture(close[item.name]).cpu(), item.box, own[i])
    return close, pictures


def scenes(stack: Stack, latents: Tensor, close: Mapping[str, Tensor], boxes: Mapping[str, Box]) -> Tensor:
    """The scenes of `looked` from what it kept: pictures (N, 3, H, W) in [-1, 1]; `boxes`: from the back to the front."""
    pictures = stack.to_picture(latents).cpu()
    if not boxes:
        return pictures
    for own, (name, box) in zip(shares(list(boxes.values()), _size(pictures)), boxes.items(), strict=True):
        pictures = laid(pictures, stack.to_picture(close[name]).cpu(), box, own)
    return pictures


def laid(pictures: Tensor, close: Tensor, box: Box, share: Tensor) -> Tensor:
    """Pictures (N, 3, H, W) with those of a place (N, 3, s, s) made small again and laid in, as much as `share` (H, W) says."""
    height, width = pictures.shape[-2:]
    x0, y0, x1, y1 = box[0] * width, box[1] * height, box[2] * width, box[3] * height
    reach = max(x1 - x0, y1 - y0) * (1 + ROOM)
    small = F.interpolate(close, size=(max(1, round(reach)),) * 2, mode="bilinear", antialias=True, align_corners=False)
    y, x = ((torch.arange(n) + 0.5 - (a + b) / 2) / reach * 2 for n, a, b in ((height, y0, y1), (width, x0, x1)))
    grid = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=-1)
    inside = (grid.abs() <= 1).all(-1)
    back = F.grid_sample(small, grid.expand(len(pictures), -1, -1, -1), mode="bilinear", padding_mode="border", align_corners=False)
    return torch.lerp(pictures, back, share * inside)


def _size(pictures: Tensor) -> tuple[int, int]:
    return pictures.shape[-2], pictures.shape[-1]
