"""Whether each object of a scene is there and itself: its place, seen by the base's own CLIP, against every object's picture.

Knows no world and no evaluator: what is here works on any base whose CLIP has an image tower. The formulas are ours.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from objtune_cli.models.stack import Stack
from objtune_cli.models.towers import MEAN, Towers
from objtune_cli.numerics.masks import Box, bounding_box, crop

ROOM = 0.15
"""Room around an object in the pictures it is known by, fraction of its longer side: as much as a place leaves."""
MIDDLE = (0.15, 0.2, 0.85, 0.9)
"""Where the class's own pictures have their object."""
PRESENT = 0.1
"""Least likeness of a place to its own object: a tenth of the way from the class's ordinary pictures to the photo's object."""


@dataclass(frozen=True, slots=True)
class Seen:
    """One object as it is known.

    Attributes:
        name: As in the prompt. picture: its photo (3, H, W) in [0, 1]. mask: coverage (H, W).
        plain: Ordinary pictures of its class, (P, 3, h, w) in [0, 1]; None where there are none.
    """

    name: str
    picture: Tensor
    mask: Tensor
    plain: Tensor | None = None


class Check:
    """The leakage matrix of scenes: how much what stands in each object's place is like each of the objects."""

    def __init__(self, stack: Stack, towers: Towers, objects: Sequence[Seen]) -> None:
        self.towers, self.names = towers, [o.name for o in objects]
        self.own = torch.stack([known_by(towers, o.picture, o.mask) for o in objects])
        shown = torch.stack([self._shown(stack, o) for o in objects])
        cosines = shown @ self.own.T
        self.one = cosines.diagonal().clone()
        self.zero = torch.stack([self._zero(o, i, cosines) for i, o in enumerate(objects)])

    def matrices(self, pictures: Tensor, boxes: Sequence[Box]) -> Tensor:
        r"""Likeness of each place to each object, 0 as the class's ordinary pictures, 1 as the photo's own.

        $$ S_{ij} = (\cos(I(c_i), o_j) - z_j) / (1_j - z_j) $$

        for the crop $c_i$ of object i's place, and object j's mean vector $o_j$ over its photo's crop and the object alone, both also mirrored.

        Args:
            pictures: (N, 3, H, W) in [-1, 1]. boxes: places, in the objects' order.

        Returns:
            (N, K, K): row i the place of object i, column j object j.
        """
        shown = ((pictures + 1) / 2).clamp(0, 1)
        vectors = [self.towers.pictures(torch.cat([framed(p[None], box, self.towers.size) for box in boxes])) for p in shown]
        return ((torch.stack(vectors) @ self.own.T - self.zero) / (self.one - self.zero).clamp_min(1e-3)).cpu()

    def _shown(self, stack: Stack, seen: Seen) -> Tensor:
        """The photo's object as the base could draw it at best: through the autoencoder."""
        view = close_up(seen.picture, seen.mask, stack.size)
        return self.towers.pictures(((stack.to_picture(stack.to_latent(view * 2 - 1)) + 1) / 2).clamp(0, 1).cpu())[0]

    def _zero(self, seen: Seen, index: int, cosines: Tensor) -> Tensor:
        """Cosine of the class's ordinary pictures; without them, of the other objects; without those, 0."""
        if seen.plain is not None:
            return (self.towers.pictures(framed(seen.plain, MIDDLE, self.towers.size)) @ self.own[index]).mean()
        others = torch.cat([cosines[:index, index], cosines[index + 1 :, index]])
        return others.mean() if len(others) else cosines.new_zeros(())


def known_by(towers: Towers, picture: Tensor, mask: Tensor) -> Tensor:
    """The unit vector (d,) of an object: the mean over its close-up and its cut-out, both also mirrored.

    Args:
        picture: (3, H, W) in [0, 1]. mask: coverage (H, W).
    """
    alone = crop(picture, mask, picture.new_tensor(MEAN), towers.size)
    views = torch.stack([close_up(picture, mask, towers.size)[0], alone])
    return F.normalize(towers.pictures(torch.cat([views, views.flip(-1)])).mean(0), dim=0)


def close_up(picture: Tensor, mask: Tensor, side: int) -> Tensor:
    """The photo around its object, (1, 3, side, side)."""
    return framed(picture[None], bounding_box(mask, 0.3 * float(mask.max())), side, ROOM)


def framed(pictures: Tensor, box: Box, side: int, room: float = 0.0) -> Tensor:
    """The square around a box of pictures (N, 3, H, W), enlarged to (N, 3, side, side); beyond the frame its border goes on."""
    height, width = pictures.shape[-2:]
    x0, y0, x1, y1 = box[0] * width, box[1] * height, box[2] * width, box[3] * height
    reach = max(x1 - x0, y1 - y0) * (1 + room)
    theta = pictures.new_tensor([[reach / width, 0, (x0 + x1) / width - 1], [0, reach / height, (y0 + y1) / height - 1]])
    grid = F.affine_grid(theta.expand(len(pictures), -1, -1), [len(pictures), 3, side, side], align_corners=False)
    return F.grid_sample(pictures, grid, mode="bilinear", padding_mode="border", align_corners=False).clamp(0, 1)


def margin(matrix: Tensor) -> float:
    """How clearly all objects of one picture (K, K) are there and unmixed: above 0 they are; the least clear one counts.

    Each must be more like itself than `PRESENT`, and more like itself than like any other object of the scene.
    """
    return min(_margins(matrix))


def wrong(matrix: Tensor) -> list[int]:
    """The objects of one picture (K, K) that are missing or mixed."""
    return [i for i, value in enumerate(_margins(matrix)) if value <= 0]


def _margins(matrix: Tensor) -> list[float]:
    found = []
    for i, row in enumerate(matrix):
        others = torch.cat([row[:i], row[i + 1 :]])
        found.append(float(torch.minimum(row[i] - PRESENT, row[i] - others.max()) if len(others) else row[i] - PRESENT))
    return found
