"""Ranks masks by the class probability of the base's CLIP, the segmenter's quality and the outline.

The formulas are our own.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch

from objtune_cli.models.base_model import BaseModel
from objtune_cli.models.clip import BACKGROUND_LABELS, MEAN, Clip
from objtune_cli.models.prompts import with_article
from objtune_cli.numerics.masks import crop, iou

QUALITY_WEIGHT, CONTRAST_WEIGHT, BORDER_WEIGHT = 1.0, 1.0, 2.0
"""Weights of the segmenter's quality, of the contrast along the outline, and of the share of the photo's border that the mask touches."""
SAME_IOU = 0.5
"""IoU from which two masks are the same object."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A mask with its scores for one class.

    Attributes:
        mask: (H, W) bool. likeness: Probability of the class word among all words, in [0, 1]. score: Rank criterion.
        quality: The segmenter's quality of the mask.
    """

    mask: np.ndarray
    class_probability: float
    score: float
    quality: float = 0.0


@torch.no_grad()
def class_probabilities(
    model: BaseModel,
    towers: Clip,
    rgb: np.ndarray,
    masks: Sequence[np.ndarray],
    words: Sequence[str],
    others: Sequence[str],
) -> np.ndarray:
    """Probability (M, W) of each word for each mask's cut-out, among the words, the others and `GROUNDS`.

    softmax over all words of the towers' own scale x cosine(picture of the cut-out, "a photo of <word>").
    """
    picture = torch.from_numpy(rgb.copy()).permute(2, 0, 1).float() / 255
    fill = picture.new_tensor(MEAN)
    crops = torch.stack([crop(picture, torch.from_numpy(m.astype(np.float32)), fill, towers.image_size) for m in masks])
    labels = [with_article(w) for w in dict.fromkeys((*words, *others))] + list(BACKGROUND_LABELS)
    text_features = towers.text_features(model, [f"a photo of {w}" for w in labels])
    image_features = torch.cat([towers.image_features(batch) for batch in torch.split(crops, 16)])
    share = (towers.logit_scale * image_features @ text_features.T).softmax(dim=1).cpu().numpy()
    index = {w: i for i, w in enumerate(dict.fromkeys((*words, *others)))}
    return share[:, [index[w] for w in words]]


def rank(
    rgb: np.ndarray, masks: Sequence[np.ndarray], qualities: Sequence[float], likely: np.ndarray
) -> list[Candidate]:
    """Score candidates for one word and sort them, best first.

    score = ln(likeness) + QUALITY quality + EDGE contrast - BORDER share of the outline on the photo's border.
    """
    candidates = [
        Candidate(
            m,
            float(p),
            float(
                np.log(max(p, 1e-6))
                + QUALITY_WEIGHT * q
                + CONTRAST_WEIGHT * outline_contrast(rgb, m)
                - BORDER_WEIGHT * border_share(m)
            ),
            float(q),
        )
        for m, q, p in zip(masks, qualities, likely, strict=True)
    ]
    return sorted(candidates, key=lambda c: -c.score)


def outline_contrast(rgb: np.ndarray, mask: np.ndarray) -> float:
    """Share of the outline with a visible colour edge, in [0, 1]."""
    lab = cv2.cvtColor(cv2.GaussianBlur(rgb, (0, 0), 1), cv2.COLOR_RGB2LAB).astype(np.float32)
    step = np.sqrt(
        sum(np.square(cv2.Sobel(lab[..., c], cv2.CV_32F, *d, ksize=3) / 4) for c in range(3) for d in ((1, 0), (0, 1)))
    )
    edge = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
    edge[[0, -1]] = edge[:, [0, -1]] = False
    near = cv2.dilate(step, np.ones((3, 3), np.uint8))
    return float((near[edge] > 6).mean()) if edge.any() else 0.0


def border_share(mask: np.ndarray) -> float:
    """Share of the photo's border that a mask touches, in [0, 1]."""
    return float(np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]]).mean())


def suppress_duplicates(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Keep the best candidate of each object; candidates must be sorted."""
    distinct: list[Candidate] = []
    for c in candidates:
        if all(iou(c.mask, other.mask) < SAME_IOU and not _is_part(c.mask, other.mask) for other in distinct):
            distinct.append(c)
    return distinct


def _is_part(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether at least 85 % of the smaller mask lies in the other."""
    small = min(np.count_nonzero(a), np.count_nonzero(b))
    return bool(small and np.count_nonzero(a & b) > 0.85 * small)


def assign(choices: Sequence[Sequence[Candidate]], most: int = 6) -> list[int] | None:
    """Index of the candidate of each object, without overlaps and with the largest sum of scores; None if there are too few."""
    best: tuple[float, tuple[int, ...]] | None = None
    for picks in itertools.product(*(range(min(most, len(c))) for c in choices)):
        combination = [c[i] for c, i in zip(choices, picks, strict=True)]
        if any(iou(a.mask, b.mask) >= SAME_IOU for a, b in itertools.combinations(combination, 2)):
            continue
        total = sum(c.score for c in combination)
        if best is None or total > best[0] + 1e-9:
            best = (total, picks)
    return None if best is None else list(best[1])


SELECT_KEYS = {
    "largest": lambda m: -float(m.sum()),
    "smallest": lambda m: float(m.sum()),
    "left": lambda m: float(m.nonzero()[1].mean()),
    "right": lambda m: -float(m.nonzero()[1].mean()),
    "top": lambda m: float(m.nonzero()[0].mean()),
    "bottom": lambda m: -float(m.nonzero()[0].mean()),
}
"""Sort keys that select one of several objects of a class."""


def select(candidates: Sequence[Candidate], which: str, reach: float = 1.5) -> list[Candidate]:
    """Candidates whose scores are within `reach` of the best, sorted by a key of `SELECT_KEYS`."""
    alike = [c for c in candidates if c.score > candidates[0].score - reach]
    return sorted(alike, key=lambda c: SELECT_KEYS[which](c.mask))
