"""Encode prompts with CLIP text encoders, for families that have two of them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from objtune_cli.models.base_model import BaseModel


def encode_texts(model: "BaseModel", texts: list[str], max_tokens: int = 0) -> "list[tuple[Tensor, Tensor | None]]":
    """Encode prompts with each text encoder.

    Args:
        max_tokens: Encode only so many leading tokens; 0: all.

    Returns:
        For each encoder the states before its last layer (B, L, d), and the projected state at the end token (B, p). The
        second is None with `max_tokens` or without a projection. The end token is the first with the tokenizer's id,
        because configs name another id, or the model takes the largest id, which a placeholder would have.
    """
    return encode_ids(model, [model.token_ids(texts, tokenizer) for tokenizer in model.tokenizers], max_tokens)


def encode_ids(
    model: "BaseModel", ids_by_encoder: "Sequence[Tensor]", max_tokens: int = 0
) -> "list[tuple[Tensor, Tensor | None]]":
    """The same as `encode_texts` for token ids (B, L) of each text encoder."""
    import torch

    encoded: list[tuple[Tensor, Tensor | None]] = []
    for tokenizer, encoder, all_ids in zip(model.tokenizers, model.text_encoders, ids_by_encoder, strict=True):
        ids = all_ids[:, : max_tokens or None]
        out = encoder(input_ids=ids, output_hidden_states=True)
        if max_tokens:
            encoded.append((out.hidden_states[-2], None))
            continue
        end = (ids == tokenizer.eos_token_id).int().argmax(dim=1)
        last = out.last_hidden_state[torch.arange(len(ids), device=ids.device), end]
        projected = encoder.text_projection(last) if hasattr(encoder, "text_projection") else None
        encoded.append((out.hidden_states[-2], projected))
    return encoded
