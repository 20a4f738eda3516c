"""Count a prompt's tokens without loading a base model."""

import json
from typing import Any

from objtune_cli.models.base_spec import BaseSpec

DEFAULT_WINDOW = 77
"""Tokens that CLIP reads at once, with start and end token."""


def fits_window(base: BaseSpec, text: str, object_tokens: int) -> bool:
    """Whether a base's text encoder reads a prompt at once.

    Args:
        text: The prompt without the names of objects.
        object_tokens: Number of tokens of all mentions of objects.
    """
    window = _read_window(base)
    if len(text.lower().encode()) + object_tokens + 2 <= window:  # no token is shorter than a byte
        return True
    return _count_tokens(base, text) + object_tokens <= window


def _read_window(base: BaseSpec) -> int:
    file = base.folder / "tokenizer" / "tokenizer_config.json"
    config = json.loads(file.read_bytes()) if file.is_file() else {}
    length = config.get("model_max_length", DEFAULT_WINDOW)
    window = int(length) if isinstance(length, int | float) and 2 < length < 1 << 20 else DEFAULT_WINDOW
    return min(window, base.family.max_prompt_tokens or window)


def _count_tokens(base: BaseSpec, text: str) -> int:
    """The number of tokens, with start and end token."""
    file = base.folder / "tokenizer" / "tokenizer.json"
    if file.is_file():  # loads in no time, without torch
        from tokenizers import Tokenizer

        fast = Tokenizer.from_file(str(file))
        fast.no_truncation()
        fast.no_padding()
        return len(fast.encode(text).ids)
    return len(_load_tokenizer(base)(text).input_ids)


def _load_tokenizer(base: BaseSpec) -> Any:
    from objtune_cli.models.families import bundled_tokenizers, component_loading

    if base.weights is not None:
        return bundled_tokenizers.clip_tokenizer(bundled_tokenizers.pad_tokens(base.family)[0])
    from transformers import CLIPTokenizer

    return component_loading.load_tokenizer(CLIPTokenizer, base.folder, "tokenizer")
