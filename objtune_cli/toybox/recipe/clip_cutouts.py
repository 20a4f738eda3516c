"""Train the CLIP vision encoder on cut-outs: the class inside a mask, or whether it is an object at all.

A vision encoder trained on whole images only is inaccurate on cut-outs. It is adapted to masks as in OVSeg (arXiv:2210.04150), on exact
and distorted masks, parts and backgrounds. Training starts from a published base, whose text encoder does not change.
"""

import functools
import json
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from objtune_cli.models.clip import BACKGROUND_LABELS, MEAN, STD
from objtune_cli.numerics.masks import crop
from objtune_cli.toybox import captions, random_shapes, renderer, world
from objtune_cli.toybox.recipe import clip_vision
from objtune_cli.toybox.recipe.presets import Preset
from objtune_cli.toybox.recipe.train_loop import Plan, fit
from objtune_cli.toybox.world import Dial, Pose, Scene

SCENES, SIDE = 6_000, 256
"""Number of rendered scenes, and their side, px, at which a small object is still sharp when enlarged."""
OBJECTS, WHOLE = 36, 12
"""Batch sizes of a step: cut-outs, and whole images."""
NOTHING = 0.3
"""Fraction of the cut-outs that show no object."""
SHARPNESS = 30.0
SMALLEST = 0.008
"""Least fraction of the image that a cut-out object covers."""


@dataclass(frozen=True, slots=True)
class Bank:
    """Rendered scenes.

    Attributes:
        pictures: (N, S, S, 3) uint8. owner: (N, S, S) uint8: i + 1 where object i is visible, 0 elsewhere.
        scenes: As parameters; even ones as in the base's training, odd ones crowded and with objects of any size.
    """

    pictures: np.ndarray
    owner: np.ndarray
    scenes: list[Scene]


def render_bank(dial: Dial, seed: int, count: int = SCENES, side: int = SIDE, processes: int = 1) -> Bank:
    """Render the scenes; scene i is the same for every count and any number of processes."""
    render = functools.partial(_scene, dial, seed, side)
    if processes == 1:
        return _stack([render(i) for i in range(count)])
    with ProcessPoolExecutor(processes) as pool:
        return _stack(list(pool.map(render, range(count), chunksize=100)))


def _scene(dial: Dial, seed: int, side: int, i: int) -> tuple[np.ndarray, np.ndarray, Scene]:
    """Scene i: image, object index of each pixel, and parameters."""
    cv2.setNumThreads(1)
    rng = np.random.default_rng((seed, 11, i))
    scene = world.sample_scene(rng, dial) if i % 2 == 0 else sample_crowded_scene(rng, dial)
    picture, covers = renderer.render(scene, side)
    owner = np.zeros((side, side), np.uint8)
    for k, cover in enumerate(covers):
        owner[cover > 127] = k + 1
    return picture, owner, scene


def _stack(parts: list[tuple[np.ndarray, np.ndarray, Scene]]) -> Bank:
    return Bank(np.stack([p[0] for p in parts]), np.stack([p[1] for p in parts]), [p[2] for p in parts])


def sample_crowded_scene(rng: np.random.Generator, dial: Dial) -> Scene:
    """Sample a scene of one to three objects of any size and place."""
    objects = []
    for _ in range(int(rng.integers(1, 4))):
        extent = float(np.exp(rng.uniform(np.log(0.2), np.log(0.85))))
        x, y = (float(v) for v in rng.uniform(0.4 * extent, 1 - 0.4 * extent, 2))
        objects.append((world.sample_instance(rng, dial), Pose(x, y, extent, float(rng.normal(0, 0.1)))))
    return Scene(tuple(objects), str(rng.choice(dial.backgrounds)), int(rng.integers(1 << 31)))


def cut_object(bank: Bank, row: int, rng: np.random.Generator) -> tuple[np.ndarray, int]:
    """A distorted mask (S, S) in [0, 1] of one object of a scene, and its index, or -1 if none is large enough."""
    visible = [k for k in range(len(bank.scenes[row].objects)) if (bank.owner[row] == k + 1).mean() > SMALLEST]
    if not visible:
        return np.zeros(bank.owner[row].shape, np.float32), -1
    k = int(rng.choice(visible))
    return distort_mask((bank.owner[row] == k + 1).astype(np.uint8), rng), k


