"""Read images: their objects with box, identity vector and attributes, and their background."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from objtune_cli.toybox.evaluator.network import ATTRIBUTES, FRAME, GRID, Evaluator, cut
from objtune_cli.toybox.world import ACCESSORIES, CLASSES, COLOURS, DIALS, PATTERNS, Dial

WEIGHTS = Path(__file__).parent / "weights.safetensors"
MIN_SCORE = 0.3
"""Least centre score of a detection."""
WORDS: dict[str, tuple[str, ...]] = {
    "class": CLASSES, "colour": tuple(COLOURS), "second": tuple(COLOURS), "pattern": PATTERNS, "accessory": ACCESSORIES, "third": tuple(COLOURS),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Detection:
    """One detected object.

    Attributes:
        score: Score of its centre, in [0, 1].
        box: x0, y0, x1, y1, fractions of the image.
        vector: Identity vector of unit length, (64,).
        probs: Attribute to probabilities, in the order of `world`.
    """

    score: float
    box: tuple[float, float, float, float]
    vector: Tensor
    probs: dict[str, Tensor]

    def label(self, attribute: str) -> str:
        """The most probable value of an attribute."""
        return WORDS[attribute][int(self.probs[attribute].argmax())]


@dataclass(frozen=True, slots=True)
class SceneReading:
    """The reading of one image: its detections by falling score, and the probability of each background."""

    detections: list[Detection]
    background: Tensor

    @property
    def main(self) -> Detection:
        """The most confident detection; there is always one."""
        return self.detections[0]


def read_header(weights: Path = WEIGHTS) -> dict[str, Any]:
    """Dial, seed, steps and commit of the evaluator's recipe."""
    from safetensors import safe_open

    with safe_open(weights, framework="np") as file:
        header: dict[str, Any] = json.loads(file.metadata()["objtune"])
        return header


def covers(dial: Dial, weights: Path = WEIGHTS) -> bool:
    """Whether the evaluator was trained on the whole world of a dial."""
    own = DIALS[read_header(weights)["dial"]]
    words = ("classes", "backgrounds", "colours", "patterns", "accessories")
    has_marks = own.marks[1] >= dial.marks[1]
    return has_marks and own.flips >= dial.flips and all(set(getattr(dial, w)) <= set(getattr(own, w)) for w in words)


def load(weights: Path = WEIGHTS) -> Evaluator:
    """Load the evaluator of the package."""
    from safetensors.torch import load_file

    network = Evaluator()
    network.load_state_dict({k: v.float() for k, v in load_file(weights).items()})
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's overloads
    return network.eval().requires_grad_(False)


@torch.no_grad()
def read_images(network: Evaluator, pictures: np.ndarray, most: int = 2, batch: int = 64) -> list[SceneReading]:
    """Read images (N, H, W, 3) uint8; up to `most` objects each."""
    done: list[SceneReading] = []
    for start in range(0, len(pictures), batch):
        x = torch.from_numpy(np.array(pictures[start : start + batch])).permute(0, 3, 1, 2).float() / 127.5 - 1
        heatmap, ground = network.finder(F.interpolate(x, size=(FRAME, FRAME), mode="area"))
        scores, boxes = find_peaks(heatmap, most)
        vectors, heads = network.reader(cut(x.repeat_interleave(most, 0), boxes.flatten(0, 1)))
        probs = {name: heads[name].softmax(-1).unflatten(0, (-1, most)) for name in ATTRIBUTES}
        vectors = vectors.unflatten(0, (-1, most))
        for i in range(len(x)):
            peaks = [k for k in range(most) if k == 0 or float(scores[i, k]) >= MIN_SCORE]
            things = [
                Detection(
                    float(scores[i, k]), _corners(boxes[i, k]), vectors[i, k], {n: p[i, k] for n, p in probs.items()}
                )
                for k in peaks
            ]
            done.append(SceneReading(things, ground[i].softmax(-1)))
    return done


@torch.no_grad()
def extract_features(network: Evaluator, pictures: np.ndarray, batch: int = 64) -> np.ndarray:
    """Features of images (N, H, W, 3) uint8 for distances of distributions, (N, 288): of the whole image, then of its main object."""
    done = []
    for start in range(0, len(pictures), batch):
        x = torch.from_numpy(np.array(pictures[start : start + batch])).permute(0, 3, 1, 2).float() / 127.5 - 1
        small = F.interpolate(x, size=(FRAME, FRAME), mode="area")
        coarse = network.finder.features(small)[1].mean((2, 3))
        boxes = find_peaks(network.finder(small)[0], 1)[1]
        crop = network.reader.body(cut(x, boxes[:, 0])).mean((2, 3))
        done.append(torch.cat([coarse, crop], 1))
    features: np.ndarray = torch.cat(done).numpy()
    return features


def find_peaks(heatmap: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """The most confident local maxima of the map: scores (B, K) and boxes (B, K, 4) as fractions of the frame."""
    heat = heatmap[:, 0].sigmoid()
    lone = torch.where(F.max_pool2d(heat[:, None], 3, 1, 1)[:, 0] == heat, heat, heat.new_zeros(()))
    scores, cells = lone.flatten(1).topk(most, dim=1)
    values = heatmap[:, 1:].flatten(2).gather(2, cells[:, None].expand(-1, 4, -1))
    x = (cells % GRID + 0.5 + values[:, 0]) / GRID
    y = (cells // GRID + 0.5 + values[:, 1]) / GRID
    w, h = values[:, 2].clamp(-4, 0).exp(), values[:, 3].clamp(-4, 0).exp()
    return scores, torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], -1)


def _corners(box: Tensor) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = box.tolist()
    return x0, y0, x1, y1


def overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """Intersection over union of two boxes."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    both = width * height
    areas = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return both / max(areas - both, 1e-9)
