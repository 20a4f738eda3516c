"""Masks by a model of segment-anything's own classes."""

from typing import Any

import cv2
import numpy as np
import torch

from objtune_cli.runtime import cpu, torchvision_compat
from objtune_cli.segmentation.promptable import (
    GRID_POINTS,
    HINTS_PER_BATCH,
    MASK_LOGIT,
    MAX_BOX_IOU,
    MIN_QUALITY,
    MIN_STABILITY,
    EmbeddedImage,
    PromptableSegmenter,
)
from objtune_cli.segmentation.types import Hints, Proposal

torchvision_compat.complete()  # segment-anything imports torchvision
from segment_anything import SamAutomaticMaskGenerator, SamPredictor  # noqa: E402


class SegmentAnything(PromptableSegmenter):
    """Segmenter with any model of segment-anything's classes."""

    def __init__(self, model: Any, name: str, device: str = "cpu") -> None:
        self.name = name
        self.model = model.to(device)
        if device == "cpu":
            cpu.set_threads_for(sum(p.numel() for p in model.parameters()))

    def embed(self, rgb: np.ndarray) -> "SamImage":
        """Embed an image (H, W, 3) uint8."""
        return SamImage(self.model, rgb)


class SamImage(EmbeddedImage):
    """One image in segment-anything's predictor."""

    def __init__(self, model: Any, rgb: np.ndarray) -> None:
        self.rgb = rgb
        self.predictor = SamPredictor(model)
        self.predictor.set_image(rgb)

    def predict_masks(self, hints: Hints) -> list[Proposal]:
        """Predict masks for combined hints: three for a single point, which is ambiguous, else one."""
        points = np.array([*hints.points, *hints.negative_points], float).reshape(-1, 2)
        labels = np.array([1] * len(hints.points) + [0] * len(hints.negative_points))
        masks, scores, _ = self.predictor.predict(
            point_coords=points if len(points) else None,
            point_labels=labels if len(points) else None,
            box=np.array(hints.box_xyxy) if hints.box_xyxy else None,
            mask_input=None if hints.rough_mask is None else self._mask_logits(hints.rough_mask)[None],
            multimask_output=hints.is_single_point and len(points) == 1,
        )
        return [Proposal(m.astype(bool), float(q)) for m, q in zip(masks, scores, strict=True)]

    def predict_boxes(self, boxes: np.ndarray) -> list[Proposal]:
        """Predict the object in each box (N, 4), px."""
        resized = torch.as_tensor(
            self.predictor.transform.apply_boxes(boxes, self.rgb.shape[:2]),
            dtype=torch.float32,
            device=self.predictor.device,
        )
        proposals: list[Proposal] = []
        for batch in torch.split(resized, HINTS_PER_BATCH):
            masks, quality, _ = self.predictor.predict_torch(None, None, boxes=batch, multimask_output=False)
            proposals += [Proposal(m, float(q)) for m, q in zip(masks[:, 0].cpu().numpy(), quality[:, 0], strict=True)]
        return proposals

    def propose_from_grid(self) -> list[Proposal]:
        """Automatic masks of segment-anything at a grid of points; the generator embeds the image again."""
        generator = SamAutomaticMaskGenerator(
            self.predictor.model, points_per_side=GRID_POINTS, points_per_batch=HINTS_PER_BATCH, pred_iou_thresh=MIN_QUALITY, stability_score_thresh=MIN_STABILITY, box_nms_thresh=MAX_BOX_IOU,
        )  # fmt: skip
        return [Proposal(m["segmentation"], float(m["predicted_iou"])) for m in generator.generate(self.rgb)]

    def _mask_logits(self, rough: np.ndarray) -> np.ndarray:
        """Convert a rough mask to decoder input: logits, padded to a square, four cells per patch along each side."""
        side = self.predictor.model.image_encoder.img_size
        height, width = rough.shape
        scale = side / max(height, width)
        small = cv2.resize(
            rough.astype(np.float32), (round(width * scale), round(height * scale)), interpolation=cv2.INTER_AREA
        )
        square = np.zeros((side, side), np.float32)
        square[: small.shape[0], : small.shape[1]] = small
        cells = 4 * self.predictor.model.prompt_encoder.image_embedding_size[0]
        return (cv2.resize(square, (cells, cells), interpolation=cv2.INTER_AREA) * 2 - 1) * MASK_LOGIT