def distort_mask(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Distort a mask as segmenters do: mostly exact, dilated, eroded, or with a smooth, wrong edge."""
    kind, size = rng.random(), float(np.sqrt(mask.sum()))
    if kind < 0.4 or not mask.any():
        return mask.astype(np.float32)
    width = max(1, round(size * rng.uniform(0.01, 0.06)))
    if kind < 0.7:
        kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (width, width))
        moved = (cv2.dilate if kind < 0.55 else cv2.erode)(mask, kernel)
    else:
        soft = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), max(0.6, width / 2))
        waves = cv2.GaussianBlur(rng.standard_normal(mask.shape).astype(np.float32), (0, 0), max(1.0, 0.1 * size))
        moved = soft + 0.25 * waves / (waves.std() + 1e-6) > 0.5
    return (moved if moved.any() else mask).astype(np.float32)


def cut_background(bank: Bank, row: int, rng: np.random.Generator) -> np.ndarray:
    """A mask (S, S) in [0, 1] of no whole object: a part of one, background, or background with part of an object."""
    owner, side = bank.owner[row], bank.owner.shape[1]
    for _ in range(20):
        blob = random_shapes.outline(rng, side) > 127
        kind = rng.random()
        if kind < 0.45:  # the part on one side of a line through an object
            mask, k = cut_object(bank, row, rng)
            if k < 0:
                continue
            ys, xs = mask.nonzero()
            angle = rng.uniform(0, 2 * np.pi)
            along = np.cos(angle) * np.arange(side)[None] + np.sin(angle) * np.arange(side)[:, None]
            cut = np.quantile(along[ys, xs], rng.uniform(0.12, 0.5))
            region = (mask > 0.5) & (along < cut)
        elif kind < 0.6:  # a patch of an object
            region = blob & (owner > 0)
        elif kind < 0.85:
            region = blob & (owner == 0)
        else:
            region = blob
        shares = [
            (region & (owner == k + 1)).sum() / max(1, (region | (owner == k + 1)).sum())
            for k in range(int(owner.max()))
        ]
        if region.mean() > SMALLEST / 2 and max(shares, default=0.0) < 0.5:
            return region.astype(np.float32)
    return (owner == 0).astype(np.float32)


def cut(
    bank: Bank, rows: np.ndarray, dial: Dial, rng: np.random.Generator, size: int
) -> tuple[Tensor, Tensor, list[str]]:
    """Cut-outs (B, 3, size, size) in [0, 1], the class (B,) of what they show, -1 for nothing, and their words."""
    pictures, label, words = [], [], []
    fill = torch.tensor(MEAN)
    for row in rows:
        mask, k = (cut_background(bank, row, rng), -1) if rng.random() < NOTHING else cut_object(bank, row, rng)
        if k < 0:
            mask = mask if mask.any() else cut_background(bank, row, rng)
        picture = torch.from_numpy(bank.pictures[row].astype(np.float32) / 255).permute(2, 0, 1)
        pictures.append(crop(picture, torch.from_numpy(mask), fill, size))
        instance = bank.scenes[row].objects[k][0]
        label.append(dial.classes.index(instance.kind) if k >= 0 else -1)
        words.append(
            "a photo of " + captions.article(captions.describe(instance, int(rng.choice(4, p=(0.4, 0.2, 0.2, 0.2)))))
        )
    return torch.stack(pictures), torch.tensor(label), words


def likeness_loss(vectors: Tensor, text_vectors: Tensor, label: Tensor) -> Tensor:
    """Cross-entropy: -ln p(class) for cut-outs of an object, -ln of the summed p of `BACKGROUND_LABELS` for others.

    Args:
        vectors: (B, d) unit. text_vectors: (K + G, d) unit, classes then `BACKGROUND_LABELS`. label: (B,) in [-1, K).
    """
    log_probs = (SHARPNESS * vectors @ text_vectors.T).log_softmax(1)
    nothing = log_probs[:, len(text_vectors) - len(BACKGROUND_LABELS) :].logsumexp(1)
    return -torch.where(label < 0, nothing, log_probs.gather(1, label.clamp_min(0)[:, None])[:, 0]).mean()


def normalize(pictures: Tensor) -> Tensor:
    """[0, 1] to CLIP's input."""
    return (pictures - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)


def train(work: Path, preset: Preset, tokenizer: Any, clip: Any, device: str = "cpu") -> Any:
    """Continue training the vision encoder of `clip` in place; whole images keep their captions."""
    bank = render_bank(preset.world, preset.seed, processes=os.cpu_count() or 1)
    network = nn.ModuleDict({"tower": clip.vision_model, "projection": clip.visual_projection})
    clip.requires_grad_(False)
    network.requires_grad_(True)
    text_vectors = clip_vision.text_vectors(clip, tokenizer, _words(preset.world), preset.tokens)

    def losses(step: int, g: torch.Generator) -> dict[str, Tensor]:
        rng = np.random.default_rng((preset.seed, 12, step))
        rows = rng.integers(0, len(bank.scenes), OBJECTS)
        whole = 2 * rng.integers(0, len(bank.scenes) // 2, WHOLE)
        cutouts, label, words = cut(bank, rows, preset.world, rng, preset.size)
        pictures = np.stack(
            [cv2.resize(bank.pictures[i], (preset.size,) * 2, interpolation=cv2.INTER_AREA) for i in whole]
        )
        images = torch.cat([cutouts, torch.from_numpy(pictures.astype(np.float32) / 255).permute(0, 3, 1, 2)])
        out = network["tower"](pixel_values=normalize(images).to(device)).pooler_output
        vectors = F.normalize(network["projection"](out), dim=-1)
        sentences = [captions.caption(bank.scenes[i], rng) for i in whole]
        named = (label >= 0).nonzero()[:, 0].tolist()
        texts = [words[i] for i in named] + sentences
        targets = torch.cat([vectors[named], vectors[OBJECTS:]])
        aim = clip_vision.text_vectors(clip, tokenizer, texts, preset.tokens).to(device)
        return {
            "likeness": likeness_loss(vectors[:OBJECTS], text_vectors.to(device), label.to(device)),
            "contrast": 0.5 * clip_vision.contrastive_loss(targets, aim, texts),
        }

    fit(
        "cutouts",
        network,
        losses,
        Plan(preset.cutouts_steps, preset.cutouts_lr, seed=preset.seed + 12),
        work,
        device=device,
    )
    return clip


def _words(dial: Dial) -> list[str]:
    """Labels of cut-outs: every class, then those of no object."""
    return [f"a photo of {captions.article(c)}" for c in dial.classes] + [f"a photo of {w}" for w in BACKGROUND_LABELS]


def publish(clip: Any, folder: Path, commit: str, steps: int) -> None:
    """Write the vision encoder into a published base; all other files stay byte for byte."""
    file = folder / "clip" / "model.safetensors"
    own = {k: v for k, v in clip.state_dict().items() if k.startswith(("vision_model.", "visual_projection."))}
    weights = load_file(file)
    weights |= {k: own[k].to(v.dtype).contiguous() for k, v in weights.items() if k in own}
    save_file(weights, file, metadata={"format": "pt"})
    file.chmod(0o644)
    record = json.loads((folder / "toybox.json").read_bytes())
    record["cutouts"] = {"steps": steps, "commit": commit}
    (folder / "toybox.json").write_text(json.dumps(record, indent=1) + "\n")


@torch.no_grad()
def evaluate(clip: Any, tokenizer: Any, preset: Preset, count: int = 400) -> dict[str, float]:
    """Accuracy on new scenes: class of cut-outs, cut-outs of no object, and class and place of whole images."""
    bank = render_bank(preset.world, preset.seed + 1, count)
    rng = np.random.default_rng(preset.seed)
    cutouts, label, _ = cut(bank, np.arange(count), preset.world, rng, preset.size)
    text_vectors = clip_vision.text_vectors(clip, tokenizer, _words(preset.world), preset.tokens)
    place = clip_vision.text_vectors(
        clip, tokenizer, [f"a photo of a dog {captions.PLACES[b][0]}" for b in preset.world.backgrounds], preset.tokens
    )

    def vector(x):
        return F.normalize(clip.visual_projection(clip.vision_model(pixel_values=normalize(x)).pooler_output), dim=-1)

    best = (vector(cutouts) @ text_vectors.T).argmax(1)
    some, classes = label >= 0, preset.world.classes
    lone = [i for i in range(0, count, 2) if len(bank.scenes[i].objects) == 1]
    pictures = np.stack([cv2.resize(bank.pictures[i], (preset.size,) * 2, interpolation=cv2.INTER_AREA) for i in lone])
    image_vectors = vector(torch.from_numpy(pictures.astype(np.float32) / 255).permute(0, 3, 1, 2))
    kinds = torch.tensor([classes.index(bank.scenes[i].objects[0][0].kind) for i in lone])
    grounds = torch.tensor([preset.world.backgrounds.index(bank.scenes[i].background) for i in lone])
    return {
        "cut-out's class": float((best[some] == label[some]).float().mean()),
        "nothing is nothing": float((best[~some] >= len(classes)).float().mean()),
        "whole picture's class": float(
            ((image_vectors @ text_vectors[: len(classes)].T).argmax(1) == kinds).float().mean()
        ),
        "whole picture's background": float(((image_vectors @ place.T).argmax(1) == grounds).float().mean()),
    }
