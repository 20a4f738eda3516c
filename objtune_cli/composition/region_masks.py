"""Soft masks of the regions of a scene's objects."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from objtune_cli.numerics.masks import Box, region

REGION_SOFTNESS = 0.06
"""Width over which a region falls from 1 to 0, fraction of the image."""


@dataclass(slots=True)
class PlacedObject:
    """One object in a scene.

    Attributes:
        weights: LoRA tensors by name.
        box: Its region, fractions of the image.
        tokens: Mask of its token positions in the prompt, (L,) boolean.
    """

    name: str
    weights: Mapping[str, Tensor]
    box: Box
    tokens: Tensor


def region_weights(boxes: Sequence[Box], size: tuple[int, int], edge: float = REGION_SOFTNESS) -> Tensor:
    """Weight of each box at each pixel, (N, h, w) in [0, 1].

    Args:
        boxes: From back to front; a box gets what the boxes in front of it leave.
        size: Height and width.
        edge: Width of the soft edge, fraction of the image.
    """
    rest = torch.ones(size)
    weights = []
    for box in reversed(boxes):
        mask = region(box, size, edge=max(edge, 1 / size[0]))
        weights.append(mask * rest)
        rest = rest * (1 - mask)
    return torch.stack(weights[::-1])


class RegionMasks:
    """Soft region masks of all objects at any resolution, cached by size."""

    def __init__(self, objects: list[PlacedObject], aspect: float = 1.0, edge: float = REGION_SOFTNESS) -> None:
        self.objects, self.aspect, self.edge = objects, aspect, edge
        self.cache: dict[tuple[int, int], Tensor] = {}

    def at(self, height: int, width: int) -> Tensor:
        """The masks (N, h, w); where regions overlap, later objects are in front."""
        if (height, width) not in self.cache:
            self.cache[height, width] = region_weights([p.box for p in self.objects], (height, width), self.edge)
        return self.cache[height, width]

    def flat(self, length: int) -> Tensor:
        """The masks (N, length) for features in row order; the image has `aspect` width over height."""
        height = round(math.sqrt(length / self.aspect))
        return self.at(height, length // height).flatten(1)
