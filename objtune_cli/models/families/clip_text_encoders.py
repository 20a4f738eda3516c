"""What CLIP's text encoders say of prompts, as families with two of them hear it."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def encode_texts(model: Any, texts: list[str], first: int = 0) -> "list[tuple[Tensor, Tensor | None]]":
    """Of each text encoder its states before the last layer (B, L, d), and the projected state at the end of the text (B, p), or None.

    The end is where the end token first stands: configs of these encoders name another one, or the largest id, which
    an added token would be. With `first` only so many leading tokens are read, and no end.
    """
    import torch

    found: list[tuple[Tensor, Tensor | None]] = []
    for tokenizer, encoder in zip(model.tokenizers, model.text_encoders, strict=True):
        ids = model.token_ids(texts, tokenizer)[:, : first or None]
        out = encoder(input_ids=ids, output_hidden_states=True)
        if first:
            found.append((out.hidden_states[-2], None))
            continue
        end = (ids == tokenizer.eos_token_id).int().argmax(dim=1)
        last = out.last_hidden_state[torch.arange(len(ids), device=ids.device), end]
        found.append(
            (out.hidden_states[-2], encoder.text_projection(last) if hasattr(encoder, "text_projection") else None)
        )
    return found
