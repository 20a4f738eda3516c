"""What flow families with Qwen3 as their text encoder share: prompts as chat messages, placeholder tokens, the sampling loop."""

import re
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from objtune_cli.models.families import qwen3_text_encoder
from objtune_cli.models.families.flow import FlowFamily

if TYPE_CHECKING:
    from torch import Tensor

    from objtune_cli.models.base_model import BaseModel
    from objtune_cli.models.conditioning import Conditioning

MAX_TOKENS = 512
IMAGE_SIDE = 1024
"""Side of the training images, px, if the VAE's config has none."""


class Qwen3FlowFamily(FlowFamily):
    """A flow whose denoiser reads hidden states of Qwen3.

    Attributes:
        thinking: Whether the chat template leaves room for reasoning.
    """

    denoiser = "transformer"
    text_encoder_type = "qwen3"
    reads_with_language_model = True
    max_prompt_tokens = MAX_TOKENS
    reads_prompt_weights = False
    clip_models = ("openai/clip-vit-large-patch14",)
    shares_clip_space = False
    takes_attention_mask = True
    pipeline_sets_levels = True
    thinking: ClassVar[bool]

    def text_encoder_dtype(self, dtype: Any) -> Any:
        """bfloat16 with half precision, because float16 overflows; only the rows of placeholders are in float32."""
        import torch

        return torch.float32 if dtype == torch.float32 else torch.bfloat16

    def training_side(self, denoiser: Mapping[str, Any], vae: Mapping[str, Any]) -> int:
        """From the VAE's config, because the denoiser's has no size."""
        return int(vae.get("sample_size") or IMAGE_SIDE) // self.cell_size(vae)

    def prompt_text(self, model: "BaseModel", text: str) -> str:
        """A chat message; weights are left out."""
        from objtune_cli.models.prompt_syntax import plain_text

        text = plain_text(text, model.prompt_syntax)
        return qwen3_text_encoder.apply_template(model.tokenizer, text, thinking=self.thinking)

    def word_ids(self, tokenizer: Any, word: str) -> list[int]:
        """Behind a space, because its tokenizer has other tokens for the start of a text."""
        return qwen3_text_encoder.word_ids(tokenizer, word)

    def add_tokens(self, tokenizer: Any, tokens: list[str]) -> None:
        """Placeholder tokens take the space before them."""
        qwen3_text_encoder.add_tokens(tokenizer, tokens)

    def predict(self, model: "BaseModel", z_t: "Tensor", t: "Tensor", condition: "Conditioning") -> "Tensor":
        """The velocity (B, C, h, w) for z_t (B, C, h, w), timesteps t (B,) and the conditioning of B prompts."""
        levels = self.training_levels(model, z_t.shape[-2] * z_t.shape[-1])
        return self._predict_at(model, z_t, levels[t.cpu()].to(model.device), condition)

    def _predict_at(self, model: "BaseModel", z_t: "Tensor", sigma: "Tensor", condition: "Conditioning") -> "Tensor":
        """The velocity at noise levels sigma (B,)."""
        raise NotImplementedError

    def build_pipeline(self, model: "BaseModel", scheduler: Any) -> Any:
        """The loop of this package: both halves of guidance in one call, negative prompts first."""
        from objtune_cli.models.families.flow_pipeline import FlowPipeline

        return FlowPipeline(model, scheduler, partial(self._predict_at, model))

    def pipeline_kwargs(self, condition: "Conditioning", negative: "Conditioning") -> dict[str, Any]:
        """The encoded prompts as they are."""
        return {"condition": condition, "negative": negative}

    def callback_kwargs(
        self, model: "BaseModel", condition: "Conditioning", height: int, width: int
    ) -> "dict[str, Any]":
        """The conditioning of the batch."""
        return {"condition": condition}

    def diffusers_prompt(self, pipe: Any, prompt: str, class_prompt: str) -> dict[str, Any]:
        """Without a space before a token, which a placeholder token takes."""
        return {"prompt": re.sub(" (?=<)", "", pipe.maybe_convert_prompt(prompt, pipe.tokenizer))}
