"""Masks by a model of segment-anything: from hints, and proposals without any. Knows no class words."""

from typing import Any

import cv2
import numpy as np
import torch

from objtune_cli.numerics.masks import iou
from objtune_cli.runtime import cpu, torchvision_compat
from objtune_cli.segmentation.types import Hints, Point, Proposal

torchvision_compat.complete()  # segment-anything imports torchvision
from segment_anything import SamAutomaticMaskGenerator, SamPredictor  # noqa: E402

GRID_POINTS = 8
"""Points along each side of the grid for proposals without hints."""
HINTS_PER_BATCH = 32
"""Hints per batch of the decoder."""
BOX_GRIDS = ((0.3, 6), (0.45, 5), (0.6, 4), (0.8, 3))
"""Boxes for proposals without hints: side as a fraction of the image's, and number along each side."""
POINT_BOX_SIDES = (0.2, 0.35, 0.5, 0.7)
"""Sides of the boxes around a single point, fractions of the image's longer side."""
DUPLICATE_IOU = 0.8
"""IoU from which two proposals count as one."""
ZOOM_BELOW = 0.6
"""An object whose longer side is below this fraction of the image's is predicted again from a crop."""
ZOOM_MARGIN = 0.25
"""Margin of the crop around the object's box, fraction of its longer side."""
MASK_LOGIT = 8.0
"""Logit of the inside of a rough mask."""


