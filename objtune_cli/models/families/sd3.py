"""Stable Diffusion 3 and 3.5 medium: a transformer over image and text tokens (MMDiT), a rectified flow, 1024 px.

The sequence of its conditioning is (B, 77 + 256, 4096): the states of both CLIPs side by side, then those of T5 (zeros for
a base without T5). The pooled vectors (B, 2048) are those of both CLIPs side by side.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from objtune_cli.models.families import clip_text_encoders, t5_text_encoder
from objtune_cli.models.families.component_loading import load_component, load_tokenizer
from objtune_cli.models.families.flow import FlowFamily
from objtune_cli.models.families.module_sets import ATTENTION, FEED_FORWARD
from objtune_cli.models.families.t5_text_encoder import T5_TOKENS as T5_TOKENS

if TYPE_CHECKING:
    from torch import Tensor

    from objtune_cli.models.base_model import BaseModel
    from objtune_cli.models.conditioning import Conditioning

WORDS = ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
WORDS_FORWARD = ("ff_context.net.0.proj", "ff_context.net.2")


class _SD3(FlowFamily):
    name = "sd3"
    title = "Stable Diffusion 3"
    pipeline = "StableDiffusion3Pipeline"
    denoiser = "transformer"
    denoiser_class = "SD3Transformer2DModel"
    encoders = ("text_encoder", "text_encoder_2")
    hub: ClassVar = {
        "sd3": ("stabilityai/stable-diffusion-3-medium-diffusers", "ea42f8cef0f178587cf766dc8129abd379c90671")
    }
    clip_models = ("openai/clip-vit-large-patch14", "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k")
    sampling: ClassVar = {"num_inference_steps": 28, "guidance_scale": 7.0}
    training: ClassVar = {"target_blocks": "all"}
    modules: ClassVar = {
        "none": (),
        "cross-kv": ("attn.add_k_proj", "attn.add_v_proj"),
        "attention": ATTENTION + WORDS,
        "attention+ff": ATTENTION + WORDS + FEED_FORWARD + WORDS_FORWARD,
        "all": ATTENTION + WORDS + FEED_FORWARD + WORDS_FORWARD,
    }
    cross_attention = ".attn."
    self_attention = ".attn2."
    weights_join_encoders = True
    default_latent_size = 128
    licence = (
        "stabilityai-nc-research-community",
        "https://huggingface.co/stabilityai/stable-diffusion-3-medium-diffusers/blob/main/LICENSE",
    )

    @property
    def parts(self) -> tuple[str, ...]:
        """With the T5 tokenizer and encoder."""
        return (*super().parts, "tokenizer_3", "text_encoder_3")

    def matches(self, pipeline: str, config: Callable[[str], Mapping[str, Any]]) -> bool:
        """The transformer of 3 does not normalise queries and keys; that of 3.5 does."""
        return pipeline == self.pipeline and not config("transformer").get("qk_norm")

    def fingerprint_extra(self, folder: Path) -> str:
        """Marks a base that is used without T5."""
        return "" if self._has_t5(folder) else "no text_encoder_3"

    def _has_t5(self, folder: Path) -> bool:
        entry = self._index(folder).get("text_encoder_3") or [None]
        return entry[0] is not None and (folder / "text_encoder_3").is_dir()

    def load_text_encoders(self, folder: Path) -> list[tuple[Any, Any]]:
        """Both CLIP text encoders with their projections."""
        from transformers import CLIPTextModelWithProjection, CLIPTokenizer

        return [
            (
                load_tokenizer(CLIPTokenizer, folder, name.replace("text_encoder", "tokenizer")),
                load_component(CLIPTextModelWithProjection, folder, name, dtype="float32"),
            )
            for name in self.encoders
        ]

    def load_t5(self, folder: Path, dtype: Any) -> tuple[Any, Any]:
        """Load T5 if both `model_index.json` and the folder have it."""
        from transformers import T5EncoderModel, T5TokenizerFast  # type: ignore[attr-defined]

        if not self._has_t5(folder):
            return None, None
        encoder = load_component(T5EncoderModel, folder, "text_encoder_3", dtype=dtype)
        return load_tokenizer(T5TokenizerFast, folder, "tokenizer_3"), encoder

    def encode_prompt(self, model: "BaseModel", texts: list[str], max_tokens: int = 0) -> "Conditioning":
        """Both CLIPs' states before their last layer, T5's states, and both projected states at the end of the text."""
        import torch

        from objtune_cli.models.conditioning import Conditioning

        width = model.denoiser.config.joint_attention_dim
        states, pooled = zip(*clip_text_encoders.encode_texts(model, texts, max_tokens), strict=True)
        clip = _pad_width(torch.cat(states, dim=-1).to(model.dtype), width)
        if max_tokens:
            return Conditioning(clip)
        sequence = torch.cat([clip, t5_text_encoder.encode(model, texts).to(model.dtype)], dim=1)
        return Conditioning(sequence, torch.cat(pooled, dim=-1).to(model.dtype))

    def encode_chunks(self, model: "BaseModel", ids: "Sequence[Tensor]") -> "list[tuple[Tensor, Tensor | None]]":
        """With both CLIPs."""
        return clip_text_encoders.encode_ids(model, ids)

    def join_chunks(
        self, model: "BaseModel", text: str, states: "Sequence[Tensor]", pooled: "Sequence[Tensor | None]"
    ) -> "Conditioning":
        """As `encode_prompt`; T5 reads its window of the whole text."""
        import torch

        from objtune_cli.models.conditioning import Conditioning

        width = model.denoiser.config.joint_attention_dim
        clip = _pad_width(torch.cat(list(states), dim=-1).to(model.dtype), width)
        sequence = torch.cat([clip, t5_text_encoder.encode(model, [text]).to(model.dtype)], dim=1)
        both = torch.cat([part for part in pooled if part is not None], dim=-1)
        return Conditioning(sequence, both.to(model.dtype))

    def match_lengths(self, model: "BaseModel", conditions: "Sequence[Conditioning]") -> "list[Conditioning]":
        """Append the CLIP rows of empty prompts to shorter ones; text tokens have no positions in the transformer."""
        from objtune_cli.models.conditioning import append_rows

        longest = max(each.sequence.shape[1] for each in conditions)
        if all(each.sequence.shape[1] == longest for each in conditions):
            return list(conditions)
        empty = self.encode_prompt(model, [""]).sequence[:, :-T5_TOKENS]
        return [append_rows(each, empty, longest) for each in conditions]

    def pooled_size(self, model: "BaseModel") -> int:
        """The widths of both CLIPs' projections together."""
        return int(model.denoiser.config.pooled_projection_dim)

    def t5_token_mask(self, model: "BaseModel", text: str, name: str) -> "Tensor":
        """The T5 tokens of the class word in the object's place."""
        return t5_text_encoder.token_mask(model, text, name)

    def t5_tokenizers(self, model: "BaseModel") -> list[tuple[Any, int]]:
        """The T5 tokenizer."""
        return [] if model.tokenizer_3 is None else [(model.tokenizer_3, T5_TOKENS)]

    def latent_multiple(self, config: Any) -> int:
        """The side of a patch."""
        return int(config.patch_size)

    def acts_on_text_tokens(self, layer: str) -> bool:
        """The projections and feed-forward layers of text tokens."""
        return any(f".{end}" in layer for end in (*WORDS, "ff_context"))

    def decoder_layers(self, denoiser: Any) -> tuple[tuple[str, ...], list[Any]]:
        """The later half of the blocks; all blocks need gradients, because text tokens run through all of them."""
        count = len(denoiser.transformer_blocks)
        return tuple(f"transformer_blocks.{i}." for i in range(count // 2, count)), []

    def predict(self, model: "BaseModel", z_t: "Tensor", t: "Tensor", condition: "Conditioning") -> "Tensor":
        """The velocity (B, C, h, w) for z_t (B, C, h, w), timesteps t (B,) and the conditioning of B prompts."""
        timesteps = model.scheduler.timesteps.flip(0)[t.cpu()].to(model.device)
        prediction: Tensor = model.denoiser(
            hidden_states=z_t.to(model.dtype), timestep=timesteps, **self.denoiser_kwargs(model, condition, 0, 0)
        ).sample
        return prediction

    def denoiser_kwargs(self, model: "BaseModel", condition: "Conditioning", height: int, width: int) -> dict[str, Any]:
        """Text features and pooled vectors; the model has no size conditions."""
        return {"encoder_hidden_states": condition.sequence, "pooled_projections": condition.pooled}

    def build_pipeline(self, model: "BaseModel", scheduler: Any) -> Any:
        """Without text encoders: prompts are already encoded."""
        from diffusers import StableDiffusion3Pipeline

        return StableDiffusion3Pipeline(
            vae=model.vae, text_encoder=None, tokenizer=None, text_encoder_2=None, tokenizer_2=None, text_encoder_3=None, tokenizer_3=None,
            transformer=model.denoiser, scheduler=scheduler,
        )  # fmt: skip

    def diffusers_prompt(self, pipe: Any, prompt: str, class_prompt: str) -> dict[str, Any]:
        """T5 reads class words; tokens of several vectors are written out."""
        converted = pipe.maybe_convert_prompt(prompt, pipe.tokenizer)
        return {"prompt": converted, "prompt_3": class_prompt, "negative_prompt": ""}

    def callback_kwargs(
        self, model: "BaseModel", condition: "Conditioning", height: int, width: int
    ) -> "dict[str, Tensor | None]":
        """With the pooled vectors."""
        return {"prompt_embeds": condition.sequence, "pooled_prompt_embeds": condition.pooled}


class _SD35(_SD3):
    name = "sd35"
    title = "Stable Diffusion 3.5"
    hub: ClassVar = {"sd35": ("stabilityai/stable-diffusion-3.5-medium", "b940f670f0eda2d07fbb75229e779da1ad11eb80")}
    sampling: ClassVar = {"num_inference_steps": 40, "guidance_scale": 4.5}
    licence = (
        "stabilityai-ai-community",
        "https://huggingface.co/stabilityai/stable-diffusion-3.5-medium/blob/main/LICENSE.md",
    )

    def matches(self, pipeline: str, config: Callable[[str], Mapping[str, Any]]) -> bool:
        """The transformer of 3.5 normalises queries and keys."""
        return pipeline == self.pipeline and bool(config("transformer").get("qk_norm"))


def _pad_width(x: "Tensor", width: int) -> "Tensor":
    """Pad the last dimension with zeros to `width`."""
    import torch

    return torch.nn.functional.pad(x, (0, width - x.shape[-1]))


SD3, SD35 = _SD3(), _SD35()
