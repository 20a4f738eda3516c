"""The further inputs of a denoiser that takes a picture beside the latents: models that fill a region, or edit a picture.

The denoiser of an inpainting checkpoint takes latents, mask and masked latents side by side (4 + 1 + 4 channels for Stable Diffusion); that of a
model that edits by an instruction (InstructPix2Pix, arXiv:2211.09800) latents and the picture's latents (4 + 4). A hook adds them to the latents of
every call, so that samplers, guidance and checks call it like any other denoiser.
"""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from objtune_cli.models.base_model import BaseModel


class PictureInputs:
    """Adds a picture's latents to the calls of a model's denoiser.

    Without a picture they are zero, as in a part of the training of InstructPix2Pix. The picture is in both halves of classifier-free guidance:
    the guidance of that method with an image scale of 1.
    """

    keeps_surroundings = False
    """Whether the denoiser knows which part of the picture stays."""

    def __init__(self, model: "BaseModel") -> None:
        self._model = model
        self._added: Tensor | None = None
        self._blank: dict[tuple[int, int], Tensor] = {}
        model.denoiser.register_forward_pre_hook(self._add, with_kwargs=True)

    @contextlib.contextmanager
    def show(self, picture: Tensor, mask: Tensor) -> Iterator[None]:
        """Inside, the denoiser sees a picture.

        Args:
            picture: (1, 3, H, W) in [-1, 1]. mask: (H, W), 1 where it may change and 0 elsewhere.
        """
        before, self._added = self._added, self._encode(picture, mask)
        try:
            yield
        finally:
            self._added = before

    @torch.no_grad()
    def _encode(self, picture: Tensor, mask: Tensor) -> Tensor:
        """What is added for a picture, (1, K, h, w), float32. These models take latents as the VAE gives them, without its scaling factor."""
        return self._model.family.denormalise_latents(self._model.vae, self._model.encode_image(picture))

    def _make_blank(self, height: int, width: int) -> Tensor:
        """What is added without a picture, (1, K, h, w), for latents of a size."""
        return torch.zeros(1, self._model.latent_channels, height, width)

    def _for_size(self, height: int, width: int) -> Tensor:
        """What is added to latents of a size: that of `show`, or else the blank."""
        if self._added is not None and self._added.shape[-2:] == (height, width):
            return self._added
        if (height, width) not in self._blank:
            self._blank[height, width] = self._make_blank(height, width)
        return self._blank[height, width]

    def _add(
        self, denoiser: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        latents = args[0] if args else kwargs["sample"]
        if (
            latents.shape[1] != denoiser.config.out_channels
        ):  # a hook of guidance calls again with what it was called with
            return args, kwargs
        added = self._for_size(*latents.shape[-2:]).to(latents).expand(len(latents), -1, -1, -1)
        latents = torch.cat([latents, added], 1)
        return ((latents, *args[1:]), kwargs) if args else (args, kwargs | {"sample": latents})


class InpaintingInputs(PictureInputs):
    """Adds a mask and the latents of the masked picture.

    Without a picture the mask covers everything, as in a quarter of the training of SD 1.5 inpainting, and the model draws as a text-to-image model does.
    """

    keeps_surroundings = True

    @torch.no_grad()
    def _encode(self, picture: Tensor, mask: Tensor) -> Tensor:
        hidden = mask[None, None].to(picture) >= 0.5
        latents = self._model.encode_image(picture * ~hidden).float()
        cells = F.interpolate(hidden.float(), size=latents.shape[-2:])
        return torch.cat([cells.to(latents), latents], 1)

    def _make_blank(self, height: int, width: int) -> Tensor:
        factor = self._model.vae_scale_factor
        grey = torch.zeros(1, 3, height * factor, width * factor)
        return self._encode(grey, torch.ones(grey.shape[-2:]))
