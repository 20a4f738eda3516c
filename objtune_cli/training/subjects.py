"""The objects that a run learns, and their placements: what is computed once before the first step."""

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
class Subject:
    """One object to learn.

    Attributes:
        name, class_word: `<name>` and "dog".
        rows: Its token's first vectors (k + n, d). learned: k, how many of them may change.
        picture: The photo (3, H, W) in [-1, 1]. ground: the photo without the object.
        mask: Coverage (H, W) in [0, 1].
    """

    name: str
    class_word: str
    token_embeddings: Tensor
    num_trainable: int
    picture: Tensor
    background: Tensor
    mask: Tensor


@dataclass(slots=True)
class Views:
    """The placements of one subset of the objects.

    Attributes:
        latents: (V, C, h, w). spread: their standard deviations where each step draws them anew. masks: of all its objects together, (V, 1, h, w). parts: of each of them, (V, M, h, w).
    """

    members: tuple[Subject, ...]
    latents: Tensor
    masks: Tensor
    parts: Tensor
    spread: Tensor | None = None

    def words(self, kind: str) -> str:
        """The members in a prompt, by "token" or by "class"."""
        return " and ".join(f"<{s.name}>" if kind == "token" else with_article(s.class_word) for s in self.members)


GROUP_SCALE = (0.75, 0.95)
"""Share of the frame that several objects together cover along the longer side: each then has as much of it as there is."""
MAX_FULL_COMBINATIONS = 3
"""Up to so many objects every combination is shown; of more, whose combinations would be too many, singles, pairs and all together."""


def subsets(subjects: list[Subject]) -> list[tuple[Subject, ...]]:
    """The combinations that steps show: singles and combinations are both trained (union sampling); the last one is all."""
    count = len(subjects)
    sizes = range(1, count + 1) if count <= MAX_FULL_COMBINATIONS else (1, 2, count)
    return [c for n in sizes for c in itertools.combinations(subjects, n)]


def encode_views(model: BaseModel, members: tuple[Subject, ...], config: Train) -> Views:
    """Draw the placements of a subset and encode them once."""
    each = torch.stack([s.mask for s in members])
    g = ddpm.step_generator(config.seed, 0xFFFFFFFF)
    scale = GROUP_SCALE if len(members) > 1 else augmentation.SCALE
    pictures, masks = augmentation.views(
        members[0].picture, each.amax(0), members[0].background, config.views, model.size, g, scale, each
    )
    latents, spread = (found.to(model.device) for found in model.posterior(pictures))
    masks = to_latent(masks, (latents.shape[-2], latents.shape[-1])).to(model.device)
    return Views(members, latents, masks[:, :1], masks[:, 1:], spread if config.latents == "sample" else None)
