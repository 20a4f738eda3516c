"""Stable Diffusion 1.x: CLIP ViT-L as text encoder, epsilon prediction, 512 px. The embedded toybox has this layout."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from objtune_cli.models.families.family import Family


class _SD1(Family):
    name = "sd1"
    title = "Stable Diffusion 1.x"
    hub: ClassVar = {
        "sd15": ("stable-diffusion-v1-5/stable-diffusion-v1-5", "451f4fe16113bff5a5d2269ed5ad43b0592e9a14")
    }
    clip_models = ("openai/clip-vit-large-patch14",)
    licence = ("creativeml-openrail-m", "https://huggingface.co/spaces/CompVis/stable-diffusion-license")

    def matches(self, pipeline: str, config: Callable[[str], Mapping[str, Any]]) -> bool:
        """CLIP ViT-L has the activation `quick_gelu`, OpenCLIP models do not."""
        return pipeline == self.pipeline and config("text_encoder").get("hidden_act", "quick_gelu") == "quick_gelu"


SD1 = _SD1()
