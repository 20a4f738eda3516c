"""Stable Diffusion XL: CLIP ViT-L and OpenCLIP bigG side by side, a pooled embedding and size conditions, 1024 px."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from objtune_cli.models.families import clip_text_encoders
from objtune_cli.models.families.component_loading import load_component, load_tokenizer
from objtune_cli.models.families.family import Family

if TYPE_CHECKING:
    from torch import Tensor

    from objtune_cli.models.base_model import BaseModel
    from objtune_cli.models.conditioning import Conditioning


class _SDXL(Family):
    name = "sdxl"
    title = "Stable Diffusion XL"
    pipeline = "StableDiffusionXLPipeline"
    encoders = ("text_encoder", "text_encoder_2")
    hub: ClassVar = {"sdxl": ("stabilityai/stable-diffusion-xl-base-1.0", "462165984030d82259a11f4367a4eed129e94a7b")}
    clip_models = ("openai/clip-vit-large-patch14", "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k")
    sampling: ClassVar = {"num_inference_steps": 30, "guidance_scale": 5.0}
    default_latent_size = 128
    licence = ("openrail++", "https://huggingface.co/stabilityai/stable-diffusion-xl-base-1.0/blob/main/LICENSE.md")

    def matches(self, pipeline: str, config: Callable[[str], Mapping[str, Any]]) -> bool:
        """SDXL has its own pipeline class."""
        return pipeline == self.pipeline

    def options(self, folder: Path) -> dict[str, Any]:
        """`zero_empty`: an empty prompt is encoded as zeros, as in the training of this base."""
        return {"zero_empty": bool(self._index(folder).get("force_zeros_for_empty_prompt", True))}

    def vae_dtype(self, dtype: Any) -> Any:
        """float32 instead of float16, in which this VAE overflows (`force_upcast` in its config)."""
        import torch

        return torch.float32 if dtype == torch.float16 else dtype

    def load_text_encoders(self, folder: Path) -> list[tuple[Any, Any]]:
        """CLIP ViT-L as in 1.x, and OpenCLIP bigG with its projection."""
        from transformers import CLIPTextModelWithProjection, CLIPTokenizer

        second = load_component(CLIPTextModelWithProjection, folder, "text_encoder_2", dtype="float32")
        return [
            *super().load_text_encoders(folder),
            (load_tokenizer(CLIPTokenizer, folder, "tokenizer_2"), second),
        ]

    def encode_prompt(self, model: "BaseModel", texts: list[str], max_tokens: int = 0) -> "Conditioning":
        """Both encoders' states before their last layer side by side, and bigG's projected state at the end of the text."""
        import torch

        from objtune_cli.models.conditioning import Conditioning

        states, (_, pooled) = zip(*clip_text_encoders.encode_texts(model, texts, max_tokens), strict=True)
        sequence = torch.cat(states, dim=-1)
        if max_tokens:
            return Conditioning(sequence.to(model.dtype))
        return self._without_empty(model, texts, sequence, pooled)

    def _without_empty(
        self, model: "BaseModel", texts: list[str], sequence: "Tensor", pooled: "Tensor"
    ) -> "Conditioning":
        """The conditioning, zeros for empty prompts where the base was trained so."""
        import torch

        from objtune_cli.models.conditioning import Conditioning

        if model.options.get("zero_empty"):
            has_text = torch.tensor([bool(text) for text in texts], device=sequence.device)
            sequence, pooled = sequence * has_text[:, None, None], pooled * has_text[:, None]
        return Conditioning(sequence, pooled).to(model.dtype)

    def encode_chunks(self, model: "BaseModel", ids: "Sequence[Tensor]") -> "list[tuple[Tensor, Tensor | None]]":
        """With both encoders."""
        return clip_text_encoders.encode_ids(model, ids)

    def join_chunks(
        self, model: "BaseModel", text: str, states: "Sequence[Tensor]", pooled: "Sequence[Tensor | None]"
    ) -> "Conditioning":
        """As `encode_prompt`."""
        import torch

        assert pooled[1] is not None
        return self._without_empty(model, [text], torch.cat(list(states), dim=-1), pooled[1])

    def pooled_size(self, model: "BaseModel") -> int:
        """The width of bigG's projection."""
        return int(model.text_encoder_2.config.projection_dim)

    def denoiser_kwargs(self, model: "BaseModel", condition: "Conditioning", height: int, width: int) -> dict[str, Any]:
        """Text features, pooled vectors and sizes: the original image had the size asked for, and nothing was cropped."""
        sizes = condition.sequence.new_tensor([[height, width, 0, 0, height, width]]).expand(len(condition), -1)
        return {
            "encoder_hidden_states": condition.sequence,
            "added_cond_kwargs": {"text_embeds": condition.pooled, "time_ids": sizes},
        }

    def build_pipeline(self, model: "BaseModel", scheduler: Any) -> Any:
        """Without a watermark, because the pipeline returns latents."""
        from diffusers import StableDiffusionXLPipeline

        return StableDiffusionXLPipeline(
            vae=model.vae, text_encoder=None, text_encoder_2=None, tokenizer=None, tokenizer_2=None, unet=model.denoiser,
            scheduler=scheduler, force_zeros_for_empty_prompt=False, add_watermarker=False,
        )  # fmt: skip

    def callback_kwargs(
        self, model: "BaseModel", condition: "Conditioning", height: int, width: int
    ) -> "dict[str, Tensor | None]":
        """With the pooled vectors and the sizes."""
        added = self.denoiser_kwargs(model, condition, height, width)["added_cond_kwargs"]
        return {
            "prompt_embeds": condition.sequence,
            "add_text_embeds": added["text_embeds"],
            "add_time_ids": added["time_ids"],
        }


SDXL = _SDXL()
