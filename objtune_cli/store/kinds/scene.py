"""The scene artifact: the latents of the images that `generate` or `compose` drew."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

LATENTS = "latents"
SHARES = "shares"
"""Of placed objects: the weight of each new pixel of the crop, (N, s, s) uint8."""
REFINED = "close."
"""Before an object's name: the latents of its refined region."""
ADAPTER_ROLE, NEGATIVE_ROLE = "adapter.", "negative."
"""Before an object's name: the adapter of an object in the prompt, or of one that only the negative prompt names."""
LORA_ROLE = "lora."
"""Before a number: a file of a LoRA that acts beside the objects, or the adapter that it comes from."""
PHOTO_ROLE, MASK_ROLE = "photo", "mask"
"""Of placed objects: the picture that they are placed in, and the file or mask artifact of the region."""


@dataclass(frozen=True, slots=True)
class SceneArtifact:
    """The tensors of a scene artifact.

    Attributes:
        latents: Of N images, (N, C, h, w).
        refined: Object name to the latents of its region drawn again, (N, C, h', w'); only of composed scenes.
    """

    latents: Any
    refined: Mapping[str, Any] = field(default_factory=dict)

    def to_tensors(self) -> dict[str, Any]:
        """The tensors by their names on disk."""
        return {LATENTS: self.latents} | {f"{REFINED}{name}": value for name, value in self.refined.items()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Any]) -> "SceneArtifact":
        """Read the tensors of a published artifact."""
        refined = {key.removeprefix(REFINED): value for key, value in tensors.items() if key.startswith(REFINED)}
        return cls(tensors[LATENTS], refined)
