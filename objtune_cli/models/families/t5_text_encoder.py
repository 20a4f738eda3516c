"""Encode prompts with T5, which has no placeholders and reads class words in their place."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from objtune_cli.models.base_model import BaseModel

T5_TOKENS = 256
"""Maximum number of T5 tokens, as in the pipeline of diffusers."""


def encode(model: "BaseModel", texts: list[str]) -> "Tensor":
    """T5 states (B, 256, d), each text encoded once; zeros for a base without T5."""
    import torch

    from objtune_cli.models.prompt_syntax import has_syntax

    if model.text_encoder_3 is None:
        return torch.zeros(
            len(texts), T5_TOKENS, model.denoiser.config.joint_attention_dim, device=model.device, dtype=model.dtype
        )
    states = []
    for text in (model.with_class_words(text) for text in texts):
        key = f"{model.prompt_syntax}\0{text}" if has_syntax(text, model.prompt_syntax) else text
        if key not in model.t5_cache:
            with torch.no_grad():
                model.t5_cache[key] = _encode_text(model, text)
        states.append(model.t5_cache[key])
    return torch.cat(states)


def _encode_text(model: "BaseModel", text: str) -> "Tensor":
    """T5 states (1, 256, d) of one prompt in class words, with the weights of ComfyUI's syntax; A1111 weights no T5 states."""
    import torch

    from objtune_cli.models import prompt_encoding

    def encode_ids(ids: "Tensor") -> "Tensor":
        states: Tensor = model.text_encoder_3.to(model.device)(ids.to(model.device))[0]
        return states

    tokens = prompt_encoding.t5_tokens(model.tokenizer_3, text, model.prompt_syntax, T5_TOKENS)
    if tokens is None:
        encoding = model.tokenizer_3(
            text, padding="max_length", max_length=T5_TOKENS, truncation=True, return_tensors="pt"
        )
        return encode_ids(encoding.input_ids)
    states = encode_ids(torch.tensor([tokens.ids]))
    empty = prompt_encoding.t5_tokens(model.tokenizer_3, "", model.prompt_syntax, T5_TOKENS, always=True)
    if model.prompt_syntax != "comfyui" or empty is None:
        return states
    origin = encode_ids(torch.tensor([empty.ids]))[0]
    return prompt_encoding.interpolate(states, states.new_tensor([tokens.weights]), origin)


def token_mask(model: "BaseModel", text: str, name: str) -> "Tensor":
    """Mask (256,) of the T5 tokens of the class word in an object's place."""
    import torch

    from objtune_cli.models import prompt_encoding

    mask = torch.zeros(T5_TOKENS, dtype=torch.bool)
    if model.text_encoder_3 is None:
        return mask
    class_text = model.with_class_words(text)
    tokens = prompt_encoding.t5_tokens(model.tokenizer_3, class_text, model.prompt_syntax, T5_TOKENS)
    if tokens is None:
        encoding = model.tokenizer_3(class_text, max_length=T5_TOKENS, truncation=True, return_offsets_mapping=True)
    offsets = encoding["offset_mapping"] if tokens is None else tokens.offsets
    for first, end in model.class_word_spans(text, name):
        for row, (a, b) in enumerate(offsets):
            mask[row] |= a < end and b > first
    return mask
