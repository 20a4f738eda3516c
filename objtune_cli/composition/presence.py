"""Check whether each object of a scene is present and unmixed, from the predictions of the objects' adapters and of the frozen base (ours).

The crop around an object's box is noised. The check compares the prediction of each object's adapter and the frozen base's prediction for its class
with the regression target. It needs no photo, no image encoder and no evaluator, so that it works on any base.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from objtune_cli.composition.object_loras import single_lora
from objtune_cli.models import finite_checks
from objtune_cli.models.base_model import BaseModel
from objtune_cli.models.conditioning import Conditioning
from objtune_cli.numerics.masks import Box

CROP_MARGIN = 0.15
"""Margin around a box in its crop, fraction of its longer side."""
NOISE_LEVELS = (0.5, 0.5, 0.55, 0.55)
"""Noise levels of the comparison, fractions of the schedule, each with noise of its own: adapter and class differ most clearly there."""
MIN_LIKENESS = 0.2
"""Least likeness of a crop to its own object: a fifth of the way from the base's prediction of the class to the adapter's prediction of the object."""


@dataclass(frozen=True, slots=True)
class SceneObject:
    """An object that the check knows.

    Attributes:
        weights: LoRA tensors.
        object_prompt: Prompt of its adapter, with its placeholder written as tokens.
        class_prompt: Prompt of the frozen base, with its class word.
        own_name: Name of the trained object, if the scene has the object under several names.
    """

    name: str
    weights: Mapping[str, Tensor]
    object_prompt: str
    class_prompt: str
    own_name: str = ""


class PresenceCheck:
    """Computes leakage matrices: the likeness of each object's crop to each object."""

    def __init__(self, model: BaseModel, objects: Sequence[SceneObject]) -> None:
        self.model, self.objects, self.names = model, list(objects), [o.name for o in objects]
        self.own_names = [o.own_name or o.name for o in objects]

    @torch.no_grad()
    def matrices(self, images: Tensor, boxes: Sequence[Box]) -> Tensor:
        r"""Likeness of each crop to each object: 0 as the base predicts the class, 1 as the adapter predicts the object.

        $$ S_{ij} = \langle y - b_j, o_j - b_j \rangle / |o_j - b_j|^2 $$

        for the noised crop of object i: the regression target $y$, the prediction $o_j$ of adapter j, and the prediction $b_j$ of the frozen base
        for object j's class; sums over the box and `NOISE_LEVELS`. It is the projection of the image on the way from class to object.

        Args:
            images: (N, 3, H, W) in [-1, 1].
            boxes: In the order of the objects.

        Returns:
            (N, K, K): row i is the crop of object i, column j is object j.

        Raises:
            NonFiniteError: A prediction is not finite; names the denoiser or the adapter.
        """
        crops = [_BoxCrop(self.model, images, box) for box in boxes]
        conditions = {
            text: self.model.encode_prompt([text]) for text in dict.fromkeys(o.class_prompt for o in self.objects)
        }
        of_classes = {text: [crop.predict(self.model, c) for crop in crops] for text, c in conditions.items()}
        columns = []
        for item in self.objects:
            with single_lora(self.model, item.weights):
                condition = self.model.encode_prompt([item.object_prompt])
                of_object = [crop.predict(self.model, condition) for crop in crops]
            of_class = of_classes[item.class_prompt]
            column = torch.stack(
                [crop.projection(b, o) for crop, b, o in zip(crops, of_class, of_object, strict=True)], 1
            )
            if not finite_checks.is_finite(column):
                base_predictions = torch.cat([prediction for crop in of_class for prediction in crop])
                part = f"adapter of <{item.name}>" if finite_checks.is_finite(base_predictions) else "denoiser"
                raise finite_checks.describe_failure(part, self.model.dtype, " where its place is looked at")
            columns.append(column)
        return torch.stack(columns, 2).cpu()


