"""Train the small segment-anything model on toybox scenes and random shapes, both with exact masks.

Losses as in arXiv:2304.02643 appendix A, with cross-entropy in place of focal loss, because masks are soft and rarely tiny.
"""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from objtune_cli.segmentation import sam_models
from objtune_cli.toybox import random_shapes, renderer, world
from objtune_cli.toybox.recipe.presets import Preset
from objtune_cli.toybox.recipe.train_loop import Plan, fit
from objtune_cli.toybox.world import FULL, Pose, Scene

HINTS = 2
"""Number of hints of each kind per image: points, and boxes or rough masks."""
DRAWN = 0.75
"""Fraction of the images that show toybox scenes."""
BACKGROUND = 0.12
"""Fraction of the points on the background, whose target is the background."""


def sample_scene(rng: np.random.Generator, size: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """Sample a toybox scene of one to three objects of any size and place: image and visible masks."""
    objects = []
    for _ in range(int(rng.integers(1, 4))):
        extent = float(np.exp(rng.uniform(np.log(0.14), np.log(0.85))))
        x, y = (float(v) for v in rng.uniform(0.4 * extent, 1 - 0.4 * extent, 2))
        objects.append(
            (world.sample_instance(rng, FULL), Pose(x, y, extent, float(rng.normal(0, 0.15)), bool(rng.random() < 0.5)))
        )
    scene = Scene(tuple(objects), str(rng.choice(FULL.backgrounds)), int(rng.integers(1 << 31)))
    return renderer.render(scene, size)


def sample_picture(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """A training image (size, size, 3) uint8 and the masks (M, size, size) in [0, 1] of its objects that are large enough."""
    while True:
        rgb, masks = sample_scene(rng, size) if rng.random() < DRAWN else random_shapes.sample_picture(rng, size)
        cover = np.stack(masks).astype(np.float32) / 255
        rgb, cover = _zoom(rgb, cover, rng) if rng.random() < 0.3 else (rgb, cover)
        cover = cover[(cover > 0.5).sum((1, 2)) >= 30]
        if len(cover):
            return _degrade(rgb, rng), cover


def _zoom(rgb: np.ndarray, cover: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Zoom in on one object, as the refinement of a small object does."""
    size = len(rgb)
    ys, xs = (cover[int(rng.integers(len(cover)))] > 0.5).nonzero()
    if len(ys) < 30:
        return rgb, cover
    half = max(np.ptp(ys), np.ptp(xs)) * rng.uniform(0.6, 0.9) + 2
    theta = np.array(
        [
            [size / (2 * half), 0, size / 2 - xs.mean() * size / (2 * half)],
            [0, size / (2 * half), size / 2 - ys.mean() * size / (2 * half)],
        ]
    )
    moved = [
        cv2.warpAffine(a, theta, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
        for a in (rgb, *cover)
    ]
    return moved[0], np.stack(moved[1:])


def _degrade(rgb: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Degrade an image as cameras and files do: brightness, blur, grain, JPEG."""
    out: Any = rgb.astype(np.float32)
    if rng.random() < 0.4:
        out = out * rng.uniform(0.6, 1.2, (1, 1, 3) if rng.random() < 0.3 else 1) + rng.normal(0, 12)
    if rng.random() < 0.25:
        out = cv2.GaussianBlur(out, (0, 0), rng.uniform(0.3, 1.2))
    if rng.random() < 0.3:
        out = out + rng.normal(0, rng.uniform(1, 12), out.shape)
    out = out.clip(0, 255).astype(np.uint8)
    if rng.random() < 0.3:
        _, data = cv2.imencode(".jpg", out, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(35, 95))])
        out = np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR))
    return out


def sample_point(mask: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    """Sample a point (x, y) on a mask (H, W), more often well inside."""
    inside = (mask > 0.5).astype(np.uint8)
    if rng.random() < 0.5:
        depth = cv2.distanceTransform(np.pad(inside, 1), cv2.DIST_L2, 3)[1:-1, 1:-1]
        inside = (depth >= 0.5 * depth.max()).astype(np.uint8)
    ys, xs = inside.nonzero()
    i = int(rng.integers(len(ys)))
    return float(xs[i]) + 0.5, float(ys[i]) + 0.5


def box_of(mask: np.ndarray, rng: np.random.Generator | None = None) -> list[float]:
    """Box (x0, y0, x1, y1) around a mask; with a generator each side has an error of up to a tenth, as of a user."""
    ys, xs = (mask > 0.5).nonzero()
    box = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1], np.float64)
    if rng is not None:
        extent = np.tile(box[2:] - box[:2], 2)
        box = (box + rng.normal(0, 0.04, 4).clip(-0.1, 0.1) * extent).clip(0, len(mask))
    return [float(v) for v in box]


