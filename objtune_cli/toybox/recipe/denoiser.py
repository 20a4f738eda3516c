"""Train the denoiser: v-prediction in latent space with the text encoder's conditioning, zero terminal SNR."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from objtune_cli.models import precision
from objtune_cli.toybox.recipe import latent_cache
from objtune_cli.toybox.recipe.dataset import HELD_BACK, ToyboxDataset
from objtune_cli.toybox.recipe.presets import Preset, Weighting
from objtune_cli.toybox.recipe.train_loop import Plan, fit
from objtune_cli.toybox.recipe.warm_start import load_start

NO_PROMPT = 0.1
"""Fraction of samples with the empty prompt, for classifier-free guidance."""
FULL_CAPTION = 0.5
"""Fraction of samples with the image's longest caption; only half of the others name patterns and accessories."""
PAIRS = 0.3
"""Additional fraction of samples from scenes of two objects, which the base learns last."""
FOCUS = (250, 850)
"""Range of timesteps of half of the samples."""
OBJECT_WEIGHT = 1.5
"""Extra loss weight of latent cells on objects, because shapes are learned later than backgrounds."""
MIN_SNR_GAMMA = 5.0


def build(preset: Preset):
    """An untrained `UNet2DConditionModel` of the preset's size."""
    from diffusers import UNet2DConditionModel

    names = [("CrossAttn" if attends else "") + "{}Block2D" for attends in preset.unet_attention]
    torch.manual_seed(preset.seed)
    network: Any = UNet2DConditionModel(
        sample_size=preset.size // preset.factor,
        in_channels=preset.latent_channels,
        out_channels=preset.latent_channels,
        down_block_types=tuple(n.format("Down") for n in names),
        up_block_types=tuple(n.format("Up") for n in reversed(names)),
        block_out_channels=preset.unet_channels,
        layers_per_block=1,
        cross_attention_dim=preset.width,
        attention_head_dim=4,  # diffusers reads this as the number of heads
        norm_num_groups=16,
        use_linear_projection=True,
    )
    return load_start(network, preset.start, "unet").to(memory_format=torch.channels_last)


def scheduler():
    """DDIM with zero terminal SNR, so that the mean colour of images can be learned."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        rescale_betas_zero_snr=True,
    )


def train(
    work: Path,
    preset: Preset,
    data: ToyboxDataset,
    tokenizer,
    clip,
    vae,
    sample: Callable | None = None,
    device: str = "cpu",
):
    """Train the denoiser; `sample` is called with it and the step at intervals."""
    unet = build(preset)
    examples = Examples(preset, data, latent_cache.load_or_encode(work, data, vae), tokenizer, clip, device)
    losses = examples.losses(unet)
    plan = Plan(
        preset.denoiser_steps, preset.denoiser_lr, decay=preset.denoiser_decay, ema=0.9985, seed=preset.seed,
        save_every=300, sample_every=3_600, optimizer=preset.denoiser_optimizer,
    )  # fmt: skip
    show = (lambda step: sample(unet, step)) if sample else None
    unet = fit("denoiser", unet, losses, plan, work, sample=show, device=device)
    examples.text_model.to("cpu")
    return unet


class Examples:
    """Noisy latents with their text features, and the loss of a denoiser on them.

    Attributes:
        bank: Latents (N, h, w, C) of the training images, then of the `HELD_BACK` images.
    """

    def __init__(self, preset: Preset, data: ToyboxDataset, bank: np.ndarray, tokenizer, clip, device: str) -> None:
        self.preset, self.data, self.bank, self.tokenizer, self.device = preset, data, bank, tokenizer, device
        self.usable = len(bank) - HELD_BACK
        self.pairs = np.flatnonzero(data.labels[: self.usable, 1, 0] >= 0)
        self.text_model: Any = clip.text_model.requires_grad_(False).eval().to(device)
        self.noise_levels = scheduler().alphas_cumprod
        self.half = device == "cuda" or (device == "cpu" and precision.processor_has_bf16())

    def losses(self, unet) -> Callable[[int, torch.Generator], dict[str, Tensor]]:
        """The training loss as a function of step and generator."""
        preset = self.preset
        if self.half and self.device == "cpu":
            precision.run_norms_in_float32(unet)

        def losses(step: int, g: torch.Generator) -> dict[str, Tensor]:
            rows = _sample_rows(self.usable, self.pairs, preset.denoiser_batch, g)
            texts = _sample_texts([self.data.captions[row] for row in rows], preset.captions, g)
            noise_shape = (len(rows), preset.latent_channels, *self.bank.shape[1:3])
            noise = torch.randn(noise_shape, generator=g)
            t = _sample_timesteps(len(rows), g, preset.denoiser_weighting)
            error, cover = self.squared_errors(unet, rows, rows, texts, noise, t)
            weight = 1 + OBJECT_WEIGHT * F.max_pool2d(cover, 3, 1, 1)
            weight = weight / weight.mean() * self._level_weights(t)
            return {"v": (error * weight.to(self.device)).mean()}

        return losses

    def squared_errors(
        self, unet, rows: Sequence[int], images: Sequence[int], texts: list[str], noise: Tensor, t: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Squared errors of v (B, C, h, w), and the cover of objects (B, 1, h, w) in [0, 1].

        Args:
            rows, images: Indices into the bank, and into the training set.
            noise: (B, C, h, w). t: Timesteps (B,).
        """
        z = torch.from_numpy(self.bank[list(rows)]).float().permute(0, 3, 1, 2)
        a = self.noise_levels[t].sqrt().view(-1, 1, 1, 1)
        s = (1 - self.noise_levels[t]).sqrt().view(-1, 1, 1, 1)
        x = (a * z + s * noise).contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device, torch.bfloat16, enabled=self.half):
            features = _encode(self.text_model, self.tokenizer, texts, self.preset.tokens, self.device)
            v = unet(x.to(self.device), t.to(self.device), features).sample
        error = (v.float() - (a * noise - s * z).to(self.device)).square()
        return error, torch.from_numpy(self.data.masks[list(images)]).float()[:, None] / 255

    def _level_weights(self, t: Tensor) -> Tensor:
        """Loss weights (B, 1, 1, 1) of the noise levels."""
        if self.preset.denoiser_weighting == "focus":
            return torch.ones(len(t), 1, 1, 1)
        return min_snr_weights(self.noise_levels).index_select(0, t).view(-1, 1, 1, 1)

    @torch.no_grad()
    def validate(self, unet, count: int, seed: int = 5) -> dict[str, float]:
        """Mean squared error of v on held-back images with fixed noise and timesteps evenly over [0, 1000).

        `v`: all latent cells. `v_object`: cells on objects. `v_high`, `v_middle`, `v_low`: thirds by noise level.
        """
        g = torch.Generator().manual_seed(seed)
        first = len(self.data.pictures) - HELD_BACK
        t = ((torch.arange(count) + 0.5) / count * 1000).long()
        noise = torch.randn((count, self.preset.latent_channels, *self.bank.shape[1:3]), generator=g)
        errors, objects = [], []
        for start in range(0, count, 32):
            part = range(start, min(start + 32, count))
            texts = [max(self.data.captions[first + i], key=len) for i in part]
            rows, images = [self.usable + i for i in part], [first + i for i in part]
            error, cover = self.squared_errors(unet, rows, images, texts, noise[part.start : part.stop], t[list(part)])
            error = error.mean(1, keepdim=True).cpu()
            errors.append(error.mean((1, 2, 3)))
            objects.append((error * cover).sum((1, 2, 3)) / cover.sum((1, 2, 3)).clamp_min(1e-6))
        e = torch.cat(errors)
        third = (t * 3).div(1000, rounding_mode="floor")
        thirds = {name: float(e[third == k].mean()) for k, name in enumerate(("v_low", "v_middle", "v_high"))}
        return {"v": float(e.mean()), "v_object": float(torch.cat(objects).mean()), **thirds}


