"""Draw an object into the region of a picture, by the object's own adapter on any base.

1. Draft: the crop around the region is noised and sampled again. Latent cells outside follow the picture at every noise level (differential diffusion,
   arXiv:2306.00950), so that the object gets the light of its surroundings.
2. The object is cut out of the draft and put on the untouched background, as large as its region.
3. Harmonise: the object and a thin border around it are sampled again from a middle noise level (SDEdit, arXiv:2108.01073), in that background.

A text-to-image base draws its own background around an object; only the object's pixels leave the draft. The combination is ours.
An inpainting model sees the crop without the region, and fills it in the light of its surroundings; its one pass is then enough.
A model that edits by an instruction sees the whole crop; step 1 keeps the surroundings.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from objtune_cli.composition.object_loras import single_lora
from objtune_cli.generation.sampling import resample, sample, to_uint8
from objtune_cli.generation.settings import SamplingSettings
from objtune_cli.models.base_model import BaseModel
from objtune_cli.models.picture_inputs import PictureInputs
from objtune_cli.placement.crops import CroppedRegion

CutOut = Callable[[np.ndarray, tuple[float, float, float, float]], np.ndarray]
"""Image (s, s, 3) uint8 and box px to the mask of the object in the box, (s, s) bool."""
OUTLINE_SHARES = (0.04, 0.97)
"""Least and greatest fraction of the region's box that an object may cover; outside them its mask is not used."""
HARMONISE_SEED = 6151
"""Distance between the seeds of a draft and of its harmonisation."""


@dataclass(frozen=True, slots=True)
class Inpainter:
    """Samples the region of a picture.

    Attributes:
        weights: LoRA tensors of the object. prompt: Its prompt, with its placeholder written as tokens.
        change: Fraction of the noise schedule that the draft is sampled from, in (0, 1].
        harmonize: The same of the second pass; 0: the cut-out draft remains as it is.
        cut_out: Finds the object in a draft; None: the whole region is sampled once and replaced.
    """

    model: BaseModel
    region: CroppedRegion
    weights: Mapping[str, Tensor]
    prompt: str
    change: float
    harmonize: float
    sampling: SamplingSettings
    cut_out: CutOut | None = None

    def sample(self, seeds: Sequence[int], on_step: Callable[[int, int], None]) -> tuple[Tensor, Tensor]:
        """New versions of the crop, one per seed.

        Returns:
            Scaled latents (N, C, h, w), float32; and the weight of each new crop at each pixel, (N, s, s) uint8. Both on the CPU.
        """
        passes = 2 if self.cut_out and self.harmonize else 1
        whole = self.region.region_map()
        background = encode(self.model, self.region.background[None]).expand(len(seeds), -1, -1, -1)
        change_map = self.region.draft_map() if self.cut_out else whole
        first = self._resample(
            background,
            seeds,
            self.change,
            change_map,
            lambda done, all: on_step(done, passes * all),
            self.region.background,
        )
        if self.cut_out is None:
            return first, _to_bytes([whole > 0] * len(seeds))
        images, outlines = [], []
        for draft in decode(self.model, first):
            image, outline = self._place(draft)
            images.append(image)
            outlines.append(outline)
        shares = [self.region.object_map(outline) for outline in outlines]
        latents = encode(self.model, np.stack(images))
        if not self.harmonize:
            return latents, _to_bytes(shares)
        parts = [
            self._resample(
                latents[i : i + 1],
                [seed + HARMONISE_SEED],
                self.harmonize,
                shares[i],
                lambda done, all: None,
                images[i],
            )
            for i, seed in enumerate(seeds)
        ]
        return torch.cat(parts), _to_bytes(shares)

    def _place(self, draft: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The crop with the draft's object in the background, and the object's coverage; the whole draft if no object is found in it."""
        assert self.cut_out is not None
        x0, y0, x1, y1 = self.region.draft_box
        outline = self.cut_out(draft, self.region.draft_box)
        share = float(outline.sum()) / max(1.0, (x1 - x0) * (y1 - y0))
        if OUTLINE_SHARES[0] < share and outline.mean() < OUTLINE_SHARES[1]:
            return self.region.insert(draft, outline)
        return draft, (self.region.region_map() > 0).astype(np.float32)

    def _resample(
        self,
        latents: Tensor,
        seeds: Sequence[int],
        strength: float,
        change: np.ndarray,
        on_step: Callable[[int, int], None],
        picture: np.ndarray,
    ) -> Tensor:
        """New versions of latents (N, C, h, w), one per seed.

        Args:
            strength: Fraction of the noise schedule. change: Change map, (s, s) in [0, 1].
            picture: What the latents are of, (s, s, 3) uint8; an inpainting model sees it without what changes, an editing model whole.
        """
        inputs = self.model.picture_inputs
        if inputs is not None and inputs.keeps_surroundings:
            return self._fill(inputs, latents, seeds, strength, change, on_step, picture)
        cells = (latents.shape[-2], latents.shape[-1])
        change_map = F.adaptive_avg_pool2d(torch.from_numpy(np.ascontiguousarray(change))[None, None], cells)[0, 0]
        mask = torch.from_numpy((change > 0).astype(np.float32))
        seen = inputs.show(to_pixels(picture[None]), mask) if inputs else contextlib.nullcontext()
        with seen, single_lora(self.model, self.weights):
            return resample(self.model, latents, self.prompt, list(seeds), strength, self.sampling, on_step, change_map)

    def _fill(
        self,
        inputs: PictureInputs,
        latents: Tensor,
        seeds: Sequence[int],
        strength: float,
        change: np.ndarray,
        on_step: Callable[[int, int], None],
        picture: np.ndarray,
    ) -> Tensor:
        """`_resample` with an inpainting model; all that may change changes alike."""
        mask = torch.from_numpy((change > 0).astype(np.float32))
        with inputs.show(to_pixels(picture[None]), mask), single_lora(self.model, self.weights):
            if strength < 1:
                return resample(self.model, latents, self.prompt, list(seeds), strength, self.sampling, on_step)
            settings = replace(self.sampling, height=len(picture), width=len(picture))
            return sample(self.model, self.prompt, list(seeds), settings, on_step)


def to_pixels(images: np.ndarray) -> Tensor:
    """Images (N, s, s, 3) uint8 as (N, 3, s, s) in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.no_grad()
def encode(model: BaseModel, images: np.ndarray) -> Tensor:
    """Scaled latents (N, C, h, w), float32, on the CPU, of images (N, s, s, 3) uint8."""
    latents: Tensor = model.encode_image(to_pixels(images)).float().cpu()
    return latents


@torch.no_grad()
def decode(model: BaseModel, latents: Tensor) -> np.ndarray:
    """Images (N, s, s, 3) uint8 of scaled latents."""
    return to_uint8(model.decode_latents(latents).cpu()).numpy()


def blend(model: BaseModel, region: CroppedRegion, latents: Tensor, shares: Tensor) -> np.ndarray:
    """The pictures (N, H, W, 3) uint8 with the new crops in them; arguments as `Inpainter.sample` returns them."""
    weights = shares.numpy().astype(np.float32) / 255
    return np.stack([region.blend(each, share) for each, share in zip(decode(model, latents), weights, strict=True)])


def _to_bytes(shares: Sequence[np.ndarray]) -> Tensor:
    return torch.from_numpy((np.stack(shares).astype(np.float32) * 255).round().astype(np.uint8))
