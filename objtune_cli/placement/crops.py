"""The square part of a picture that a base samples, and how a new version of it is blended back."""

from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np

from objtune_cli.placement.regions import PixelBox, Region

DRAFT_ROOM = 0.2
"""Room around the region in which the object is drafted, fraction of the crop's side: a border close to the object would cut it."""
HALO = 0.03
"""Width of the soft border around an object that is sampled with it, fraction of the crop's side: contact shadows, edges."""
ERASE_RADIUS = 3
"""Radius of the classical inpainting that removes what is replaced, px of the crop."""
BRIDGE = 0.025
"""Width of the bridges between an object and stray pieces that are cut, fraction of the image's side."""
FIT = (0.4, 2.0)
"""Least and greatest factor by which a drafted object is resized to fill its region."""


@dataclass(frozen=True, slots=True)
class Crop:
    """A square of a picture, px; it may reach over the border, where the border's colours are repeated.

    Attributes:
        left, top: Its upper left corner. side: Its side.
    """

    left: int
    top: int
    side: int

    @classmethod
    def around(cls, box: PixelBox, size: tuple[int, int], context: float) -> "Crop":
        """The square around a box, moved into the picture where it fits.

        Args:
            size: Width and height of the picture.
            context: Side of the crop over the longer side of the box, 1 or more.
        """
        longer = max(box[2] - box[0], box[3] - box[1])
        side = max(longer, min(round(longer * context), max(longer, min(size))))
        corner = []
        for low, high, full in ((box[0], box[2], size[0]), (box[1], box[3], size[1])):
            start = round((low + high - side) / 2)
            corner.append(min(max(start, 0), full - side) if side <= full else round((full - side) / 2))
        return cls(corner[0], corner[1], side)

    def take(self, picture: np.ndarray) -> np.ndarray:
        """The crop of a picture (H, W, …); outside of it the border is repeated."""
        rows = np.clip(np.arange(self.top, self.top + self.side), 0, picture.shape[0] - 1)
        columns = np.clip(np.arange(self.left, self.left + self.side), 0, picture.shape[1] - 1)
        return picture[rows[:, None], columns[None, :]]

    def box_in_crop(self, box: PixelBox) -> tuple[float, float, float, float]:
        """A box of the picture, px, in fractions of the crop."""
        x0, y0, x1, y1 = box
        values = ((x0 - self.left), (y0 - self.top), (x1 - self.left), (y1 - self.top))
        left, top, right, bottom = (min(max(v / self.side, 0.0), 1.0) for v in values)
        return left, top, right, bottom