def min_snr_weights(noise_levels: Tensor, gamma: float = MIN_SNR_GAMMA) -> Tensor:
    """Loss weights min(SNR, gamma) / (SNR + 1) of v-prediction for each timestep, scaled to mean 1 (arXiv:2303.09556, section 3.4)."""
    snr = noise_levels / (1 - noise_levels)
    weights = snr.clamp_max(gamma) / (snr + 1)
    return weights / weights.mean()


def _sample_rows(usable: int, pairs: np.ndarray, count: int, g: torch.Generator) -> list[int]:
    """Indices of images: uniform, and a fraction `PAIRS` from the scenes of two objects."""
    anywhere = torch.randint(usable, (count,), generator=g).tolist()
    among = torch.randint(max(1, len(pairs)), (count,), generator=g).tolist()
    doubled = (torch.rand(count, generator=g) < (PAIRS if len(pairs) else 0.0)).tolist()
    return [int(pairs[p]) if d else r for r, p, d in zip(anywhere, among, doubled, strict=True)]


def _sample_texts(captions: Sequence[Sequence[str]], count: int, g: torch.Generator) -> list[str]:
    """One of the `count` captions of each image, its longest caption, or the empty prompt."""
    pick = torch.randint(count, (len(captions),), generator=g).tolist()
    full = (torch.rand(len(captions), generator=g) < FULL_CAPTION).tolist()
    dropped = (torch.rand(len(captions), generator=g) < NO_PROMPT).tolist()
    return [
        "" if d else max(texts, key=len) if f else texts[k]
        for texts, k, f, d in zip(captions, pick, full, dropped, strict=True)
    ]


def _sample_timesteps(count: int, g: torch.Generator, weighting: Weighting = "focus") -> Tensor:
    """Timesteps (count,): with "focus", half of them in `FOCUS`, where samples started from true latents lose most identity."""
    if weighting == "min-snr":
        return torch.randint(0, 1000, (count,), generator=g)
    return torch.where(
        torch.rand(count, generator=g) < 0.5,
        torch.randint(0, 1000, (count,), generator=g),
        torch.randint(*FOCUS, (count,), generator=g),
    )


@torch.no_grad()
def _encode(text_model: Any, tokenizer: Any, texts: list[str], length: int, device: str) -> Tensor:
    """Text features (B, length, d)."""
    ids = tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    return text_model(input_ids=ids.input_ids.to(device)).last_hidden_state
