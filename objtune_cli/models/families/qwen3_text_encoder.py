"""Encode prompts with Qwen3, a causal language model, of which some hidden states are read.

Layers above the last state that is read are not loaded. Placeholder tokens have rows outside the tied token table.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from objtune_cli.errors import DamagedError
from objtune_cli.models.families import pipeline_folder as folders
from objtune_cli.models.families.component_loading import load_component, load_tokenizer

if TYPE_CHECKING:
    from torch import Tensor

    from objtune_cli.models.base_model import BaseModel

TEMPLATE = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
"""Qwen3's chat template around one message, for tokenizers without their own."""
NO_THINKING = "<think>\n\n</think>\n\n"
"""The empty reasoning that the template writes where reasoning is switched off."""


def load(folder: Path, layers: int) -> list[tuple[Any, Any]]:
    """Load the tokenizer and the first `layers` layers of the text encoder, without the norm and the output layer."""
    import torch
    from transformers import Qwen2TokenizerFast, Qwen3Config, Qwen3Model  # type: ignore[attr-defined]

    tokenizer = load_tokenizer(Qwen2TokenizerFast, folder, "tokenizer")
    config = Qwen3Config.from_pretrained(folder / "text_encoder", local_files_only=True)
    config.num_hidden_layers, config.layer_types = layers, (config.layer_types or [])[:layers]
    encoder = load_component(Qwen3Model, folder, "text_encoder", config=config, dtype="auto")
    encoder.norm = torch.nn.Identity()
    encoder.unused_weights = []  # the layers above
    return [(tokenizer, encoder)]


def count_layers(folder: Path) -> int:
    """Number of layers in the text encoder's config.

    Raises:
        DamagedError: It is not a multiple of four.
    """
    count = folders.read_json(folder, "text_encoder/config.json").get("num_hidden_layers")
    if not isinstance(count, int) or isinstance(count, bool) or count < 4 or count % 4:
        raise DamagedError(
            f"the base in {folder} is damaged: num_hidden_layers in text_encoder/config.json is {count!r}",
            folders.AGAIN,
        )
    return count


def apply_template(tokenizer: Any, text: str, *, thinking: bool) -> str:
    """A prompt as a user's message, with the beginning of the answer."""
    if not tokenizer.chat_template:
        return TEMPLATE.format(text) + ("" if thinking else NO_THINKING)
    templated: str = tokenizer.apply_chat_template(
        [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True, enable_thinking=thinking
    )
    return templated


def encode(
    model: "BaseModel", texts: list[str], max_tokens: int, states: Sequence[int], *, keep_padding: bool = True
) -> "Tensor":
    """Hidden states side by side, (B, L, k d).

    Args:
        max_tokens: Encode only so many leading tokens; 0: all, with padding. The rows are the same either way.
        states: Numbers of the hidden states, 0 for the token vectors, n for the output of layer n.
        keep_padding: Whether the rows of padding tokens are their hidden states; otherwise they are zeros.
    """
    import torch

    ids = model.token_ids(texts)
    mask = (ids != model.tokenizer.pad_token_id).long()
    if max_tokens:
        ids, mask = ids[:, :max_tokens], mask[:, :max_tokens]
    encoder = model.text_encoder.to(model.device)  # it may be offloaded
    hidden = encoder(input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False).hidden_states
    rows = torch.cat([hidden[k] for k in states], dim=-1).to(model.dtype)
    return rows if keep_padding else rows * mask[..., None].to(rows)


def word_ids(tokenizer: Any, word: str) -> list[int]:
    """Token ids of a word behind a space."""
    ids: list[int] = tokenizer(f" {word}", add_special_tokens=False).input_ids
    return ids


def add_tokens(tokenizer: Any, tokens: Sequence[str]) -> None:
    """Add placeholder tokens that take the space before them, as the first token of a word does."""
    from tokenizers import AddedToken

    tokenizer.add_tokens([AddedToken(token, lstrip=True, special=True, normalized=False) for token in tokens])
