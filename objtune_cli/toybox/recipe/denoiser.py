"""Train the denoiser: v-prediction in latent space with the text encoder's conditioning, zero terminal SNR."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from objtune_cli.models import precision
from objtune_cli.toybox.recipe.dataset import HELD_BACK, ToyboxDataset
from objtune_cli.toybox.recipe.presets import Preset
from objtune_cli.toybox.recipe.train_loop import Plan, fit
from objtune_cli.toybox.recipe.vae import to_unit
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


@torch.no_grad()
def latents(work: Path, data: ToyboxDataset, vae) -> np.ndarray:
    """Latents of every training image, (N, h, w, C) in half precision, cached in the work folder."""
    file = work / "data" / "latents.npy"
    if not file.exists():
        rows = [
            vae.encode(to_unit(data.pictures[i : i + 32])).latent_dist.mean.permute(0, 2, 3, 1)
            for i in range(0, len(data.pictures), 32)
        ]
        array = (torch.cat(rows) * vae.config.scaling_factor).half().numpy()
        partial = file.with_name("latents.partial.npy")
        np.save(partial, array)
        partial.replace(file)
    return np.load(file)


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
    noise_levels = scheduler().alphas_cumprod
    bank = latents(work, data, vae)
    usable = len(bank) - HELD_BACK
    pairs = np.flatnonzero(data.labels[:usable, 1, 0] >= 0)
    text_model = clip.text_model.requires_grad_(False).eval().to(device)
    half = device == "cuda" or (device == "cpu" and precision.processor_has_bf16())
    if half and device == "cpu":
        precision.run_norms_in_float32(unet)

    def losses(step: int, g: torch.Generator) -> dict[str, Tensor]:
        rows = _sample_rows(usable, pairs, preset.denoiser_batch, g)
        texts = _sample_texts([data.captions[row] for row in rows], preset.captions, g)
        z = torch.from_numpy(bank[rows]).float().permute(0, 3, 1, 2)
        noise = torch.randn(z.shape, generator=g)
        t = _sample_timesteps(len(rows), g)
        a = noise_levels[t].sqrt().view(-1, 1, 1, 1)
        s = (1 - noise_levels[t]).sqrt().view(-1, 1, 1, 1)
        cover = torch.from_numpy(data.masks[rows]).float()[:, None] / 255
        weight = 1 + OBJECT_WEIGHT * F.max_pool2d(cover, 3, 1, 1)
        x = (a * z + s * noise).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device, torch.bfloat16, enabled=half):
            features = _encode(text_model, tokenizer, texts, preset.tokens, device)
            v = unet(x.to(device), t.to(device), features).sample
        error = (v.float() - (a * noise - s * z).to(device)).square()
        weight = weight.to(device)
        return {"v": (error * weight / weight.mean()).mean()}

    plan = Plan(preset.denoiser_steps, preset.denoiser_lr, ema=0.9985, seed=preset.seed, save_every=300)
    show = (lambda step: sample(unet, step)) if sample else None
    unet = fit("denoiser", unet, losses, plan, work, sample=show, device=device)
    text_model.to("cpu")
    return unet


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


def _sample_timesteps(count: int, g: torch.Generator) -> Tensor:
    """Timesteps (count,): half of them in `FOCUS`, where samples started from true latents lose most identity."""
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
