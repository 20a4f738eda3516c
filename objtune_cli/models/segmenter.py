"""Hints to masks: GrabCut, or segment-anything where a checkpoint is given, behind one call."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np

from objtune_cli.errors import InputError


@dataclass(frozen=True, slots=True)
class Hints:
    """What the user said, in pixels of the given picture.

    Attributes:
        box_xyxy: Around the object. points: (x, y) on it.
    """

    box_xyxy: tuple[float, float, float, float] | None = None
    points: tuple[tuple[float, float], ...] = ()


class Segmenter(Protocol):
    """Finds one object."""

    name: str

    def __call__(self, rgb: np.ndarray, hints: Hints) -> np.ndarray:
        """(H, W, 3) uint8 and hints to a boolean mask (H, W)."""
        ...


class GrabCut:
    """OpenCV's GrabCut seeded from a box, from points, or from the middle of the picture."""

    name = "grabcut"
    rounds = 6
    side = 512
    """Pictures are segmented at most this large; the outline is scaled back."""

    def __call__(self, rgb: np.ndarray, hints: Hints) -> np.ndarray:
        height, width = rgb.shape[:2]
        scale = min(1.0, self.side / max(height, width))
        small = cv2.resize(rgb, (round(width * scale), round(height * scale)), interpolation=cv2.INTER_AREA)
        labels = self._seed(small.shape[:2], hints, scale)
        models = np.zeros((1, 65)), np.zeros((1, 65))
        cv2.setRNGSeed(0)
        try:
            cv2.grabCut(small[:, :, ::-1].copy(), labels, None, *models, self.rounds, cv2.GC_INIT_WITH_MASK)
        except cv2.error:
            return np.zeros((height, width), bool)
        found = _largest(np.isin(labels, (cv2.GC_FGD, cv2.GC_PR_FGD)), hints, scale)
        soft = cv2.resize(found.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
        return soft > 0.5

    def _seed(self, shape: tuple[int, int], hints: Hints, scale: float) -> np.ndarray:
        height, width = shape
        labels = np.full(shape, cv2.GC_BGD, np.uint8)
        if hints.box_xyxy:
            x0, y0, x1, y1 = (round(v * scale) for v in hints.box_xyxy)
        else:
            x0, y0, x1, y1 = (round(f * side) for f, side in zip((0.06, 0.06, 0.94, 0.94), (width, height) * 2, strict=True))
        labels[max(y0, 0) : y1, max(x0, 0) : x1] = cv2.GC_PR_FGD
        radius = max(2, round(0.03 * max(shape)))
        for x, y in hints.points:
            cv2.circle(labels, (round(x * scale), round(y * scale)), radius, cv2.GC_FGD, -1)
        if not hints.points and not hints.box_xyxy:
            cv2.ellipse(labels, (width // 2, round(0.53 * height)), (width // 8, height // 8), 0, 0, 360, cv2.GC_FGD, -1)
        return labels


def _largest(mask: np.ndarray, hints: Hints, scale: float) -> np.ndarray:
    """The piece under the points, or the largest one, with its holes below 0.5 % of it filled."""
    count, pieces, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    if count < 2:
        return mask
    keep = {1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))}
    under = {int(pieces[min(round(y * scale), mask.shape[0] - 1), min(round(x * scale), mask.shape[1] - 1)]) for x, y in hints.points}
    keep = (under - {0}) or keep
    main = np.isin(pieces, list(keep))
    count, holes, stats, _ = cv2.connectedComponentsWithStats((~main).astype(np.uint8))
    small = [i for i in range(1, count) if stats[i, cv2.CC_STAT_AREA] < 0.005 * main.sum()]
    return main | np.isin(holes, small)


class Sam:
    """segment-anything from an official checkpoint, read without running any of its code."""

    def __init__(self, checkpoint: Path) -> None:
        import torch
        from segment_anything import SamPredictor, sam_model_registry

        state = _read_checkpoint(checkpoint)
        width = state.get("image_encoder.patch_embed.proj.weight", torch.empty(0)).shape[:1]
        kind = {768: "vit_b", 1024: "vit_l", 1280: "vit_h"}.get(width[0] if width else 0)
        if kind is None:
            raise InputError(f"{checkpoint} is no segment-anything checkpoint", "give sam_vit_b, sam_vit_l or sam_vit_h")
        model = sam_model_registry[kind](checkpoint=None)
        try:
            model.load_state_dict(state)
        except RuntimeError:
            raise InputError(f"{checkpoint} does not fit segment-anything's {kind}", "download it again") from None
        self.name = f"sam-{kind}"
        self.predictor = SamPredictor(model.eval())

    def __call__(self, rgb: np.ndarray, hints: Hints) -> np.ndarray:
        height, width = rgb.shape[:2]
        self.predictor.set_image(rgb)
        points = np.array(hints.points or ([] if hints.box_xyxy else [(width / 2, height / 2)]), float).reshape(-1, 2)
        masks, scores, _ = self.predictor.predict(
            point_coords=points if len(points) else None,
            point_labels=np.ones(len(points), int) if len(points) else None,
            box=np.array(hints.box_xyxy) if hints.box_xyxy else None,
            multimask_output=hints.box_xyxy is None,
        )
        return masks[int(np.argmax(scores))].astype(bool)


def _read_checkpoint(path: Path) -> dict:
    import torch

    if not path.is_file():
        raise InputError(f"there is no file {path}", "give a segment-anything checkpoint, or none for GrabCut")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # every broken or hostile file ends here, none of its code has run
        raise InputError(
            f"{path} is no readable checkpoint: {type(error).__name__}", "official checkpoints and safetensors copies are read"
        ) from None
