"""The objects that a run learns, and augmented views of their photos, encoded once before the first step."""

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from objtune_cli.config.sections import Train
from objtune_cli.models.base_model import BaseModel
from objtune_cli.models.prompts import with_article
from objtune_cli.numerics import augmentation, ddpm
from objtune_cli.numerics.masks import to_latent


@dataclass(frozen=True, slots=True)
class SubjectPhoto:
    """A photo of an object.

    Attributes:
        picture: The photo (3, H, W) in [-1, 1]. background: the photo without the objects.
        mask: Coverage (H, W) in [0, 1].
    """

    picture: Tensor
    background: Tensor
    mask: Tensor


@dataclass(frozen=True, slots=True)
class Subject:
    """One object to learn.

    Attributes:
        name, class_word: For example "rex" for the placeholder `<rex>`, and "dog".
        token_embeddings: The token's initial vectors (k + n, d). num_trainable: k, how many of them are trained.
        photos: Its photos. Objects that are trained together share one photo.
    """

    name: str
    class_word: str
    token_embeddings: Tensor
    num_trainable: int
    photos: tuple[SubjectPhoto, ...]

    def augmented_views(self, count: int, size: int, seed: int = 0) -> Tensor:
        """Augmented views (V, 3, size, size) of the object's photos, V = max(`count`, number of photos)."""
        layers = [augmentation.PhotoLayers(photo.picture, photo.mask, photo.background) for photo in self.photos]
        return augmentation.views_of_photos(layers, count, size, torch.Generator().manual_seed(seed))[0]


@dataclass(slots=True)
class Views:
    """Augmented views of one subset of the objects.

    Attributes:
        latents: (V, C, h, w). latent_std: their standard deviations, if each step samples them anew. masks: coverage of all
            objects together, (V, 1, h, w). object_masks: of each object, (V, M, h, w).
        num_originals: The first so many views are the original views, one of each photo.
    """

    members: tuple[Subject, ...]
    latents: Tensor
    masks: Tensor
    object_masks: Tensor
    latent_std: Tensor | None = None
    num_originals: int = 1

    def prompt_phrase(self, kind: str) -> str:
        """The members as they stand in a prompt, by "token" or by "class"."""
        return " and ".join(f"<{s.name}>" if kind == "token" else with_article(s.class_word) for s in self.members)


GROUP_SCALE = (0.75, 0.95)
"""Share of the frame that several objects together cover along the longer side: large, so that each has as many pixels as possible."""
MAX_FULL_COMBINATIONS = 3
"""Up to so many objects every combination is trained; of more objects only singles, pairs and all together."""


def subsets(subjects: list[Subject]) -> list[tuple[Subject, ...]]:
    """The combinations of objects that are trained: singles first, all together last (union sampling, arXiv:2305.16311)."""
    count = len(subjects)
    sizes = range(1, count + 1) if count <= MAX_FULL_COMBINATIONS else (1, 2, count)
    return [c for n in sizes for c in itertools.combinations(subjects, n)]


def encode_views(model: BaseModel, members: tuple[Subject, ...], config: Train) -> Views:
    """Augment the photos of one object, or the photo of several, and encode the views once."""
    photos = [_layers(photos) for photos in zip(*(s.photos for s in members), strict=True)]
    g = ddpm.step_generator(config.seed, 0xFFFFFFFF)
    scale = GROUP_SCALE if len(members) > 1 else augmentation.SCALE
    pictures, masks = augmentation.views_of_photos(photos, config.num_augmentations, model.resolution, g, scale)
    latents, latent_std = (moment.to(model.device) for moment in model.encode_image_distribution(pictures))
    masks = to_latent(masks, (latents.shape[-2], latents.shape[-1])).to(model.device)
    kept_std = latent_std if config.sample_vae_latents else None
    return Views(members, latents, masks[:, :1], masks[:, 1:], kept_std, len(photos))


def _layers(photos: tuple[SubjectPhoto, ...]) -> augmentation.PhotoLayers:
    """The layers of one photo, of which each of its objects has the picture and a mask of its own."""
    object_masks = torch.stack([photo.mask for photo in photos])
    return augmentation.PhotoLayers(photos[0].picture, object_masks.amax(0), photos[0].background, object_masks)
