"""Hints from the user, proposed masks, and the interface of a segmenter."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

Box = tuple[float, float, float, float]
Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Hints:
    """Hints from the user in pixels of the image; they may be combined.

    Attributes:
        box_xyxy: Box around the object. points: (x, y) on it. negative_points: (x, y) off it.
        rough_mask: Coverage (H, W) in [0, 1] of roughly the object.
    """

    box_xyxy: Box | None = None
    points: tuple[Point, ...] = ()
    negative_points: tuple[Point, ...] = ()
    rough_mask: np.ndarray | None = None

    @property
    def is_single_point(self) -> bool:
        """Whether a single point is the only positive hint; it may also mean a part, or something larger."""
        return len(self.points) == 1 and self.box_xyxy is None and self.rough_mask is None


@dataclass(frozen=True, slots=True)
class Proposal:
    """A mask of a possible object.

    Attributes:
        mask: (H, W) bool. quality: The segmenter's estimate of the IoU with a true object, in [0, 1].
    """

    mask: np.ndarray
    quality: float


class Segmenter(Protocol):
    """Finds objects in one image at a time."""

    name: str

    def set_image(self, rgb: np.ndarray) -> None:
        """Set the image (H, W, 3) uint8 for the following calls."""

    def predict(self, hints: Hints) -> Proposal:
        """Predict the object that the hints mean."""
        ...

    def predict_all(self, hints: Hints) -> list[Proposal]:
        """Predict all objects that a single point may mean."""
        ...

    def refine(self, proposal: Proposal) -> Proposal:
        """Predict the same object more accurately."""
        ...

    def propose_all(self) -> list[Proposal]:
        """Propose all possible objects without hints."""
        ...


@runtime_checkable
class WordSegmenter(Segmenter, Protocol):
    """A segmenter that also finds objects by words."""

    def propose_words(self, words: list[str]) -> list[Proposal]:
        """Propose every object of the words in the image."""
        ...
