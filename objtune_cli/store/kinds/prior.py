"""The class prior artifact: samples of a class by the frozen base, and the base's predictions for noised ones."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

TENSORS = {
    "latents": "latents",
    "noisy_latents": "z_t",
    "timesteps": "t",
    "predictions": "pred",
    "prompt_index": "asked",
    "conditions": "conditions",
}
"""Attribute to name on disk."""


@dataclass(frozen=True, slots=True)
class PriorArtifact:
    """The tensors of a prior artifact.

    Attributes:
        latents: Samples of the class, (N, C, h, w).
        noisy_latents: Noised samples z_t, (M, C, h, w).
        timesteps: Of each noised sample, (M,) int64.
        predictions: The frozen base's prediction for each noised sample, (M, C, h, w).
        prompt_index: The prompt of each prediction as a row of `conditions`, (M,) int64.
        conditions: The encoded prompts, (P, L, d); the first names the class.
    """

    latents: Any
    noisy_latents: Any
    timesteps: Any
    predictions: Any
    prompt_index: Any
    conditions: Any

    def to_tensors(self) -> dict[str, Any]:
        """The tensors by their names on disk."""
        return {TENSORS[field.name]: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Any]) -> "PriorArtifact":
        """Read the tensors of a published artifact."""
        return cls(**{attribute: tensors[name] for attribute, name in TENSORS.items()})

    def map(self, function: Callable[[Any], Any]) -> "PriorArtifact":
        """The same with a function applied to every tensor."""
        return PriorArtifact(*(function(getattr(self, field.name)) for field in fields(self)))
