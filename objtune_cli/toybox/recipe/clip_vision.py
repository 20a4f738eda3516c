"""Train the CLIP vision encoder against the finished text encoder.

The contrastive loss with the captions is not enough for such a small ViT to find the objects. Heads on attributes
and on the object's coverage of each patch help.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from objtune_cli.toybox.captions import PLACES
from objtune_cli.toybox.recipe.dataset import HELD_BACK, LABELS, ToyboxDataset
from objtune_cli.toybox.recipe.presets import Preset
from objtune_cli.toybox.recipe.train_loop import Plan, fit
from objtune_cli.toybox.recipe.vae import to_tensor
from objtune_cli.toybox.world import ACCESSORIES, BACKGROUNDS, CLASSES, COLOURS, PATTERNS

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
"""CLIP's colour statistics, which its image processor applies."""
CUT_OUT = 0.25
"""Fraction of single objects that are cut out and enlarged on the mean colour, as prototypes are."""

_SIZES = dict(
    zip(LABELS, map(len, (CLASSES, BACKGROUNDS, COLOURS, COLOURS, PATTERNS, ACCESSORIES, COLOURS)), strict=True)
)
_PLACES = sorted((p for group in PLACES.values() for p in group), key=len, reverse=True)


def without_place(caption: str) -> str:
    """The caption up to the phrase that names the background."""
    for place in _PLACES:
        if caption.endswith(" " + place):
            return caption[: -len(place) - 1]
    return caption


def normalize(pictures: Tensor) -> Tensor:
    """[-1, 1] to CLIP's input: zero is the mean colour."""
    mean, std = torch.tensor(MEAN).view(1, 3, 1, 1), torch.tensor(STD).view(1, 3, 1, 1)
    return ((pictures + 1) / 2 - mean) / std


def cut_out(pictures: Tensor, masks: Tensor, selected: Tensor, margin: float = 0.12) -> tuple[Tensor, Tensor]:
    """Replace chosen images with the object alone, enlarged to the whole image, and their masks likewise."""
    size = pictures.shape[-1]
    cover = F.interpolate(masks, size=(size, size), mode="bilinear")
    theta = torch.eye(2, 3).repeat(len(pictures), 1, 1)
    for row in selected.nonzero()[:, 0].tolist():
        ys, xs = (cover[row, 0] > 0.3).nonzero().T
        low = torch.stack([xs.min(), ys.min()]) / size * 2 - 1
        high = torch.stack([xs.max(), ys.max()]) / size * 2 - 1
        half = ((high - low).max() / 2) * (1 + margin)
        theta[row] = torch.cat([torch.eye(2) * half, ((low + high) / 2)[:, None]], 1)
    grid = F.affine_grid(theta, list(pictures.shape), align_corners=False)
    cutouts = torch.where(selected.view(-1, 1, 1, 1), pictures * cover.clamp(0, 1), pictures)
    both = F.grid_sample(torch.cat([cutouts, cover], 1), grid, align_corners=False)
    return both[:, :3], F.adaptive_avg_pool2d(both[:, 3:], masks.shape[-1])


def train(work: Path, preset: Preset, data: ToyboxDataset, tokenizer, clip, device: str = "cpu"):
    """Train the vision encoder of `clip` in place; the text encoder is frozen."""
    width, cells = preset.width, preset.size // preset.patch
    heads = nn.ModuleDict({k: nn.Linear(width, n) for k, n in _SIZES.items()})
    towers = {"tower": clip.vision_model, "projection": clip.visual_projection}
    network = nn.ModuleDict({**towers, "heads": heads, "cover": nn.Linear(width, 1)})
    clip.text_model.requires_grad_(False).eval()
    clip.text_projection.requires_grad_(False)
    usable = len(data.pictures) - HELD_BACK

    def losses(step: int, g: torch.Generator) -> dict[str, Tensor]:
        rows = sorted(torch.randint(usable, (preset.vision_batch,), generator=g).tolist())
        labels = torch.from_numpy(data.labels[rows]).long()
        lone = labels[:, 1, 0] < 0
        is_cut_out = lone & (torch.rand(len(rows), generator=g) < CUT_OUT)
        pick = torch.randint(preset.captions, (len(rows),), generator=g).tolist()
        texts = [data.captions[r][k] for r, k in zip(rows, pick, strict=True)]
        texts = [without_place(t) if a else t for t, a in zip(texts, is_cut_out.tolist(), strict=True)]
        masks = torch.from_numpy(data.masks[rows]).float()[:, None] / 255
        pictures, masks = cut_out(normalize(to_tensor(data.pictures[rows])), masks, is_cut_out)
        labels[is_cut_out, 0, LABELS.index("background")] = -1
        labels[~lone, 0] = torch.where(torch.arange(len(LABELS)) == 1, labels[~lone, 0], -1)
        labels = labels.to(device)
        out = network["tower"](pixel_values=pictures.to(device))
        vector = F.normalize(network["projection"](out.pooler_output), dim=-1)
        aim = text_vectors(clip, tokenizer, texts, preset.tokens).to(device)
        wrong = [
            F.cross_entropy(heads[k](out.pooler_output), labels[:, 0, i], ignore_index=-1) for i, k in enumerate(LABELS)
        ]
        return {
            "contrast": contrastive_loss(vector, aim, texts),
            "heads": 0.3 * torch.stack(wrong).sum(),
            "cover": F.binary_cross_entropy_with_logits(
                network["cover"](out.last_hidden_state[:, 1:])[..., 0],
                F.adaptive_avg_pool2d(masks, cells).flatten(1).clamp(0, 1).to(device),
            ),
        }

    fit("vision", network, losses, Plan(preset.vision_steps, preset.vision_lr, seed=preset.seed), work, device=device)
    _evaluate(clip, network, data)
    return clip


@torch.no_grad()
def text_vectors(clip, tokenizer, texts: list[str], tokens: int) -> Tensor:
    ids = tokenizer(texts, padding="max_length", max_length=tokens, truncation=True, return_tensors="pt").input_ids
    return F.normalize(clip.text_projection(clip.text_model(input_ids=ids).pooler_output), dim=-1)


def contrastive_loss(vector: Tensor, aim: Tensor, texts: list[str]) -> Tensor:
    """Symmetric cross-entropy in which equal captions are equally correct."""
    logits = 30.0 * vector @ aim.T
    index = {t: i for i, t in enumerate(dict.fromkeys(texts))}
    key = torch.tensor([index[t] for t in texts], device=vector.device)
    right = (key[:, None] == key[None]).float()
    right = right / right.sum(1, keepdim=True)
    across, down = F.log_softmax(logits, 1), F.log_softmax(logits.T, 1)
    return -((right * across).sum(1).mean() + (right * down).sum(1).mean()) / 2


@torch.no_grad()
def _evaluate(clip, network, data: ToyboxDataset) -> None:
    x = normalize(to_tensor(data.pictures[-512:]))
    labels = torch.from_numpy(data.labels[-512:]).long()
    lone = labels[:, 1, 0] < 0
    pooled = network["tower"](pixel_values=x).pooler_output
    for i, name in enumerate(LABELS):
        has_label = lone & (labels[:, 0, i] >= 0)
        hit = network["heads"][name](pooled).argmax(1) == labels[:, 0, i]
        print(f"vision: {name} {float(hit[has_label].float().mean()):.3f}", flush=True)
