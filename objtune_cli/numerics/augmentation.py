"""Augmented views of an object: other scales and positions, with the photo's background moved along or a plain colour.

A photo shows the object once, in one place; this step adds variety. Sources: the paired augmentation of TextBoost
(arXiv:2409.08248) and Seg-Mix of MuDI (arXiv:2404.04243); the mixture of both is an addition.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from objtune_cli.numerics.masks import Box, bounding_box

SMALL, FILLS = 0.57, 0.68
"""An object whose longer side is below the first share of the photo is cropped so that it fills the second."""
SCALE = (0.45, 0.72)
"""Range of the longer side of a moved object, fraction of the frame."""


@dataclass(frozen=True, slots=True)
class PhotoLayers:
    """A photo as the layers that are moved.

    Attributes:
        picture: (3, H, W) in [-1, 1]. mask: (H, W) coverage in [0, 1].
        ground: The photo without the object, same shape as `picture`.
        parts: Masks (M, H, W) that are moved along, for example one of each object.
    """

    picture: Tensor
    mask: Tensor
    ground: Tensor
    parts: Tensor | None = None


def views(
    picture: Tensor,
    mask: Tensor,
    ground: Tensor,
    count: int,
    size: int,
    generator: torch.Generator,
    scale: tuple[float, float] = SCALE,
    parts: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return views of one photo, as `views_of_photos` does."""
    return views_of_photos([PhotoLayers(picture, mask, ground, parts)], count, size, generator, scale)


def views_of_photos(
    photos: Sequence[PhotoLayers],
    count: int,
    size: int,
    generator: torch.Generator,
    scale: tuple[float, float] = SCALE,
) -> tuple[Tensor, Tensor]:
    """Return V = max(`count`, n) views of n photos of one object; view i is of photo i mod n.

    The first n views keep their photo's placement, with a closer crop of a small object. If `count` is 1, each view is its photo itself.

    Args:
        size: Side of the results, px.
        scale: Range of the object's longer side, fraction of the frame.

    Returns:
        Views (V, 3, size, size) in [-1, 1] and masks (V, 1 + M, size, size) in [0, 1]: `mask`, then `parts`.
    """
    boxes = [bounding_box(photo.mask) for photo in photos]
    pictures, masks = [], []
    for view in range(max(count, len(photos))):
        i, photo_index = divmod(view, len(photos))
        box, photo = boxes[photo_index], photos[photo_index]
        picture, mask, ground, parts = photo.picture, photo.mask, photo.ground, photo.parts
        share = _between(scale, generator)
        free = 1 - share
        # The object stays inside the frame, near its centre.
        x = 0.5 + _between((-0.35, 0.35), generator) * free
        y = 0.55 + _between((-0.25, 0.25), generator) * free
        tilt = _between((-0.06, 0.06), generator)
        if i == 0:
            share, x, y, tilt = _photo_placement(box, mask.shape, closer=count > 1)
        theta = _inverse(box, mask.shape, share, x, y, tilt)
        moved = _sample(torch.cat([picture * mask, mask[None], *(() if parts is None else (parts,))]), theta, size)
        behind = _ground(ground, i, theta, size, generator)
        cover = moved[3:].clamp(0, 1)
        pictures.append(
            moved[:3] + behind * (1 - cover[:1]) if count > 1 else _sample(picture, theta, size, padding="reflection")
        )
        masks.append(cover)
    return torch.stack(pictures), torch.stack(masks)


def _between(limits: tuple[float, float], generator: torch.Generator) -> float:
    return limits[0] + (limits[1] - limits[0]) * torch.rand((), generator=generator).item()


def _photo_placement(box: Box, shape: torch.Size, closer: bool) -> tuple[float, float, float, float]:
    """Return share, x, y and tilt of the object in the largest square of the photo that is centred near it.

    Args:
        closer: Whether a small object gets a closer crop.
    """
    height, width = shape
    x0, y0, x1, y1 = box
    longest, side = max((x1 - x0) * width, (y1 - y0) * height), float(min(height, width))
    if closer and longest < SMALL * side:
        side = longest / FILLS
    place = []
    for low, high, length in ((x0, x1, width), (y0, y1, height)):
        centre = (low + high) / 2 * length
        start = min(max(centre - side / 2, 0), length - side)
        place.append((centre - start) / side)
    return min(longest / side, 0.95), place[0], place[1], 0.0


def _inverse(box: Box, shape: torch.Size, share: float, x: float, y: float, tilt: float) -> Tensor:
    """Return the affine map (2, 3) from the view to the photo, both in [-1, 1], that moves the box's centre to (x, y)."""
    height, width = shape
    x0, y0, x1, y1 = box
    longest = max((x1 - x0) * width, (y1 - y0) * height)
    span = longest / share  # side of the view in photo pixels
    c, s = torch.cos(torch.tensor(tilt)), torch.sin(torch.tensor(tilt))
    turn = torch.stack([torch.stack([c, -s]), torch.stack([s, c])]) * span
    to_photo = turn / torch.tensor([[width], [height]])
    centre = torch.tensor([(x0 + x1) - 1, (y0 + y1) - 1])
    offset = centre - to_photo @ torch.tensor([2 * x - 1, 2 * y - 1])
    return torch.cat([to_photo, offset[:, None]], 1)


def _sample(layers: Tensor, theta: Tensor, size: int, padding: str = "zeros") -> Tensor:
    """Sample layers (C, H, W) through the map, at twice the size and averaged, against aliasing."""
    grid = F.affine_grid(theta[None], [1, 1, 2 * size, 2 * size], align_corners=False)
    span = float(theta[0, :2].norm()) * layers.shape[-1]  # photo pixels across the view
    factor = int(span / (2 * size))
    if factor > 1:  # reduce first if several pixels fall into one
        layers = F.avg_pool2d(layers[None], factor, ceil_mode=True)[0]
    large = F.grid_sample(layers[None], grid, mode="bilinear", padding_mode=padding, align_corners=False)
    return F.avg_pool2d(large, 2)[0]


def _ground(ground: Tensor, index: int, theta: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Return the background of a view: a plain colour for every third view, else the photo's."""
    colour = torch.rand(3, generator=generator) * 1.6 - 0.8
    if index % 3 == 2:
        return colour.view(3, 1, 1).expand(3, size, size)
    return _sample(ground, theta, size, padding="reflection")
