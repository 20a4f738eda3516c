"""Scores of trained objects without a second photo: a few images of fewer steps, compared by the base model's CLIP.

It works on every base model whose CLIP has an image tower. All formulas are ours.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from objtune_cli.composition.presence import CROP_MARGIN, crop_to_box
from objtune_cli.generation.sampling import sample
from objtune_cli.generation.settings import SamplingSettings
from objtune_cli.models.base_model import BaseModel
from objtune_cli.models.clip import MEAN, Clip
from objtune_cli.models.placeholders import Placeholders
from objtune_cli.models.prompts import SCENES, with_article
from objtune_cli.numerics.masks import bounding_box, crop
from objtune_cli.training.subjects import Subject

CENTRAL_BOX = (0.15, 0.2, 0.85, 0.9)
"""Fractions x0, y0, x1, y1 of an image: where class images have their object."""
STEPS = 12
"""Sampling steps of a scored image: fewer than of one for users."""
FIRST_SEED = 900
NUM_VIEWS = 8
MIN_COSINE_GAP = 0.05
"""Lower limit of the difference of cosines that a score is divided by; below it, object and class look the same to CLIP."""
LAYOUT_SIDE = 16
"""Side in pixels at which images are compared with the photo: layout and colours, no texture."""


@dataclass(frozen=True, slots=True)
class SubjectReference:
    """What is fixed about one object.

    Attributes:
        embedding: Unit vector (d,) of the object, over its photos.
        object_similarity, class_similarity: Mean cosine to it of augmented views of the photos, and of class images; both of the central part of an image.
        photo_layouts: Layout descriptor (k,) of each photo's original view.
        class_photo_correlation: Mean correlation of class images with the nearest photo.
        class_prompt_accuracy: Share of class images that show the scene of their prompt.
    """

    embedding: Tensor
    object_similarity: float
    class_similarity: float
    photo_layouts: tuple[Tensor, ...]
    class_photo_correlation: float
    class_prompt_accuracy: float


class SelfEvaluation:
    """Scores of trained objects; created before the first step, because class images are of the frozen base."""

    def __init__(
        self,
        model: BaseModel,
        towers: Clip,
        subjects: Sequence[Subject],
        sampling: SamplingSettings,
        on_step: Callable[[int, int], None] = lambda done, total: None,
        subject_conditioning_start: float = 1.0,
    ) -> None:
        """Sample the class images.

        Args:
            sampling: Settings of all images; the number of steps is replaced by `STEPS`.
            on_step: Called at every sampling step.
            subject_conditioning_start: Setting of the images of objects.
        """
        self.model, self.towers, self.subjects = model, towers, list(subjects)
        self.sampling, self.on_step = replace(sampling, num_inference_steps=STEPS), on_step
        self.object_sampling = replace(self.sampling, subject_conditioning_start=subject_conditioning_start)
        self.seeds = [FIRST_SEED + i for i in range(len(SCENES))]
        words = {s.class_word for s in subjects}
        self.class_images = {word: self._sample_class(word) for word in sorted(words)}
        self.references = [self._measure_subject(s) for s in subjects]

    def scores(self, words: Placeholders, names: Sequence[str] = ()) -> dict[str, float]:
        """Means over the objects, or the named ones, each from one image per scene.

        Returns:
            identity: 0 is the class, 1 the object of the photo. prompt: share of images that show the scene of their
            prompt, relative to class images. copy: likeness to the nearest photo; 0 is that of class images, 1 the photo.
        """
        scores = []
        for subject, reference in self._select_subjects(names):
            prompts = [words.expand(f"a photo of <{subject.name}> {scene}") for scene in SCENES]
            images = self._sample_images(prompts, self.object_sampling)
            scores.append(self._score_subject(subject, reference, images))
        return {name: sum(each[name] for each in scores) / len(scores) for name in scores[0]}

    def score_images(self, images: Tensor, names: Sequence[str] = ()) -> dict[str, float]:
        """Identity and copy, as in `scores`, of images (N, 3, H, W) in [-1, 1] that show the named objects; means over them."""
        scores = [self._score_likeness(reference, images) for _, reference in self._select_subjects(names)]
        return {name: sum(each[name] for each in scores) / len(scores) for name in scores[0]}

    def drift(self, names: Sequence[str] = ()) -> float:
        """How far class images moved towards the object, from 0 (not at all) to 1 (the object); a mean over the objects, or the named ones."""
        selected = self._select_subjects(names)
        after = {word: self._sample_class(word) for word in sorted({s.class_word for s, _ in selected})}
        shares = []
        for subject, reference in selected:
            similarity = float((self._central_features(after[subject.class_word]) @ reference.embedding).mean())
            gap = reference.object_similarity - reference.class_similarity
            shares.append((similarity - reference.class_similarity) / max(gap, MIN_COSINE_GAP))
        return sum(shares) / len(shares)

    def _select_subjects(self, names: Sequence[str]) -> list[tuple[Subject, SubjectReference]]:
        return [(s, k) for s, k in zip(self.subjects, self.references, strict=True) if not names or s.name in names]

    def _measure_subject(self, subject: Subject) -> SubjectReference:
        embeddings = [object_embedding(self.towers, (photo.picture + 1) / 2, photo.mask) for photo in subject.photos]
        embedding = embeddings[0] if len(embeddings) == 1 else F.normalize(torch.stack(embeddings).mean(0), dim=0)
        views = subject.augmented_views(NUM_VIEWS, self.model.resolution)
        class_images = self.class_images[subject.class_word]
        layouts = tuple(layout_descriptor(views[i : i + 1])[0] for i in range(len(subject.photos)))
        return SubjectReference(
            embedding=embedding,
            object_similarity=float((self._central_features(views) @ embedding).mean()),
            class_similarity=float((self._central_features(class_images) @ embedding).mean()),
            photo_layouts=layouts,
            class_photo_correlation=nearest_photo_correlation(class_images, layouts),
            class_prompt_accuracy=self._measure_prompt_accuracy(subject.class_word, class_images),
        )

    def _score_subject(self, subject: Subject, reference: SubjectReference, images: Tensor) -> dict[str, float]:
        likeness = self._score_likeness(reference, images)
        return {
            "identity": likeness["identity"],
            "prompt": self._measure_prompt_accuracy(subject.class_word, images)
            / max(reference.class_prompt_accuracy, 1 / len(SCENES)),
            "copy": likeness["copy"],
        }

    def _score_likeness(self, reference: SubjectReference, images: Tensor) -> dict[str, float]:
        similarity = float((self._central_features(images) @ reference.embedding).mean())
        return {
            "identity": (similarity - reference.class_similarity)
            / max(reference.object_similarity - reference.class_similarity, MIN_COSINE_GAP),
            "copy": (nearest_photo_correlation(images, reference.photo_layouts) - reference.class_photo_correlation)
            / max(1 - reference.class_photo_correlation, 1e-3),
        }

    def _measure_prompt_accuracy(self, class_word: str, images: Tensor) -> float:
        """Share of images whose nearest prompt of the class is that of their own scene."""
        with torch.no_grad():
            scene_features = self.towers.text_features(
                self.model, [self._class_prompt(class_word, scene) for scene in SCENES]
            )
        nearest = (self._image_features(images) @ scene_features.T).argmax(dim=1)
        return float((nearest.cpu() == torch.arange(len(SCENES))).float().mean())

    def _sample_class(self, word: str) -> Tensor:
        return self._sample_images([self._class_prompt(word, scene) for scene in SCENES], self.sampling)

    def _class_prompt(self, word: str, scene: str) -> str:
        return f"a photo of {with_article(word)} {scene}"

    def _sample_images(self, prompts: list[str], sampling: SamplingSettings) -> Tensor:
        """Sample images (N, 3, H, W) in [-1, 1], always from the same noise; CLIP leaves the GPU meanwhile."""
        self.towers.offload()
        return self.model.decode_latents(sample(self.model, prompts, self.seeds, sampling, self.on_step))

    def _image_features(self, pictures: Tensor) -> Tensor:
        return self.towers.image_features((pictures + 1) / 2)

    def _central_features(self, pictures: Tensor) -> Tensor:
        """Unit vectors of `CENTRAL_BOX` of each image, which has less of the scene."""
        return self.towers.image_features(crop_to_box((pictures + 1) / 2, CENTRAL_BOX, self.towers.image_size))


def object_embedding(towers: Clip, picture: Tensor, mask: Tensor) -> Tensor:
    """The unit vector (d,) of an object: the mean over its close-up and its cut-out, both also mirrored.

    Args:
        picture: (3, H, W) in [0, 1]. mask: coverage (H, W).
    """
    cutout = crop(picture, mask, picture.new_tensor(MEAN), towers.image_size)
    views = torch.stack([crop_close_up(picture, mask, towers.image_size)[0], cutout])
    return F.normalize(towers.image_features(torch.cat([views, views.flip(-1)])).mean(0), dim=0)


def crop_close_up(picture: Tensor, mask: Tensor, side: int) -> Tensor:
    """The photo around its object, (1, 3, side, side)."""
    return crop_to_box(picture[None], bounding_box(mask, 0.3 * float(mask.max())), side, CROP_MARGIN)


def layout_descriptor(pictures: Tensor) -> Tensor:
    """Pictures (N, 3, H, W) as vectors (N, k) of unit length whose product is the correlation of layout and colours."""
    small = F.adaptive_avg_pool2d(pictures.float().cpu(), LAYOUT_SIDE).flatten(1)
    return F.normalize(small - small.mean(dim=1, keepdim=True), dim=1)


def nearest_photo_correlation(pictures: Tensor, layouts: Sequence[Tensor]) -> float:
    """Mean over pictures (N, 3, H, W) of the correlation with the photo that is most alike, by layout descriptors (k,)."""
    descriptors = layout_descriptor(pictures)
    return float(torch.stack([descriptors @ layout for layout in layouts]).amax(0).mean())