class SegmentAnything:
    """Segmenter with any model of segment-anything's classes; each image is embedded only once."""

    def __init__(self, model: Any, name: str, device: str = "cpu") -> None:
        self.name = name
        self.predictor = SamPredictor(model.to(device))
        if device == "cpu":
            cpu.set_threads_for(sum(p.numel() for p in model.parameters()))
        self.rgb = np.zeros((0, 0, 3), np.uint8)

    def set_image(self, rgb: np.ndarray) -> None:
        """Set the image (H, W, 3) uint8 for the following calls."""
        self.rgb = rgb
        self.predictor.set_image(rgb)

    def predict(self, hints: Hints) -> Proposal:
        """Predict the object that the hints mean; a small one is predicted again from a crop."""
        first = self._predict_best(self.predictor, hints)
        if hints.is_single_point:
            first = max([first, *self._predict_around_point(hints)], key=lambda p: p.quality)
        if not first.mask.any():
            return first
        return self._zoom_in(first, hints)

    def predict_all(self, hints: Hints) -> list[Proposal]:
        """Objects at a single point: the three decoder outputs, objects in boxes around it, and all proposals that contain it."""
        parts = [
            Proposal(m.astype(bool), float(q)) for m, q in zip(*self._predict_masks(self.predictor, hints), strict=True)
        ]
        return _suppress_duplicates(
            [*parts, *self._predict_around_point(hints), *self._filter_by_points(hints, self.propose_all())]
        )

    def _predict_around_point(self, hints: Hints) -> list[Proposal]:
        """Objects in boxes around a single point that contain it, because the point alone may also mean a part."""
        height, width = self.rgb.shape[:2]
        (x, y), side = hints.points[0], max(height, width)
        boxes = [
            (max(0.0, x + (dx - 0.5) * s * side), max(0.0, y + (dy - 0.5) * s * side), min(width, x + (dx + 0.5) * s * side), min(height, y + (dy + 0.5) * s * side))
            for s in POINT_BOX_SIDES for dx in (-0.25, 0, 0.25) for dy in (-0.25, 0, 0.25)
        ]  # fmt: skip
        return self._filter_by_points(hints, self._predict_boxes(np.array(boxes)))

    def _filter_by_points(self, hints: Hints, proposals: list[Proposal]) -> list[Proposal]:
        """Proposals that contain all points and no negative point."""
        return [
            proposal
            for proposal in proposals
            if all(_contains(proposal.mask, point) for point in hints.points)
            and not any(_contains(proposal.mask, point) for point in hints.negative_points)
        ]

    def propose_all(self) -> list[Proposal]:
        """Automatic masks of a grid of points, and objects in the boxes of `BOX_GRIDS`, without duplicates.

        The thresholds are looser than the generator's defaults, because a class word chooses among the proposals.
        Boxes find whole objects where points find their parts.
        """
        generator = SamAutomaticMaskGenerator(
            self.predictor.model, points_per_side=GRID_POINTS, points_per_batch=HINTS_PER_BATCH, pred_iou_thresh=0.6, stability_score_thresh=0.7, box_nms_thresh=0.8,
        )  # fmt: skip
        from_points = [Proposal(m["segmentation"], float(m["predicted_iou"])) for m in generator.generate(self.rgb)]
        return _suppress_duplicates(from_points + self._propose_from_boxes())

    def _propose_from_boxes(self) -> list[Proposal]:
        """Objects in boxes of several sizes over the whole image."""
        height, width = self.rgb.shape[:2]
        boxes = [
            (x * width, y * height, (x + size) * width, (y + size) * height)
            for size, count in BOX_GRIDS for x in np.linspace(0, 1 - size, count) for y in np.linspace(0, 1 - size, count)
        ]  # fmt: skip
        return self._predict_boxes(np.array(boxes))

    def _predict_boxes(self, boxes: np.ndarray) -> list[Proposal]:
        """Predict the object in each box (N, 4)."""
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

    def refine(self, proposal: Proposal) -> Proposal:
        """Predict the object again from its box, and from a crop if it is small; keep the old mask if they differ."""
        box = mask_box(proposal.mask)
        again = self._predict_best(self.predictor, Hints(box))
        chosen = again if iou(again.mask, proposal.mask) > 0.7 else proposal
        return self._zoom_in(chosen, Hints(box))

    def _zoom_in(self, first: Proposal, hints: Hints) -> Proposal:
        """Predict again from a crop around the first mask; keep the first mask if the two differ."""
        height, width = self.rgb.shape[:2]
        x0, y0, x1, y1 = mask_box(first.mask)
        extent = max(x1 - x0, y1 - y0)
        if extent > ZOOM_BELOW * max(height, width) or extent < 4:
            return first
        side = extent * (1 + 2 * ZOOM_MARGIN)
        left, top = (round(max(0.0, (a + b - side) / 2)) for a, b in ((x0, x1), (y0, y1)))
        right, bottom = min(width, round(left + side)), min(height, round(top + side))
        part = np.ascontiguousarray(self.rgb[top:bottom, left:right])
        predictor = SamPredictor(self.predictor.model)
        predictor.set_image(part)

        def inside(points: tuple[Point, ...]) -> tuple[Point, ...]:
            return tuple((x - left, y - top) for x, y in points if left <= x < right and top <= y < bottom)

        near = Hints((x0 - left, y0 - top, x1 - left, y1 - top), inside(hints.points), inside(hints.negative_points))
        second = self._predict_best(predictor, near)
        if iou(second.mask, first.mask[top:bottom, left:right]) < 0.6:
            return first
        mask = np.zeros((height, width), bool)
        mask[top:bottom, left:right] = second.mask
        return Proposal(mask, second.quality)

    def _predict_best(self, predictor: SamPredictor, hints: Hints) -> Proposal:
        masks, scores = self._predict_masks(predictor, hints)
        best = int(np.argmax(scores))
        return Proposal(masks[best].astype(bool), float(scores[best]))

    def _predict_masks(self, predictor: SamPredictor, hints: Hints) -> tuple[np.ndarray, np.ndarray]:
        """Masks (N, H, W) and their qualities (N,): three for a single point, which is ambiguous, else one."""
        points = np.array([*hints.points, *hints.negative_points], float).reshape(-1, 2)
        labels = np.array([1] * len(hints.points) + [0] * len(hints.negative_points))
        masks, scores, _ = predictor.predict(
            point_coords=points if len(points) else None,
            point_labels=labels if len(points) else None,
            box=np.array(hints.box_xyxy) if hints.box_xyxy else None,
            mask_input=None if hints.rough_mask is None else self._mask_logits(hints.rough_mask)[None],
            multimask_output=hints.is_single_point and len(points) == 1,
        )
        return masks, scores

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


def _contains(mask: np.ndarray, point: Point) -> bool:
    """Whether a mask contains a point (x, y), px; one beyond the right or lower border counts as on it."""
    height, width = mask.shape
    x, y = point
    return bool(mask[min(int(y), height - 1), min(int(x), width - 1)])


def _suppress_duplicates(proposals: list[Proposal]) -> list[Proposal]:
    """Keep the best of similar proposals; sort by quality."""
    distinct: list[Proposal] = []
    for proposal in sorted(proposals, key=lambda p: -p.quality):
        if proposal.mask.any() and all(iou(proposal.mask, other.mask) < DUPLICATE_IOU for other in distinct):
            distinct.append(proposal)
    return distinct


def mask_box(mask: np.ndarray) -> tuple[float, float, float, float]:
    """Box (x0, y0, x1, y1) around a non-empty mask, px."""
    ys, xs = mask.nonzero()
    return float(xs.min()), float(ys.min()), float(xs.max() + 1), float(ys.max() + 1)
