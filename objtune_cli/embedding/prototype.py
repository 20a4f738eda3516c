"""`init-embedding`: the object's token, started from its photos, the masked object in them and the class word.

Source: arXiv:2401.15708 section 3.2 (L_PE); norms kept and the class word's own vector appended are ours.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from objtune_cli.config.sections import Embed
from objtune_cli.embedding.descriptive_words import WORDS
from objtune_cli.errors import GateError
from objtune_cli.models import finite_checks
from objtune_cli.models.base_model import BaseModel
from objtune_cli.models.clip import MEAN, Clip
from objtune_cli.models.placeholders import Placeholders, class_token_embeddings, concat_encoders, split_encoders
from objtune_cli.models.prompts import PROMPT, with_article
from objtune_cli.numerics.ddpm import seeded
from objtune_cli.numerics.embeddings import cosine_loss, keep_norm, lengths, prototype
from objtune_cli.numerics.masks import crop

WORDS_PER_VECTOR = 2
"""Words whose mean is a token's first vector in a text space without CLIP."""


@dataclass(frozen=True, slots=True)
class TokenInit:
    """A token's first vectors.

    Attributes:
        rows: (k + n, d) float32: k to be learned, then the n vectors of the class word, if they are kept.
        learned: k.
        metrics: Cosines to the prototype and between its parts, where there is one.
    """

    token_embeddings: Tensor
    num_trainable: int
    metrics: dict[str, float]


PhotoTensors = tuple[Tensor, Tensor]
"""A picture (3, H, W) in [0, 1] and the object's coverage (H, W) in [0, 1]."""


def compute_prototype(
    towers: Clip,
    model: BaseModel,
    photos: Sequence[PhotoTensors],
    class_word: str,
    weights: tuple[float, float, float] = (1.0, 1.0, 1.0),
) -> tuple[Tensor, dict[str, float]]:
    """The prototype p (d,) of the object, with the three pairwise cosines.

    The features of the pictures, and of the objects cut out of them, are means over the photos at unit length.

    Args:
        photos: At least one. weights: of picture, object alone, and class word.
    """
    pictures, objects = [], []
    for picture, mask in photos:
        cutout = crop(picture, mask, picture.new_tensor(MEAN), towers.image_size)
        pictures.append(towers.image_features(picture[None])[0])
        objects.append(towers.image_features(cutout[None])[0])
    whole, single = _mean_direction(pictures), _mean_direction(objects)
    with torch.no_grad():
        word = towers.text_features(model, [PROMPT.format(with_article(class_word))])[0]
    cosines = {
        "cos_picture_object": float(whole @ single),
        "cos_picture_class": float(whole @ word),
        "cos_object_class": float(single @ word),
    }
    return prototype([whole, single, word], weights), cosines


def _mean_direction(vectors: Sequence[Tensor]) -> Tensor:
    """The mean of unit vectors (d,) at unit length; a single vector stays bit for bit as it is."""
    return vectors[0] if len(vectors) == 1 else F.normalize(torch.stack(list(vectors)).mean(0), dim=-1)


def initialise_token(
    model: BaseModel,
    towers: Clip | None,
    photos: Sequence[PhotoTensors],
    class_word: str,
    config: Embed,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
    second: Clip | None = None,
) -> TokenInit:
    """Start a token by `config.init`: "prototype", "class", "random" or "rare-token"; `second`: the towers of a base's second text encoder.

    Raises:
        NonFiniteError: The text encoder gives NaN or infinite values. GateError: the vectors came to such values on the way.
    """
    class_vectors = class_token_embeddings(model, class_word)
    appended_vectors = class_vectors if config.append_class_token else class_vectors[:0]
    rows = _initial_vectors(model, class_vectors, config)
    metrics: dict[str, float] = {}
    image_encoders = [t for t in (towers, second) if t is not None]
    if image_encoders:
        prototypes = [compute_prototype(t, model, photos, class_word, config.weights) for t in image_encoders]
        metrics = dict(prototypes[0][1])
        goals = list(zip(image_encoders, [goal for goal, _ in prototypes], strict=True))
        if image_encoders[0].shares_text_space:
            steps = config.steps if config.init == "prototype" else 0
            rows, curve = _fit_to_prototype(
                model, goals, rows, appended_vectors, class_vectors, replace(config, steps=steps), on_step
            )
            metrics |= {"cos_before": curve[0], "cos_after": curve[-1]}
        elif config.init == "prototype":
            rows, cosines = _describe_prototype(model, *goals[0], class_vectors, class_word, config)
            metrics |= cosines
    vectors = torch.cat([rows, appended_vectors]).cpu()
    if not finite_checks.is_finite(
        torch.cat([vectors.flatten(), torch.tensor(list(metrics.values()), dtype=vectors.dtype)])
    ):
        if config.init == "prototype" and math.isfinite(metrics.get("cos_before", math.nan)):
            raise GateError(
                "the embedding diverged: its cosine to the prototype is not finite",
                f"a lower rate: `--set init-embedding.relative_lr={config.relative_lr / 4:g}`",
            )
        raise finite_checks.describe_failure("text encoder", vectors.dtype)
    return TokenInit(vectors, len(rows), metrics)


