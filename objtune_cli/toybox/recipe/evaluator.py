"""Train the evaluator on renderings of every object in several scenes, to distinguish it from other instances of its class."""

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from objtune_cli.toybox import captions, renderer, world
from objtune_cli.toybox.evaluator import inference
from objtune_cli.toybox.evaluator.network import ATTRIBUTES, CROP, FRAME, GRID, Evaluator, cut
from objtune_cli.toybox.recipe.dataset import LABELS, map_shards
from objtune_cli.toybox.recipe.presets import Preset
from objtune_cli.toybox.recipe.train_loop import Plan, fit
from objtune_cli.toybox.recipe.vae import to_tensor

VIEWS, SHARD = 4, 200
"""Scenes of each object, objects per shard."""
NAMESAKES = 4
"""Objects in a row that the same words describe, in a world with marks."""
ROWS = 96
"""Images per step: two views of each instance; half of the instances are of one class, half of another."""
TEMPERATURE = 0.1


@dataclass(frozen=True, slots=True)
class EvaluatorData:
    """Scenes for the evaluator: images (N, S, S, 3), up to two boxes (N, 2, 4), labels (N, 2, 7)."""

    pictures: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray


def box_of(mask: np.ndarray) -> tuple[float, float, float, float]:
    """x0, y0, x1, y1 of a mask's covered pixels, fractions of the frame."""
    ys, xs = (mask > 127).nonzero()
    side = mask.shape[0]
    return xs.min() / side, ys.min() / side, (xs.max() + 1) / side, (ys.max() + 1) / side


def draw_shard(preset: Preset, index: int) -> EvaluatorData:
    """`SHARD` training instances of one class after the other, each in `VIEWS` scenes, a third with a second object.

    With marks, each `NAMESAKES` instances have the same words.
    """
    cv2.setNumThreads(1)
    rng = np.random.default_rng((preset.seed, 77, index))
    count, dial = SHARD * VIEWS, preset.world
    pictures = np.empty((count, preset.size, preset.size, 3), np.uint8)
    boxes = np.zeros((count, 2, 4), np.float32)
    labels = np.full((count, 2, len(LABELS)), -1, np.int8)
    instances = _instances(rng, dial)
    for i in range(count):
        if i % VIEWS == 0:
            instance = next(instances)
        others = (world.sample_instance(rng, dial),) if rng.random() < 0.33 else ()
        together = (instance, *others) if rng.random() < 0.5 else (*others, instance)
        scene = world.sample_scene(rng, dial, instances=together)
        pictures[i], masks = renderer.render(scene, preset.size)
        for slot, mask in enumerate(masks):
            at = 0 if together[slot] is instance else 1
            boxes[i, at] = box_of(mask)
            labels[i, at] = captions.label(together[slot], scene.background)
    return EvaluatorData(pictures, boxes, labels)


def _instances(rng: np.random.Generator, dial: world.Dial) -> Iterator[world.Instance]:
    """Endless instances, every class in turn."""
    for kind in itertools.cycle(dial.classes):
        instance = world.sample_instance(rng, dial, kind=kind)
        yield instance
        for _ in range(instances_per_description(dial) - 1):
            yield world.sample_namesake(rng, instance, dial)


def instances_per_description(dial: world.Dial) -> int:
    """Number of training instances in a row with the same words."""
    return NAMESAKES if dial.marks[1] else 1


