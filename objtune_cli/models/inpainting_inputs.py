"""The further inputs of an inpainting model's denoiser: a mask, and the latents of the picture without what is behind it.

The denoiser of an inpainting checkpoint takes latents, mask and masked latents side by side (4 + 1 + 4 channels for Stable Diffusion). A hook adds
them to the latents of every call, so that samplers, guidance and checks call it like any other denoiser. By default the mask covers everything, as in
a quarter of the training of SD 1.5 inpainting, and the model draws as a text-to-image model does.
"""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from objtune_cli.models.base_model import BaseModel


class InpaintingInputs:
    """Adds mask and masked latents to the calls of a model's denoiser."""

    def __init__(self, model: "BaseModel") -> None:
        self._model = model
        self._added: Tensor | None = None
        self._blank: dict[tuple[int, int], Tensor] = {}
        model.denoiser.register_forward_pre_hook(self._add, with_kwargs=True)

    @contextlib.contextmanager
    def fill(self, picture: Tensor, mask: Tensor) -> Iterator[None]:
        """Inside, the denoiser fills the masked part of a picture.

        Args:
            picture: (1, 3, H, W) in [-1, 1]. mask: (H, W), 1 where it is filled and 0 elsewhere.
        """
        before, self._added = self._added, self._encode(picture, mask)
        try:
            yield
        finally:
            self._added = before

    @torch.no_grad()
    def _encode(self, picture: Tensor, mask: Tensor) -> Tensor:
        """Mask and masked latents, (1, 1 + C, h, w), float32."""
        hidden = mask[None, None].to(picture) >= 0.5
        latents = self._model.encode_image(picture * ~hidden).float()
        cells = F.interpolate(hidden.float(), size=latents.shape[-2:])
        return torch.cat([cells.to(latents), latents], 1)

    def _for_size(self, height: int, width: int) -> Tensor:
        """What is added to latents of a size: that of `fill`, or else a mask over everything."""
        if self._added is not None and self._added.shape[-2:] == (height, width):
            return self._added
        if (height, width) not in self._blank:
            factor = self._model.vae_scale_factor
            grey = torch.zeros(1, 3, height * factor, width * factor)
            self._blank[height, width] = self._encode(grey, torch.ones(grey.shape[-2:]))
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
