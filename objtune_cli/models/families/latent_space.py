"""The latents of a family: the VAE, their size and channels, and how they are normalised; the defaults are those of Stable Diffusion."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from objtune_cli.models.families.component_loading import load_component

if TYPE_CHECKING:
    from torch import Tensor


class LatentSpace:
    """The latents of a family of base models.

    Attributes:
        vae_class: The VAE's class in diffusers.
        default_latent_size: Side of the latents of training images, in cells, if the denoiser's config has none.
    """

    vae_class: ClassVar[str] = "AutoencoderKL"
    default_latent_size: ClassVar[int] = 64

    def load_vae(self, folder: Path, part: str) -> Any:
        """Load the VAE in the folder `part` of a base."""
        import diffusers

        return load_component(getattr(diffusers, self.vae_class), folder, part)

    def vae_dtype(self, dtype: Any) -> Any:
        """Number format of the VAE if the denoiser has `dtype`."""
        return dtype

    def latent_channels(self, denoiser: Any) -> int:
        """Number of channels of the latents, from the denoiser's config."""
        return int(denoiser.out_channels)

    def latent_channels_of_vae(self, vae: Mapping[str, Any]) -> int:
        """Number of channels of the latents, from the VAE's config."""
        return int(vae.get("latent_channels") or 4)

    def cell_size(self, vae: Mapping[str, Any]) -> int:
        """Pixels per latent cell along one side, from the VAE's config."""
        return int(2 ** (len(vae.get("block_out_channels") or (64,)) - 1))

    def training_side(self, denoiser: Mapping[str, Any], vae: Mapping[str, Any]) -> int:
        """Side of the training images in latent cells, from the configs."""
        side = denoiser.get("sample_size")
        return int((side[0] if isinstance(side, list | tuple) else side) or self.default_latent_size)

    def normalise_latents(self, vae: Any, mean: "Tensor", std: "Tensor") -> "tuple[Tensor, Tensor]":
        """Mean and standard deviation of the VAE's posterior as those of latents, each (B, C, h, w)."""
        scale = vae.config.scaling_factor
        return (mean - float(vae.config.get("shift_factor") or 0)) * scale, std * scale

    def denormalise_latents(self, vae: Any, latents: "Tensor") -> "Tensor":
        """What the VAE decodes, for latents (B, C, h, w); the inverse of `normalise_latents`."""
        scaled: Tensor = latents / vae.config.scaling_factor + float(vae.config.get("shift_factor") or 0)
        return scaled
