"""The sizes of the recipe, with all numbers that the base depends on."""

from dataclasses import dataclass, replace
from typing import Literal

from objtune_cli.toybox.recipe.optimizers import OptimizerName
from objtune_cli.toybox.world import DIALS, Dial

Weighting = Literal["focus", "min-snr"]


@dataclass(frozen=True, slots=True)
class Preset:
    """One way to train the base.

    Attributes:
        dial: Name of the world's difficulty in `DIALS`.
        size: Side of the images, px. factor: Pixels per latent cell.
        pictures, captions: Number of rendered training images, and of captions per image.
        vae_channels, latent_channels: Widths of the VAE.
        width, depth, heads, tokens: CLIP's hidden size, layers, heads, maximum number of tokens.
        patch: Side of the vision encoder's patches, px.
        unet_channels, unet_attention: Denoiser widths, and whether each level attends to the text.
        start: Folder of a published, smaller base whose weights are the start; "" for none.
        *_steps, *_batch, *_lr: Optimizer steps, batch size and peak learning rate of each part.
        *_decay: Last fraction of a part's steps, in which the learning rate falls.
        vae_kl: Weight of the KL divergence of the latents. vae_crops: Random crops of which the one with most of an object is used.
        decoder_steps: Steps of the VAE's decoder alone, after the latents are final.
        denoiser_weighting: Weights of the noise levels: "focus" takes half of the samples from the middle levels, "min-snr" is
            arXiv:2303.09556 with gamma 5 for v-prediction.
        evaluator_instances: Objects that the evaluator is trained on.
    """

    dial: str
    size: int
    pictures: int
    captions: int
    vae_channels: tuple[int, ...]
    latent_channels: int
    width: int
    depth: int
    heads: int
    tokens: int
    patch: int
    unet_channels: tuple[int, ...]
    unet_attention: tuple[bool, ...]
    vae_steps: int
    text_steps: int
    vision_steps: int
    denoiser_steps: int
    vae_batch: int = 16
    text_batch: int = 96
    vision_batch: int = 64
    denoiser_batch: int = 20
    vae_lr: float = 2e-3
    text_lr: float = 1e-3
    vision_lr: float = 1e-3
    denoiser_lr: float = 1e-3
    segmenter_steps: int = 8_000
    segmenter_batch: int = 16
    segmenter_lr: float = 1e-3
    cutouts_steps: int = 1_500
    cutouts_lr: float = 5e-4
    vae_kl: float = 1e-3
    vae_crops: int = 1
    vae_decay: float = 0.5
    decoder_steps: int = 0
    denoiser_decay: float = 0.25
    denoiser_optimizer: OptimizerName = "adamw"
    denoiser_weighting: Weighting = "focus"
    evaluator_instances: int = 12_000
    evaluator_steps: int = 4_400
    evaluator_lr: float = 1.5e-3
    seed: int = 1
    start: str = ""

    @property
    def world(self) -> Dial:
        return DIALS[self.dial]

    @property
    def factor(self) -> int:
        return 2 ** (len(self.vae_channels) - 1)


CPU = Preset(
    dial="medium", size=128, pictures=48_000, captions=4,
    vae_channels=(16, 16, 32, 64), latent_channels=8,
    width=128, depth=3, heads=4, tokens=32, patch=16,
    unet_channels=(64, 128, 192), unet_attention=(False, True, True),
    vae_steps=4_000, text_steps=1_600, vision_steps=6_000, denoiser_steps=24_000,
)  # fmt: skip
"""Two cores; the shipped base took 18,500 of these denoiser steps."""

MARKED = replace(
    CPU,
    dial="marked",
    latent_channels=16,
    vae_steps=5_000,
    vae_batch=8,
    vae_lr=1e-3,
    vae_kl=1e-4,
    vae_crops=4,
    vision_steps=3_000,
    denoiser_steps=20_000,
    denoiser_decay=0.4,
    text_steps=400,
    text_lr=2e-4,
    evaluator_instances=4_800,
    evaluator_steps=3_000,
    evaluator_lr=1e-3,
)
"""Objects with unnamed marks, started from the shipped base (`--start`).

The text encoder is hardly trained, because the words are the same. Sixteen latent channels show the marks, which eight blur.
On one core the denoiser takes about four hours.
"""

GPU = Preset(
    dial="full", size=128, pictures=200_000, captions=4,
    vae_channels=(32, 64, 96, 128), latent_channels=8,
    width=192, depth=4, heads=6, tokens=32, patch=16,
    unet_channels=(96, 192, 256), unet_attention=(False, True, True),
    vae_steps=8_000, text_steps=3_000, vision_steps=8_000, denoiser_steps=16_000,
    vae_batch=64, text_batch=256, vision_batch=256, denoiser_batch=384,
    vae_lr=1e-3, denoiser_lr=8e-4,
)  # fmt: skip
"""One data-centre GPU; not yet run."""

PRESETS = {"cpu": CPU, "marked": MARKED, "gpu": GPU}
