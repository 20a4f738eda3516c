"""CLIP-I, CLIP-T, DINO and diversity on photographs (DreamBooth, arXiv:2208.12242, section 4.1)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from objtune_cli.config.sections import Bench
from objtune_cli.errors import ResourceError
from objtune_cli.evaluation import features, statistics
from objtune_cli.evaluation.features import ImageEmbedder, TextEmbedder
from objtune_cli.workflow.context import StageContext


@dataclass(frozen=True, slots=True)
class MetricModels:
    """The models that measure images.

    Attributes:
        embed_images, embed_texts: CLIP embedders.
        dino: DINO embedder; None if the model is not on this machine.
        clip_name, dino_name: Names in tables.
    """

    embed_images: ImageEmbedder
    embed_texts: TextEmbedder
    dino: ImageEmbedder | None
    clip_name: str = ""
    dino_name: str = ""

    @property
    def models(self) -> dict[str, ImageEmbedder]:
        """Measure of image similarity to the model that gives it."""
        return {"clip_i": self.embed_images} | ({"dino": self.dino} if self.dino else {})

    def name(self, measure: str) -> str:
        """The name of the model that gives a measure; "" if none does."""
        diversity = self.dino_name if self.dino else self.clip_name
        return {"clip_i": self.clip_name, "clip_t": self.clip_name, "dino": self.dino_name, "diversity": diversity}.get(
            measure, ""
        )


def load_models(ctx: StageContext, config: Bench) -> MetricModels:
    """Load the models that the settings name. The default DINO is left out, with a note, if it is not on this machine.

    Raises:
        ResourceError: A model is not on this machine, or the base has no CLIP vision encoder.
        UsageError: A model is of another kind.
    """
    look, say = features.load_clip(config.clip_model) if config.clip_model else features.load_base_clip(ctx)
    try:
        dino = features.load_dino(config.dino_model)
    except ResourceError:
        if config.dino_model != features.DINO:
            raise
        ctx.report.note(
            f"{features.DINO} is not on this machine: no DINO, and diversity by CLIP; `objtune fetch --model {features.DINO}` downloads it"
        )
        dino = None
    return MetricModels(
        look,
        say,
        dino,
        _short_name(config.clip_model) or f"{ctx.base.id}'s own",
        _short_name(config.dino_model) if dino else "",
    )


def _short_name(name: str) -> str:
    """A hub id unchanged; the last part of a path on this machine."""
    return Path(name).name if name and Path(name).exists() else name


def score(
    models: MetricModels,
    images: np.ndarray,
    prompts: list[str],
    references: Mapping[str, Sequence[np.ndarray]],
    images_per_prompt: int,
) -> dict[str, float]:
    """Measures of images of an object.

    Args:
        images: (N, H, W, 3) uint8; the images of one prompt are consecutive.
        prompts: Prompt of each image, with the class word for the object.
        references: Suffix of the measure's name to the reference images, of any sizes.
        images_per_prompt: Number of images of each prompt.

    Returns:
        clip_t: mean cosine of images and prompts.
        clip_i, dino: mean cosine of images and references.
        diversity: 1 - mean cosine of two images of a prompt, by DINO or, without it, by CLIP; left out if a prompt has one image.
    """
    scores: dict[str, float] = {}
    vectors = models.embed_images(images)
    scores["clip_t"] = float((vectors * models.embed_texts(prompts)).sum(1).mean())
    for name, model in models.models.items():
        vectors = vectors if model is models.embed_images else model(images)
        for suffix, photos in references.items():
            scores[name + suffix] = float(statistics.mean_cosine(vectors, embed_photos(model, photos)).mean())
    if images_per_prompt > 1:
        groups = np.split(vectors, len(images) // images_per_prompt)
        scores["diversity"] = float(np.mean([diversity(group) for group in groups]))
    return scores


def embed_photos(model: ImageEmbedder, photos: Sequence[np.ndarray]) -> np.ndarray:
    """Unit vectors (N, d) of photos of any sizes."""
    return np.concatenate([model(photo[None]) for photo in photos])


def diversity(vectors: np.ndarray) -> float:
    """1 - mean cosine of two of the unit vectors (N, d), N > 1."""
    count = len(vectors)
    return float(1 - ((vectors @ vectors.T).sum() - count) / (count * (count - 1)))