@dataclass(frozen=True)
class CroppedRegion:
    """A region of a picture with the crop around it, at the base's side.

    Attributes:
        picture: (H, W, 3) uint8. region: What may change. crop: What the base sees.
        side: Side at which the base samples the crop, px.
        softness: Width of the soft border inside the region, fraction of the region's shorter side.
        replaced: What is replaced, (H, W) bool; None for nothing.
    """

    picture: np.ndarray
    region: Region
    crop: Crop
    side: int
    softness: float
    replaced: np.ndarray | None = None

    @cached_property
    def box(self) -> tuple[float, float, float, float]:
        """The region's box in the resized crop, px."""
        x0, y0, x1, y1 = (v * self.side for v in self.crop.box_in_crop(self.region.box))
        return x0, y0, x1, y1

    @cached_property
    def draft_box(self) -> tuple[float, float, float, float]:
        """The box in the resized crop that a drafted object may fill, px."""
        room = DRAFT_ROOM / 2 * self.side
        x0, y0, x1, y1 = self.box
        return max(0.0, x0 - room), max(0.0, y0 - room), min(self.side, x1 + room), min(self.side, y1 + room)

    @cached_property
    def background(self) -> np.ndarray:
        """The resized crop without what is replaced, (s, s, 3) uint8."""
        image = resize(self.crop.take(self.picture), self.side)
        if self.replaced is None:
            return image
        holes = (self._replaced_share > 0.1).astype(np.uint8)
        return np.asarray(cv2.inpaint(np.ascontiguousarray(image), holes, ERASE_RADIUS, cv2.INPAINT_TELEA))

    @cached_property
    def _replaced_share(self) -> np.ndarray:
        """Coverage of what is replaced in the resized crop, (s, s) in [0, 1]."""
        if self.replaced is None:
            return np.zeros((self.side, self.side), np.float32)
        return resize(self.crop.take(self.replaced.astype(np.float32)), self.side)

    @cached_property
    def depth(self) -> np.ndarray:
        """How deep each pixel of the crop lies in the region, fraction of its soft border, (side, side) in [0, 1]; 0 outside."""
        x0, y0, x1, y1 = self.region.box
        width = max(1.0, self.softness * min(x1 - x0, y1 - y0))
        inside = self.crop.take((self.region.cover > 0.5).astype(np.uint8))
        return np.asarray(np.clip(cv2.distanceTransform(inside, cv2.DIST_L2, 5) / width, 0, 1), np.float32)

    def draft_map(self) -> np.ndarray:
        """The change map for a draft of the object, which has some room around the region, (s, s) in [0, 1]."""
        inside = resize(self.depth, self.side) > 0
        away = cv2.distanceTransform((~inside).astype(np.uint8), cv2.DIST_L2, 5)
        return np.asarray(np.clip(2 - away / (DRAFT_ROOM / 2 * self.side), 0, 1), np.float32)

    def region_map(self) -> np.ndarray:
        """The change map of the region alone, (s, s) in [0, 1]."""
        return resize(self.depth, self.side)

    def object_map(self, outline: np.ndarray) -> np.ndarray:
        """The change map of an object and what it replaces: 1 on them, falling to 0 over `HALO`, within the region, (s, s) in [0, 1].

        Args:
            outline: (s, s) in [0, 1].
        """
        solid = (np.maximum(outline, self._replaced_share) > 0.5).astype(np.uint8)
        away = cv2.distanceTransform(1 - solid, cv2.DIST_L2, 5)
        falling = np.clip(1 - away / max(1.0, HALO * self.side), 0, 1)
        return np.asarray(falling * (resize(self.depth, self.side) > 0), np.float32)

    def insert(self, draft: np.ndarray, outline: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Put a drafted object into the region of the background.

        It is resized to fill the region, and stands on its lower edge.

        Args:
            draft: (s, s, 3) uint8. outline: Its object, (s, s) bool.

        Returns:
            The resized crop with the object, (s, s, 3) uint8; and the object's coverage in it, (s, s) in [0, 1].
        """
        rows, columns = np.flatnonzero(outline.any(1)), np.flatnonzero(outline.any(0))
        left, top, right, low = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
        x0, y0, x1, y1 = self.box
        scale = float(np.clip(min((x1 - x0) / (right - left), (y1 - y0) / (low - top)), *FIT))
        move = np.array(
            [
                [scale, 0, (x0 + x1) / 2 - scale * (left + right) / 2],
                [0, scale, y1 - scale * low],
            ]
        )
        size = (self.side, self.side)
        moved = cv2.warpAffine(draft, move, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        cover = cv2.warpAffine(outline.astype(np.float32), move, size, flags=cv2.INTER_LINEAR)
        cover = cover * (resize(self.depth, self.side) > 0)
        mixed = self.background + cover[..., None] * (moved.astype(np.float32) - self.background)
        return np.rint(mixed).astype(np.uint8), cover.astype(np.float32)

    def blend(self, new_crop: np.ndarray, share: np.ndarray) -> np.ndarray:
        """The picture with the crop drawn anew inside the region; every other pixel keeps its bytes.

        Args:
            new_crop: The new crop, (s, s, 3) uint8.
            share: Weight of the new crop, (s, s) in [0, 1]; it is cut at the region's border.
        """
        weight = np.clip(resize(share, self.crop.side), 0, 1) * self.depth
        patch = resize(new_crop, self.crop.side).astype(np.float32)
        out = self.picture.copy()
        height, width = out.shape[:2]
        top, left = max(self.crop.top, 0), max(self.crop.left, 0)
        bottom, right = min(self.crop.top + self.crop.side, height), min(self.crop.left + self.crop.side, width)
        part = np.s_[top - self.crop.top : bottom - self.crop.top, left - self.crop.left : right - self.crop.left]
        old = out[top:bottom, left:right].astype(np.float32)
        mixed = old + weight[part][..., None] * (patch[part] - old)
        out[top:bottom, left:right] = np.clip(np.rint(mixed), 0, 255).astype(np.uint8)
        return out


def largest_piece(mask: np.ndarray) -> np.ndarray:
    """The largest connected piece of a mask (s, s) bool with its thin parts, filled, without stray pieces that thin bridges tie to it."""
    reach = max(1, round(BRIDGE * len(mask) / 2))
    brush = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
    whole = mask.astype(np.uint8)
    smoothed_mask = cv2.morphologyEx(whole, cv2.MORPH_OPEN, brush)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(smoothed_mask)
    if count < 2:
        return mask
    main = 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))
    piece = (labels == main).astype(np.uint8)
    body = np.asarray(cv2.dilate(piece, brush), np.uint8) & whole
    outlines, _ = cv2.findContours(body, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    body = np.asarray(
        cv2.drawContours(body, outlines, -1, 1, cv2.FILLED), np.uint8
    )  # holes within thin parts, such as handles, stay open
    stray = np.asarray(cv2.dilate(((labels > 0) & (labels != main)).astype(np.uint8), brush)) > 0
    _, parts = cv2.connectedComponents((mask & ~stray | (body > 0)).astype(np.uint8))
    attached = np.isin(parts, np.unique(parts[piece > 0]))
    return np.asarray(attached | (body > 0))


def resize(image: np.ndarray, side: int) -> np.ndarray:
    """A square image at another side, px."""
    if len(image) == side:
        return image
    smaller = side < len(image)
    method = cv2.INTER_AREA if smaller else (cv2.INTER_CUBIC if image.dtype == np.uint8 else cv2.INTER_LINEAR)
    return np.asarray(cv2.resize(image, (side, side), interpolation=method))
