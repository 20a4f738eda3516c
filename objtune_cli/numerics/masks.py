"""Masks as tensors: boxes, cropping, latent resolution, regions."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Box = tuple[float, float, float, float]
"""x0, y0, x1, y1 as fractions of the frame."""


def bounding_box(mask: Tensor, threshold: float = 0.5) -> Box:
    """Return the box around the values of an (H, W) mask above the threshold, as fractions.

    Raises:
        ValueError: No value is above it.
    """
    ys, xs = (mask > threshold).nonzero(as_tuple=True)
    if not len(ys):
        raise ValueError("the mask is empty")
    height, width = mask.shape
    return int(xs.min()) / width, int(ys.min()) / height, (int(xs.max()) + 1) / width, (int(ys.max()) + 1) / height


def iou(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two masks (H, W) bool; 1 where both are empty."""
    shared = np.count_nonzero(a & b)  # counting is several times faster than a sum of booleans
    union = np.count_nonzero(a) + np.count_nonzero(b) - shared
    return shared / union if union else 1.0


def to_latent(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Average coverage (B, 1, H, W) down to latent cells (B, 1, h, w), in [0, 1]."""
    return F.adaptive_avg_pool2d(mask.float(), size)


def region(box: Box, size: tuple[int, int], edge: float = 0.06) -> Tensor:
    """Return a soft rectangle (h, w) in [0, 1]: 1 inside the box, with a linear fall to 0 over `edge` of the frame.

    The value is 1/2 at the box's border. A border at the edge of the frame is not softened.
    """
    height, width = size
    y = (torch.arange(height) + 0.5) / height
    x = (torch.arange(width) + 0.5) / width
    x0, y0 = (v if v > 0 else -edge for v in box[:2])
    x1, y1 = (v if v < 1 else 1 + edge for v in box[2:])
    dx = torch.minimum(x - x0, x1 - x)
    dy = torch.minimum(y - y0, y1 - y)
    inside = torch.minimum(dx[None, :].expand(height, width), dy[:, None].expand(height, width))
    return (inside / max(edge, 1e-6) + 0.5).clamp(0, 1)


def crop(picture: Tensor, mask: Tensor, fill: Tensor, size: int, margin: float = 0.12) -> Tensor:
    """Cut out the object on a plain colour, as a square.

    Args:
        picture: (3, H, W). mask: (H, W) coverage in [0, 1]. fill: (3,) in the picture's range.
        size: Side of the result, px. margin: Space around the box, fraction of its longer side.

    Returns:
        (3, size, size).
    """
    x0, y0, x1, y1 = bounding_box(mask, 0.3 * float(mask.max()))
    height, width = mask.shape
    half = max((x1 - x0) * width, (y1 - y0) * height) * (1 + margin) / 2
    cx, cy = (x0 + x1) / 2 * 2 - 1, (y0 + y1) / 2 * 2 - 1
    theta = picture.new_tensor([[2 * half / width, 0, cx], [0, 2 * half / height, cy]])
    grid = F.affine_grid(theta[None], [1, 1, size, size], align_corners=False)
    cut_out = torch.cat([(picture - fill.view(3, 1, 1)) * mask, mask[None]])
    moved = F.grid_sample(cut_out[None], grid, mode="bilinear", align_corners=False)[0]
    return moved[:3] + fill.view(3, 1, 1)