def _initial_vectors(model: BaseModel, own: Tensor, config: Embed) -> Tensor:
    """The learned vectors before any step, (k, d): near the class word's, noise of their norm, or those of a rare word."""
    if config.init == "rare-token":
        return class_token_embeddings(model, config.rare_token)[: config.num_vectors]
    return concat_encoders([_vectors_near_class(part, config) for part in split_encoders(own, model.widths)])


@torch.no_grad()
def _describe_prototype(
    model: BaseModel, clip: Clip, goal: Tensor, class_vectors: Tensor, class_word: str, config: Embed
) -> tuple[Tensor, dict[str, float]]:
    """The first vectors for a text space without CLIP: those of words with which CLIP describes the prototype (ours).

    Row i is the mean of the vectors of every k-th word from the i-th, at the norm of the class word's vectors.

    Args:
        goal: The prototype, (d,), in CLIP's space.

    Returns:
        The vectors (k, d'); and the cosine to the prototype of the class alone and with the words.
    """
    prompts = [f"a photo of {with_article(f'{word} {class_word}')}" for word in WORDS]
    cosines = clip.text_features(model, prompts) @ goal
    words = [WORDS[int(i)] for i in cosines.topk(WORDS_PER_VECTOR * config.num_vectors).indices]
    norm = class_vectors.norm(dim=1).mean()
    rows = [
        torch.cat([class_token_embeddings(model, word) for word in words[i :: config.num_vectors]]).mean(0)
        for i in range(config.num_vectors)
    ]
    described = f"a photo of {with_article(' '.join([*words[: config.num_vectors], class_word]))}"
    before, after = (clip.text_features(model, [PROMPT.format(with_article(class_word)), described]) @ goal).tolist()
    return keep_norm(torch.stack(rows), norm), {"cos_before": before, "cos_after": after}


def _vectors_near_class(own: Tensor, config: Embed) -> Tensor:
    """The first vectors of one text encoder, from its class word's."""
    norm = own.norm(dim=1).mean()
    rows = own.mean(0, keepdim=True).repeat(config.num_vectors, 1)
    noise = torch.randn(rows.shape, generator=seeded(config.seed)).to(rows)
    rows = noise if config.init == "random" else rows + 0.05 * norm * noise / noise.shape[1] ** 0.5
    return keep_norm(rows, norm)


def _fit_to_prototype(
    model: BaseModel,
    goals: list[tuple[Clip, Tensor]],
    rows: Tensor,
    noun: Tensor,
    own: Tensor,
    config: Embed,
    on_step: Callable[[int, float], None],
) -> tuple[Tensor, list[float]]:
    """Adam on the mean L_PE of the towers, each with its goal; after each step every row goes back to the class token's norm."""
    norm = lengths(own, model.widths).mean(0)
    learned = [part.clone().requires_grad_(True) for part in split_encoders(rows, model.widths)]
    words = Placeholders(model)
    words.add("objtune", torch.cat([rows, noun]))
    optimizer = torch.optim.Adam(
        [
            {"params": [part], "lr": config.relative_lr * float(n)}
            for part, n in zip(learned, norm.reshape(-1), strict=True)
        ]
    )
    prompt = words.expand(PROMPT.format("<objtune>"))
    cosines = []
    for step in range(config.steps + 1):
        words.replace("objtune", torch.cat([concat_encoders(learned), noun]))
        loss = torch.stack(
            [cosine_loss(towers.text_features(model, [prompt]), goal[None]).mean() for towers, goal in goals]
        ).mean()
        cosines.append(1 - float(loss.detach()))
        if step == config.steps:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for part, n in zip(learned, norm.reshape(-1), strict=True):
                part.copy_(keep_norm(part, n))
        on_step(step + 1, float(loss.detach()))
    return concat_encoders(learned).detach(), cosines