def distort_mask(mask: np.ndarray, rng: np.random.Generator, side: int) -> np.ndarray:
    """Distort a mask: dilate or erode, shift and coarsen it; logits (side, side)."""
    size = len(mask)
    width = max(1, round(rng.uniform(0, 0.05) * size))
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (width, width))
    worn = (cv2.dilate if rng.random() < 0.5 else cv2.erode)(mask, kernel)
    worn = np.roll(worn, tuple(int(v) for v in rng.integers(-size // 40, size // 40 + 1, 2)), (0, 1))
    worn = cv2.GaussianBlur(worn, (0, 0), rng.uniform(0.5, 3))
    return (cv2.resize(worn, (side, side), interpolation=cv2.INTER_AREA) * 2 - 1) * rng.uniform(3, 12)


def sample_batch(rng: np.random.Generator, count: int, size: int) -> dict[str, Tensor]:
    """Images with hints: rgb (B, 3, S, S); points (B, K, n, 2), signs (B, K, n) and their target masks (B, K, S, S); boxes (B, K, 4),
    rough masks (B, K, 1, S/2, S/2) and their target masks.
    """
    n = int(rng.choice([1, 1, 1, 2, 3]))
    arrays: dict[str, list] = {k: [] for k in ("rgb", "points", "signs", "pointed", "boxes", "rough", "boxed")}
    for _ in range(count):
        rgb, cover = sample_picture(rng, size)
        rows = [_sample_points(cover, n, rng) for _ in range(HINTS)]
        targets = [cover[int(rng.integers(len(cover)))] for _ in range(HINTS)]
        arrays["rgb"].append(rgb.transpose(2, 0, 1))
        for name, column in zip(("points", "signs", "pointed"), zip(*rows, strict=True), strict=True):
            arrays[name].append(np.stack(column))
        arrays["boxes"].append(np.array([box_of(m, rng) for m in targets]))
        arrays["rough"].append(np.stack([distort_mask(m, rng, size // 2)[None] for m in targets]))
        arrays["boxed"].append(np.stack(targets))
    return {name: torch.from_numpy(np.stack(values)).float() for name, values in arrays.items()}


def _sample_points(cover: np.ndarray, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sample n points, the first on the target, the others on it or, as negative points, next to it; and the mask."""
    behind = 1 - cover.max(0)
    target = cover[int(rng.integers(len(cover)))]
    if rng.random() < BACKGROUND and (behind > 0.5).sum() > 200:
        target = behind
    points, signs = [sample_point(target, rng)], [1]
    for _ in range(n - 1):
        border = cv2.dilate((target > 0.5).astype(np.uint8), np.ones((17, 17), np.uint8)) - (target > 0.1)
        negative = rng.random() < 0.5 and (border > 0).sum() > 30
        points.append(sample_point(border.astype(np.float32) if negative else target, rng))
        signs.append(0 if negative else 1)
    return np.array(points), np.array(signs), target


def train(work: Path, preset: Preset, device: str = "cpu") -> Any:
    """Train the small model from scratch."""
    dims = sam_models.Dims()
    torch.manual_seed(preset.seed)
    network = sam_models.build_sam(dims)
    plan = Plan(preset.segmenter_steps, preset.segmenter_lr, seed=preset.seed + 70)

    def losses(step: int, g: torch.Generator) -> dict[str, Tensor]:
        rng = np.random.default_rng((preset.seed, step))
        inputs = {k: v.to(device) for k, v in sample_batch(rng, preset.segmenter_batch, dims.side).items()}
        way = rng.random()
        with torch.autocast(device, torch.bfloat16):
            features = network.image_encoder((inputs["rgb"] - network.pixel_mean) / network.pixel_std)
            pointed = decode_masks(network, features, points=(inputs["points"], inputs["signs"]))
            if way < 0.25:
                boxed = decode_masks(network, features, masks=inputs["rough"])
            elif way < 0.4:
                boxed = decode_masks(
                    network,
                    features,
                    boxes=inputs["boxes"],
                    points=(inputs["points"], inputs["signs"]),
                    meant=inputs["boxed"],
                    also=inputs["pointed"],
                )
            else:
                boxed = decode_masks(network, features, boxes=inputs["boxes"])
        several = inputs["points"].shape[2] == 1
        return _terms("point", *pointed, inputs["pointed"], several) | _terms("box", *boxed, inputs["boxed"], False)

    return fit("segmenter", network, losses, plan, work, device=device)


def decode_masks(
    network: Any, features: Tensor, *, points=None, boxes=None, masks=None, meant=None, also=None
) -> tuple[Tensor, Tensor]:
    """Logits (B, K, 4, S/2, S/2) and predicted IoU (B, K, 4) of K hints for each of B images.

    Points with boxes count only if both mean the same object; else they are marked as no points.
    """
    rows = next(v.shape[:2] for v in (boxes, masks, points[0] if points else None) if v is not None)
    flat = lambda v: None if v is None else v.flatten(0, 1)  # noqa: E731
    if points is not None:
        coords, signs = points
        if meant is not None:
            same = (meant - also).abs().mean((2, 3)) < 1e-3
            signs = torch.where(same[..., None], signs, torch.full_like(signs, -1))
        points = (flat(coords), flat(signs))
    sparse, dense = network.prompt_encoder(points=points, boxes=flat(boxes), masks=flat(masks))
    # The decoder expects one image for all hints and adds the dense prompt; here each row's image is part of its dense prompt.
    each = features.repeat_interleave(rows[1], dim=0)
    masks, quality = network.mask_decoder.predict_masks(
        torch.zeros_like(features[:1]), network.prompt_encoder.get_dense_pe(), sparse, dense + each
    )
    return masks.unflatten(0, rows), quality.unflatten(0, rows)


def _terms(name: str, logits: Tensor, quality: Tensor, target: Tensor, several: bool) -> dict[str, Tensor]:
    """Cross-entropy, dice and quality losses: of the single mask, and of the best of three if a point is ambiguous.

    The target is coverage averaged to the decoder's resolution, so that the zero crossing of the logits is the outline.
    """
    answers = logits.float() if several else logits[:, :, :1].float()
    aim = F.adaptive_avg_pool2d(target, (answers.shape[-2], answers.shape[-1]))[:, :, None].expand_as(answers)
    wrong = F.binary_cross_entropy_with_logits(answers, aim, reduction="none").mean((-2, -1))
    probabilities = answers.sigmoid()
    dice = 1 - (2 * (probabilities * aim).sum((-2, -1)) + 1) / (probabilities.sum((-2, -1)) + aim.sum((-2, -1)) + 1)
    with torch.no_grad():
        hit, true = answers > 0, aim > 0.5
        iou = (hit & true).sum((-2, -1)) / (hit | true).sum((-2, -1)).clamp_min(1)
    each = 4 * wrong + dice
    loss = each[..., 0].mean() + (each[..., 1:].min(-1).values.mean() if several else 0.0)
    return {name: loss, f"{name}-quality": (quality[:, :, : iou.shape[-1]].float() - iou).square().mean()}


def publish(network: Any, folder: Path, preset: Preset, commit: str) -> None:
    """Write half-precision weights and the sizes for `segmentation.sam`."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        k: v.half().contiguous() for k, v in network.state_dict().items() if k not in ("pixel_mean", "pixel_std")
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)
    record = {
        "name": "toybox-sam",
        "dims": sam_models.Dims().to_json(),
        "steps": preset.segmenter_steps,
        "seed": preset.seed,
        "commit": commit,
    }
    (folder / "config.json").write_text(json.dumps(record, indent=1) + "\n")


@torch.no_grad()
def evaluate(network: Any, preset: Preset, count: int = 100) -> dict[str, float]:
    """Mean IoU of one point and of a box on new toybox scenes and shapes."""
    ious: dict[str, list[float]] = {}
    size = sam_models.Dims().side
    for i in range(count):
        rng = np.random.default_rng((preset.seed + 1, i))
        kind = "scene" if i % 2 else "shapes"
        rgb, masks = sample_scene(rng, size) if i % 2 else random_shapes.sample_picture(rng, size)
        masks = [m.astype(np.float32) / 255 for m in masks if (m > 127).sum() >= 30]
        features = network.image_encoder(
            (torch.from_numpy(rgb.transpose(2, 0, 1).copy()).float()[None] - network.pixel_mean) / network.pixel_std
        )
        for mask in masks:
            point = torch.tensor([[[list(sample_point(mask, rng))]]]), torch.ones(1, 1, 1)
            box = torch.tensor([[box_of(mask)]])
            for hint, out in (
                ("point", decode_masks(network, features, points=point)),
                ("box", decode_masks(network, features, boxes=box)),
            ):
                best = int(out[1][0, 0, 1:].argmax()) + 1 if hint == "point" else 0
                predicted = (
                    F.interpolate(out[0][:, 0, best : best + 1], (size, size), mode="bilinear")[0, 0].numpy() > 0
                )
                true = mask > 0.5
                ious.setdefault(f"{kind} {hint}", []).append(
                    float((predicted & true).sum() / max(1, (predicted | true).sum()))
                )
    return {name: float(np.mean(values)) for name, values in sorted(ious.items())}