def load_or_render(work: Path, preset: Preset, processes: int = 2) -> EvaluatorData:
    """The evaluator's scenes, rendered on first use; row `VIEWS` i + k is view k of instance i."""
    file = work / "data" / "evaluator.npz"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        parts = map_shards(draw_shard, preset, preset.evaluator_instances // SHARD, processes)
        partial = file.with_name("evaluator.partial.npz")
        pictures, boxes, labels = (
            np.concatenate([getattr(p, name) for p in parts]) for name in ("pictures", "boxes", "labels")
        )
        np.savez(partial, pictures=pictures, boxes=boxes, labels=labels)
        partial.replace(file)
    arrays = np.load(file)
    return EvaluatorData(arrays["pictures"], arrays["boxes"], arrays["labels"])


def train(work: Path, preset: Preset, device: str = "cpu", processes: int = 2) -> Evaluator:
    """Train finder and reader together, resuming from the state in the work folder.

    A preset with a start begins from the evaluator of the package.
    """
    data = load_or_render(work, preset, processes)
    torch.manual_seed(preset.seed)
    network: Any = inference.load().train().requires_grad_(True) if preset.start else Evaluator()
    network.to(memory_format=torch.channels_last)
    by_class = _by_class(data.labels)

    def losses(step: int, g: torch.Generator) -> dict[str, Tensor]:
        rows = _rows(by_class, g, instances_per_description(preset.world))
        x = to_tensor(data.pictures[rows])
        boxes, labels = torch.from_numpy(data.boxes[rows]), torch.from_numpy(data.labels[rows]).long()
        spoiled = degrade(x, g)
        return (_finder_losses(network, spoiled, boxes, labels, device) if step % 3 == 0 else {}) | _reader_losses(
            network, spoiled, boxes, labels, g, device
        )

    plan = Plan(preset.evaluator_steps, preset.evaluator_lr, decay=0.4, ema=0.998, seed=preset.seed)
    fit("evaluator", network, losses, plan, work, device=device)
    return network


def _by_class(labels: np.ndarray) -> list[np.ndarray]:
    """Instance numbers of each class."""
    kinds = labels[::VIEWS, 0, 0]
    return [np.flatnonzero(kinds == k) for k in np.unique(kinds)]


def _rows(by_class: list[np.ndarray], g: torch.Generator, twins: int = 1) -> np.ndarray:
    """Row numbers of a batch: two views of each of some instances of two classes, so that similar instances are in one step.

    Each `twins` instances in a row, which have the same words, come together.
    """
    rows = []
    for k in torch.randperm(len(by_class), generator=g)[:2].tolist():
        groups = by_class[k].reshape(-1, twins)
        picked = groups[torch.randint(len(groups), (ROWS // 4 // twins,), generator=g).numpy()].flatten()
        for instance in np.unique(picked):
            a, b = torch.randperm(VIEWS, generator=g)[:2].tolist()
            rows += [instance * VIEWS + a, instance * VIEWS + b]
    return np.array(rows)


def degrade(x: Tensor, g: torch.Generator) -> Tensor:
    """Degrade images by blur, noise, tint and smooth distortion, because sampled images are softer than rendered ones."""
    rows, size = len(x), x.shape[-1]
    small = F.interpolate(F.avg_pool2d(x, 2), size=(size, size), mode="bilinear", align_corners=False)
    share = torch.rand((rows, 1, 1, 1), generator=g) * (torch.rand((rows, 1, 1, 1), generator=g) < 0.7)
    x = torch.lerp(x, small, share)
    bend = F.interpolate(
        torch.randn((rows, 2, 5, 5), generator=g), size=(size, size), mode="bicubic", align_corners=True
    )
    strength = 0.02 * torch.rand((rows, 1, 1, 1), generator=g) * (torch.rand((rows, 1, 1, 1), generator=g) < 0.5)
    grid = F.affine_grid(torch.eye(2, 3).repeat(rows, 1, 1), list(x.shape), align_corners=False)
    x = F.grid_sample(x, grid + (bend * strength).permute(0, 2, 3, 1), padding_mode="border", align_corners=False)
    tint = 0.03 * torch.randn((rows, 3, 1, 1), generator=g)
    grain = 0.05 * torch.rand((rows, 1, 1, 1), generator=g) * torch.randn(x.shape, generator=g)
    return x + tint + grain


def _finder_losses(network: Evaluator, x: Tensor, boxes: Tensor, labels: Tensor, device: str) -> dict[str, Tensor]:
    """Losses of the finder: focal loss of centres, L1 of boxes at the centres, cross-entropy of the background."""
    heatmap, ground = network.finder(F.interpolate(x, size=(FRAME, FRAME), mode="area").to(device))
    row, slot = (labels[:, :, 0] >= 0).nonzero().T
    own = boxes[row, slot]
    centre, size = (own[:, :2] + own[:, 2:]) / 2 * GRID, own[:, 2:] - own[:, :2]
    cell = centre.floor().clamp(0, GRID - 1).long()
    middle = torch.arange(GRID) + 0.5
    near = -(
        (middle[None, None] - centre[:, 0, None, None]) ** 2 + (middle[None, :, None] - centre[:, 1, None, None]) ** 2
    )
    heat = torch.zeros(len(x), GRID, GRID)
    bumps = (near / 2).exp()
    for i, r in enumerate(row.tolist()):
        heat[r] = torch.maximum(heat[r], bumps[i])
    heat[row, cell[:, 1], cell[:, 0]] = 1.0
    heat = heat.to(device)
    at = heatmap[row.to(device), 1:, cell[:, 1].to(device), cell[:, 0].to(device)]
    aim = torch.cat([centre - cell - 0.5, size.log()], 1).to(device)
    return {
        "centre": focal_loss(heatmap[:, 0], heat) / len(row),
        "box": (at - aim).abs().mean(),
        "background": 0.3 * F.cross_entropy(ground, labels[:, 0, 1].to(device)),
    }


def focal_loss(logits: Tensor, heat: Tensor) -> Tensor:
    """Penalty-reduced focal loss over a map of centres (CornerNet, arXiv:1808.01244, eq. 1), summed."""
    p = logits.sigmoid().clamp(1e-4, 1 - 1e-4)
    peak = heat == 1
    hit = -((1 - p) ** 2) * p.log()
    miss = -((1 - heat) ** 4) * p**2 * (1 - p).log()
    return torch.where(peak, hit, miss).sum()


def _reader_losses(
    network: Evaluator, x: Tensor, boxes: Tensor, labels: Tensor, g: torch.Generator, device: str
) -> dict[str, Tensor]:
    """Losses of the reader: contrastive loss of identity vectors within a class, cross-entropy of attributes."""
    own = boxes[:, 0]
    size = (own[:, 2:] - own[:, :2]).repeat(1, 2)
    own = own + 0.04 * size * torch.randn(own.shape, generator=g)
    vector, heads = network.reader(cut(x, own, CROP).to(device))
    logits = vector @ vector.T / TEMPERATURE
    logits = logits - 1e4 * torch.eye(len(x), device=logits.device)
    pair = torch.arange(len(x), device=logits.device) ^ 1
    wrong = [
        F.cross_entropy(heads[k], labels[:, 0, LABELS.index(k)].to(device), ignore_index=-1)
        for k in ATTRIBUTES
        if k != "third"
    ]
    worn = labels[:, 0, LABELS.index("third")]
    third = F.cross_entropy(heads["third"], worn.to(device), ignore_index=-1) if (worn >= 0).any() else logits.sum() * 0
    return {"identity": F.cross_entropy(logits, pair), "heads": 0.3 * (torch.stack(wrong).sum() + third)}


def evaluate(network: Evaluator, preset: Preset, seed: int = 5) -> dict[str, float]:
    """Accuracy of the evaluator on held-out objects: 600 scenes, and retrieval among 100 objects of a class."""
    rng = np.random.default_rng(seed)
    scenes = [
        world.sample_scene(rng, preset.world, instances=(world.sample_instance(rng, preset.world, held_out=True),))
        for _ in range(600)
    ]
    renders = [renderer.render(s, preset.size) for s in scenes]
    readings = inference.read_images(network, np.stack([picture for picture, _ in renders]), most=1)
    figures: dict[str, float] = {}
    for name in ATTRIBUTES:
        patterns = [
            (r.main.label(name), getattr(s.objects[0][0], _FIELD.get(name, name)))
            for r, s in zip(readings, scenes, strict=True)
        ]
        answers = [
            a == b
            for (a, b), s in zip(patterns, scenes, strict=True)
            if name != "third" or s.objects[0][0].accessory != "none"
        ]
        figures[name] = float(np.mean(answers))
    figures["background"] = float(
        np.mean(
            [
                world.BACKGROUNDS[int(r.background.argmax())] == s.background
                for r, s in zip(readings, scenes, strict=True)
            ]
        )
    )
    boxes = [inference.overlap(r.main.box, box_of(masks[0])) for r, (_, masks) in zip(readings, renders, strict=True)]
    figures |= {"box_iou": float(np.mean(boxes)), "found": float(np.mean([b > 0.5 for b in boxes]))}
    pairs = [
        world.sample_scene(
            rng, preset.world, instances=tuple(world.sample_instance(rng, preset.world, held_out=True) for _ in "ab")
        )
        for _ in range(200)
    ]
    twos = [renderer.render(s, preset.size) for s in pairs]
    both = inference.read_images(network, np.stack([picture for picture, _ in twos]))
    figures["found_both"] = float(np.mean([
        len(r.detections) == 2 and all(max(inference.overlap(t.box, box_of(m)) for t in r.detections) > 0.5 for m in masks)
        for r, (_, masks) in zip(both, twos, strict=True)
    ]))  # fmt: skip
    for kind in preset.world.classes:
        figures[f"retrieval_{kind}"] = retrieval(network, preset, kind, rng)
    figures["retrieval"] = float(np.mean([v for k, v in figures.items() if k.startswith("retrieval_")]))
    figures["retrieval_same_words"] = float(
        np.mean([
            retrieval(network, preset, kind, rng, same_words=True) for kind in preset.world.classes for _ in range(2)
        ])
    )  # fmt: skip
    return figures


_FIELD = {"class": "kind"}


def retrieval(
    network: Evaluator,
    preset: Preset,
    kind: str,
    rng: np.random.Generator,
    among: int = 100,
    *,
    same_words: bool = False,
) -> float:
    """Fraction of `among` held-out objects of a class whose second rendering is nearest to their first.

    With `same_words`, one description fits them all.
    """
    first = world.sample_instance(rng, preset.world, kind=kind, held_out=True)
    instances = [first] + [
        world.sample_namesake(rng, first, preset.world)
        if same_words
        else world.sample_instance(rng, preset.world, kind=kind, held_out=True)
        for _ in range(among - 1)
    ]
    sides = []
    for _ in range(2):
        pictures = [
            renderer.render(world.sample_scene(rng, preset.world, instances=(i,)), preset.size)[0] for i in instances
        ]
        sides.append(torch.stack([r.main.vector for r in inference.read_images(network, np.stack(pictures), most=1)]))
    nearest = (sides[0] @ sides[1].T).argmax(1)
    return float((nearest == torch.arange(among)).float().mean())


def publish(network: Evaluator, file: Path, preset: Preset, commit: str) -> None:
    """Write the weights in half precision, with the dial, seed and commit of the recipe in the header."""
    about = json.dumps(
        {"dial": preset.dial, "seed": preset.seed, "steps": preset.evaluator_steps, "commit": commit}, sort_keys=True
    )
    save_file({k: v.half().contiguous() for k, v in network.state_dict().items()}, file, metadata={"objtune": about})
    file.chmod(0o644)  # the library makes it readable for the owner only
