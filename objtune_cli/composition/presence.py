"""Whether each object of a scene is there and itself: what stands in its place, under noise, as each object's adapter predicts it and as the frozen base its class.

Knows no world and no evaluator, and needs neither a photo nor an image tower: what is here works on any base. The formulas are ours.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from objtune_cli.composition.regional import alone
from objtune_cli.models import finite_checks
from objtune_cli.models.base_model import BaseModel
from objtune_cli.numerics.masks import Box

ROOM = 0.15
"""Room around a place in its own pictures, fraction of its longer side."""
LEVELS = (0.5, 0.5, 0.55, 0.55)
"""Noise levels at which a place is looked at, fractions of the whole, each under a noise of its own: there an adapter differs from its class most clearly."""
PRESENT = 0.2
"""Least likeness of a place to its own object: a fifth of the way from what the base predicts of the class to what the adapter predicts of the object."""


@dataclass(frozen=True, slots=True)
class Known:
    """One object as it is known: its LoRA, and what its adapter and what the frozen base is told of it; `own_name`: the same for an object that is in the scene twice."""

    name: str
    weights: Mapping[str, Tensor]
    told: str
    plain: str
    own_name: str = ""


class Check:
    """The leakage matrix of scenes: how much what stands in each object's place is like each of the objects."""

    def __init__(self, model: BaseModel, objects: Sequence[Known]) -> None:
        self.model, self.objects, self.names = model, list(objects), [o.name for o in objects]
        self.own_names = [o.own_name or o.name for o in objects]

    @torch.no_grad()
    def matrices(self, pictures: Tensor, boxes: Sequence[Box]) -> Tensor:
        r"""Likeness of each place to each object, 0 as the base predicts the class, 1 as the adapter predicts the object.

        $$ S_{ij} = \langle y - b_j, o_j - b_j \rangle / |o_j - b_j|^2 $$

        for the noised crop of object i's place, what the denoiser is to say of it $y$, and what adapter j ($o_j$) and the frozen base, told object j's
        class ($b_j$), do say; sums over the place and `LEVELS`. It is the share of the way from class to object that the picture went.

        Args:
            pictures: (N, 3, H, W) in [-1, 1]. boxes: places, in the objects' order.

        Returns:
            (N, K, K): row i the place of object i, column j object j.

        Raises:
            NonFiniteError: A prediction is not finite; names the denoiser or whose adapter.
        """
        places = [_Place(self.model, pictures, box) for box in boxes]
        plain = {text: self.model.encode([text]) for text in dict.fromkeys(o.plain for o in self.objects)}
        classes = {text: [place.predicted(self.model, words) for place in places] for text, words in plain.items()}
        columns = []
        for item in self.objects:
            with alone(self.model, item.weights):
                words = self.model.encode([item.told])
                own = [place.predicted(self.model, words) for place in places]
            column = torch.stack(
                [place.went(base, o) for place, base, o in zip(places, classes[item.plain], own, strict=True)], 1
            )
            if not finite_checks.is_finite(column):
                plainly = torch.cat([said for place in classes[item.plain] for said in place])
                part = f"adapter of <{item.name}>" if finite_checks.is_finite(plainly) else "denoiser"
                raise finite_checks.describe_failure(part, self.model.dtype, " where its place is looked at")
            columns.append(column)
        return torch.stack(columns, 2).cpu()


class _Place:
    """One place of pictures, enlarged to pictures of its own, under the noise of every level."""

    def __init__(self, model: BaseModel, pictures: Tensor, box: Box) -> None:
        view = framed(((pictures + 1) / 2).clamp(0, 1), box, model.size, ROOM) * 2 - 1
        z = model.to_latent(view).to(model.device)
        self.inside = _inside(box, (pictures.shape[-2], pictures.shape[-1]), (z.shape[-2], z.shape[-1])).to(z)
        self.looks = []
        for i, level in enumerate(LEVELS):
            eps = torch.randn(z.shape[1:], generator=torch.Generator().manual_seed(i)).to(z).expand_as(z)
            t = torch.full((len(z),), min(int(level * model.levels), model.levels - 1))
            z_t, aim = model.noised(z, eps, t)
            self.looks.append((z_t, t, aim))

    def predicted(self, model: BaseModel, words: Tensor) -> list[Tensor]:
        """What the denoiser says at every level."""
        return [model.predict(z_t, t, words.expand(len(z_t), -1, -1)).float() for z_t, t, _ in self.looks]

    def went(self, base: list[Tensor], own: list[Tensor]) -> Tensor:
        """How far each picture went from one prediction to the other, (N,)."""
        along = torch.stack(
            [
                ((aim - b) * (o - b) * self.inside).sum((1, 2, 3))
                for (*_, aim), b, o in zip(self.looks, base, own, strict=True)
            ]
        )
        whole = torch.stack([((o - b).square() * self.inside).sum((1, 2, 3)) for b, o in zip(base, own, strict=True)])
        return along.sum(0) / whole.sum(0).clamp_min(1e-6)


def _inside(box: Box, frame: tuple[int, int], cells: tuple[int, int]) -> Tensor:
    """Cells (h, w) of a place's own picture that show the place, 1 or 0."""
    width, height = (box[2] - box[0]) * frame[1], (box[3] - box[1]) * frame[0]
    reach = max(width, height) * (1 + ROOM)
    y, x = (
        ((torch.arange(n) + 0.5) / n - 0.5).abs() <= side / reach / 2
        for n, side in zip(cells, (height, width), strict=True)
    )
    return (y[:, None] & x).float()


def framed(pictures: Tensor, box: Box, side: int, room: float = 0.0) -> Tensor:
    """The square around a box of pictures (N, 3, H, W), enlarged to (N, 3, side, side); beyond the frame its border goes on."""
    height, width = pictures.shape[-2:]
    x0, y0, x1, y1 = box[0] * width, box[1] * height, box[2] * width, box[3] * height
    reach = max(x1 - x0, y1 - y0) * (1 + room)
    theta = pictures.new_tensor(
        [[reach / width, 0, (x0 + x1) / width - 1], [0, reach / height, (y0 + y1) / height - 1]]
    )
    grid = F.affine_grid(theta.expand(len(pictures), -1, -1), [len(pictures), 3, side, side], align_corners=False)
    return F.grid_sample(pictures, grid, mode="bilinear", padding_mode="border", align_corners=False).clamp(0, 1)


def margin(matrix: Tensor, own_names: Sequence[str] = ()) -> float:
    """How clearly all objects of one picture (K, K) are there and unmixed: above 0 they are; the least clear one counts.

    Each must be more like itself than `PRESENT`, and more like itself than like any other object of the scene.

    Args:
        own_names: What each object is, where one may be there twice: it is no other object than itself.
    """
    return min(_margins(matrix, own_names))


def wrong(matrix: Tensor, own_names: Sequence[str] = ()) -> list[int]:
    """The objects of one picture (K, K) that are missing or mixed."""
    return [i for i, value in enumerate(_margins(matrix, own_names)) if value <= 0]


def _margins(matrix: Tensor, own_names: Sequence[str]) -> list[float]:
    found = []
    names = own_names or range(len(matrix))
    for i, row in enumerate(matrix):
        others = row[[j for j in range(len(row)) if names[j] != names[i]]]
        found.append(float(torch.minimum(row[i] - PRESENT, row[i] - others.max()) if len(others) else row[i] - PRESENT))
    return found
