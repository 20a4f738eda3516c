"""The evaluator's two small networks: one finds objects and names the background, one reads a cut-out object."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from objtune_cli.toybox.world import ACCESSORIES, BACKGROUNDS, CLASSES, COLOURS, PATTERNS

FRAME = 64
"""Side of the finder's input, the whole image, px."""
GRID = 16
"""Cells along a side of the finder's map."""
CROP = 48
"""Side of the reader's input, a cut-out object, px."""
MARGIN = 1.15
"""Side of a cut-out over the longer side of the object's box."""
WIDTH = 64
"""Length of an identity vector."""

ATTRIBUTES = {
    "class": len(CLASSES), "colour": len(COLOURS), "second": len(COLOURS),
    "pattern": len(PATTERNS), "accessory": len(ACCESSORIES), "third": len(COLOURS),
}  # fmt: skip
"""Heads of the reader: attribute to number of values."""


def _block(inside: int, outside: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inside, outside, 3, stride, 1), nn.GroupNorm(8, outside), nn.SiLU())


class Residual(nn.Module):
    """Two convolutions with a residual connection."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(_block(width, width), nn.Conv2d(width, width, 3, 1, 1), nn.GroupNorm(8, width))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) to the same shape."""
        return F.silu(x + self.body(x))


class Finder(nn.Module):
    """Finds the centres and boxes of an image's objects, and its background."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _block(3, 24, 2), Residual(24), _block(24, 64, 2), Residual(64),
        )  # fmt: skip
        self.wide = nn.Sequential(_block(64, 96, 2), Residual(96), _block(96, 128, 2), Residual(128))
        self.merge = nn.Sequential(nn.Conv2d(64 + 128, 64, 1), nn.GroupNorm(8, 64), nn.SiLU(), Residual(64))
        self.map = nn.Conv2d(64, 5, 1)
        self.background = nn.Linear(128, len(BACKGROUNDS))

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, 64, 64) in [-1, 1] to a map (B, 5, 16, 16) and background logits (B, 8).

        Map: centre logit; box centre's offset from the cell's middle, in cells; log of width and height
        as fractions of the frame.
        """
        fine, coarse = self.features(pictures)
        both = self.merge(torch.cat([fine, F.interpolate(coarse, scale_factor=4.0)], 1))
        return self.map(both), self.background(coarse.mean((2, 3)))

    def features(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, 64, 64) in [-1, 1] to (B, 64, 16, 16) and (B, 128, 4, 4)."""
        fine = self.body(pictures)
        return fine, self.wide(fine)


class Reader(nn.Module):
    """Reads the identity vector and the attributes of a cut-out object."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _block(3, 32, 2), Residual(32), _block(32, 64, 2), Residual(64),
            _block(64, 128, 2), Residual(128), _block(128, 160, 2), Residual(160),
        )  # fmt: skip
        self.identity = nn.Sequential(nn.Linear(160 * 10, 256), nn.SiLU(), nn.Linear(256, WIDTH))
        self.heads = nn.ModuleDict({name: nn.Linear(160 * 10, size) for name, size in ATTRIBUTES.items()})

    def forward(self, crops: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """(B, 3, 48, 48) in [-1, 1] to unit vectors (B, 64) and logits by attribute."""
        features = self.features(crops)
        return F.normalize(self.identity(features), dim=-1), {name: head(features) for name, head in self.heads.items()}

    def features(self, crops: Tensor) -> Tensor:
        """(B, 3, 48, 48) in [-1, 1] to (B, 1600): means over the whole crop, then over a grid of 3x3 parts."""
        x = self.body(crops)
        return torch.cat([x.mean((2, 3)), F.adaptive_avg_pool2d(x, 3).flatten(1)], 1)


class Evaluator(nn.Module):
    """Finder and reader; one file of weights."""

    def __init__(self) -> None:
        super().__init__()
        self.finder, self.reader = Finder(), Reader()


def cut(pictures: Tensor, boxes: Tensor, side: int = CROP) -> Tensor:
    """Square cut-outs around boxes, with a margin; the edge is repeated outside the frame.

    Args:
        pictures: (N, 3, H, W), one per box. boxes: (N, 4) x0, y0, x1, y1 as fractions of the frame.

    Returns:
        (N, 3, side, side).
    """
    low, high = boxes[:, :2], boxes[:, 2:]
    centre, half = low + high - 1, (high - low).amax(1) * MARGIN
    theta = torch.zeros(len(boxes), 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = half
    theta[:, :, 2] = centre
    grid = F.affine_grid(theta, [len(boxes), 3, 2 * side, 2 * side], align_corners=False)
    large = F.grid_sample(pictures, grid, padding_mode="border", align_corners=False)
    return F.avg_pool2d(large, 2)
