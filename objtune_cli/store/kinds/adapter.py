"""The adapter artifact: the trained vectors of one or more objects' tokens, and the LoRA that they share.

LoRA layers have peft's names, alpha is the rank, below the name of the network that diffusers gives it; every family's
denoiser is `unet`, also where it is a transformer.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

TOKENS = ("token.", "token_2.")
"""Before an object's name: its vectors, one prefix for each text encoder."""
DENOISER = "unet."
"""Before the names of the denoiser's LoRA layers."""
TEXT_ENCODERS = ("text_encoder.", "text_encoder_2.")
"""Before the names of LoRA layers of the text encoders, which only imported files have."""
LORA_A, LORA_B, LORA_BIAS = ".lora_A.weight", ".lora_B.weight", ".lora_B.bias"
"""Behind a layer's name: the matrices (rank, in) and (out, rank), and a bias (out,) of some imported files."""

EMBEDDING_ROLE, PRIOR_ROLE, ADAPTER_ROLE = "embedding.", "prior.", "adapter."
"""Before a name: the embeddings and class priors that an adapter was trained from, or the adapters that it was merged from."""
FILE_ROLE, CONFIG_ROLE, BODY_ROLE = "file.", "config.", "body."
"""Before a number: an imported file, the adapter_config.json beside it, and what follows a LoRA file's header, by whose hash other tools know it."""


@dataclass(frozen=True, slots=True)
class AdapterArtifact:
    """The tensors of an adapter artifact.

    Attributes:
        vectors: Object name to the vectors of its token, for each text encoder (k, d) float32.
        lora: The LoRA's tensors by their names on disk; empty where the token was trained alone.
    """

    vectors: Mapping[str, Sequence[Any]]
    lora: Mapping[str, Any]

    def to_tensors(self) -> dict[str, Any]:
        """The tensors by their names on disk."""
        tensors = dict(self.lora)
        for name, vectors in self.vectors.items():
            tensors |= dict(zip(token_names(name), vectors, strict=False))
        return tensors

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Any]) -> "AdapterArtifact":
        """Read the tensors of a published artifact."""
        objects = dict.fromkeys(key.partition(".")[2] for key in tensors if is_token(key))
        vectors = {name: [tensors[key] for key in token_names(name) if key in tensors] for name in objects}
        return cls(vectors, {key: value for key, value in tensors.items() if not is_token(key)})


def token_names(name: str) -> tuple[str, ...]:
    """The names of an object's vectors, one for each text encoder that a base may have."""
    return tuple(f"{prefix}{name}" for prefix in TOKENS)


def is_token(key: str) -> bool:
    """Whether a tensor holds vectors of a token."""
    return key.startswith(TOKENS)


def has_lora(keys: Iterable[str]) -> bool:
    """Whether an adapter with these tensors is more than a token."""
    return any(key.endswith(LORA_B) for key in keys)


def has_text_encoder_lora(keys: Iterable[str]) -> bool:
    """Whether an adapter with these tensors has LoRA layers of a text encoder."""
    return any(key.startswith(TEXT_ENCODERS) for key in keys)
