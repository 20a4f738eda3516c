"""How a run is getting on, without a second photo: a few cheap pictures, seen by the base's own CLIP.

Knows no world and no evaluator: what is here works on any base whose CLIP has an image tower. All formulas are ours.
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
"""Where the class's own pictures have their object."""
STEPS = 12
"""Sampling steps of a judged picture: fewer than of one that is shown."""
FIRST_SEED = 900
NUM_VIEWS = 8
MIN_COSINE_GAP = 0.05
"""Least difference of cosines between object and class that a score is divided by: nearer together they cannot be told apart."""
LAYOUT_SIDE = 16
"""Side at which a picture is compared with the photo: layout and colours, no texture."""


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
    """Scores of trained objects; made before anything is learned, for the class pictures are the frozen base's."""

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
        self.plain = {word: self._class(word) for word in sorted(words)}
        self.known = [self._known(s) for s in subjects]

    def scores(self, words: Placeholders, names: Sequence[str] = ()) -> dict[str, float]:
        """Means over the objects, or the named ones, each from one picture a scene.

        Returns:
            identity: 0 as the class, 1 as the photo's own object. prompt: share of pictures in the asked scene, over the
            class's own. copy: 0 as like the nearest whole photo as the class's pictures, 1 that photo.
        """
        each = [self._scores(s, k, self._pictures([words.expand(f"a photo of <{s.name}> {scene}") for scene in SCENES], self.object_sampling))
                for s, k in self._asked(names)]  # fmt: skip
        return {name: sum(e[name] for e in each) / len(each) for name in each[0]}

    def drift(self, names: Sequence[str] = ()) -> float:
        """How far the class came towards the object: 0 as before, 1 it is the object; the mean over the objects, or the named ones."""
        asked = self._asked(names)
        after = {word: self._class(word) for word in sorted({s.class_word for s, _ in asked})}
        moved = [
            float((self._middles(after[s.class_word]) @ k.embedding).mean()) - k.class_similarity for s, k in asked
        ]
        return sum(
            m / max(k.object_similarity - k.class_similarity, MIN_COSINE_GAP)
            for m, (_, k) in zip(moved, asked, strict=True)
        ) / len(moved)

    def _asked(self, names: Sequence[str]) -> list[tuple[Subject, SubjectReference]]:
        return [(s, k) for s, k in zip(self.subjects, self.known, strict=True) if not names or s.name in names]

    def _known(self, subject: Subject) -> SubjectReference:
        each = [object_embedding(self.towers, (photo.picture + 1) / 2, photo.mask) for photo in subject.photos]
        own = each[0] if len(each) == 1 else F.normalize(torch.stack(each).mean(0), dim=0)
        placed = subject.augmented_views(NUM_VIEWS, self.model.resolution)
        plain = self.plain[subject.class_word]
        layouts = tuple(layout_descriptor(placed[i : i + 1])[0] for i in range(len(subject.photos)))
        return SubjectReference(
            embedding=own,
            object_similarity=float((self._middles(placed) @ own).mean()),
            class_similarity=float((self._middles(plain) @ own).mean()),
            photo_layouts=layouts,
            class_photo_correlation=nearest_photo_correlation(plain, layouts),
            class_prompt_accuracy=self._follows(subject.class_word, plain),
        )

    def _scores(self, subject: Subject, known: SubjectReference, shown: Tensor) -> dict[str, float]:
        likeness = float((self._middles(shown) @ known.embedding).mean())
        return {
            "identity": (likeness - known.class_similarity)
            / max(known.object_similarity - known.class_similarity, MIN_COSINE_GAP),
            "prompt": self._follows(subject.class_word, shown) / max(known.class_prompt_accuracy, 1 / len(SCENES)),
            "copy": (nearest_photo_correlation(shown, known.photo_layouts) - known.class_photo_correlation)
            / max(1 - known.class_photo_correlation, 1e-3),
        }

    def _follows(self, class_word: str, shown: Tensor) -> float:
        """Share of pictures whose scene is the nearest of all scenes, in the class's words."""
        with torch.no_grad():
            told = self.towers.text_features(self.model, [self._plain_words(class_word, scene) for scene in SCENES])
        nearest = (self._vectors(shown) @ told.T).argmax(dim=1)
        return float((nearest.cpu() == torch.arange(len(SCENES))).float().mean())

    def _class(self, word: str) -> Tensor:
        return self._pictures([self._plain_words(word, scene) for scene in SCENES], self.sampling)

    def _plain_words(self, word: str, scene: str) -> str:
        return f"a photo of {with_article(word)} {scene}"

    def _pictures(self, prompts: list[str], sampling: SamplingSettings) -> Tensor:
        """(N, 3, H, W) in [-1, 1], always from the same noise; nobody looks at them while they are drawn."""
        self.towers.offload()
        return self.model.decode_latents(sample(self.model, prompts, self.seeds, sampling, self.on_step))

    def _vectors(self, pictures: Tensor) -> Tensor:
        return self.towers.image_features((pictures + 1) / 2)

    def _middles(self, pictures: Tensor) -> Tensor:
        """Unit vectors of where an object stands in a picture of it alone: less of the scene is in them."""
        return self.towers.image_features(crop_to_box((pictures + 1) / 2, CENTRAL_BOX, self.towers.image_size))


def object_embedding(towers: Clip, picture: Tensor, mask: Tensor) -> Tensor:
    """The unit vector (d,) of an object: the mean over its close-up and its cut-out, both also mirrored.

    Args:
        picture: (3, H, W) in [0, 1]. mask: coverage (H, W).
    """
    alone = crop(picture, mask, picture.new_tensor(MEAN), towers.image_size)
    views = torch.stack([crop_close_up(picture, mask, towers.image_size)[0], alone])
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
