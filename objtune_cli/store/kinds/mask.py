"""The mask artifact: a photo and which of its pixels belong to the object."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

RGB, MASK = "rgb", "mask"
PHOTO_ROLE = "photo"
"""The input that holds the SHA-256 of the photo's file; it has no ref."""


@dataclass(frozen=True, slots=True)
class MaskArtifact:
    """The tensors of a mask artifact.

    Attributes:
        rgb: The photo in sRGB, (H, W, 3) uint8.
        mask: The object's coverage of each pixel, (H, W) uint8; 255 is wholly object.
    """

    rgb: Any
    mask: Any

    def to_tensors(self) -> dict[str, Any]:
        """The tensors by their names on disk."""
        return {RGB: self.rgb, MASK: self.mask}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Any]) -> "MaskArtifact":
        """Read the tensors of a published artifact."""
        return cls(tensors[RGB], tensors[MASK])
