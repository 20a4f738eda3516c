"""What every model of the segment-anything kind does with hints: which boxes and points it is asked for, and which masks it keeps."""

from abc import ABC, abstractmethod

import numpy as np

from objtune_cli.numerics.masks import iou
from objtune_cli.segmentation.types import Box, Hints, Point, Proposal

GRID_POINTS = 8
"""Points along each side of the grid for proposals without hints."""
HINTS_PER_BATCH = 32
"""Hints per batch of the decoder."""
MIN_QUALITY, MIN_STABILITY, MAX_BOX_IOU = 0.6, 0.7, 0.8
"""Thresholds of proposals from a grid of points: predicted IoU, stability, and IoU of the boxes of two proposals.

They are looser than the usual defaults, because a class word chooses among the proposals.
"""
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


class EmbeddedImage(ABC):
    """One image that a model has embedded."""

    @abstractmethod
    def predict_masks(self, hints: Hints) -> list[Proposal]:
        """Predict masks for combined hints: three for a single point, which is ambiguous, else one."""

    @abstractmethod
    def predict_boxes(self, boxes: np.ndarray) -> list[Proposal]:
        """Predict the object in each box (N, 4), px."""

    @abstractmethod
    def propose_from_grid(self) -> list[Proposal]:
        """Propose objects at a grid of `GRID_POINTS` points along each side, without duplicates."""


class PromptableSegmenter(ABC):
    """Segmenter that uses a model for hints; each image is embedded only once."""

    name: str
    rgb: np.ndarray
    image: EmbeddedImage
    _embedded: tuple[tuple[np.ndarray, EmbeddedImage], ...] = ()
    """The last two images: a photo, and the smaller copy on which class words choose."""

    @abstractmethod
    def embed(self, rgb: np.ndarray) -> EmbeddedImage:
        """Embed an image (H, W, 3) uint8."""

    def set_image(self, rgb: np.ndarray) -> None:
        """Set the image (H, W, 3) uint8 for the following calls; the last two are not embedded again."""
        known = next((image for array, image in self._embedded if array is rgb), None)
        self.rgb, self.image = rgb, known or self.embed(rgb)
        others = tuple(each for each in self._embedded if each[0] is not rgb)
        self._embedded = ((rgb, self.image), *others[:1])

    def predict(self, hints: Hints) -> Proposal:
        """Predict the object that the hints mean; a small one is predicted again from a crop."""
        first = _best(self.image.predict_masks(hints))
        if hints.is_single_point:
            first = max([first, *self._predict_around_point(hints)], key=lambda p: p.quality)
        if not first.mask.any():
            return first
        return self._zoom_in(first, hints)

    def predict_all(self, hints: Hints) -> list[Proposal]:
        """Objects at a single point: the decoder's outputs, objects in boxes around it, and all proposals that contain it."""
        parts = self.image.predict_masks(hints)
        return suppress_duplicates(
            [*parts, *self._predict_around_point(hints), *_filter_by_points(hints, self.propose_all())]
        )

    def propose_all(self) -> list[Proposal]:
        """Objects at a grid of points and in the boxes of `BOX_GRIDS`, without duplicates.

        Boxes find whole objects where points find their parts.
        """
        return suppress_duplicates(self.image.propose_from_grid() + self._propose_from_boxes())

    def refine(self, proposal: Proposal) -> Proposal:
        """Predict the object again from its box, and from a crop if it is small; keep the old mask if they differ."""
        box = mask_box(proposal.mask)
        again = _best(self.image.predict_masks(Hints(box)))
        better = again if iou(again.mask, proposal.mask) > 0.7 else proposal
        return self._zoom_in(better, Hints(box))

    def _predict_around_point(self, hints: Hints) -> list[Proposal]:
        """Objects in boxes around a single point that contain it, because the point alone may also mean a part."""
        height, width = self.rgb.shape[:2]
        (x, y), side = hints.points[0], max(height, width)
        boxes = [
            (max(0.0, x + (dx - 0.5) * s * side), max(0.0, y + (dy - 0.5) * s * side), min(width, x + (dx + 0.5) * s * side), min(height, y + (dy + 0.5) * s * side))
            for s in POINT_BOX_SIDES for dx in (-0.25, 0, 0.25) for dy in (-0.25, 0, 0.25)
        ]  # fmt: skip
        return _filter_by_points(hints, self.image.predict_boxes(np.array(boxes)))

    def _propose_from_boxes(self) -> list[Proposal]:
        """Objects in boxes of several sizes over the whole image."""
        height, width = self.rgb.shape[:2]
        boxes = [
            (x * width, y * height, (x + size) * width, (y + size) * height)
            for size, count in BOX_GRIDS for x in np.linspace(0, 1 - size, count) for y in np.linspace(0, 1 - size, count)
        ]  # fmt: skip
        return self.image.predict_boxes(np.array(boxes))

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

        def inside(points: tuple[Point, ...]) -> tuple[Point, ...]:
            return tuple((x - left, y - top) for x, y in points if left <= x < right and top <= y < bottom)

        near = Hints((x0 - left, y0 - top, x1 - left, y1 - top), inside(hints.points), inside(hints.negative_points))
        crop = self.embed(np.ascontiguousarray(self.rgb[top:bottom, left:right]))
        second = _best(crop.predict_masks(near))
        if iou(second.mask, first.mask[top:bottom, left:right]) < 0.6:
            return first
        mask = np.zeros((height, width), bool)
        mask[top:bottom, left:right] = second.mask
        return Proposal(mask, second.quality)


def _best(proposals: list[Proposal]) -> Proposal:
    return max(proposals, key=lambda p: p.quality)


def _filter_by_points(hints: Hints, proposals: list[Proposal]) -> list[Proposal]:
    """Proposals that contain all points and no negative point."""
    return [
        proposal
        for proposal in proposals
        if all(_contains(proposal.mask, point) for point in hints.points)
        and not any(_contains(proposal.mask, point) for point in hints.negative_points)
    ]


def _contains(mask: np.ndarray, point: Point) -> bool:
    """Whether a mask contains a point (x, y), px; one beyond the right or lower border counts as on it."""
    height, width = mask.shape
    x, y = point
    return bool(mask[min(int(y), height - 1), min(int(x), width - 1)])


def suppress_duplicates(proposals: list[Proposal]) -> list[Proposal]:
    """Keep the best of similar proposals; sort by quality."""
    distinct: list[Proposal] = []
    for proposal in sorted(proposals, key=lambda p: -p.quality):
        if proposal.mask.any() and all(iou(proposal.mask, other.mask) < DUPLICATE_IOU for other in distinct):
            distinct.append(proposal)
    return distinct


def mask_box(mask: np.ndarray) -> Box:
    """Box (x0, y0, x1, y1) around a non-empty mask, px."""
    ys, xs = mask.nonzero()
    return float(xs.min()), float(ys.min()), float(xs.max() + 1), float(ys.max() + 1)