class _BoxCrop:
    """One box of images, enlarged to images of its own, with noise of every level."""

    def __init__(self, model: BaseModel, images: Tensor, box: Box) -> None:
        crop = crop_to_box(((images + 1) / 2).clamp(0, 1), box, model.resolution, CROP_MARGIN) * 2 - 1
        z = model.encode_image(crop).to(model.device)
        self.mask = _box_mask(box, (images.shape[-2], images.shape[-1]), (z.shape[-2], z.shape[-1])).to(z)
        self.samples = []
        for i, level in enumerate(NOISE_LEVELS):
            eps = torch.randn(z.shape[1:], generator=torch.Generator().manual_seed(i)).to(z).expand_as(z)
            t = torch.full((len(z),), min(int(level * model.num_train_timesteps), model.num_train_timesteps - 1))
            z_t, target = model.add_noise_and_target(z, eps, t)
            self.samples.append((z_t, t, target))

    def predict(self, model: BaseModel, condition: Conditioning) -> list[Tensor]:
        """The denoiser's predictions at every level."""
        return [model.predict(z_t, t, condition.expand(len(z_t))).float() for z_t, t, _ in self.samples]

    def projection(self, of_class: list[Tensor], of_object: list[Tensor]) -> Tensor:
        """Projection of the target on the way from one prediction to the other, fraction of the way, (N,)."""
        along = torch.stack(
            [
                ((target - b) * (o - b) * self.mask).sum((1, 2, 3))
                for (*_, target), b, o in zip(self.samples, of_class, of_object, strict=True)
            ]
        )
        whole = torch.stack(
            [((o - b).square() * self.mask).sum((1, 2, 3)) for b, o in zip(of_class, of_object, strict=True)]
        )
        return along.sum(0) / whole.sum(0).clamp_min(1e-6)


def _box_mask(box: Box, frame: tuple[int, int], cells: tuple[int, int]) -> Tensor:
    """Mask (h, w) of the latent cells of a crop that lie inside the box, 1 or 0."""
    width, height = (box[2] - box[0]) * frame[1], (box[3] - box[1]) * frame[0]
    reach = max(width, height) * (1 + CROP_MARGIN)
    y, x = (
        ((torch.arange(n) + 0.5) / n - 0.5).abs() <= side / reach / 2
        for n, side in zip(cells, (height, width), strict=True)
    )
    return (y[:, None] & x).float()


def crop_to_box(images: Tensor, box: Box, side: int, margin: float = 0.0) -> Tensor:
    """Crop the square around a box and resize it; the image's border is repeated outside the image.

    Args:
        images: (N, 3, H, W) in [0, 1].
        margin: Margin around the box, fraction of its longer side.

    Returns:
        (N, 3, side, side) in [0, 1].
    """
    height, width = images.shape[-2:]
    x0, y0, x1, y1 = box[0] * width, box[1] * height, box[2] * width, box[3] * height
    reach = max(x1 - x0, y1 - y0) * (1 + margin)
    theta = images.new_tensor([[reach / width, 0, (x0 + x1) / width - 1], [0, reach / height, (y0 + y1) / height - 1]])
    grid = F.affine_grid(theta.expand(len(images), -1, -1), [len(images), 3, side, side], align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False).clamp(0, 1)


def margin(matrix: Tensor, own_names: Sequence[str] = ()) -> float:
    """The margin of the least clear object of an image; above 0 all objects are present and unmixed.

    An object's margin is its likeness to itself less `MIN_LIKENESS`, or less its likeness to another object of the scene, whichever is smaller.

    Args:
        matrix: Leakage matrix (K, K).
        own_names: Name of the trained object of each row, if the scene has one object several times.
    """
    return min(_margins(matrix, own_names))


def failed_objects(matrix: Tensor, own_names: Sequence[str] = ()) -> list[int]:
    """Indices of the objects that are missing or mixed in an image with leakage matrix (K, K)."""
    return [i for i, value in enumerate(_margins(matrix, own_names)) if value <= 0]


def _margins(matrix: Tensor, own_names: Sequence[str]) -> list[float]:
    margins = []
    names = own_names or range(len(matrix))
    for i, row in enumerate(matrix):
        others = row[[j for j in range(len(row)) if names[j] != names[i]]]
        presence = row[i] - MIN_LIKENESS
        margins.append(float(torch.minimum(presence, row[i] - others.max()) if len(others) else presence))
    return margins
