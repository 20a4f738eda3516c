"""How a family is sampled by pipelines of diffusers; the defaults are those of Stable Diffusion 1.x."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from objtune_cli.models.base_model import BaseModel
    from objtune_cli.models.conditioning import Conditioning


class DiffusersPipeline:
    """The pipeline of a family, and what it is called with."""

    def build_pipeline(self, model: "BaseModel", scheduler: Any) -> Any:
        """Build the pipeline of diffusers from loaded components; it takes `pipeline_kwargs`."""
        from diffusers import StableDiffusionPipeline

        if scheduler.config.get("steps_offset", 1) != 1:  # the pipeline would set it too, with a warning
            scheduler.register_to_config(steps_offset=1)
        return StableDiffusionPipeline(
            vae=model.vae, text_encoder=None, tokenizer=None, unet=model.denoiser, scheduler=scheduler, safety_checker=None,
            feature_extractor=None, requires_safety_checker=False,
        )  # fmt: skip

    def pipeline_kwargs(self, condition: "Conditioning", negative: "Conditioning") -> dict[str, Any]:
        """Arguments of the pipeline: the encoded prompts and negative prompts, B each."""
        kwargs: dict[str, Any] = {"prompt_embeds": condition.sequence, "negative_prompt_embeds": negative.sequence}
        if condition.pooled is not None:
            kwargs |= {"pooled_prompt_embeds": condition.pooled, "negative_pooled_prompt_embeds": negative.pooled}
        return kwargs

    def diffusers_prompt(self, pipe: Any, prompt: str, class_prompt: str) -> dict[str, Any]:
        """Arguments of diffusers' own pipeline for a prompt with tokens such as `<rex>`, and the same prompt in class words."""
        return {"prompt": prompt}

    def diffusers_guidance(self, scale: float) -> float:
        """The guidance scale of diffusers' own pipeline that is `scale` here."""
        return scale

    def callback_kwargs(
        self, model: "BaseModel", condition: "Conditioning", height: int, width: int
    ) -> "dict[str, Tensor | None]":
        """Variables that a step callback must set to change the conditioning inside the pipeline's loop.

        Args:
            condition: Of the batch of a denoiser call: under classifier-free guidance the negative prompts come first.
            height, width: Size of the images, px.
        """
        return {"prompt_embeds": condition.sequence}
