"""The embedding artifact: the first vectors of an object's placeholder token."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

VECTORS = ("text_encoder", "text_encoder_2")
"""Names of the vectors, one for each text encoder."""
MASK_ROLE = "mask"
"""The input that the embedding was computed from; further photos of the object are `mask.2`, `mask.3`, …"""


def mask_role(number: int) -> str:
    """The role of an object's mask, by its number from 1."""
    return MASK_ROLE if number == 1 else f"{MASK_ROLE}.{number}"


def mask_inputs(inputs: Mapping[str, Mapping[str, str]]) -> list[Mapping[str, str]]:
    """The masks among an embedding's inputs, in their order."""
    count = sum(role.partition(".")[0] == MASK_ROLE for role in inputs)
    return [inputs[mask_role(number)] for number in range(1, count + 1)]


@dataclass(frozen=True, slots=True)
class EmbeddingArtifact:
    """The tensors of an embedding artifact.

    Attributes:
        vectors: For each text encoder of the base the vectors of the token, (k, d) float32.
    """

    vectors: Sequence[Any]

    def to_tensors(self) -> dict[str, Any]:
        """The tensors by their names on disk."""
        return dict(zip(VECTORS, self.vectors, strict=False))

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Any]) -> "EmbeddingArtifact":
        """Read the tensors of a published artifact."""
        return cls([tensors[name] for name in VECTORS if name in tensors])
