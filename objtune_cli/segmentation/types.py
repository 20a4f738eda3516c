"""Hints from the user, proposed masks, and the interface of a segmenter. Class words are unknown here."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

Box = tuple[float, float, float, float]
Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Hints:
    """What the user said, in pixels of the given picture; any of them together.

    Attributes:
        box_xyxy: Around the object. points: (x, y) on it. beside: (x, y) not on it.
        rough: Coverage (H, W) in [0, 1], roughly the object.
    """

    box_xyxy: Box | None = None
    points: tuple[Point, ...] = ()
    negative_points: tuple[Point, ...] = ()
    rough_mask: np.ndarray | None = None

    def any(self) -> bool:
        return bool(self.box_xyxy or self.points or self.rough_mask is not None)

    @property
    def is_single_point(self) -> bool:
        """Whether one point on the object is all: it may as well mean a part, or something larger."""
        return len(self.points) == 1 and self.box_xyxy is None and self.rough_mask is None


@dataclass(frozen=True, slots=True)
class Proposal:
    """A mask that may be an object.

    Attributes:
        mask: (H, W) bool. quality: What the segmenter expects of its IoU with a true object, in [0, 1].
    """

    mask: np.ndarray
    quality: float


class Segmenter(Protocol):
    """Finds objects in one picture at a time."""

    name: str

    def set_image(self, rgb: np.ndarray) -> None:
        """Take in a picture (H, W, 3) uint8; what follows is about it."""

    def predict(self, hints: Hints) -> Proposal:
        """The object that hints speak of."""
        ...

    def predict_all(self, hints: Hints) -> list[Proposal]:
        """All that a lone point may mean."""
        ...

    def refine(self, proposal: Proposal) -> Proposal:
        """The same object, more exactly."""
        ...

    def propose_all(self) -> list[Proposal]:
        """What may be objects, where nothing was said."""
        ...
